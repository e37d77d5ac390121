"""k-means and silhouette of Gram matrices too large for the chip: one program per restart, block by block of B samples.

Labels and sums G Z live in memory between the steps; shapes and the two float16 parts are those of `triton_tile`.
"""

import triton
import triton.language as tl

from psi_fast_kernels.cluster.triton_tile import RESTARTS, STEPS, entry, silhouettes, store_starts


@triton.jit(do_not_specialize=["samples", "k_max", "n_init", "key0", "key1", "stream"])
def cluster_blocks(
    parts, channel, draw, starts, labels, sums, inertias, values, samples, k_max, n_init, key0, key1, stream,
    T: tl.constexpr, B: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Per problem and restart: labels [k_max - 1, K] int8, inertia and mean silhouette [k_max - 1] float32 of each k."""
    program = tl.program_id(0).to(tl.int64)
    problem, restart = program // n_init, (program % n_init).to(tl.int32)
    parts += problem * 2 * T * T
    starts += program * P
    labels += program * (k_max - 1) * samples
    sums += program * T * G * P
    store_starts(
        parts, starts, restart, restart + 1, samples, k_max, key0, key1, stream, tl.load(channel + problem),
        tl.load(draw + problem), T, P, RESTARTS,
    )  # fmt: skip
    tl.debug_barrier()  # other threads wrote what is read below; so at every barrier
    first_k = 2
    while first_k <= k_max:
        k = first_k + tl.arange(0, G)
        _nearest_start(parts, starts, labels, samples, k, k_max, T, B, P)
        tl.debug_barrier()
        step = 0
        moving = 1
        while moving > 0:
            sizes, within = _store_sums(parts, labels, sums, samples, k, k_max, T, B, P, G)
            tl.debug_barrier()
            moved = _nearest_centre(labels, sums, sizes, within, samples, k, k_max, B, P, G)
            tl.debug_barrier()
            step += 1
            moving = tl.where(step < STEPS, moved, 0)
        sizes, within = _store_sums(parts, labels, sums, samples, k, k_max, T, B, P, G)
        tl.debug_barrier()
        inertia = -tl.sum(within / tl.maximum(sizes, 1.0), 1)
        value = tl.zeros([G], tl.float32)
        for base in range(0, samples, B):
            sample = base + tl.arange(0, B)
            inertia += tl.sum(tl.where(sample < samples, entry(parts, sample * (T + 1), T), 0.0), 0)
            one_hot = _one_hot(labels, sample, samples, k, k_max, P)
            value += tl.sum(silhouettes(one_hot, _load_sums(sums, sample, B, P, G), sizes), 0)
        place = program * (k_max - 1) + k - 2
        tl.store(inertias + place, inertia, mask=k <= k_max)
        tl.store(values + place, value / samples, mask=k <= k_max)
        first_k += G


@triton.jit
def _labels_at(labels, sample, samples, k):
    """Where the labels of the samples [B] for each k [G] lie, [B, G]."""
    return labels + (k - 2)[None, :] * samples + sample[:, None]


@triton.jit
def _one_hot(labels, sample, samples, k, k_max, P: tl.constexpr):
    """One-hot [B, G, P] bool of a block of labels; a row that is no sample has none."""
    used = (sample < samples)[:, None] & (k <= k_max)[None, :]
    own = tl.load(_labels_at(labels, sample, samples, k), mask=used, other=-1).to(tl.int32)
    return own[:, :, None] == tl.arange(0, P)[None, None, :]


@triton.jit
def _load_sums(sums, sample, B: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    return tl.reshape(tl.load(sums + sample[:, None] * G * P + tl.arange(0, G * P)[None, :]), [B, G, P])


@triton.jit
def _nearest_start(parts, starts, labels, samples, k, k_max, T: tl.constexpr, B: tl.constexpr, P: tl.constexpr):
    cluster = tl.arange(0, P)
    start = tl.load(starts + cluster, mask=cluster < k_max, other=0)
    for base in range(0, samples, B):
        sample = base + tl.arange(0, B)
        similarity = entry(parts, start[None, :] * T + sample[:, None], T)
        offered = tl.where(cluster[None, None, :] < k[None, :, None], similarity[:, None, :], -float("inf"))
        nearest = tl.max(offered, 2)
        found = tl.min(tl.where(offered == nearest[:, :, None], cluster[None, None, :], P), 2)
        used = (sample < samples)[:, None] & (k <= k_max)[None, :]
        tl.store(_labels_at(labels, sample, samples, k), found.to(tl.int8), mask=used)


@triton.jit
def _store_sums(
    parts, labels, sums, samples, k, k_max, T: tl.constexpr, B: tl.constexpr, P: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """G Z to `sums` [T, G P]; returns cluster sizes [G, P] and sums inside the clusters [G, P]."""
    sizes = tl.zeros([G, P], tl.float32)
    within = tl.zeros([G, P], tl.float32)
    for base in range(0, samples, B):
        sample = base + tl.arange(0, B)
        product = tl.zeros([B, G * P], tl.float32)
        for other in range(0, samples, B):
            column = other + tl.arange(0, B)
            z = tl.reshape(_one_hot(labels, column, samples, k, k_max, P).to(tl.float16), [B, G * P])
            block = parts + sample[:, None] * T + column[None, :]
            product = tl.dot(tl.load(block + T * T), z, tl.dot(tl.load(block), z, product))
        tl.store(sums + sample[:, None] * G * P + tl.arange(0, G * P)[None, :], product)
        one_hot = _one_hot(labels, sample, samples, k, k_max, P)
        sizes += tl.sum(one_hot.to(tl.float32), 0)
        within += tl.sum(tl.where(one_hot, tl.reshape(product, [B, G, P]), 0.0), 0)
    return sizes, within


@triton.jit
def _nearest_centre(
    labels, sums, sizes, within, samples, k, k_max, B: tl.constexpr, P: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """Moves the labels to the nearest centre; 1 where any moved."""
    cluster = tl.arange(0, P)[None, None, :]
    share = 1.0 / tl.maximum(sizes, 1.0)
    spread = tl.where(sizes > 0.0, within * share * share, float("inf"))
    moved = 0
    for base in range(0, samples, B):
        sample = base + tl.arange(0, B)
        dist2 = spread[None, :, :] - (2.0 * share)[None, :, :] * _load_sums(sums, sample, B, P, G)
        closest = tl.min(dist2, 2)
        target = tl.min(tl.where(dist2 == closest[:, :, None], cluster, P), 2)
        used = (sample < samples)[:, None] & (k <= k_max)[None, :]
        place = _labels_at(labels, sample, samples, k)
        changed = used & (tl.load(place, mask=used, other=0).to(tl.int32) != target)
        moved = tl.maximum(moved, tl.max(tl.max(changed.to(tl.int32), 1), 0))
        tl.store(place, target.to(tl.int8), mask=used)
    return moved
