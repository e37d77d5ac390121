"""Robustness: agreement by its definitions, scores with other concepts, and encoders of which one knows nothing."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_colours
import torch
from scipy import stats
from test_study import forbidden, study

from psi_fast.errors import InputError
from psi_fast.experiments import robustness
from psi_fast.experiments.comparisons import agreement, mean_correlation
from psi_fast.experiments.robustness import _concepts, _shared
from psi_fast.experiments.settings import with_head, worded
from psi_fast.experiments.statistics import intraclass
from psi_fast.results import Bank

SMALL = {"patch_counts": (8, 12, 16, 20), "cluster_limits": (2, 3, 4, 5), "seeds": (0, 1, 2, 3)}


def colours(folder, **changes):
    options = {"encoder": "classifier:tiny_colours:classifier", "config": tiny_colours.CONFIG} | changes
    return study(folder, tiny_colours.both_network(), "1", tiny_colours.image_set(), **options)


def bank(width, count=9, head=None, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    other = (
        None if head is None else torch.nn.functional.normalize(torch.randn(count, head, generator=generator), dim=1)
    )
    return Bank(tuple(f"word {number}" for number in range(count)), rows, other)


def test_mean_rank_correlation_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(80, 1))
    values = np.round(unit + 0.5 * rng.normal(size=(80, 3)), 1)
    expected = np.mean([stats.spearmanr(values[:, i], values[:, j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))])
    found = mean_correlation("r", np.vstack([values, [np.nan, 1, 1]]), seed=0)
    assert found.value == pytest.approx(expected)
    assert 0.6 < found.low < found.value < found.high < 0.95
    assert found.count == 80
    assert np.isnan(mean_correlation("r", values[:, :1], seed=0).value)


def test_agreement_covers_the_intraclass_correlation():
    rng = np.random.default_rng(1)
    hits = 0
    for number in range(20):
        values = rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 4))  # 1 / (1 + .25)
        found = agreement("a", values, seed=number)
        assert found.value == pytest.approx(intraclass(values))
        hits += found.low <= 0.8 <= found.high
    assert hits >= 16
    assert np.isnan(agreement("a", values[:2], seed=0).value)


def test_overlap_is_against_chance():
    a = np.append(np.arange(40.0), np.nan)
    b = a.copy()
    b[35:38] = -1
    found = _shared("o", a, b)
    assert (found.value, found.count) == (0.7, 40)
    assert found.p == pytest.approx(stats.fisher_exact([[7, 3], [3, 27]], alternative="greater").pvalue)
    assert np.isnan(_shared("o", a[:3], b[:3]).value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"center": False, "text_pool": "layer"},
        {"text_null": "rotated"},
        {"distinctness": "pairwise", "exact": True},
    ],
    ids=str,
)
def test_scores_with_other_concepts_are_those_of_an_evaluation(tmp_path, changes):
    own = study(tmp_path, tiny.dead_network(), "3", config=replace(tiny.CONFIG, **changes))
    words = bank(own.text.embeddings.shape[1], head=7 if "distinctness" in changes else None)
    found = worded(own, own.evaluation("3"), words, own.config)
    expected = own.evaluation("3", text=words).table
    assert expected["psi"].isna().sum() == 1
    np.testing.assert_allclose(found["log_psi"], expected["log_psi"], rtol=1e-9)
    np.testing.assert_allclose(found["psi"], expected["psi"], rtol=1e-9)
    other = own.evaluation("3").table["log_psi"]
    assert not np.allclose(found["log_psi"].dropna(), other.dropna())


def test_encoders_that_see_colours_agree_and_one_that_does_not_is_a_control(tmp_path):
    others = ("other_classifier", "third_classifier", "rough_classifier")
    own = colours(tmp_path)
    specs = tuple(f"classifier:tiny_colours:{name}" for name in others)
    found = robustness(own, channel_count=99, **SMALL, encoders=specs, text_heads=specs[:2])
    table, claims = found.table, {one.name: one for one in found.claims}
    values = table[table["layer"] == "1"].groupby("knob", sort=False)["value"].unique()
    assert list(values["K"]) == ["16", "8", "12", "20"]
    assert [len(values[knob]) for knob in ("k_max", "seed", "null of S", "encoder", "text head")] == [4, 4, 6, 4, 3]
    assert list(values["concepts"]) == ["all", "1/2"]  # of six, a quarter is fewer than k_max
    assert set(table.loc[table["control"], "value"]) == {"random directions", "classifier:tiny_colours:31"}
    # one-colour units lie below two-colour units whoever sees colours
    two = table["channel"] >= 6
    by_value = table[~table["control"]].assign(two=two).groupby(["knob", "value", "two"])["psi"].mean().unstack()
    assert (by_value[True] > by_value[False] + 0.2).loc[["K", "seed", "encoder", "text head"]].all()
    base = "classifier:tiny_colours:00"
    good = claims[f"1: encoder classifier:tiny_colours:10: rank correlation with {base}"]
    blind = claims[f"1: encoder classifier:tiny_colours:31: rank correlation with {base}"]
    assert good.low > blind.value
    assert good.value > 0.8
    # the figures of a knob are those of its table
    seeds = table[table["knob"] == "seed"].pivot_table(index="channel", columns="value", values="psi")
    assert claims["1: seed, 4 values: intraclass correlation of PSI"].value == pytest.approx(
        intraclass(seeds.to_numpy())
    )
    three = table[(table["knob"] == "encoder") & ~table["control"]].pivot_table(
        index="channel", columns="value", values="psi"
    )
    assert claims["1: encoder, 3 values: intraclass correlation of PSI"].value == pytest.approx(
        intraclass(three.to_numpy())
    )
    scores = table[(table["layer"] == "1") & (table["knob"] == "seed")].pivot_table(
        index="channel", columns="value", values="log_psi"
    )
    top = {value: set(scores[value].nlargest(len(scores) // 4).index) for value in ("0", "2")}
    assert claims["1: seed 2: overlap with 0"].value == len(top["0"] & top["2"]) / (len(scores) // 4) < 1
    again = own.evaluation("1", own.with_changes(seed=2), channels=own.spread("1", 99)).table
    np.testing.assert_array_equal(table[(table["knob"] == "seed") & (table["value"] == "2")]["psi"], again["psi"])
    assert "concepts (2)" in found.text
    assert "control, 1: encoder classifier:tiny_colours:31" in found.text
    assert "random weights (rough)" in found.manifest["warnings"]
    assert len(found.figure.axes) == 3


def test_a_text_head_changes_d_alone(tmp_path):
    own = colours(tmp_path)
    with_head(own, "classifier:tiny_colours:other_classifier")
    name, words = with_head(own, "classifier:tiny_colours:other_classifier")
    assert name == "classifier:tiny_colours:10"
    assert words.names == own.text.names
    torch.testing.assert_close(words.embeddings, own.text.embeddings)
    expected = torch.nn.functional.normalize(tiny_colours.other_classifier().module[-1].weight, dim=1)
    torch.testing.assert_close(words.head, expected)
    with pytest.raises(InputError, match="its 7 concepts are not the 6 of the study"):
        with_head(own, "classifier:tiny:classifier")


def test_what_does_not_fit_is_left_out_and_named_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    config = replace(tiny.CONFIG, k_max=3)
    own = study(tmp_path, config=config)
    options = {
        "channel_count": 8,
        "patch_counts": (4, 8, 999),
        "cluster_limits": (2, 7),
        "seeds": (0, 5),
        "rotations": ("radial",),
    }
    found = robustness(own, **options)
    for name in ("K 4", "K 999", "k_max 7", "concepts 1/8 (of 5)"):
        assert name in found.text
    assert "No other encoders or text heads were named" in found.text
    assert set(found.table.loc[found.table["knob"] == "null of S", "value"]) == {"marginal", "radial"}
    monkeypatch.setattr("psi_fast.experiments.study.evaluate", forbidden)
    robustness(study(tmp_path, config=config), **options | {"seeds": (5,)})


def test_the_command(tmp_path, pictures, capsys):
    arguments = [
        *(
            "experiment",
            "robustness",
            "--network",
            "tiny:network",
            "--layer",
            "2",
            "--no-progress",
            "--images",
            pictures,
        ),
        *("--encoder", "classifier:tiny:classifier", "--out", tmp_path / "run"),
        *(part for pair in tiny.SETTINGS.items() for part in pair),
    ]
    more = ["--patch-counts", "12", "--cluster-limits", "2", "--seeds", "1", "--rotations", "radial"]
    heads = ["--text-heads", "classifier:tiny:classifier"]
    assert tiny.run(*arguments, *more, *heads) == 0
    assert "seed, 2 values: mean rank correlation" in " ".join(capsys.readouterr().out.split())
    assert tiny.run(*arguments, "--channel-count", "7") == 2
    assert "channel_count must be at least 8, got 7" in tiny.one_line(capsys)


def test_no_quarter_is_the_fourth_part_as_well(tmp_path, monkeypatch):
    names = [f"word {number}" for number in range(24)]
    own = study(tmp_path, encoder=tiny.TinyEncoder(names=names))
    drawn = []
    monkeypatch.setattr(
        sys.modules["psi_fast.experiments.robustness"],
        "worded",
        lambda _study, found, bank, _config: drawn.append(bank.names) or found,
    )
    values = [one.value for one in _concepts(own, "2", own.channels("2"), [])]
    assert values == ["all", "1/2", "1/4", "1/8", "all", *(f"quarter {n}" for n in range(1, 5)), "random directions"]
    half, quarter, eighth, *quarters = (set(words) for words in drawn[:-1])
    assert [len(words) for words in (half, quarter, eighth, *quarters)] == [12, 6, 3, 6, 6, 6, 6]
    assert eighth < quarter < half
    assert set.union(*quarters) == set(names)
    assert quarter not in quarters
