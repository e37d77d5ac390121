"""Data sets whose clusters are known: one cloud of many shapes (null families), or two and three clusters (power families).

Every generator returns unit rows [samples, width] in float64. Clusterings, silhouettes and the S nulls do not change when all
rows are turned together, so the axes need no random directions.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

SPECTRA = Path(__file__).parent / "results" / "s_nulls_spectra.csv"
"""Real embeddings as variances and mean coordinates along their principal axes; `s_nulls.py --spectra` measures them."""


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def spectrum(width: int, decay: float) -> np.ndarray:
    """Standard deviations along `width` axes whose variances fall as i^-decay."""
    return (1.0 + np.arange(width)) ** (-decay / 2)


def shifted(scores: np.ndarray, offset: float, rng: Generator) -> np.ndarray:
    """The rows of `scores` around a mean of length `offset` in a random direction."""
    return unit(scores + offset * unit(rng.normal(size=scores.shape[1])))


# ---- one cloud


def gaussian(samples: int, rng: Generator, *, width: int, decay: float, offset: float) -> np.ndarray:
    """A Gaussian cloud."""
    return shifted(rng.normal(size=(samples, width)) * spectrum(width, decay), offset, rng)


def student(samples: int, rng: Generator, *, width: int, freedom: float, offset: float) -> np.ndarray:
    """Multivariate Student t of spectrum 1/i: a few samples lie far out."""
    scores = rng.normal(size=(samples, width)) * spectrum(width, 1)
    return shifted(scores / np.sqrt(rng.chisquare(freedom, size=(samples, 1)) / freedom), offset, rng)


def skewed(samples: int, rng: Generator, *, width: int, shape: float, offset: float) -> np.ndarray:
    """Independent gamma scores of spectrum 1/i: skewness 2 / sqrt(shape) along every axis."""
    scores = (rng.gamma(shape, size=(samples, width)) - shape) / shape**0.5
    return shifted(scores * spectrum(width, 1), offset, rng)


def scales(samples: int, rng: Generator, *, width: int, ratio: float, offset: float) -> np.ndarray:
    """Two Gaussian clouds around one centre, one `ratio` times as wide as the other."""
    scores = rng.normal(size=(samples, width)) * spectrum(width, 1)
    return shifted(scores * np.where(np.arange(samples) % 2, 1, 1 / ratio)[:, None], offset, rng)


def segment(samples: int, rng: Generator, *, width: int, noise: float) -> np.ndarray:
    """Uniform along a segment as long as its distance from the origin, with isotropic noise: a gradient."""
    scores = rng.normal(size=(samples, width)) * noise / width**0.5
    scores[:, 0] += rng.uniform(-0.5, 0.5, samples)
    scores[:, 1] += 1
    return unit(scores)


def arc(samples: int, rng: Generator, *, width: int, noise: float) -> np.ndarray:
    """Uniform along half a circle (no geodesic), with isotropic noise: a curved gradient."""
    scores = rng.normal(size=(samples, width)) * noise / width**0.5
    angle = rng.uniform(-np.pi / 2, np.pi / 2, samples)
    scores[:, :3] += np.stack([np.cos(angle), np.sin(angle), np.full(samples, 2.0)], axis=1)
    return unit(scores)


def cap(samples: int, rng: Generator, *, width: int, dimension: int, opening: float, noise: float) -> np.ndarray:
    """Uniform on a cap of `opening` radians of the sphere of `dimension` dimensions, with isotropic noise."""
    grid = np.linspace(0, opening, 2001)
    mass = np.cumsum(np.sin(grid) ** (dimension - 1))
    angle = np.interp(rng.uniform(0, mass[-1], samples), mass, grid)
    scores = rng.normal(size=(samples, width)) * noise / width**0.5
    scores[:, :dimension] += unit(rng.normal(size=(samples, dimension))) * np.sin(angle)[:, None]
    scores[:, dimension] += np.cos(angle)
    return unit(scores)


def like_images(samples: int, rng: Generator, *, within: bool) -> np.ndarray:
    """Gaussian with mean and covariance of real image embeddings: of all images, or of one class on average."""
    table = np.genfromtxt(SPECTRA, delimiter=",", names=True)
    kind = "class" if within else "all"
    deviation, mean = np.sqrt(table[f"variance_{kind}"]), table[f"mean_{kind}"]
    return unit(rng.normal(size=(samples, len(mean))) * deviation + mean)


# ---- several clusters


def clusters(
    samples: int, rng: Generator, *, width: int, shares: tuple[float, ...], distance: float, decay: float, offset: float
) -> np.ndarray:
    """Gaussian clouds around centres that are `distance` apart in random directions; the clouds have the given shares."""
    centres = np.linalg.qr(rng.normal(size=(width, len(shares))))[0].T * distance / 2**0.5
    which = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(samples) + 0.5) / samples)
    scores = rng.normal(size=(samples, width)) * spectrum(width, decay)
    return shifted(scores + centres[which], offset, rng)


Family = Callable[[int, Generator], np.ndarray]

DESIGN: dict[str, Family] = {
    "unit": partial(gaussian, width=64, decay=1, offset=2),
    "cone": partial(gaussian, width=512, decay=1, offset=3),
    "isotropic": partial(gaussian, width=512, decay=0, offset=0),
    "heavy-tailed": partial(student, width=512, freedom=5, offset=3),
    "steep": partial(gaussian, width=512, decay=1.5, offset=2),
}
"""The five families on which the nulls were designed."""

NULLS: dict[str, Family] = DESIGN | {
    "narrow": partial(gaussian, width=16, decay=1, offset=2),
    "heavier-tailed": partial(student, width=512, freedom=3, offset=3),
    "scales": partial(scales, width=512, ratio=3, offset=3),
    "skewed": partial(skewed, width=512, shape=4, offset=3),
    "exponential": partial(skewed, width=512, shape=1, offset=3),
    "segment": partial(segment, width=64, noise=0.3),
    "arc": partial(arc, width=64, noise=0.3),
    "cap": partial(cap, width=16, dimension=3, opening=1.0, noise=0.1),
    "like images": partial(like_images, within=False),
    "like a class": partial(like_images, within=True),
}
"""Families without clusters."""

POWER: dict[str, Family] = {
    "two far": partial(clusters, width=512, shares=(0.5, 0.5), distance=3.0, decay=1, offset=3),
    "two near": partial(clusters, width=512, shares=(0.5, 0.5), distance=1.8, decay=1, offset=3),
    "85 : 15": partial(clusters, width=512, shares=(0.85, 0.15), distance=2.5, decay=1, offset=3),
    "three far": partial(clusters, width=512, shares=(1 / 3, 1 / 3, 1 / 3), distance=3.0, decay=1, offset=3),
    "three near": partial(clusters, width=512, shares=(1 / 3, 1 / 3, 1 / 3), distance=1.8, decay=1, offset=3),
}
"""Families with clusters."""
