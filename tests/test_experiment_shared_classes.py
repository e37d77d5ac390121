"""Intervals of units that share classes: how often they cover, against plain loops, and what they are without sharing."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from psi_fast.experiments.shared_classes import class_auroc, class_mean, class_rate, incidence
from psi_fast.experiments.statistics import RESAMPLES, auroc, mean, rate

CLASSES, UNITS, RUNS = 30, 100, 60


def pairs(rng):
    """Units of two of 30 classes and what each is worth: the sum of its classes' worth, and some noise; mean 0, variance 2.25."""
    own = np.array([rng.choice(CLASSES, 2, replace=False) for _ in range(UNITS)])
    made_of = np.zeros((UNITS, CLASSES), dtype=bool)
    np.put_along_axis(made_of, own, True, 1)
    return made_of, rng.normal(size=CLASSES)[own].sum(1) + rng.normal(0, 0.5, UNITS)


def test_units_are_of_the_classes_that_they_are_named_by():
    found = incidence(["a + b", "b", "", "c + d d + a"], ["a", "b", "d d"])
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]])


def test_intervals_cover_where_those_of_independent_units_do_not():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(0.5 / np.sqrt(2.25 + 1))
    kinds = [Counter(), Counter()]
    nothing = []
    for number in range(RUNS):
        made_of, values = pairs(rng)
        negative, none = rng.normal(size=80), np.zeros((80, CLASSES), dtype=bool)
        shared = (
            class_mean("m", values, made_of),
            class_rate("r", values > 0, made_of),
            class_auroc("a", values + 0.5, negative, (made_of, none), seed=number),
        )
        plain = (
            mean("m", values, seed=number),
            rate("r", int((values > 0).sum()), UNITS),
            auroc("a", values + 0.5, negative, seed=number),
        )
        for covered, claims in zip(kinds, (shared, plain), strict=True):
            for one, true in zip(claims, (0, 0.5, truth), strict=True):
                covered[one.name] += int(one.low <= true <= one.high)
        for one, other in zip(shared, plain, strict=True):
            assert one.value == pytest.approx(other.value)
            assert one.count == other.count
        nothing.append(class_auroc("a", values, negative, (made_of, none), seed=number).p)
    shared, plain = kinds
    assert min(shared.values()) >= 0.88 * RUNS
    assert shared["a"] >= 0.93 * RUNS
    assert max(plain.values()) <= 0.8 * RUNS
    assert np.mean(np.array(nothing) <= 0.05) <= 0.07


def test_a_sample_holds_a_unit_as_often_as_all_its_classes():
    rng = np.random.default_rng(1)
    made_of = incidence(["a + b", "a + c", "b + c", "c + d", "d"], list("abcd"))
    single = incidence(["a", "b", "c", "d"], list("abcd"))
    positive, negative = np.array([3.0, 1, 2, 5, 0]), np.array([0.0, 2, 1, 4])
    found = class_auroc("a", np.append(positive, np.nan), negative, (np.vstack([made_of, made_of[:1]]), single), seed=2)
    samples = []
    for counts in np.random.default_rng(2).multinomial(4, [0.25] * 4, RESAMPLES):
        up, down = (
            [np.prod([counts[c] for c in range(4) if row[c]]).astype(int) for row in part] for part in (made_of, single)
        )
        if sum(up) and sum(down):
            gap = np.repeat(positive, up)[:, None] - np.repeat(negative, down)
            samples.append(np.mean(gap > 0) + np.mean(gap == 0) / 2)
    assert len(samples) < RESAMPLES
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])))
    assert found.value == pytest.approx(roc_auc_score([1] * 5 + [0] * 4, np.append(positive, negative)))
    beyond = min(np.mean(np.array(samples) <= 0.5), np.mean(np.array(samples) >= 0.5))
    assert found.p == pytest.approx(min(1, 2 * beyond), abs=2e-3)
    values = rng.normal(size=(2, 40))
    sure = class_auroc("a", values[0] + 9, values[1], (np.eye(40, dtype=bool), np.eye(40, dtype=bool)), seed=0)
    assert (sure.low, sure.high) == (1, 1)
    assert sure.p == pytest.approx(2 / (RESAMPLES + 1))
    assert np.isnan(
        class_auroc("a", np.array([np.nan]), values[1], (single[:1], np.zeros((40, 4), bool)), seed=0).value
    )


def test_variance_is_the_sum_over_pairs_that_share_a_class():
    made_of, values = pairs(np.random.default_rng(3))
    off = values - values.mean()
    together = sum(
        off[i] * off[j] for i in range(UNITS) for j in range(UNITS) if i == j or (made_of[i] & made_of[j]).any()
    )
    found = class_mean("m", np.append(values, np.nan), np.vstack([made_of, made_of[:1]]))
    error = np.sqrt(together / UNITS / (UNITS - 1))
    assert found.high - found.value == pytest.approx(1.959964 * error)
    assert found.value - found.low == pytest.approx(1.959964 * error)
    assert found.count == UNITS


def test_without_shared_classes_units_are_independent():
    rng = np.random.default_rng(4)
    values, alone = rng.normal(size=60), np.eye(60, dtype=bool)
    for made_of in (alone, np.zeros((60, 3), dtype=bool)):
        found, expected = class_rate("r", values > 1, made_of), rate("r", int((values > 1).sum()), 60)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert found.how == expected.how
        one = class_mean("m", values, made_of)
        assert one.how == "normal"
        assert one.high - one.value == pytest.approx(1.959964 * values.std(ddof=1) / np.sqrt(60))
    none = np.zeros((60, 3), dtype=bool), np.zeros((40, 3), dtype=bool)
    other = rng.normal(-0.5, 1, 40)
    found, expected = class_auroc("a", values, other, none, seed=0), auroc("a", values, other, seed=0)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)
    made_of, _ = pairs(rng)
    every = class_rate("r", np.ones(UNITS, dtype=bool), made_of)
    assert (every.low, every.high) == pytest.approx((rate("r", UNITS, UNITS).low, 1))
    assert np.isnan(class_rate("r", np.empty(0), made_of[:0]).value)
    assert np.isnan(class_mean("m", np.ones(2), made_of[:2]).low)
