"""The README's example runs and prints what the README says, and its line for the paper's own job is that job."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from tiny import one_line, run

from psi_fast.config import read_toml
from psi_fast.networks import load_network

README = Path(__file__).resolve().parents[1] / "README.md"


def test_example_prints_what_the_readme_shows() -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code, shown = found.groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {})
    told, seen = printed.getvalue().split(), shown.split()
    assert len(told) == len(seen)
    for a, b in zip(told, seen, strict=True):
        try:  # another processor may round the last digit differently
            assert abs(float(a) - float(b)) <= 0.02 * max(1.0, abs(float(b)))
        except ValueError:
            assert a == b
    assert len(code.strip().splitlines()) <= 18


def test_the_papers_own_job_is_a_line_and_a_file_that_is_understood(capsys):
    file = README.parent / "examples" / "resnet50.toml"
    assert read_toml(file) == {
        "network": "torchvision:resnet50",
        "layer": ["layer3", "layer4"],
        "encoder": "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "vocabulary": "open-1602",
        "top_k": 100,
        "draws": 1000,
    }
    layers = dict(load_network("torchvision:resnet50@none").module.named_modules())
    assert {"layer3", "layer4"} <= layers.keys()
    assert "laion2b_s34b_b79k" in pytest.importorskip("open_clip").list_pretrained_tags_by_model("ViT-B-32")
    assert "psi-fast score --config examples/resnet50.toml --images" in README.read_text(encoding="utf-8")
    assert run("score", "--config", file, "--network", "tiny:network", "--images", "no such folder", "--out", "x") == 2
    assert "layer3" in one_line(capsys)  # the tiny network has no such layer; all before it was taken
