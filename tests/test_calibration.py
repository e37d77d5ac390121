"""z, sigmoid, log PSI, p and q from observed values and nulls."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from psi_fast.calibration import calibrate, combine, discovery_rate, percentile
from psi_fast.scores import cautions, few_draws

NAN = float("nan")


def one(z: float, p: float = 0.5):
    return calibrate(np.array([z]), np.zeros(1), np.ones(1), np.array([p]))


def test_z_and_its_sigmoid():
    rng = np.random.default_rng(0)
    observed, mean, sd, p = rng.normal(size=(4, 50))
    sd = np.abs(sd) + 0.1
    found = calibrate(observed, mean, sd, p)
    np.testing.assert_allclose(found.z, (observed - mean) / sd, rtol=1e-14)
    np.testing.assert_allclose(found.hat, 1 / (1 + np.exp(-(observed - mean) / sd)), rtol=1e-12)
    np.testing.assert_array_equal(found.p, p)
    assert not found.degenerate.any()
    assert ((found.hat > 0) & (found.hat < 1)).all()


@pytest.mark.parametrize(("sd", "degenerate"), [(0.0, True), (9e-10, True), (1.1e-9, False), (1.0, False)])
def test_null_without_variation_says_nothing(sd, degenerate):
    found = calibrate(np.array([0.7]), np.array([0.2]), np.array([sd]), np.array([0.1]))
    assert found.degenerate.tolist() == [degenerate]
    if degenerate:
        assert (found.z[0], found.hat[0]) == (0.0, 0.5)


def test_nan_stays_nan_and_is_not_degenerate():
    found = calibrate(np.array([NAN]), np.array([NAN]), np.array([NAN]), np.array([NAN]))
    assert np.isnan([found.z[0], found.hat[0], found.p[0]]).all()
    assert not found.degenerate[0]
    assert all(np.isnan(x).all() for x in combine([found, one(1.0)]))


def test_psi_is_the_product_of_the_sigmoids_and_p_the_largest():
    log_psi, p = combine([one(1.0, 0.2), one(-2.0, 0.7), one(0.3, 0.4)])
    assert np.exp(log_psi[0]) == pytest.approx(special.expit(1.0) * special.expit(-2.0) * special.expit(0.3), rel=1e-14)
    assert p.tolist() == [0.7]
    assert np.exp(combine([one(0.0)] * 3)[0][0]) == pytest.approx(0.125)


def test_log_psi_ranks_channels_whose_psi_rounds_to_one():
    values = [combine([one(z)] * 3)[0][0] for z in (41.0, 45.0, 200.0, 700.0)]
    assert np.exp(values).tolist() == [1.0] * 4
    assert all(a < b < 0 for a, b in itertools.pairwise(values))


def test_log_psi_ranks_channels_whose_psi_rounds_to_zero():
    values = [combine([one(z)] * 3)[0][0] for z in (-400.0, -900.0, -1e6)]
    assert values == pytest.approx([-1200, -2700, -3e6])


def test_discovery_rate_is_that_of_benjamini_and_hochberg():
    p = np.r_[np.random.default_rng(0).random(40) ** 2, 0.5, 0.5]
    order = np.argsort(p, kind="stable")
    expected = np.empty_like(p)
    expected[order] = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1].clip(max=1)
    np.testing.assert_allclose(discovery_rate(p), expected, rtol=1e-14)
    np.testing.assert_allclose(discovery_rate(p), stats.false_discovery_control(p), rtol=1e-14)


def test_discovery_rate_counts_only_channels_that_have_a_p():
    q = discovery_rate(np.array([0.01, NAN, 0.02, NAN]))
    np.testing.assert_allclose(q, [0.02, NAN, 0.02, NAN])
    assert np.isnan(discovery_rate(np.array([NAN, NAN]))).all()


def test_percentile_counts_the_baseline_at_or_below():
    values = np.array([-1.0, 0.0, 1.5, 9.0, NAN])
    np.testing.assert_allclose(percentile(values, np.array([3.0, 0.0, 1.0, NAN, 2.0])), [0, 25, 50, 100, NAN])
    assert np.isnan(percentile(values, np.array([]))).all()
    assert np.isnan(percentile(values, np.array([NAN]))).all()


def test_cautions_name_what_keeps_channels_from_being_significant():
    table = pd.DataFrame(
        {"components": "SQD", "flags": [["degenerate:Q"], [], ["dead"], ["degenerate:Q", "degenerate:D"]]}
    )
    few, labels, concepts = cautions(table, draws=10)
    assert few == "10 draws give p >= 0.091, so no channel can be significant; use at least 20"
    assert "Q is degenerate in 2 of 4 channels" in labels
    assert "all different" in labels
    assert "D is degenerate in 1 of 4 channels" in concepts
    assert cautions(table[1:3], draws=20) == []
    (alone,) = cautions(table[1:3].assign(components="SD"), draws=20)
    assert alone.startswith("PSI is made of S and D alone, as there are no labels")


def drawn(lowest, scored, draws, layer="a"):
    """A layer's table of `scored` channels, `lowest` of them with the smallest p, and one that has none."""
    p = np.r_[np.full(lowest, 1 / (draws + 1)), np.full(scored - lowest, 0.5), NAN]
    return pd.DataFrame({"layer": layer, "p": p, "q": discovery_rate(p)})


def test_too_few_draws_for_so_many_channels_are_told_with_the_number_that_is_enough():
    (said,) = few_draws(drawn(7, 500, 99), draws=99)
    assert said == (
        "no channel of a is significant with 99 draws: 7 of 500 have the smallest p there is, 1/100, which is q = 0.71 among "
        "so many; take at least 1428 draws"
    )
    assert not (drawn(7, 500, 1427)["q"] < 0.05).any()
    assert (drawn(7, 500, 1428)["q"] < 0.05).sum() == 7


@pytest.mark.parametrize(("lowest", "scored", "draws"), [(7, 500, 1428), (0, 500, 99), (25, 100, 99), (5, 50, 10)])
def test_enough_draws_are_not_told(lowest, scored, draws):
    assert few_draws(drawn(lowest, scored, draws), draws) == []


def test_draws_are_told_for_each_layer():
    table = pd.concat([drawn(25, 100, 99, "a"), drawn(3, 100, 99, "b")])
    (said,) = few_draws(table, draws=99)
    assert "of b is" in said
