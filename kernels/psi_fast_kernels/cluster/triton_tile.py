"""k-means and silhouette of one problem whose Gram matrix is a tile on the chip: device functions for any kernel.

Shapes: K samples (padded to T); for each k a group of P columns, of which the first k are its clusters; a pass holds G
groups, so that all its k take their Lloyd steps at once in one [T, T] x [T, G P] product.

The Gram matrix comes as two float16 parts [2, T, T], zero from row and column K on: G = high + low to 2^-23, since the
entries lie in [-1, 1]. The one-hot assignment is exact in float16 and sums are float32, so the products are those of
float32 at the speed of float16.
"""

import triton
import triton.language as tl

from psi_fast_kernels.cluster.reference import ALIKE, CANDIDATES, MAX_STEPS, SAME
from psi_fast_kernels.philox.triton_impl import philox4x32, to_uniform32

RESTARTS = tl.constexpr(4)  # that draw their starts at once
PLACES = tl.constexpr(4)  # candidates, up to a power of two
DRAWN = tl.constexpr(CANDIDATES)
MARGIN = tl.constexpr(1 + ALIKE)
STEPS = tl.constexpr(MAX_STEPS)
ONE_POINT = tl.constexpr(SAME * 2.0**-23)
TINY = tl.constexpr(2.0**-126)


@triton.jit
def split(values):
    """Two float16 tensors whose sum is `values` to 2^-23, for |values| <= 1."""
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@triton.jit
def best_clustering(
    parts, starts, kept, samples, k_max, n_init, key0, key1, stream, channel, draw,
    T: tl.constexpr, P: tl.constexpr, G: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Silhouette (float32) and k (int32) of the best clustering of one Gram matrix; k = 1 when there is none.

    `parts` points to the matrix's two parts. The largest mean silhouette over k = 2..k_max counts, ties take the smaller
    k; for each k the restart with the lowest inertia. `starts` is room for [n_init, P] int32. With KEEP the labels of
    each k go to `kept` [k_max - 1, K] int8.
    """
    store_starts(parts, starts, 0, n_init, samples, k_max, key0, key1, stream, channel, draw, T, P, RESTARTS)
    tl.debug_barrier()  # other threads wrote what is read below
    sample = tl.arange(0, T)
    valid = sample < samples
    high = tl.load(parts + sample[:, None] * T + sample[None, :])
    low = tl.load(parts + T * T + sample[:, None] * T + sample[None, :])
    trace = tl.sum(entry(parts, sample * (T + 1), T), 0)
    group = tl.arange(0, G)
    best, best_k = -float("inf"), 1
    first_k = 2
    while first_k <= k_max:
        k = first_k + group
        lowest = tl.full([G], float("inf"), tl.float32)
        values = tl.full([G], -float("inf"), tl.float32)
        for restart in range(n_init):
            start = tl.load(starts + restart * P + tl.arange(0, P))
            labels = _nearest_start(high, low, start, k, T, P, G)
            labels = _lloyd(high, low, labels, valid, k, k_max, T, P, G)
            inertia, value = _judge(high, low, trace, labels, valid, samples, T, P, G)
            better = (inertia < lowest) & (k <= k_max)
            lowest = tl.where(better, inertia, lowest)
            values = tl.where(better, value, values)
            if KEEP:
                place = kept + (k - 2)[None, :] * samples + sample[:, None]
                tl.store(place, labels.to(tl.int8), mask=valid[:, None] & better[None, :])
        value = tl.max(values, 0)
        if value > best:  # strict: ties take the smaller k
            best = value
            best_k = first_k + tl.min(tl.where(values == value, group, G), 0)
        first_k += G
    if (1.0 - smallest_entry(parts, samples, T) <= ONE_POINT) | (best_k == 1):  # all samples are one point
        best = 0.0
        best_k = 1
    return best, best_k


@triton.jit
def entry(parts, place, T: tl.constexpr):
    """Entries of the Gram matrix at flat places, float32."""
    return tl.load(parts + place).to(tl.float32) + tl.load(parts + T * T + place).to(tl.float32)


@triton.jit
def smallest_entry(parts, samples, T: tl.constexpr):
    """The smallest entry of the Gram matrix."""
    column = tl.arange(0, T)[None, :]
    smallest = 1.0
    for first in range(0, samples, 16):
        row = first + tl.arange(0, 16)[:, None]
        value = tl.where((row < samples) & (column < samples), entry(parts, row * T + column, T), 1.0)
        smallest = tl.minimum(smallest, tl.min(tl.min(value, 1), 0))
    return smallest


@triton.jit
def store_starts(
    parts, starts, first, last, samples, k_max, key0, key1, stream, channel, draw,
    T: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Greedy k-means++ starts of the restarts first..last, R at a time, to `starts` [last - first, P] int32.

    See `reference.plus_plus`.
    """
    sample = tl.arange(0, T)
    restart = tl.arange(0, R)
    candidate = tl.arange(0, PLACES)[None, :]
    diagonal = entry(parts, sample * (T + 1), T)
    for base in range(first, last, R):
        dist2 = tl.broadcast_to(tl.where(sample < samples, 4.0, 0.0)[None, :], [R, T])  # larger than any
        for step in range(k_max):
            index = ((base + restart)[:, None] * k_max + step) * DRAWN + candidate
            word0, word1, word2, word3 = philox4x32(index // 4, draw, channel, stream, key0, key1)
            which = index % 4
            word = tl.where(which < 2, tl.where(which == 0, word0, word1), tl.where(which == 2, word2, word3))
            uniform = to_uniform32(word)
            cumulated = tl.cumsum(dist2, 1)
            total = tl.max(cumulated, 1)
            below = cumulated[:, None, :] <= (uniform * total[:, None])[:, :, None]
            drawn = tl.where(step == 0, (uniform * samples).to(tl.int32), tl.sum(below.to(tl.int32), 2))
            drawn = tl.minimum(drawn, samples - 1)
            column = entry(parts, drawn[:, :, None] * T + sample[None, None, :], T)
            own = entry(parts, drawn * (T + 1), T)
            left = tl.maximum(diagonal[None, None, :] + own[:, :, None] - 2.0 * column, 0.0)
            left = tl.minimum(left, dist2[:, None, :])  # 0 where there is no sample
            remaining = tl.where(candidate < tl.where(step == 0, 1, DRAWN), tl.sum(left, 2), float("inf"))
            smallest = tl.min(remaining, 1)
            earliest = tl.min(tl.where(remaining <= smallest[:, None] * MARGIN, candidate, PLACES), 1)
            chosen = candidate == earliest[:, None]
            dist2 = tl.sum(tl.where(chosen[:, :, None], left, 0.0), 1)
            start = tl.sum(tl.where(chosen, drawn, 0), 1)
            tl.store(starts + (base - first + restart) * P + step, start, mask=base + restart < last)


@triton.jit
def _nearest_start(high, low, start, k, T: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    """Labels [T, G]: for each k the most similar of the first k samples `start` [P]."""
    cluster = tl.arange(0, P)[None, None, :]
    one_hot = (tl.arange(0, T)[:, None] == start[None, :])[:, None, :]
    z = tl.reshape(tl.broadcast_to(one_hot, [T, G, P]).to(tl.float16), [T, G * P])
    similarity = tl.reshape(tl.dot(low, z, tl.dot(high, z)), [T, G, P])
    offered = tl.where(cluster < k[None, :, None], similarity, -float("inf"))
    nearest = tl.max(offered, 2)
    return tl.min(tl.where(offered == nearest[:, :, None], cluster, P), 2)


@triton.jit
def _lloyd(high, low, labels, valid, k, k_max, T: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    """Labels [T, G] moved to the nearest centre until none of any k changes, at most MAX_STEPS times."""
    cluster = tl.arange(0, P)[None, None, :]
    step = 0
    moving = 1
    while moving > 0:
        _, sums, sizes, within = cluster_sums(high, low, labels, valid, T, P, G)
        share = 1.0 / tl.maximum(sizes, 1.0)
        spread = tl.where(sizes > 0.0, within * share * share, float("inf"))
        dist2 = spread[None, :, :] - (2.0 * share)[None, :, :] * sums
        closest = tl.min(dist2, 2)
        target = tl.min(tl.where(dist2 == closest[:, :, None], cluster, P), 2)
        moved = (target != labels) & valid[:, None] & (k <= k_max)[None, :]
        labels = target
        step += 1
        moving = tl.where(step < STEPS, tl.max(tl.max(moved.to(tl.int32), 1), 0), 0)
    return labels


@triton.jit
def _judge(high, low, trace, labels, valid, samples, T: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    """Inertia [G] and mean silhouette [G] of the labels [T, G]."""
    one_hot, sums, sizes, within = cluster_sums(high, low, labels, valid, T, P, G)
    inertia = trace - tl.sum(within / tl.maximum(sizes, 1.0), 1)
    return inertia, tl.sum(silhouettes(one_hot, sums, sizes), 0) / samples


@triton.jit
def cluster_sums(high, low, labels, valid, T: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    """One-hot [T, G, P] bool, G Z [T, G, P], cluster sizes [G, P] and sums inside the clusters [G, P], float32."""
    cluster = tl.arange(0, P)[None, None, :]
    one_hot = (labels[:, :, None] == cluster) & valid[:, None, None]
    z = tl.reshape(one_hot.to(tl.float16), [T, G * P])
    sums = tl.reshape(tl.dot(low, z, tl.dot(high, z)), [T, G, P])
    sizes = tl.sum(one_hot.to(tl.float32), 0)
    return one_hot, sums, sizes, tl.sum(tl.where(one_hot, sums, 0.0), 0)


@triton.jit
def silhouettes(one_hot, sums, sizes):
    """Silhouette [T, G] of every sample for the sums [T, G, P]; -inf when fewer than two clusters are in use.

    A sample alone in its cluster counts 0, and so does a row that is no sample.
    """
    used = sizes > 0.0
    mean = tl.maximum(1.0 - sums * (1.0 / tl.maximum(sizes, 1.0))[None, :, :], 0.0)
    own_size = tl.sum(tl.where(one_hot, sizes[None, :, :], 0.0), 2)
    # the sample's distance to itself is 0, so its own cluster's sum is shared by the others
    inside = tl.sum(tl.where(one_hot, mean, 0.0), 2) * own_size / tl.maximum(own_size - 1.0, 1.0)
    outside = tl.min(tl.where(one_hot | (used == 0)[None, :, :], float("inf"), mean), 2)
    value = (outside - inside) / tl.maximum(tl.maximum(outside, inside), TINY)
    several = tl.sum(used.to(tl.int32), 1) >= 2
    return tl.where(several[None, :], tl.where(own_size > 1.0, value, 0.0), -float("inf"))
