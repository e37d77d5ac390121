"""The commands of the experiments: each takes its own options, on images in folders, and writes its results."""

import pandas as pd
import pytest
import tiny
import tiny_colours

ARGUMENTS = (
    *("--network", "tiny_colours:both_network", "--layer", "1", "--encoder", "classifier:tiny_colours:classifier"),
    *("--no-progress", "--precision", "float32", "--patch", "image", "--top-k", "8", "--k-max", "3", "--n-init", "1"),
    *("--draws", "19"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of six colours in a folder each, of four of them, and a run folder that the experiments share."""
    root, images = tmp_path_factory.mktemp("colours"), tiny_colours.image_set(60)
    for number in range(len(images)):
        label = number % 6
        for part in ("six", "four") if label < 4 else ("six",):
            path = root / part / list(tiny_colours.COLOURS)[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.load(number).save(path)
    return root


def conducted(folder, name, *options, images="six"):
    """Table and claims of an experiment made by its command."""
    more = ("--images", folder / images, "--out", folder / "run")
    assert tiny.run("experiment", name, *ARGUMENTS, *more, *options) == 0
    results = folder / "run" / "experiments" / name
    return pd.read_parquet(results / "table.parquet"), pd.read_csv(results / "claims.csv", index_col="name")


def test_ablation(folder):
    table, claims = conducted(folder, "ablation")
    assert set(table["components"]) == {"S", "Q", "D", "SQ", "SD", "QD", "SQD"}
    assert claims["value"].notna().all()


def test_breadth(folder):
    table, claims = conducted(folder, "breadth", images="four")  # two concepts are no class
    assert set(table["channel"]) == set(range(21))
    assert claims["value"].notna().all()


def test_planted(folder):
    options = ("--classifier", "tiny_colours:other_classifier", "--members", "2", "--units", "5", "--unit-patches", "6")
    table, claims = conducted(folder, "planted", *options)
    assert set(table["kind"]) >= {"mono", "poly2", "random"}
    assert (table["kind"].value_counts() <= 5).all()
    assert claims["value"]["AUROC PSI, poly2 / mono"] > 0.5


def test_null_size(folder):
    options = ("--data-sets", "3", "--null-draws", "19", "--clouds", "2", "--distances", "0.7")
    table, claims = conducted(folder, "null-size", *options)
    assert set(table["data_set"]) == {0, 1, 2}
    assert claims["value"].between(0, 1).all()


def test_bands(folder):
    table, claims = conducted(folder, "bands", "--channel-count", "4", "--shares", "0.5", "1")
    assert table["channel"].nunique() == 4
    assert claims["value"].notna().any()


def test_adversarial(folder):
    options = ("--channel-count", "2", "--patch-count", "6", "--budget", "16", "--steps", "1")
    table, claims = conducted(folder, "adversarial", *options)
    assert table["channel"].nunique() == 2
    assert "1: psi, mixed - before" in claims.index


@pytest.mark.parametrize("name", ["separation", "breadth", "patch-swap", "planted", "adversarial"])
def test_every_channel_is_every_one_that_was_asked_for(folder, name):
    more = ("--classifier", "tiny_colours:other_classifier", "--members", "2", "--units", "9", "--unit-patches", "6")
    options = ("--channels", "2:8", *(more if name == "planted" else ()))
    table, _ = conducted(folder, name, *options, images="four" if name == "breadth" else "six")
    if name == "planted":
        held = {
            part.removeprefix("1 ")
            for meaning in table.loc[table["kind"] == "merged", "meaning"]
            for part in meaning.split(" + ")
        }
        assert {int(channel) for channel in held} <= set(range(2, 8))
    elif name == "separation":
        assert set(table.loc[table["kind"] == "real", "channel"]) == set(range(2, 8))
    else:
        assert set(table["channel"]) == set(range(2, 8))
