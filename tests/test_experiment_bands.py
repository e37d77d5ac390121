"""Bands: every number from the evaluations, and units that have one colour at the top and more below it."""

from itertools import combinations

import colours
import numpy as np
import pytest
from scipy import stats
from test_study import study

from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments import bands
from psi_fast.experiments.bands import TOP, repeated
from psi_fast.experiments.statistics import Claim

# strong for one colour, and half as strong for three others: 30 of 240 images, and 90
BELOW = [
    {name: 1.0} | {colours.NAMES[(number + step) % 8]: 0.5 for step in steps}
    for number, name in enumerate(colours.NAMES)
    for steps in ((1, 2, 3), (2, 4, 6), (3, 5, 7))
]
TWO = [{first: 1.0, second: 1.0} for first, second in combinations(colours.NAMES, 2)]
BANDS = {TOP: None, "top 10 %": (0.9, 1.0), "top 25 %": (0.75, 1.0), "top 50 %": (0.5, 1.0)}


def claim(found, name):
    (one,) = [one for one in found.claims if one.name == f"units: {name}"]
    return one


@pytest.fixture(scope="module")
def below(tmp_path_factory):
    own = colours.study(tmp_path_factory.mktemp("below"), BELOW)
    return own, bands(own)


def test_units_with_one_colour_at_the_top_and_more_below_gain_psi(below):
    _, found = below
    for band in (TOP, "top 10 %"):  # 18 and 24 images, all of the strong colour
        assert claim(found, f"mean PSI, {band}").value < 0.2
        assert claim(found, f"mean Q_z, {band}").value == 0
    for band in ("top 25 %", "top 50 %"):
        assert claim(found, f"mean PSI, {band}").value > 0.6
        gained = claim(found, f"PSI less the top's, {band}")
        assert gained.low > 0.4
        assert gained.p < 0.001
    assert claim(found, "PSI less the top's, top 10 %").p > 0.001


def test_units_of_two_colours_keep_psi_as_far_as_these_reach(tmp_path):
    found = bands(colours.study(tmp_path, TWO), shares=(0.25,))
    assert list(dict.fromkeys(found.table["band"])) == [TOP, "top 25 %"]
    assert claim(found, f"mean PSI, {TOP}").value > 0.8
    assert claim(found, "mean PSI, top 25 %").value > 0.8
    assert abs(claim(found, "PSI less the top's, top 25 %").value) < 0.1


def test_claims_are_those_of_the_evaluations(below):
    own, found = below
    tables = {
        name: own.evaluation(colours.LAYER, own.with_changes(band=band), channels=np.arange(24)).table
        for name, band in BANDS.items()
    }
    top = tables[TOP]
    for name, table in tables.items():
        rows = found.table[found.table["band"] == name]
        np.testing.assert_array_equal(rows["channel"], table["channel"])
        np.testing.assert_array_equal(rows["psi"], table["psi"])
        assert claim(found, f"mean PSI, {name}").value == pytest.approx(table["psi"].mean())
        assert claim(found, f"mean S_z, {name}").value == pytest.approx(table["S_z"].mean())
        other = own.with_changes(band=BANDS[name], seed=own.config.seed + 1)
        again = own.evaluation(colours.LAYER, other, channels=np.arange(24)).table
        np.testing.assert_array_equal(rows["log_psi_again"], again["log_psi"])
        twice = claim(found, f"rank correlation of two draws, {name}")
        assert twice.value == pytest.approx(stats.spearmanr(table["log_psi"], again["log_psi"]).statistic)
        assert twice.low <= twice.value <= twice.high
        if name == TOP:
            continue
        rho = claim(found, f"rank correlation with the top, {name}")
        assert rho.value == pytest.approx(stats.spearmanr(table["log_psi"], top["log_psi"]).statistic)
        difference = claim(found, f"D_z less the top's, {name}")
        assert difference.value == pytest.approx((table["D_z"] - top["D_z"]).mean())
        assert difference.low < difference.value < difference.high
        first, second = (set(np.argsort(-one["log_psi"].to_numpy())[:6]) for one in (table, top))
        assert claim(found, f"overlap with the top's list, {name}").value == pytest.approx(len(first & second) / 6)
    random = own.evaluation(colours.LAYER, channels=np.arange(24)).random["psi"]
    assert claim(found, "mean PSI of random patches").value == pytest.approx(random.mean())


def test_a_ranking_that_does_not_agree_with_itself_is_not_held_against_the_top(tmp_path):
    one = [{name: strength} for name in colours.NAMES for strength in (1.0, 0.8)]
    found = bands(colours.study(tmp_path, [*one, *TWO]), shares=(1.0,))
    # the top K tells units of one colour from units of two; random images tell nothing
    assert claim(found, f"rank correlation of two draws, {TOP}").low > 0.5
    all_images = claim(found, "rank correlation of two draws, top 100 %")
    assert all_images.low < all_images.value < 0.5
    assert "The ranking of top 100 % is not known to agree with itself" in found.text
    (line,) = [own for own in found.figure.axes[2].lines if own.get_label() == "rho of two draws"]
    np.testing.assert_array_equal(line.get_ydata(), [one.value for one in found.claims if "two draws" in one.name])


def test_what_is_said_of_two_draws_depends_on_their_intervals():
    def draws(**lows):
        return {name: Claim(name, low + 0.1, low, low + 0.2) for name, low in lows.items()}

    every = repeated(draws(**{TOP: 0.6, "top 10 %": 0.5}))
    assert "0.600 (top 10 %, 0.500 to 0.700). So every band's ranking can be held against the top's." in every
    lows = {"top 10 %": 0.49, "top 25 %": 0.3, "top 50 %": -0.1}
    assert "of top 10 %, top 25 % and top 50 % is not known" in repeated(draws(**{TOP: 0.6}, **lows))
    assert "Not even the top K's ranking" in repeated(draws(**{TOP: 0.4, "top 10 %": 0.6}))
    assert "Not even the top K's ranking" in repeated(draws(**{TOP: float("nan"), "top 10 %": 0.6}))


def test_of_all_images_most_channels_are_unselective(tmp_path):
    found = bands(colours.study(tmp_path, TWO), shares=(1.0,))
    assert claim(found, f"unselective channels, {TOP}").value == 0
    unselective = claim(found, "unselective channels, top 100 %")
    assert unselective.value > 0.8  # random images reach the upper 5 % point in 5 % of channels
    assert unselective.value == found.table.loc[found.table["band"] == "top 100 %", "unselective"].mean()


def test_channels_are_spread_and_dead_ones_left_out(tmp_path):
    own = colours.study(tmp_path, [*TWO[:11], {}])  # the last never fires
    found = bands(own, channel_count=6, shares=(0.5,))
    assert sorted(set(found.table["channel"])) == [0, 2, 4, 7, 9]
    assert "5 channels" in found.figure.axes[0].get_title("left")


def test_the_figure_has_a_row_a_layer(tmp_path):
    found = bands(study(tmp_path, layer=["2", "0"]), shares=(0.4, 0.6))
    axes = found.figure.axes
    assert len(axes) == 6
    assert [tick.get_text() for tick in axes[3].get_xticklabels()] == [TOP, "top 40 %", "top 60 %"]
    np.testing.assert_array_equal(
        axes[3].lines[-2].get_ydata(), [one.value for one in found.claims if one.name.startswith("0: mean PSI, ")]
    )


def test_bad_input_ends_in_one_line(tmp_path):
    own = colours.study(tmp_path, [*TWO[:3], {}, {}, {}])
    with pytest.raises(InputError, match=r"top 5 % of 240 images are 12, fewer than top_k 18; give more images"):
        bands(own, shares=(0.05,))
    for shares in ((), (0.0, 0.5), (1.5,), (0.5, 0.5)):
        with pytest.raises(ConfigError, match="shares must be different numbers"):
            bands(own, shares=shares)
    with pytest.raises(ConfigError, match="channel_count must be at least 4"):
        bands(own, channel_count=3)
    with pytest.raises(InputError, match="fewer than 4 of 6 channels of units are scored in every band"):
        bands(own)
