"""Numbers with intervals and tests: what an experiment claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
"""Bootstrap samples and sign flips."""
LEVEL = 0.95
"""Of intervals."""
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""Quantiles at which they end."""
SIGNIFICANT = 0.05
"""Of tests, and of false discovery rates."""
FEW = 20
"""Pairs up to which a rank correlation's p comes from permutations: of a perfect one, the t approximation has 0."""


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
    columns = (np.asarray(part, dtype=np.float64)[:, None] for part in (positive, negative))
    (found,), _ = aurocs([name], *columns, seed=seed, papers=[paper])
    return found


def aurocs(
    names: Sequence[str], positive: np.ndarray, negative: np.ndarray, *, seed: int, papers: Sequence[str] | None = None
) -> tuple[list[Claim], np.ndarray]:
    """`auroc` of many values of the same units, by the same resamples, so that two of them can be compared.

    Parameters
    ----------
    names, papers : [v]
    positive, negative : [n, v] and [m, v] float
        A unit with nan in any value is left out.

    Returns
    -------
    claims : [v]
    samples : [RESAMPLES, v] float64, nan where a group is empty
    """
    positive, negative = (part[np.isfinite(part).all(1)] for part in (positive, negative))
    n, m, papers = len(positive), len(negative), papers or [""] * len(names)
    how = f"bootstrap over both groups, {RESAMPLES} samples; Mann-Whitney, two-sided"
    if not n or not m:
        nothing = [Claim(name, float("nan"), how=how, paper=paper) for name, paper in zip(names, papers, strict=True)]
        return nothing, np.full((RESAMPLES, len(names)), np.nan)
    rng = np.random.default_rng(seed)
    # how often each unit is in the groups themselves and in each sample of them
    up, down = (
        np.vstack([np.ones(count, dtype=np.int64), rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)])
        for count in (n, m)
    )
    found = np.stack([auroc_of(*pair, up, down) for pair in zip(positive.T, negative.T, strict=True)], axis=1)
    low, high = np.quantile(found[1:], ENDS, axis=0)
    p = stats.mannwhitneyu(positive, negative).pvalue
    claims = [
        Claim(name, float(found[0, row]), float(low[row]), float(high[row]), float(p[row]), n + m, how, papers[row])
        for row, name in enumerate(names)
    ]
    return claims, found[1:]


def contrast(name: str, value: float, samples: np.ndarray, count: int) -> Claim:
    """A difference of two numbers from the same resamples: its bootstrap interval and two-sided p from `samples` [r] of it."""
    low, high = np.quantile(samples, ENDS)
    beyond = min((samples <= 0).sum(), (samples >= 0).sum())
    p = np.nan if np.isnan(value) else min(1.0, 2 * (1 + beyond) / (1 + len(samples)))
    return Claim(name, value, float(low), float(high), float(p), count, f"bootstrap, {len(samples)} samples, two-sided")


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


def quantile(name: str, values: np.ndarray, level: float, *, seed: int, paper: str = "") -> Claim:
    """The quantile `level` of all of `values` [n, m], whose m of a row are of one unit, such as the patches of a channel.

    The values of a unit depend on each other, so the percentile bootstrap draws units.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = _interval(
        lambda rows, axis: np.quantile(values[rows], level, axis=(axis - 1, axis)),
        (np.arange(len(values)),),
        seed,
        method="percentile",
    )
    how = f"of {values.size} values; bootstrap over {len(values)} units, {RESAMPLES} samples"
    return Claim(name, float(np.quantile(values, level)), low, high, count=len(values), how=how, paper=paper)


def rank_correlation(name: str, x: np.ndarray, y: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """Spearman's rho of pairs [n] with a percentile bootstrap interval over the pairs and a two-sided p.

    Up to FEW pairs p is that of permutations, all of them where they are at most 9999; of more it is scipy's t approximation.
    """
    held = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x)[held], np.asarray(y)[held]
    test = "permutations" if len(x) <= FEW else "Spearman's test"
    how = f"bootstrap over pairs, {RESAMPLES} samples; {test}, two-sided"
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Claim(name, float("nan"), count=len(x), how=how, paper=paper)
    value, p = map(float, stats.spearmanr(x, y))
    p = _pairing_p(stats.rankdata(x), stats.rankdata(y), seed) if len(x) <= FEW else p
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(x), size=(RESAMPLES, len(x)))
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = _pearson(stats.rankdata(x[rows], axis=1), stats.rankdata(y[rows], axis=1))
    low, high = np.nanquantile(samples, ENDS)
    return Claim(name, value, float(low), float(high), p, len(x), how, paper)


def paired(name: str, differences: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The mean of paired differences [n], with a bootstrap interval and the p of a two-sided sign-flip test."""
    differences = _finite(differences)
    return mean(
        name, differences, seed=seed, paper=paper, p=sign_flip(differences, seed=seed), test="sign flips, two-sided"
    )


def effect_size(name: str, differences: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The mean of paired differences [n] in their standard deviations (Cohen's d_z), with a bootstrap interval over them."""
    differences = _finite(differences)
    how = f"mean / standard deviation; bootstrap over {len(differences)} units, {RESAMPLES} samples"
    if len(differences) < 3 or np.ptp(differences) == 0:
        return Claim(name, float("nan"), count=len(differences), how=how, paper=paper)
    rows = np.random.default_rng(seed).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.nanquantile(standardised(differences[rows]), ENDS)
    value = float(standardised(differences[None])[0])
    return Claim(name, value, float(low), float(high), count=len(differences), how=how, paper=paper)


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


def pooled(name: str, hits: np.ndarray, totals: np.ndarray, *, seed: int, paper: str = "") -> Claim:
    """The share sum(hits) / sum(totals) of parts that come in units [n], such as clusters in channels.

    The parts of a unit depend on each other, so the percentile bootstrap draws units.
    """
    hits, totals = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    n, all_parts = len(hits), totals.sum()
    how = f"bootstrap over {n} units, {RESAMPLES} samples"
    if n < 3 or not all_parts:
        value = float(hits.sum() / all_parts) if all_parts else float("nan")
        return Claim(name, value, count=int(all_parts), how=how, paper=paper)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(counts @ hits / (counts @ totals), ENDS)
    value = hits.sum() / all_parts
    return Claim(name, float(value), float(low), float(high), count=int(all_parts), how=how, paper=paper)


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of two sets of equal size that they have in common."""
    return len(set(a) & set(b)) / max(len(set(a)), 1)


def auroc_of(positive: np.ndarray, negative: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The AUROCs [r] of r groups: `up` [r, n] and `down` [r, m] say how often each unit is in them; nan of an empty one."""
    values = np.concatenate([positive, negative])
    order = np.argsort(values)
    first = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # of each distinct value
    above, below = (
        np.add.reduceat(part[:, order], first, axis=1)
        for part in (np.pad(up, ((0, 0), (0, len(negative)))), np.pad(down, ((0, 0), (len(positive), 0))))
    )
    lower = np.cumsum(below, axis=1) - below
    with np.errstate(invalid="ignore"):
        return (above * (lower + below / 2)).sum(1) / (up.sum(1) * down.sum(1))


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


def standardised(values: np.ndarray) -> np.ndarray:
    """Mean over standard deviation of the rows of [r, n]; nan for a row that is constant but for rounding."""
    centre, spread = values.mean(1), values.std(1, ddof=1)
    return np.divide(centre, spread, out=np.full(len(values), np.nan), where=spread > 1e-9 * np.abs(centre))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlations [r] of the rows of [r, n] arrays; nan for a constant row."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def _pairing_p(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Two-sided p that ranks [n] belong to ranks [n] no more than in any other order."""
    centred = y - y.mean()
    found = stats.permutation_test(
        (x,), lambda own, axis: own @ centred, permutation_type="pairings", rng=np.random.default_rng(seed)
    )
    return float(found.pvalue)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]
