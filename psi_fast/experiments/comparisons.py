"""Groups of channels compared: a trend over ordered groups, a difference of two, the agreement of several conditions."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from psi_fast.experiments.statistics import ENDS, RESAMPLES, Claim, intraclass, overlap

TOP = 50
"""Channels in a list of the most polysemantic ones, or a quarter of the channels where that is less."""


def trend(name: str, groups: np.ndarray, values: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """Kendall's tau-b of `values` [n] with the order `groups` [n] of the groups they come from: does a value rise along them?

    Its two-sided p is that of the Jonckheere-Terpstra test, with ties, in its normal approximation; the interval is a
    percentile bootstrap within each group. nan are left out.
    """
    held = np.isfinite(values)
    groups, values = np.asarray(groups)[held], np.asarray(values, dtype=np.float64)[held]
    how = f"bootstrap within each group, {RESAMPLES // 4} samples; Jonckheere-Terpstra (Kendall's tau-b), two-sided"
    if len(values) < 3 or np.ptp(groups) == 0 or np.ptp(values) == 0:
        return Claim(name, float("nan"), count=len(values), how=how, paper=paper)
    value, p = _kendall(groups, values)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    samples = []
    for _ in range(RESAMPLES // 4):  # each sorts all values
        rows = np.concatenate([rng.choice(own, len(own)) for own in members])
        samples.append(_kendall(groups[rows], values[rows])[0])
    low, high = np.nanquantile(samples, ENDS)
    return Claim(name, value, float(low), float(high), p, len(values), how, paper)


def difference(name: str, after: np.ndarray, before: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The mean of `after` [n] less that of `before` [m], with a bootstrap interval and the p of a Mann-Whitney test.

    nan are left out. The p is not corrected for other comparisons.
    """
    after, before = (np.asarray(part, dtype=np.float64)[np.isfinite(part)] for part in (after, before))
    how = f"bootstrap over both groups, {RESAMPLES} samples; Mann-Whitney, two-sided, not corrected"
    count = len(after) + len(before)
    if min(len(after), len(before)) < 3:
        return Claim(name, float("nan"), count=count, how=how, paper=paper)
    rng = np.random.default_rng(seed)
    up, down = (part[rng.integers(len(part), size=(RESAMPLES, len(part)))].mean(1) for part in (after, before))
    low, high = np.quantile(up - down, ENDS)
    p = stats.mannwhitneyu(after, before).pvalue
    return Claim(name, float(after.mean() - before.mean()), float(low), float(high), float(p), count, how, paper)


def agreement(name: str, values: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """Absolute agreement ICC(2,1) of n units under k conditions [n, k], with a percentile bootstrap interval over the units.

    Units that lack a value are left out.
    """
    values = values[np.isfinite(values).all(1)]
    how = f"ICC(2,1); bootstrap over units, {RESAMPLES} samples"
    if len(values) < 3 or values.shape[1] < 2 or np.ptp(values) == 0:
        return Claim(name, float("nan"), count=len(values), how=how, paper=paper)
    low, high = _over_units(intraclass, values, seed)
    return Claim(name, intraclass(values), low, high, count=len(values), how=how, paper=paper)


def mean_correlation(name: str, values: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """Spearman's rho of n units under two conditions, averaged over the pairs of k conditions [n, k], with an interval.

    The interval is a percentile bootstrap over the units; those that lack a value are left out.
    """
    values = values[np.isfinite(values).all(1)]
    how = f"mean over {values.shape[1] * (values.shape[1] - 1) // 2} pairs; bootstrap over units, {RESAMPLES} samples"
    if len(values) < 3 or values.shape[1] < 2 or (np.ptp(values, axis=0) == 0).any():
        return Claim(name, float("nan"), count=len(values), how=how, paper=paper)
    low, high = _over_units(_mean_rho, values, seed)
    return Claim(name, _mean_rho(values), low, high, count=len(values), how=how, paper=paper)


def top_overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """The share of the top channels by `a` [n] that are also those by `b` [n], and how many these are; nan of none."""
    count = min(TOP, len(a) // 4)
    lists = (np.argsort(-own, kind="stable")[:count].tolist() for own in (a, b))
    return overlap(*lists) if count else float("nan"), count


def _kendall(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Kendall's tau-b of pairs [n], and its two-sided p in the normal approximation."""
    tau, p = np.array(stats.kendalltau(a, b, method="asymptotic"), dtype=np.float64)
    return float(tau), float(p)


def _mean_rho(values: np.ndarray) -> float:
    """The mean of the upper triangle of the rank correlations of the columns of [n, k]."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a resampled column may be constant
        rho = np.corrcoef(stats.rankdata(values, axis=0), rowvar=False)
    return float(rho[np.triu_indices(len(rho), 1)].mean())


def _over_units(statistic: Callable[[np.ndarray], float], values: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    samples = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(samples, ENDS)
    return float(low), float(high)
