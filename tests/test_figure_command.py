"""`psi-fast figure`: every figure by its name, the same bytes each time, and one line for what is wrong."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_stored import LAYERS, two_layers, with_swaps

import psi_fast
from psi_fast.errors import InputError
from psi_fast.figures import CHANNELS, COMPARISONS, OVERVIEWS, PICTURES, RUNS
from psi_fast.figures.commands import figure_commands

CHANNEL = 7
FIGURES = OVERVIEWS | RUNS | CHANNELS | PICTURES | COMPARISONS
REPORT = {
    "chart-log-psi": "log-psi",
    "chart-log-odds": "log-odds",
    "chart-components": "components",
    "chart-layers": "layers",
    "chart-flags": "flags",
    "chart-seconds": "seconds",
    "chart-ranks": "compare",
    "chart-compare": "compare",
    "${component}": "nulls",
    "Silhouettes": "silhouettes",
    "Map of the patches": "map",
    "Activations": "activations",
    "Patch swap": "swaps",
    "Nearest concepts": "concepts",
    "Classes": "classes",
    "Cluster ${number_ + 1}": "clusters",
}
"""What the report draws -> the figure of it: places in its page, and titles on a channel's."""


@pytest.fixture(scope="module")
def details(pictures, tmp_path_factory):
    return two_layers(tmp_path_factory.mktemp("command") / "run", pictures)


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_the_command_writes_the_same_bytes_twice(details, kind, tmp_path, capsys):
    starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    for name in ("a", "b"):
        out = tmp_path / "new" / f"{name}.{kind}"
        assert tiny.run("figure", "nulls", details.folder, "--channel", "3/2", "--out", out) == 0
        assert capsys.readouterr().out == f"figure: {out}\n"
    first, second = ((tmp_path / "new" / f"{name}.{kind}").read_bytes() for name in "ab")
    assert first == second
    assert first.startswith(starts[kind])


@pytest.mark.parametrize("name", list(figure_commands()))
def test_each_figure_has_a_command(details, name, tmp_path, monkeypatch):
    out = tmp_path / "x.svg"
    more = () if name in OVERVIEWS | RUNS else (details.folder,) if name in COMPARISONS else ("--channel", "3/2")
    if name == "swaps":
        monkeypatch.setattr("psi_fast.figures.commands.open_details", lambda _: with_swaps(details, CHANNEL)[0])
    assert tiny.run("figure", name, details.folder, *more, "--out", out) == 0
    drawn = out.read_text()
    assert "<svg" in drawn
    if name in OVERVIEWS:
        assert tiny.run("figure", name, details.folder, "--layer", "3", "--out", out) == 0
        assert "layer 1" not in out.read_text()


def test_help_lists_every_figure_with_a_line(capsys):
    assert tiny.run("figure", "--help") == 0
    told = " ".join(re.sub(r"[│•]", " ", capsys.readouterr().out).split())
    for name, draw in FIGURES.items():
        first = " ".join(draw.__doc__.splitlines()[0].split())
        assert f"{name} {first}" in told


def test_the_page_describes_every_figure():
    page = (Path(__file__).resolve().parents[1] / "docs" / "figures.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", page, re.MULTILINE))
    kinds = (("a run", OVERVIEWS | RUNS), ("a channel", CHANNELS | PICTURES), ("two runs", COMPARISONS))
    assert told == {name: kind for kind, figures in kinds for name in figures}


def test_each_chart_of_the_report_is_a_figure():
    report = Path(psi_fast.__file__).parent / "report"
    page = (report / "templates" / "index.html.jinja").read_text(encoding="utf-8")
    channel = (report / "assets" / "channel.js").read_text(encoding="utf-8")
    charts = re.findall(r"wanted\.push\(\[[\"`](\$\{component\}|[^\"`]+)", channel)
    assert len(charts) == len(re.findall(r"charts\.(?!draw)\w+\(", channel))  # none was overlooked
    lists = re.findall(r"list\(\"(.+?) \(", channel) + re.findall(r"\"h3\", \{\}, cluster \? `(.+?)`", channel)
    assert {*re.findall(r"id=\"(chart-[\w-]+)\"", page), *charts, *lists} == set(REPORT)
    assert set(REPORT.values()) == set(FIGURES)


def test_wrong_words_end_in_one_line(details, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.svg"
    (tmp_path / "file").write_text("")
    for words, told in (
        (("nuls", details.folder), r"got 'nuls'; nearest: 'nulls'"),
        (("nulls", details.folder, "--out", out), r"--channel"),
        (
            ("nulls", details.folder, "--channel", "3/2", "--out", "x.jpg"),
            r"--out must end in .pdf, .svg or .png, got 'x.jpg'",
        ),
        (("nulls", details.folder, "--channel", "3/99", "--out", out), r"has no channel 99; it has 6, from 0 to 5"),
        (("flags", details.folder, "--layer", "33", "--out", out), r"has no layer '33'; nearest: '3'"),
        (("flags", tmp_path, "--out", out), r"holds no finished run"),
        (
            ("flags", details.folder, "--out", tmp_path / "file" / "x.svg"),
            r"cannot write .*; choose another file for --out",
        ),
    ):
        assert tiny.run("figure", *words) == 2
        assert re.search(told, tiny.one_line(capsys))
    assert not out.exists()
    monkeypatch.setattr("psi_fast.figures.commands.find_spec", lambda _: None)
    assert tiny.run("figure", "flags", details.folder, "--out", out) == 2
    assert 'pip install "psi-fast[experiments]"' in tiny.one_line(capsys)


@pytest.mark.parametrize("name", ["log-psi", "log-odds"])
def test_a_layer_without_any_score_is_told(details, monkeypatch, name):
    for part in ("random_log_psi", "null_log_psi"):
        monkeypatch.setattr(type(details), part, lambda *_: np.full(3, np.nan))
    monkeypatch.setitem(
        details.__dict__, "scores", replace(details.scores, table=details.scores.table.assign(log_psi=np.nan))
    )
    with pytest.raises(InputError, match=f"nothing in {LAYERS[0]} has a PSI"):
        OVERVIEWS[name](details, LAYERS)
