"""What an experiment writes, and when it is computed again."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_study import study

from psi_fast.errors import ConfigError, StoreError
from psi_fast.experiments import Claim, Finding, outcome
from psi_fast.experiments.outcome import experiment
from psi_fast.figures.style import legend_above, panels, rendered

FILES = {"table.parquet", "table.csv", "claims.csv", "figure.svg", "figure.png", "summary.md", "manifest.json"}
CALLS = []


def draw(table, claims):
    with panels(1) as (figure, (panel,)):
        panel.plot(table["x"], table["x"])
        panel.set(title=claims[0].name)
    return figure


@experiment(draw)
def toy_example(study, *, count: int = 3) -> Finding:
    """A table of `count` rows."""
    CALLS.append(count)
    study.survey(tiny.LAYER)
    table = pd.DataFrame({"x": np.arange(count), "what": ["a,b"] * count})
    claims = [Claim("one | 1", 0.5, 0.25, 0.75, 1e-9, 3, "by hand", ".4"), Claim("nothing", float("nan"))]
    return Finding(table, claims, f"There were {count} rows.")


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def test_files_hold_what_was_found(tmp_path):
    found = toy_example(study(tmp_path), count=4)
    folder = tmp_path / "experiments" / "toy-example"
    assert found.folder == folder
    assert {path.name for path in folder.iterdir()} == FILES
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "table.parquet"), found.table)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.csv"), found.table)
    claims = pd.read_csv(folder / "claims.csv")
    assert list(claims["name"]) == ["one | 1", "nothing"]
    assert claims["high"][0] == 0.75
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("# toy-example\n\nThere were 4 rows.")
    assert "| one \\| 1 | 0.500 | 0.250 to 0.750 | 1e-09 | .4 | 3 | by hand |" in summary
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["options"] == {"count": 4}
    (made,) = (line for line in summary.splitlines() if line.startswith("Made "))
    assert made.startswith(f"Made {manifest['made']} in {manifest['seconds']['toy-example']:.0f} s")
    assert f"{manifest['device']['name']}, {torch.get_num_threads()} threads" in made
    assert f"torch {torch.__version__.partition('+')[0]}" in made
    assert manifest["seconds"]["mining"] > 0
    assert manifest["network"] == "tiny"
    assert rendered(found.figure, "svg") == (folder / "figure.svg").read_bytes()
    assert rendered(found.figure, "pdf").startswith(b"%PDF")


def test_the_same_experiment_is_read_and_another_computed(tmp_path):
    first = toy_example(study(tmp_path))
    again = toy_example(study(tmp_path))
    assert CALLS == [3]
    assert again.claims[0] == first.claims[0]
    assert np.isnan(again.claims[1].value)
    assert again.summary == first.summary
    pd.testing.assert_frame_equal(again.table, first.table)
    toy_example(study(tmp_path), count=5)
    toy_example(study(tmp_path, config=replace(tiny.CONFIG, seed=3)), count=5)
    toy_example(study(tmp_path, config=replace(tiny.CONFIG, seed=3, batch_size=16)), count=5)
    assert CALLS == [3, 5, 5]


@pytest.mark.parametrize("lost", sorted(FILES - {"figure.svg", "figure.png", "summary.md", "table.csv"}))
def test_an_outcome_that_is_not_whole_is_made_again(tmp_path, lost):
    toy_example(study(tmp_path))
    path = tmp_path / "experiments" / "toy-example" / lost
    path.write_bytes(path.read_bytes()[:20])
    assert toy_example(study(tmp_path)).claims[0].value == 0.5
    assert CALLS == [3, 3]


def test_one_that_fails_while_it_is_written_leaves_no_manifest(tmp_path, monkeypatch):
    toy_example(study(tmp_path))
    monkeypatch.setattr(outcome, "rendered", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space left"):
        toy_example(study(tmp_path), count=7)
    assert not (tmp_path / "experiments" / "toy-example" / "manifest.json").exists()


def test_options_are_named(tmp_path):
    with pytest.raises(ConfigError, match="options of toy-example are named, got 4"):
        toy_example(study(tmp_path), 4)


@pytest.mark.parametrize(("lines", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 2, 1), (3, 2, 2)])
def test_a_legend_above_hides_nothing(lines, columns, rows):
    with panels(2 * rows, rows=rows) as (figure, axes):
        for panel in axes:
            for line in range(lines):
                panel.plot([0, 1], [0.2 * line, 1], "o-", label=f"line {line}")
            panel.set_ylim(0, 1.05)
            legend_above(panel, columns=columns)
    rendered(figure, "svg")  # which lays it out
    for panel in axes:
        legend = panel.get_legend().get_window_extent()
        assert legend.y0 > panel.transData.transform((1, 1))[1]
        assert legend.y1 <= panel.get_window_extent().y1
        assert panel.get_yticks().max() == pytest.approx(1)
