"""Observed values and their nulls -> z, sigmoid, PSI, p and q. Pure array code."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import false_discovery_control

NO_VARIATION = 1e-9  # a null with a smaller standard deviation says nothing


@dataclass(frozen=True)
class Calibrated:
    """One component against its null, each [C] float64: z, its sigmoid hat in (0, 1), p; degenerate [C] bool."""

    z: np.ndarray
    hat: np.ndarray
    p: np.ndarray
    degenerate: np.ndarray


def calibrate(observed: np.ndarray, mean: np.ndarray, sd: np.ndarray, p: np.ndarray) -> Calibrated:
    """z = (observed - mean) / sd and its sigmoid; a null without variation gives z = 0, hat = .5 and is flagged."""
    degenerate = sd < NO_VARIATION
    z = np.where(degenerate, 0.0, (observed - mean) / np.where(degenerate, 1.0, sd))
    return Calibrated(z, expit(z), p, degenerate)


def combine(parts: list[Calibrated]) -> tuple[np.ndarray, np.ndarray]:
    """log PSI = -sum softplus(-z), which still ranks channels whose PSI rounds to 1, and the joint p.

    A channel is polysemantic when all components say so, so the joint p is the largest of theirs (Berger 1982).
    """
    with np.errstate(invalid="ignore"):  # nan, for channels that are not scored, stays nan
        log_psi = -sum(np.logaddexp(0, -part.z) for part in parts)
    return np.asarray(log_psi), np.max([part.p for part in parts], axis=0)


def log_odds(log_psi: np.ndarray) -> np.ndarray:
    """log10 of PSI / (1 - PSI) for ln PSI, which spreads what crowds at either end of PSI; nan stays nan.

    Of a PSI that rounds to 1 even in ln PSI it is 300, above all others.
    """
    return (log_psi - np.log(-np.expm1(np.minimum(log_psi, -1e-300)))) / np.log(10)


def discovery_rate(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q over the channels that have a p; nan stays nan."""
    q = np.full_like(p, np.nan)
    scored = ~np.isnan(p)
    if scored.any():
        q[scored] = false_discovery_control(p[scored])
    return q


def percentile(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Percent of the baseline that lies at or below each value, in [0, 100]; nan where either has nothing to say."""
    baseline = np.sort(baseline[~np.isnan(baseline)])
    if len(baseline) == 0:
        return np.full_like(values, np.nan)
    rank = 100.0 * np.searchsorted(baseline, values, side="right") / len(baseline)
    return np.where(np.isnan(values), np.nan, rank)
