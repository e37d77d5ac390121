"""The benchmark of a whole run: its images differ, and its rows say what ran."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import end_to_end


def test_multiplied_images_are_all_different():
    images = end_to_end.multiplied(tiny.image_set(5), 80)
    assert len(images) == 80
    pixels = {np.asarray(images.load(i)).tobytes() for i in range(80)}
    assert len(pixels) == 80
    assert images.labels.tolist() == [0, 1, 2, 3, 0] * 16
    np.testing.assert_array_equal(np.asarray(images.load(3)), np.asarray(tiny.image_set(5).load(3)))


def test_more_images_than_there_can_be_are_refused():
    with pytest.raises(SystemExit, match="80 at most"):
        end_to_end.multiplied(tiny.image_set(5), 81)


@pytest.mark.parametrize("count", [12, 40])
def test_a_run_adds_a_row_for_each_stage(count, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    pictures = tiny.write_pictures(tmp_path / "pictures", 16)
    arguments = [
        "--images",
        pictures,
        "--count",
        count,
        "--network",
        "tiny:network",
        "--layer",
        tiny.LAYER,
        "--draws",
        9,
    ]
    arguments += [
        "--encoder",
        "classifier:tiny:classifier",
        "--top-k",
        12,
        "--patch",
        "image",
        "--device",
        "cpu",
        "--out",
        out,
    ]
    for _ in range(2):
        end_to_end.main([str(argument) for argument in arguments])
    assert "from the bank" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    stages = [row["stage"] for row in rows]
    assert len(rows) == 2 * len(set(stages))
    first = {row["stage"]: row for row in rows[: len(rows) // 2]}
    assert {"mining", "embedding", "clusters", "decoding", "from the bank", "all"} <= set(first)
    assert {(row["images"], row["channels"], row["draws"]) for row in rows} == {(str(count), "6", "9")}
    parts = [float(row["seconds"]) for name, row in first.items() if name not in ("from the bank", "all")]
    assert float(first["all"]["seconds"]) == pytest.approx(sum(parts), abs=0.01)
    assert 0 < float(first["from the bank"]["seconds"]) < float(first["all"]["seconds"])
    assert all(int(row["peak_memory_mib"]) > 50 for row in rows)
