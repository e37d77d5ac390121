"""Embeddings without structure, and with known clusters, shaped like those of real channels: same mean, spectrum and K."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import Generator

MEAN_STEPS = 8
FREEDOM = 5
"""Degrees of freedom of the heavy-tailed family."""


def mean_direction(rows: np.ndarray) -> np.ndarray:
    """The point [d] of the sphere whose mean squared angle to the unit rows [K, d] is smallest."""
    mean = unit(rows.mean(0))
    for _ in range(MEAN_STEPS):
        mean = unit(exponential(log_map(rows, mean).mean(0, keepdims=True), mean)[0])
    return mean


def log_map(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit rows [K, d] in the tangent space at `mean` [d]: directions as seen from it, as long as the angle to it."""
    cosine = np.clip(rows @ mean, -1, 1)[:, None]
    angle = np.arccos(cosine)
    return (rows - cosine * mean) * angle / np.maximum(np.sin(angle), 1e-12)


def exponential(tangent: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The inverse of `log_map`: unit rows [K, d]."""
    angle = np.linalg.norm(tangent, axis=1, keepdims=True)
    return np.cos(angle) * mean + np.sinc(angle / np.pi) * tangent


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def gaussian(rows: np.ndarray, rng: Generator) -> np.ndarray:
    """K samples of a Gaussian with the tangent covariance of `rows` [K, d] at their mean, mapped to the sphere."""
    mean, tangent = _shape(rows)
    return exponential(_bounded(_mixed(tangent, rng), tangent), mean)


def heavy_tailed(rows: np.ndarray, rng: Generator) -> np.ndarray:
    """As `gaussian`, of Student's t of the same covariance: some samples lie far out."""
    mean, tangent = _shape(rows)
    scale = np.sqrt((FREEDOM - 2) / rng.chisquare(FREEDOM, size=(len(rows), 1)))
    return exponential(_bounded(_mixed(tangent, rng) * scale, tangent), mean)


def own_angles(rows: np.ndarray, rng: Generator) -> np.ndarray:
    """As `gaussian`, the angles to the mean being those of `rows`, by rank."""
    mean, tangent = _shape(rows)
    drawn = _mixed(tangent, rng)
    length = np.linalg.norm(drawn, axis=1)
    angle = np.sort(np.linalg.norm(tangent, axis=1))[np.argsort(np.argsort(length))]
    return exponential(drawn * (angle / length)[:, None], mean)


def pooled(rows: np.ndarray, rng: Generator, *, pool: np.ndarray) -> np.ndarray:
    """As many samples as `rows` of a Gaussian with mean and covariance of the unit rows `pool` [M, d], made unit."""
    mean = pool.mean(0)
    return unit(mean + rng.normal(size=(len(rows), len(pool))) @ (pool - mean) / (len(pool) - 1) ** 0.5)


def clouds(rows: np.ndarray, rng: Generator, *, count: int, distance: float) -> np.ndarray:
    """`count` Gaussian clouds of equal share, each as `gaussian`, with centres `distance` cloud radii apart.

    A cloud's radius is the root mean square distance to its centre; centres lie in random orthogonal directions.
    """
    mean, tangent = _shape(rows)
    radius = np.sqrt((tangent**2).sum() / (len(rows) - 1))
    random = rng.normal(size=(rows.shape[1], count))
    axes = np.linalg.qr(random - np.outer(mean, mean @ random))[0].T
    centres = (axes - axes.mean(0)) * distance * radius / 2**0.5
    return exponential(_mixed(tangent, rng) + centres[np.arange(len(rows)) % count], mean)


def turned(rows: np.ndarray, rng: Generator) -> np.ndarray:
    """The rows [K, d] under a random rotation of the whole space: what they are to each other stays, what they mean is lost."""
    basis, coordinates = np.linalg.qr(rows.T)
    random, r = np.linalg.qr(rng.normal(size=basis.shape))
    return (random * np.sign(np.diag(r)) @ coordinates).T


Family = Callable[[np.ndarray, Generator], np.ndarray]


def families(
    pool: np.ndarray, counts: tuple[int, ...], distances: tuple[float, ...]
) -> tuple[dict[str, Family], dict[str, Family]]:
    """Families of one cloud, and of several, by name; each makes embeddings [K, d] of a channel's `rows` [K, d]."""
    one: dict[str, Family] = {
        "gaussian": gaussian,
        "own angles": own_angles,
        f"Student t, {FREEDOM}": heavy_tailed,
        "all patches": partial(pooled, pool=pool),
    }
    several: dict[str, Family] = {
        f"{count} clouds, {distance:g} apart": partial(clouds, count=count, distance=distance)
        for count in counts
        for distance in distances
    }
    return one, several


def _shape(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean direction [d] and centred tangent vectors [K, d] of unit rows [K, d]."""
    rows = rows.astype(np.float64)
    mean = mean_direction(rows)
    tangent = log_map(rows, mean)
    return mean, tangent - tangent.mean(0)


def _mixed(tangent: np.ndarray, rng: Generator) -> np.ndarray:
    """As many samples of a Gaussian with the covariance of the centred rows [K, d]."""
    return rng.normal(size=(len(tangent), len(tangent))) @ tangent / (len(tangent) - 1) ** 0.5


def _bounded(drawn: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Rows no longer than a right angle, or the longest of `tangent`: farther out they would meet behind the sphere."""
    length = np.linalg.norm(drawn, axis=1, keepdims=True)
    longest = max(np.pi / 2, np.linalg.norm(tangent, axis=1).max())
    return drawn * np.minimum(1, longest / np.maximum(length, 1e-12))
