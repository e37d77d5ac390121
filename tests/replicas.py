"""Slow NumPy and scikit-learn versions of docs/method.md, one channel at a time, in coordinates instead of Gram matrices.

They share no line with the code they check.
"""

import itertools
from functools import cache

import numpy as np
from scipy.optimize import lsq_linear
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

# ---- random numbers


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Four 32-bit words of Philox 4x32-10 in Python integers, as in Salmon et al. 2011."""
    x, k = list(counter), list(key)
    for number in range(10):
        if number:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(0xD2511F53 * x[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
    return x


def haar(size: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly distributed orthogonal matrix [size, size]."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return q * np.sign(np.diag(r))


# ---- clustering


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inertia(x: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances of the rows of x [K, d] to their cluster's mean."""
    return sum(((x[labels == j] - x[labels == j].mean(0)) ** 2).sum() for j in np.unique(labels))


def best_silhouette(x: np.ndarray, k_max: int, n_init: int, seed: int) -> float:
    """Largest mean cosine silhouette of scikit-learn's k-means over k = 2..k_max."""
    values = []
    for k in range(2, k_max + 1):
        labels = KMeans(k, n_init=n_init, random_state=seed).fit(x).labels_
        if len(np.unique(labels)) > 1:
            values.append(silhouette_score(x, labels, metric="cosine"))
    return max(values, default=0.0)


# ---- rotations of the samples


def log_map(x: np.ndarray, steps: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Mean direction [d] of unit rows x and their tangent vectors [K, d] there, after `steps` updates or when it rests."""
    centre = unit(x.sum(0))
    for step in range(steps + 1):
        along = x @ centre
        across = x - np.outer(along, centre)
        length = np.linalg.norm(across, axis=1)
        angle = np.arctan2(length, along)
        vectors = across * np.divide(angle, length, out=np.ones_like(angle), where=length > 1e-12)[:, None]
        move = vectors.mean(0)
        size = np.linalg.norm(move)
        if size < 1e-13 or step == steps:
            break
        centre = unit(np.cos(size) * centre + np.sin(size) * move / size)
    return centre, vectors


def exp_map(centre: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Points on the sphere at the tangent vectors [K, d] of `centre`."""
    angle = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.cos(angle) * centre + np.sinc(angle / np.pi) * vectors


def with_ranks_of(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`values` reordered so that their ranks are those of `like`."""
    result = np.empty_like(values)
    result[np.argsort(like)] = np.sort(values)
    return result


def flat_weights(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the uniform and the normal part that give the kurtosis of the unit columns `axes` [K, m]."""
    kurtosis = np.clip(len(axes) * (axes**4).sum(0), 1.8, 3)
    flat = ((3 - kurtosis) / 1.2) ** 0.25
    return flat, np.sqrt(1 - flat**2)


@cache
def unimodal_fit(x: tuple[float, ...]) -> tuple[float, np.ndarray]:
    """Radius of the narrowest tube around the distribution function of sorted samples x whose taut string has a slope of
    one mode, and the string's heights at the samples; of all paths in a tube it has the least sum of rise^2 / run."""
    last, run = len(x) - 1, np.maximum(np.diff(x), 1e-12)
    counts = np.arange(last + 1) / last
    rises = np.diff(np.eye(last + 1), axis=0) / np.sqrt(run)[:, None]
    narrow, wide, best = 0.0, 0.5, counts
    while wide - narrow > 1e-6:
        radius = (narrow + wide) / 2
        inner = lsq_linear(
            rises[:, 1:-1], -rises[:, -1], (counts[1:-1] - radius, counts[1:-1] + radius), "bvls", tol=1e-14
        )
        heights = np.r_[0, inner.x, 1]
        slopes = np.diff(heights) / run
        up, down = (np.flatnonzero(sign * np.diff(slopes) > 1e-7 * slopes.max()) for sign in (1, -1))
        if len(up) and len(down) and up[-1] > down[0]:
            narrow = radius
        else:
            wide, best = radius, heights
    return wide, best


def unimodal_quantiles(x: np.ndarray, cells: int) -> np.ndarray:
    """Quantiles at 0, 1 / cells, .. 1 of the unimodal distribution nearest to the samples x, and a hundredth of a uniform one."""
    x, u = np.sort(x), np.linspace(0, 1, cells + 1)
    return np.interp(u, unimodal_fit(tuple(x))[1], x) + 0.01 * np.sqrt(12) * (u - 0.5)


def in_two_strata(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform numbers in (0, 1), as many below as above the middle; the odd one shifts the border."""
    lower = samples - samples // 2
    parts = rng.uniform(0, lower / samples, lower), rng.uniform(lower / samples, 1, samples - lower)
    return rng.permutation(np.concatenate(parts))


def rotate(x: np.ndarray, rotation: str, rng: np.random.Generator) -> np.ndarray:
    """One null draw [K, d] of unit rows x."""
    samples, width = x.shape
    if rotation == "independent":
        return unit(rng.normal(size=x.shape))
    centre, t = log_map(x)
    if rotation == "gaussian":
        return exp_map(centre, rng.normal(size=(samples, samples)) @ t / np.sqrt(samples - 1))
    if rotation in ("tangent", "radial"):
        # an orthogonal basis whose first axis is the constant one; the others are turned among themselves
        basis = np.linalg.qr(np.c_[np.ones(samples), rng.normal(size=(samples, samples - 1))])[0]
        turn = np.eye(samples)
        turn[1:, 1:] = haar(samples - 1, rng)
        mixed = basis @ turn @ basis.T @ t
    else:
        u, s, vt = np.linalg.svd(t, full_matrices=False)
        axes = min(samples - 1, width)
        m = min(8, axes // 2)
        if rotation == "marginal":
            tables = [unimodal_quantiles(axis * np.sqrt(samples), 128) for axis in u[:, :m].T]
            y = np.zeros((samples, m))
            for j, table in enumerate(tables):
                y[:, j] = np.interp(in_two_strata(samples, rng), np.linspace(0, 1, 129), table)
        else:
            flat, peaked = flat_weights(u[:, :m])
            y = flat * rng.uniform(-np.sqrt(3), np.sqrt(3), (samples, m)) + peaked * rng.normal(size=(samples, m))
        left, _, right = np.linalg.svd(y - y.mean(0), full_matrices=False)
        leading = left @ right  # polar factor: Y (Y^T Y)^(-1/2)
        rest = np.linalg.qr(np.c_[np.ones(samples), leading, rng.normal(size=(samples, axes - m))])[0][:, m + 1 :]
        mixed = np.c_[leading, rest] * s[:axes] @ vt[:axes]
    if rotation in ("radial", "unimodal", "marginal"):
        length = np.linalg.norm(mixed, axis=1)
        mixed = mixed * (with_ranks_of(np.linalg.norm(t, axis=1), length) / length)[:, None]
    return exp_map(centre, mixed)


# ---- agreement with labels


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two labellings, from its definition."""
    total = 0.0
    for i in np.unique(a):
        for j in np.unique(b):
            joint = np.mean((a == i) & (b == j))
            if joint > 0:
                total += joint * np.log(joint / (np.mean(a == i) * np.mean(b == j)))
    return total


def permuted_information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mutual information of `a` with every permutation of `b`, [n!]."""
    orders = np.array(list(itertools.permutations(b.tolist())))
    values = np.zeros(len(orders))
    for i, j in itertools.product(np.unique(a), np.unique(b)):
        joint = (orders[:, a == i] == j).mean(1) * np.mean(a == i)
        independent = np.mean(a == i) * np.mean(b == j)
        values += np.where(joint > 0, joint * np.log(np.where(joint > 0, joint, 1) / independent), 0)
    return values


# ---- distinctness of concepts


def gap(prototypes: np.ndarray, vectors: np.ndarray) -> float:
    """How much better the prototypes [k, d] fit their own concept vectors [k, d] than each other's."""
    k = len(prototypes)
    own = []
    for j in range(k):
        others = [prototypes[j] @ vectors[i] for i in range(k) if i != j]
        own.append(prototypes[j] @ vectors[j] - np.mean(others))
    return float(np.mean(own))


def pairwise(prototypes: np.ndarray, vectors: np.ndarray) -> float:
    """Mean of 1 - cosine over the pairs of concept vectors [k, d]."""
    return float(np.mean([1 - a @ b for a, b in itertools.combinations(vectors, 2)]))


DISTINCTNESS = {"gap": gap, "pairwise": pairwise}


def distinctness(prototypes: np.ndarray, text: np.ndarray, kind: str) -> tuple[float, np.ndarray]:
    """D and the concept nearest to each prototype."""
    chosen = np.array([np.argmax([p @ t for t in text]) for p in prototypes])
    return DISTINCTNESS[kind](prototypes, text[chosen]), chosen


# ---- data


def gaussian_cloud(
    samples: int, width: int, rng: np.random.Generator, *, decay: float = 1.0, offset: float = 2.0
) -> np.ndarray:
    """Unit rows [samples, width] of one Gaussian cloud with spectrum i^-decay around a mean of length `offset`."""
    scale = (1.0 + np.arange(width)) ** (-decay / 2)
    x = rng.normal(size=(samples, width)) * scale
    direction = unit(rng.normal(size=width))
    return unit(x + offset * direction)


def planted_clusters(
    samples: int, centres: np.ndarray, rng: np.random.Generator, *, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows [samples, d] around the rows of `centres` [m, d] in turn, and which centre each belongs to."""
    which = np.arange(samples) % len(centres)
    width = centres.shape[1]
    return unit(centres[which] + noise * rng.normal(size=(samples, width)) / np.sqrt(width)), which
