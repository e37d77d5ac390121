"""Intervals and tests against scipy, scikit-learn and formulas written anew."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from psi_fast.experiments.comparisons import top_overlap
from psi_fast.experiments.statistics import (
    RESAMPLES,
    auroc,
    aurocs,
    contrast,
    effect_size,
    intraclass,
    mean,
    median,
    overlap,
    paired,
    pooled,
    quantile,
    rank_correlation,
    rate,
    sign_flip,
)


def test_a_quantile_is_over_all_values_and_its_interval_over_units():
    rng = np.random.default_rng(4)
    own = rng.normal(3, 2, (60, 1)) + rng.normal(0, 0.1, (60, 25))  # hardly more is known than 60 values
    found = quantile("q", own, 0.95, seed=0)
    assert found.value == pytest.approx(np.quantile(own.ravel(), 0.95))
    assert found.count == 60
    assert found.low < found.value < found.high
    by_unit = median("m", own.mean(1), seed=0)
    pooled_median = quantile("m", own, 0.5, seed=0)
    assert pooled_median.high - pooled_median.low == pytest.approx(by_unit.high - by_unit.low, rel=0.3)
    alone = quantile("q", own[:1], 0.5, seed=0)
    assert alone.value == pytest.approx(np.median(own[0]))
    assert np.isnan(alone.low)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_that_of_scikit_learn_ties_included(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(0, 8, 41) + 1.0, rng.integers(0, 8, 23) * 1.0
    found = auroc("a", np.append(positive, np.nan), negative, seed=seed)
    expected = roc_auc_score([1] * 41 + [0] * 23, np.concatenate([positive, negative]))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high
    assert found.p == pytest.approx(stats.mannwhitneyu(positive, negative).pvalue)
    assert found.count == 64


def test_auroc_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    hits = 0
    for number in range(200):
        found = auroc("a", rng.normal(1, 1, 60), rng.normal(0, 1, 80), seed=number)
        hits += found.low <= truth <= found.high
    assert stats.binom.cdf(hits, 200, 0.95) > 0.001
    assert hits >= 180


def test_perfect_and_empty_groups():
    assert auroc("a", np.array([2.0, 3, 4]), np.array([0.0, 1]), seed=0).value == 1
    assert np.isnan(auroc("a", np.array([np.nan]), np.array([0.0]), seed=0).value)


def test_mean_and_median_with_intervals():
    values = np.random.default_rng(1).normal(3, 2, 200)
    found = mean("m", np.append(values, np.nan), seed=0)
    half = stats.t.ppf(0.975, 199) * values.std(ddof=1) / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    middle = median("m", values, seed=0)
    assert middle.value == np.median(values)
    assert middle.low < middle.value < middle.high
    assert np.isnan(mean("m", np.full(5, 2.0), seed=0).low)


def test_effect_size_is_the_t_statistic_over_root_n_and_its_interval_covers():
    rng = np.random.default_rng(4)
    hits = 0
    for number in range(200):
        values = rng.normal(0.6, 1, 50)
        found = effect_size("e", np.append(values, np.nan), seed=number)
        hits += found.low <= 0.6 <= found.high
    assert found.value == pytest.approx(stats.ttest_1samp(values, 0).statistic / np.sqrt(50))
    assert stats.binom.cdf(hits, 200, 0.95) > 0.001
    assert hits >= 178
    assert np.isnan(effect_size("e", np.full(5, 2.0), seed=0).value)
    few = effect_size("e", np.array([1.0, 2, 3, 5]), seed=0)  # some resamples do not vary
    assert few.low < few.value < few.high


def test_rank_correlation_is_spearmans_and_its_interval_fishers():
    rng = np.random.default_rng(2)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    found = rank_correlation("r", np.append(x, 1.0), np.append(y, np.nan), seed=0)
    expected = stats.spearmanr(x, y)
    assert found.value == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    centre, half = np.arctanh(found.value), 1.96 * np.sqrt((1 + found.value**2 / 2) / 297)
    assert found.low == pytest.approx(np.tanh(centre - half), abs=0.03)
    assert found.high == pytest.approx(np.tanh(centre + half), abs=0.03)
    assert np.isnan(rank_correlation("r", np.ones(9), np.arange(9.0), seed=0).value)


def test_a_rank_correlation_of_few_is_tested_by_permutations():
    four = rank_correlation("r", np.arange(4.0), np.array([1.0, 2, 5, 9]), seed=0)
    assert four.value == pytest.approx(1)
    assert four.p == pytest.approx(2 / 24)
    assert "permutations" in four.how
    x, y = np.array([1.0, 2, 2, 4, 5, 6]), np.array([2.0, 1, 3, 3, 6, 5])  # ties in both
    rho = [stats.spearmanr(x[list(order)], y).statistic for order in itertools.permutations(range(6))]
    up, down = (np.mean(sign * np.array(rho) >= sign * stats.spearmanr(x, y).statistic - 1e-9) for sign in (1, -1))
    assert rank_correlation("r", x, y, seed=0).p == pytest.approx(2 * min(up, down))
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(2, 20))
    assert rank_correlation("r", x, y, seed=0).p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)
    more = rank_correlation("r", np.arange(21.0), rng.normal(size=21), seed=0)
    assert "Spearman's test" in more.how


def test_sign_flips_of_few_differences_are_all_of_them():
    values = np.array([0.5, 1.5, -0.25, 2.0, 0.75])
    means = [np.mean(values * signs) for signs in itertools.product([1, -1], repeat=5)]
    up, down = (
        np.mean([m >= values.mean() - 1e-12 for m in means]),
        np.mean([m <= values.mean() + 1e-12 for m in means]),
    )
    assert sign_flip(values, seed=0) == pytest.approx(min(1, 2 * min(up, down)))
    assert sign_flip(np.zeros(5), seed=0) == 1
    assert np.isnan(sign_flip(np.ones(1), seed=0))


def test_sign_flips_are_uniform_under_the_null():
    rng = np.random.default_rng(3)
    p = [sign_flip(rng.normal(size=20), seed=number, resamples=299) for number in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert sign_flip(rng.normal(1, 1, 30), seed=0) < 0.01


def test_paired_is_the_mean_with_sign_flips():
    values = np.random.default_rng(4).normal(0.4, 1, 40)
    found = paired("d", values, seed=0)
    assert found.value == pytest.approx(values.mean())
    assert found.p == sign_flip(values, seed=0)
    assert "sign flips" in found.how


def test_intraclass_correlation_of_shrout_and_fleiss():
    # their table 2: six targets, four judges, ICC(2,1) = .29
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert intraclass(ratings) == pytest.approx(0.29, abs=0.005)
    assert intraclass(np.vstack([ratings, [np.nan, 1, 1, 1]])) == pytest.approx(intraclass(ratings))
    assert intraclass(np.arange(10.0)[:, None] + np.zeros(3)) == pytest.approx(1)
    assert np.isnan(intraclass(ratings[:1]))


def test_rates_have_wilsons_interval():
    found = rate("r", 7, 100)
    z = 1.959964
    centre = (0.07 + z**2 / 200) / (1 + z**2 / 100)
    half = z * np.sqrt(0.07 * 0.93 / 100 + z**2 / 40000) / (1 + z**2 / 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.07, centre - half, centre + half), abs=1e-6)
    assert np.isnan(rate("r", 0, 0).value)


def test_overlap():
    assert overlap([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


def test_top_lists_have_fifty_channels_or_a_quarter():
    a = np.arange(400.0)
    b = np.where(a < 370, a, -a)  # of the last fifty, the thirty largest leave
    assert top_overlap(a, b) == (0.4, 50)
    assert top_overlap(a[:80], b[:80]) == (1, 20)


def test_aurocs_share_their_resamples():
    rng = np.random.default_rng(5)
    positive, negative = rng.normal(0.5, 1, (40, 3)), rng.normal(0, 1, (30, 3))
    positive[:, 1] = positive[:, 0] ** 3  # ranks alike
    negative[:, 1] = negative[:, 0] ** 3
    positive[:, 2], negative[:, 2] = positive[:, 2].round(), negative[:, 2].round()  # ties
    claims, samples = aurocs(["a", "b", "c"], np.vstack([positive, [np.nan, 1, 1]]), negative, seed=0)
    for column, claim in enumerate(claims):
        alone = auroc("abc"[column], positive[:, column], negative[:, column], seed=0)
        assert claim == alone
        expected = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([positive[:, column], negative[:, column]]))
        assert claim.value == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    assert samples.shape == (RESAMPLES, 3)
    nothing, none = aurocs(["a"], np.empty((0, 1)), negative[:, :1], seed=0)
    assert np.isnan(nothing[0].value)
    assert np.isnan(none).all()


def test_a_bootstrap_of_aurocs_has_the_spread_of_delong():
    rng = np.random.default_rng(6)
    positive, negative = rng.normal(1, 1, 150), rng.normal(0, 1, 100)
    _, samples = aurocs(["a"], positive[:, None], negative[:, None], seed=0)
    wins = (positive[:, None] > negative).astype(float)
    variance = wins.mean(1).var(ddof=1) / 150 + wins.mean(0).var(ddof=1) / 100  # DeLong, DeLong and Clarke-Pearson 1988
    assert samples.std() == pytest.approx(np.sqrt(variance), rel=0.08)


def test_a_contrast_of_nothing_has_uniform_p():
    rng = np.random.default_rng(7)
    found = []
    for number in range(100):
        positive = rng.normal(1, 1, (50, 2))  # two values equally good
        claims, samples = aurocs(["a", "b"], positive, rng.normal(0, 1, (60, 2)), seed=number)
        one = contrast("d", claims[0].value - claims[1].value, samples[:, 0] - samples[:, 1], 110)
        assert one.low < one.value < one.high
        found.append(one.p)
    assert stats.kstest(found, "uniform").pvalue > 0.001
    sure = contrast("d", 1.0, np.linspace(0.5, 1.5, 2000), 9)
    assert sure.p == pytest.approx(2 / 2001)
    assert contrast("d", 0.0, np.zeros(2000), 9).p == 1


def test_pooled_shares_have_the_spread_of_their_units():
    rng = np.random.default_rng(8)
    totals = rng.integers(1, 20, 200)
    hits = np.where(rng.random(200) < 0.8, totals, 0)  # all parts of a unit alike
    found = pooled("s", hits, totals, seed=0)
    assert found.value == pytest.approx(hits.sum() / totals.sum())
    assert found.count == totals.sum()
    residual = hits - found.value * totals
    half = 1.96 * residual.std() * np.sqrt(200) / totals.sum()  # of a ratio, to first order
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)
    assert np.isnan(pooled("s", np.zeros(4), np.zeros(4), seed=0).value)
    assert pooled("s", np.array([1, 0]), np.array([2, 2]), seed=0).value == 0.25
