"""Depth: a trend and steps against their definitions, and a network whose second layer has two meanings a unit."""

import itertools

import numpy as np
import pytest
import tiny
import tiny_colours
import tiny_transformers
from scipy import stats
from test_study import study

from psi_fast.activation_tap import list_layers
from psi_fast.errors import InputError
from psi_fast.experiments import Claim, depth
from psi_fast.experiments.comparisons import difference, trend
from psi_fast.experiments.depth import _against_random
from psi_fast.networks import load_network


def jonckheere(groups, values):
    """The statistic: pairs of two groups that rise, ties half."""
    pairs = itertools.combinations(range(len(values)), 2)
    signs = [
        np.sign(groups[j] - groups[i]) * np.sign(values[j] - values[i]) for i, j in pairs if groups[i] != groups[j]
    ]
    return sum((sign + 1) / 2 for sign in signs)


def test_the_trend_test_is_jonckheeres_by_permutation():
    groups = np.repeat([0, 1, 2], [6, 5, 7])
    values = np.array([1, 3, 2, 2, 4, 1, 3, 5, 4, 2, 6, 4, 3, 7, 5, 5, 2, 6.0])
    found = trend("t", groups, values, seed=0)
    rng = np.random.default_rng(0)
    observed = jonckheere(groups, values)
    drawn = np.array([jonckheere(groups, rng.permutation(values)) for _ in range(4000)])
    two_sided = np.mean(np.abs(drawn - drawn.mean()) >= abs(observed - drawn.mean()))
    assert found.p == pytest.approx(two_sided, abs=0.006)
    assert found.p < 0.02
    assert found.value == pytest.approx(stats.kendalltau(groups, values).statistic)
    assert 0 < found.low < found.value < found.high < 1


def test_a_trend_interval_covers_and_its_p_is_uniform_without_one():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(4), 12)
    found = [trend("t", groups, rng.normal(size=48), seed=number) for number in range(40)]
    assert stats.kstest([one.p for one in found], "uniform").pvalue > 0.001
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.85
    falling = trend("t", groups, np.append(-groups + rng.normal(size=48), np.nan)[:48], seed=0)
    assert falling.high < 0
    assert np.isnan(trend("t", groups, np.ones(48), seed=0).value)


def test_a_step_is_a_difference_of_means():
    rng = np.random.default_rng(2)
    after, before = rng.normal(1, 2, 150), rng.normal(0, 1, 80)
    found = difference("d", np.append(after, np.nan), before, seed=0)
    welch = stats.ttest_ind(after, before, equal_var=False).confidence_interval()
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=0.06)
    assert found.p == stats.mannwhitneyu(after, before).pvalue
    assert np.isnan(difference("d", after[:1], before, seed=0).value)


def test_two_meanings_above_one(tmp_path):
    images = tiny_colours.image_set()
    own = study(
        tmp_path,
        tiny_colours.network(),
        ["1", "0"],
        images,
        encoder=tiny_colours.ColourEncoder(),
        config=tiny_colours.CONFIG,
    )
    found = depth(own, channel_count=12)
    table, claims = found.table, {one.name: one for one in found.claims}
    # in the order of the forward pass, not of the arguments
    assert list(dict.fromkeys(table["layer"])) == ["0", "1"]
    real = table[table["kind"] == "real"]
    assert list(real.groupby("layer").size()) == [6, 12]
    for layer in ("0", "1"):
        psi = real.loc[real["layer"] == layer, "psi"]
        assert claims[f"{layer}: mean PSI"].value == pytest.approx(psi.mean())
        scored = own.evaluation(layer, channels=own.spread(layer, 12)).table
        np.testing.assert_array_equal(psi, scored["psi"])
        percentile = claims[f"{layer}: mean percentile among random patches"].value
        random = table.loc[(table["layer"] == layer) & (table["kind"] == "random patches"), "log_psi"].to_numpy()
        assert percentile == pytest.approx(
            100 * np.mean(random <= real.loc[real["layer"] == layer, "log_psi"].to_numpy()[:, None])
        )
        assert claims[f"{layer}: share with q <= .05"].value == np.mean(scored["q"] <= 0.05)
        assert claims[f"{layer}: side of a patch in px of the network's input"].value == 32
    assert claims["trend of PSI"].low > 0.3
    assert claims["trend of PSI"].p < 1e-3
    step = claims["mean PSI, 1 less 0"]
    assert step.value == pytest.approx(claims["1: mean PSI"].value - claims["0: mean PSI"].value)
    assert step.low > 0.3
    assert "PSI rises" in found.text
    assert "1 go up and 0 go down" in found.text
    assert len(found.figure.axes) == 3


def test_layers_above_and_below_random_patches_are_named():
    name = "{}: AUROC real / random patches"
    held = {"a": (0.9, 1e-6), "b": (0.2, 1e-4), "c": (0.7, 0.045), "d": (0.5, np.nan)}  # .045 * 3 / 3 is just enough
    found = {name.format(layer): Claim(name.format(layer), value, p=p) for layer, (value, p) in held.items()}
    assert "above random patches in a, c and below them in b" in _against_random("abcd", found)
    assert "1 leave it open" in _against_random("abcd", found)
    found[name.format("c")] = Claim(name.format("c"), 0.7, p=0.055)
    assert "above random patches in a and below them in b" in _against_random("abcd", found)
    assert "in no layer and below them in no layer" in _against_random("d", found)


def test_a_vision_transformer_by_its_blocks(tmp_path):
    network = f"transformers:{tiny_transformers.saved(tmp_path / 'vit', 'vit')}"
    layers = [info.name for info in list_layers(load_network(network)) if info.type == "ViTLayer"]
    assert len(layers) == 2
    own = study(tmp_path / "run", network, layers[::-1], config=tiny.EFFECTIVE)
    found = depth(own, channel_count=8)
    assert list(dict.fromkeys(found.table["layer"])) == layers
    assert (found.table.groupby(["layer", "kind"]).size().unstack()["real"] == 8).all()
    assert np.isfinite([one.value for one in found.claims if one.name.startswith("mean PSI")]).all()


def test_the_command(tmp_path, pictures, capsys):
    arguments = [
        *(
            "experiment",
            "depth",
            "--network",
            "tiny:network",
            "--encoder",
            "classifier:tiny:classifier",
            "--no-progress",
        ),
        *("--images", pictures, "--out", tmp_path / "run", *(part for pair in tiny.SETTINGS.items() for part in pair)),
    ]
    assert tiny.run(*arguments, "--layer", "2", "--layer", "0", "--channel-count", "4") == 0
    assert "trend of PSI" in capsys.readouterr().out
    assert tiny.run(*arguments, "--layer", "2") == 2
    assert "give --layer several times" in tiny.one_line(capsys)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="at least 3, got 2"):
        depth(study(tmp_path, layer=["2", "0"]), channel_count=2)
