"""Numbers with intervals and tests: what an experiment claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
"""Bootstrap samples and sign flips."""
LEVEL = 0.95


@dataclass(frozen=True)
class Claim:
    """One number an experiment comes to.

    name : what it is
    value : nan where it cannot be told
    low, high : its 95 % interval, nan where there is none
    p : of the test named in `how`, nan where there is none
    count : units it comes from
    how : how interval and p were found
    paper : what the paper reports, empty where it says nothing
    """

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    count: int = 0
    how: str = ""
    paper: str = ""


def auroc(name: str, positive: np.ndarray, negative: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """How well a value tells `positive` [n] from `negative` [m]: the share of pairs in the right order, ties half.

    The interval is a percentile bootstrap over both groups (stratified), p that of a two-sided Mann-Whitney test. nan are
    left out.
    """
    positive, negative = _finite(positive), _finite(negative)
    how = f"bootstrap over both groups, {RESAMPLES} samples; Mann-Whitney, two-sided"
    if not len(positive) or not len(negative):
        return Claim(name, float("nan"), how=how, paper=paper)
    # ranks among all values stand for them, so that a resampled AUROC is a sum over counts of distinct values
    values, inverse = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    up, down = (
        np.bincount(part, minlength=len(values)) for part in (inverse[: len(positive)], inverse[len(positive) :])
    )
    rng = np.random.default_rng(seed)
    samples = [
        _auroc_of(
            rng.multinomial(len(positive), up / len(positive)), rng.multinomial(len(negative), down / len(negative))
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = stats.mannwhitneyu(positive, negative).pvalue
    return Claim(
        name, _auroc_of(up, down), float(low), float(high), float(p), len(positive) + len(negative), how, paper
    )


def mean(
    name: str, values: np.ndarray, *, seed: int, paper: str = "", p: float = float("nan"), test: str = ""
) -> Claim:
    """The mean of `values` [n] with a bias-corrected bootstrap interval over them; `p` of `test`, where one was made."""
    values = _finite(values)
    low, high = _interval(np.mean, (values,), seed)
    how = f"bootstrap (BCa) over {len(values)} units, {RESAMPLES} samples" + f"; {test}" * bool(test)
    return Claim(name, float(values.mean()) if len(values) else float("nan"), low, high, p, len(values), how, paper)


def median(name: str, values: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The median of `values` [n] with a percentile bootstrap interval over them."""
    values = _finite(values)
    low, high = _interval(np.median, (values,), seed, method="percentile")
    how = f"bootstrap over {len(values)} units, {RESAMPLES} samples"
    return Claim(
        name,
        float(np.median(values)) if len(values) else float("nan"),
        low,
        high,
        count=len(values),
        how=how,
        paper=paper,
    )


def rank_correlation(name: str, x: np.ndarray, y: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """Spearman's rho of pairs [n] with a percentile bootstrap interval over the pairs, and scipy's two-sided p."""
    held = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x)[held], np.asarray(y)[held]
    how = f"bootstrap over pairs, {RESAMPLES} samples; Spearman's test, two-sided"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Claim(name, float("nan"), count=len(x), how=how, paper=paper)
    found = stats.spearmanr(x, y)
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(x), size=(RESAMPLES, len(x)))
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = _pearson(stats.rankdata(x[rows], axis=1), stats.rankdata(y[rows], axis=1))
    low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Claim(name, float(found.statistic), float(low), float(high), float(found.pvalue), len(x), how, paper)


def paired(name: str, differences: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The mean of paired differences [n], with a bootstrap interval and the p of a two-sided sign-flip test."""
    differences = _finite(differences)
    return mean(
        name, differences, seed=seed, paper=paper, p=sign_flip(differences, seed=seed), test="sign flips, two-sided"
    )


def sign_flip(differences: np.ndarray, *, seed: int, resamples: int = 9999) -> float:
    """Two-sided p that the mean of differences [n] is 0 when each could as well have the other sign; nan when there is none.

    Exact where 2^n <= `resamples`, else from so many seeded random flips (scipy.stats.permutation_test).
    """
    if len(differences) < 2 or not np.any(differences):
        return float("nan") if len(differences) < 2 else 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def intraclass(values: np.ndarray) -> float:
    """Absolute agreement of n units under k conditions [n, k]: ICC(2,1) of Shrout and Fleiss 1979; nan rows are left out."""
    values = values[np.isfinite(values).all(1)]
    n, k = values.shape
    if n < 2 or k < 2:
        return float("nan")
    grand = values.mean()
    rows = k * np.square(values.mean(1) - grand).sum() / (n - 1)
    columns = n * np.square(values.mean(0) - grand).sum() / (k - 1)
    rest = np.square(values - values.mean(1, keepdims=True) - values.mean(0) + grand).sum() / ((n - 1) * (k - 1))
    below = rows + (k - 1) * rest + k * (columns - rest) / n
    return float((rows - rest) / below) if below else float("nan")


def rate(name: str, hits: int, trials: int, *, paper: str = "") -> Claim:
    """A share of independent trials with Wilson's interval."""
    how = "Wilson's interval"
    if not trials:
        return Claim(name, float("nan"), how=how, paper=paper)
    found = stats.binomtest(hits, trials).proportion_ci(LEVEL, method="wilson")
    return Claim(name, hits / trials, float(found.low), float(found.high), count=trials, how=how, paper=paper)


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of two sets of equal size that they have in common."""
    return len(set(a) & set(b)) / max(len(set(a)), 1)


def _auroc_of(up: np.ndarray, down: np.ndarray) -> float:
    """The AUROC of two groups from how many of each [v] lie at each of the ascending distinct values."""
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))


def _interval(
    statistic: Callable[..., np.ndarray], data: tuple[np.ndarray, ...], seed: int, method: str = "BCa"
) -> tuple[float, float]:
    if min(map(len, data)) < 3 or np.ptp(data[0]) == 0:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method=method,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlations [r] of the rows of [r, n] arrays; nan for a constant row."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]
