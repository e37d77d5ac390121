"""Intervals for units made of classes that other units have too: of 400 pairs of 179 classes, each class is in four or five."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from psi_fast.experiments.statistics import ENDS, LEVEL, RESAMPLES, Claim, auroc_of

JOIN = " + "
"""Between the classes in a unit's meaning."""


def incidence(meanings: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Which of the classes `names` [c] each of the units is made of: bool [n, c]; a unit without a meaning has none."""
    own = [set(meaning.split(JOIN)) for meaning in meanings]
    return np.array([[name in held for name in names] for held in own], dtype=bool).reshape(len(own), len(names))


def class_auroc(
    name: str, positive: np.ndarray, negative: np.ndarray, made_of: tuple[np.ndarray, np.ndarray], *, seed: int
) -> Claim:
    """How well a value tells `positive` [n] from `negative` [m], as `statistics.auroc`, where units share classes.

    The bootstrap draws the classes that units are made of, `made_of` bool [n, c] and [m, c] (`incidence`): a unit comes into a
    sample as often as all its classes together, the product of their counts. Units without a class are drawn themselves. The
    product varies more than the classes do, so intervals of units of several classes are rather too wide. p is two-sided, from
    the same samples. nan are left out.

    References
    ----------
    Owen: The pigeonhole bootstrap. Annals of Applied Statistics 1, 2007.
    """
    held = [np.isfinite(part) for part in (positive, negative)]
    positive, negative = positive[held[0]], negative[held[1]]
    how = f"bootstrap over classes, {RESAMPLES} samples, two-sided"
    count = len(positive) + len(negative)
    if not len(positive) or not len(negative):
        return Claim(name, float("nan"), count=count, how=how)
    rng = np.random.default_rng(seed)
    classes = made_of[0].shape[1]
    drawn = rng.multinomial(classes, np.full(classes, 1 / classes), RESAMPLES)
    up, down = (_weights(own[rows], drawn, rng) for own, rows in zip(made_of, held, strict=True))
    samples = auroc_of(positive, negative, up, down)
    samples = samples[np.isfinite(samples)]  # of few classes, a sample may hold no unit
    value = float(auroc_of(positive, negative, np.ones((1, len(positive))), np.ones((1, len(negative))))[0])
    if not len(samples):
        return Claim(name, value, count=count, how=how)
    low, high = np.quantile(samples, ENDS)
    beyond = min((samples <= 0.5).sum(), (samples >= 0.5).sum())
    p = min(1.0, 2 * (1 + beyond) / (1 + len(samples)))
    return Claim(name, value, float(low), float(high), p, count, how)


def class_mean(name: str, values: np.ndarray, made_of: np.ndarray) -> Claim:
    """The mean of `values` [n] of units made of the classes `made_of` [n, c], with a normal interval."""
    held = np.isfinite(values)
    values, made_of = values[held], made_of[held]
    how = "normal" + ", units that share a class correlated" * bool((made_of.sum(0) > 1).any())
    if len(values) < 3:
        return Claim(name, float(values.mean()) if len(values) else float("nan"), count=len(values), how=how)
    error = np.sqrt(values.var(ddof=1) / len(values) * _inflation(values, made_of))
    half = float(stats.norm.ppf(ENDS[1]) * error)
    value = float(values.mean())
    return Claim(name, value, value - half, value + half, count=len(values), how=how)


def class_rate(name: str, hits: np.ndarray, made_of: np.ndarray) -> Claim:
    """The share of units [n] that `hits` names, with Wilson's interval for as many independent ones as they are worth.

    That is n divided by how much shared classes raise the variance (Korn and Graubard 1998); where all hit or none does, that
    cannot be told, and it is n.
    """
    hits = np.asarray(hits, dtype=np.float64)
    if not len(hits):
        return Claim(name, float("nan"), how="Wilson's interval")
    worth = len(hits) / _inflation(hits, made_of)
    how = "Wilson's interval" + f" for {worth:.0f} units, as units share classes" * (round(worth) < len(hits))
    value, z = float(hits.mean()), stats.norm.ppf((1 + LEVEL) / 2)
    middle = (value + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z * np.sqrt(value * (1 - value) / worth + z**2 / (4 * worth**2)) / (1 + z**2 / worth)
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return Claim(name, value, low, high, count=len(hits), how=how)


def _weights(made_of: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each unit [n] is in each sample [r, n]: the product of the counts `drawn` [r, c] of its classes."""
    member = made_of.astype(np.float64)
    weights = np.exp(np.log(np.maximum(drawn, 1)) @ member.T) * ((drawn == 0) @ member.T == 0)
    if len(alone := np.flatnonzero(~made_of.any(1))):
        weights[:, alone] = rng.multinomial(len(alone), np.full(len(alone), 1 / len(alone)), len(drawn))
    return weights


def _inflation(values: np.ndarray, made_of: np.ndarray) -> float:
    """How much larger shared classes make the variance of the mean of `values` [n] than independent units would; at least 1.

    References
    ----------
    Aronow, Samii and Assenova: Cluster-robust variance estimation for dyadic data. Political Analysis 23, 2015.
    """
    off = values - values.mean()
    alone = np.square(off).sum()
    member = made_of.astype(np.float64)
    shared = (member @ member.T > 0) | np.eye(len(values), dtype=bool)
    return max(1.0, float(off @ shared @ off / alone)) if alone > 0 else 1.0
