"""The benchmark of a report: its channels have patches of their own, and all files of the report are counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from psi_fast import store

pytest.importorskip("jinja2")
pytest.importorskip("vl_convert")
pytest.importorskip("markdown_it")


def measured(*arguments):
    """What the benchmark prints, run in a process of its own: a browser that the tests hold open allows no second one."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "report.py"
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_run_is_made_once_and_its_report_measured(tmp_path):
    images, out = tiny.write_pictures(tmp_path / "images", 40), tmp_path / "found.json"
    arguments = ["--images", images, "--run", tmp_path / "run", "--channels", 20, "--top-k", 12, "--json", out]
    measured(*arguments)
    made = (tmp_path / "run" / "manifest.json").stat().st_mtime_ns
    printed = measured(*arguments)
    assert (tmp_path / "run" / "manifest.json").stat().st_mtime_ns == made
    found = json.loads(out.read_text())
    assert json.dumps(found, indent=2) in printed
    assert (found["channels"], found["patches"]) == (20, 240)
    patches = store.load(tmp_path / "run").patches
    boxes = {(image, *box) for image, box in zip(patches["image"], patches["box"], strict=True)}
    assert len(boxes) > 220
    kinds = found["bytes"]
    assert kinds["all"] == sum(size for name, size in kinds.items() if name != "all")
    assert kinds["all"] == sum(p.stat().st_size for p in (tmp_path / "run" / "report").rglob("*") if p.is_file())
    assert {"patches.webp", "strip.webp", "images.webp", "channels.js"} <= set(kinds)
    assert found["seconds"]["all"] >= found["seconds"]["patches"] > 0
    assert found["peak_memory_mib"] > 50
    seen = found["browser"]
    if seen or os.environ.get("CI"):  # a machine may have no browser, but never the one that decides
        for page in ("overview", "table", "channel"):
            assert 0 < seen[f"{page} opened"] <= seen[f"{page} drawn"]
        assert kinds[".html"] < seen["table bytes"] < seen["overview bytes"]  # which draws charts
        assert seen["channel bytes"] > kinds["patches.webp"]
