"""k-means and silhouette compiled for the CPU: one problem at a time, its Gram matrix in the cache.

A sum over a cluster is a sum of rows of the Gram matrix, so a labelling costs K additions of rows whatever k is, and a
Lloyd step costs two for each sample that moves. Problems share nothing, so neither chunks nor threads change a bit.
"""

import numpy as np
import torch
from torch import Tensor

from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels.cluster.reference import ALIKE, CANDIDATES, MAX_STEPS, SAME, Clustering
from psi_fast_kernels.philox.numba_impl import philox4x32


def cluster(
    gram: Tensor, *, k_max: int, n_init: int, seed: int, stream: int, channel: Tensor, draw: Tensor
) -> Clustering:
    """See `psi_fast_kernels.cluster.op.cluster`."""
    problems, samples, _ = gram.shape
    result = Clustering(
        gram.new_empty(problems),
        torch.empty(problems, samples, dtype=torch.int64),
        torch.empty(problems, dtype=torch.int64),
    )
    arrays = [tensor.contiguous().numpy() for tensor in (gram, channel, draw, *result)]

    def work(part: slice) -> None:
        _cluster_each(*(array[part] for array in arrays), k_max, n_init, seed & 0xFFFFFFFF, seed >> 32, int(stream))

    over_threads(work, problems)
    return result


@compiled
def _cluster_each(gram, channel, draw, silhouettes, labels, ks, k_max, n_init, key0, key1, stream):
    space = workspace(gram[0], k_max, n_init)
    for problem in range(len(gram)):
        silhouettes[problem], ks[problem] = best_clustering(
            gram[problem], labels[problem], k_max, n_init, key0, key1, stream, channel[problem], draw[problem], space
        )


@compiled
def workspace(gram, k_max, n_init):
    """Arrays for `best_clustering` of matrices like `gram` [K, K]; made once, they stay in the cache."""
    samples = len(gram)
    return (
        np.empty((k_max, samples), gram.dtype),  # G Z, a row per cluster
        np.empty((3 + CANDIDATES, samples), gram.dtype),
        np.empty((2, k_max), gram.dtype),
        np.empty((2, samples), np.int32),
        np.empty((k_max - 1, samples), np.int32),  # for each k the best labels
        np.empty(k_max - 1),  # and their inertia
        np.empty((n_init, k_max, CANDIDATES), gram.dtype),
    )


@compiled
def best_clustering(gram, labels, k_max, n_init, key0, key1, stream, channel, draw, space):
    """Silhouette and k of the best clustering of one Gram matrix [K, K]; its labels [K] go to `labels`."""
    sums, rows, per_cluster, indices, kept, inertias, numbers = space
    samples = len(gram)
    labels[:] = 0
    smallest = gram[0, 0]
    for i in range(samples):
        for j in range(samples):
            smallest = min(smallest, gram[i, j])
    if 1 - smallest <= SAME * np.finfo(gram.dtype).eps:  # all samples are one point
        return gram.dtype.type(0), 1
    fill_uniform(numbers, key0, key1, stream, channel, draw)
    inertias[:] = np.inf
    kept[:] = 0  # stays where no inertia is a number
    current, nearest, similarity = indices[0], indices[1], rows[0]
    for restart in range(n_init):
        _first_start(gram, numbers[restart], similarity, nearest, rows)
        for k in range(2, k_max + 1):
            # the first k centres of one k-means++ sequence are themselves k-means++ starts for k
            _next_start(gram, numbers[restart, k - 1], k - 1, similarity, nearest, rows)
            current[:] = nearest
            inertia = _lloyd(gram, current, k, sums, rows[2], per_cluster)
            if inertia < inertias[k - 2]:
                inertias[k - 2] = inertia
                kept[k - 2] = current
    best, best_k = gram.dtype.type(-np.inf), 1
    for k in range(2, k_max + 1):
        value = _silhouette(gram, kept[k - 2], k, sums, rows, per_cluster)
        if value > best:  # strict: ties take the smaller k
            best, best_k = value, k
    if best_k == 1:
        return gram.dtype.type(0), 1
    labels[:] = kept[best_k - 2]
    return best, best_k


@compiled
def fill_uniform(numbers, key0, key1, stream, channel, draw):
    """Uniform numbers in (0, 1) as `psi_fast_kernels.philox.uniform` gives them, in the array's order."""
    flat = numbers.reshape(-1)
    for block in range((len(flat) + 3) // 4):
        words = philox4x32(block, draw, channel, stream, key0, key1)
        for i in range(4):
            if 4 * block + i < len(flat):
                flat[4 * block + i] = (np.float64(words[i]) + 0.5) / 4294967296.0


@compiled
def _first_start(gram, numbers, similarity, nearest, rows):
    """The first centre: similarity [K] to it, nearest [K] = 0; into rows[1] squared distances, into rows[-1] the diagonal."""
    samples = len(gram)
    first = min(np.int64(numbers[0, 0] * samples), samples - 1)
    dist2, diagonal = rows[1], rows[-1]
    nearest[:] = 0
    similarity[:] = gram[first]
    zero, two, square = gram.dtype.type(0), gram.dtype.type(2), gram[first, first]
    for i in range(samples):
        diagonal[i] = gram[i, i]
        dist2[i] = max(diagonal[i] + square - two * similarity[i], zero)


@compiled
def _next_start(gram, numbers, index, similarity, nearest, rows):
    """One more centre by greedy k-means++: of CANDIDATES drawn by squared distance the one that leaves the smallest sum."""
    samples = len(gram)
    dist2, diagonal = rows[1], rows[-1]
    total = 0.0
    for i in range(samples):
        total += dist2[i]
    zero, two = gram.dtype.type(0), gram.dtype.type(2)
    remaining, chosen = np.zeros(CANDIDATES), np.empty(CANDIDATES, np.int64)
    for candidate in range(CANDIDATES):
        target, drawn, cumulated = numbers[candidate] * total, samples - 1, 0.0
        for i in range(samples):
            cumulated += dist2[i]
            if cumulated > target:
                drawn = i
                break
        left, own, square = rows[2 + candidate], gram[drawn], gram[drawn, drawn]
        chosen[candidate] = drawn
        rest = 0.0
        for i in range(samples):
            left[i] = min(max(diagonal[i] + square - two * own[i], zero), dist2[i])
            rest += left[i]
        remaining[candidate] = rest
    best, smallest = 0, remaining[0]
    for rest in remaining:
        smallest = min(smallest, rest)
    while best < CANDIDATES - 1 and remaining[best] > (1 + ALIKE) * smallest:
        best += 1
    dist2[:] = rows[2 + best]
    own = gram[chosen[best]]
    for i in range(samples):
        nearest[i] = index if own[i] > similarity[i] else nearest[i]
        similarity[i] = max(own[i], similarity[i])


@compiled
def _lloyd(gram, labels, k, sums, closest, per_cluster):
    """Moves `labels` [K] to the nearest centre until none changes, at most MAX_STEPS times; returns the inertia."""
    samples = len(gram)
    spread, weight = per_cluster
    sizes = np.zeros(k, np.int64)
    _sum_rows(gram, labels, k, sums, sizes)
    target = np.zeros(samples, np.int32)  # where no distance is a number, the first cluster
    for _ in range(MAX_STEPS):
        _within(labels, k, sums, spread)
        closest[:] = np.inf
        for c in range(k):
            if sizes[c] == 0:
                continue
            spread[c] /= sizes[c] * sizes[c]
            weight[c] = 2 / sizes[c]
            for i in range(samples):
                dist2 = spread[c] - weight[c] * sums[c, i]
                if dist2 < closest[i]:
                    closest[i] = dist2
                    target[i] = c
        moved = 0
        for i in range(samples):
            if target[i] != labels[i]:
                moved += 1
                old, new = labels[i], target[i]
                sizes[old] -= 1
                sizes[new] += 1
                for j in range(samples):
                    sums[old, j] -= gram[i, j]
                    sums[new, j] += gram[i, j]
                labels[i] = new
        if moved == 0:
            break
    _within(labels, k, sums, spread)
    inertia = 0.0
    for i in range(samples):
        inertia += gram[i, i]
    for c in range(k):
        inertia -= spread[c] / max(sizes[c], 1)
    return inertia


@compiled
def _sum_rows(gram, labels, k, sums, sizes):
    samples = len(gram)
    sizes[:] = 0
    sums[:k] = 0
    for i in range(samples):
        c = labels[i]
        sizes[c] += 1
        for j in range(samples):
            sums[c, j] += gram[i, j]


@compiled
def _within(labels, k, sums, spread):
    """Sum of the Gram matrix over the pairs inside each cluster."""
    spread[:k] = 0
    for i in range(len(labels)):
        spread[labels[i]] += sums[labels[i], i]


@compiled
def _silhouette(gram, labels, k, sums, rows, per_cluster):
    """Mean silhouette with cosine distance; a sample alone in its cluster counts 0; -inf with fewer than two clusters in use."""
    samples = len(gram)
    sizes = np.zeros(k, np.int64)
    _sum_rows(gram, labels, k, sums, sizes)
    inside, outside = rows[0], rows[1]
    zero, one = gram.dtype.type(0), gram.dtype.type(1)
    outside[:] = np.inf
    used = 0
    for c in range(k):
        if sizes[c] == 0:
            continue
        used += 1
        share = gram.dtype.type(1 / sizes[c])
        own = gram.dtype.type(sizes[c] / max(sizes[c] - 1, 1))  # a sample's distance to itself is 0
        for i in range(samples):
            mean = max(one - share * sums[c, i], zero)
            if labels[i] == c:
                inside[i] = own * mean
            else:
                outside[i] = min(outside[i], mean)
    if used < 2:
        return gram.dtype.type(-np.inf)
    total = 0.0
    for i in range(samples):
        if sizes[labels[i]] > 1:
            total += (outside[i] - inside[i]) / max(outside[i], inside[i], np.finfo(gram.dtype).tiny)
    return gram.dtype.type(total / samples)
