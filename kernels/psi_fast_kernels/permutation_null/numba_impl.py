"""Permuted labels on the CPU: draws and exact moments compiled to loops that stay in the cache.

Channels share nothing but tables that do not depend on them, so neither chunks nor threads change a bit; and a draw adds
the same logarithms in the same order as `reference`, so it gives the same bits.
"""

import math

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.permutation_null.exact import moments_of_information
from psi_fast_kernels.permutation_null.reference import SINGLE, entropy, log_table
from psi_fast_kernels.philox.numba_impl import fill_words
from psi_fast_kernels.philox.reference import MASK

NEGLIGIBLE = 1e-25  # a probability this small beside the largest adds nothing to a float64
INDEX_BITS = np.uint64(32)
INDEX_MASK = np.uint64(MASK)


def permutation_null(clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor) -> Tensor:
    """See `psi_fast_kernels.permutation_null.op.permutation_null`."""
    channels, samples = clusters.shape
    classes = int(labels.max()) + 1
    result = torch.empty(channels, len(draws), dtype=torch.float64)
    apart = entropy(clusters) + entropy(labels)
    arrays = [x.contiguous().numpy() for x in (clusters * classes, labels, channel, apart, log_table(samples), result)]
    numbers = (seed & MASK, seed >> 32, (int(clusters.max()) + 1) * classes, math.log(samples))

    def work(part: slice) -> None:
        _draw_each(*arrays, part.start, part.stop, draws.start, *numbers)

    over_threads(work, result.numel())
    return result


@compiled(in_order=True)  # a draw is to have the bits of the plain version
def _draw_each(rows, labels, channel, apart, logarithms, result, start, stop, first, key0, key1, cells, log_samples):
    """NMI of the (channel, draw) pairs start..stop in the result's order; `rows` are clusters times classes."""
    samples, draws = rows.shape[1], result.shape[1]
    bits = 1
    while 2**bits < 2 * samples:
        bits += 1
    starts = np.empty(2**bits + 1, np.int32)
    words, order = np.empty(samples, np.uint64), np.empty(samples, np.uint64)
    cell, counts = np.empty(samples, np.int64), np.zeros(cells, np.int32)
    for pair in range(start, stop):
        c, b = pair // draws, pair % draws
        fill_words(words, Stream.LABEL_PERMUTATION, channel[c], first + b, key0, key1)
        stable_order(words, order, starts, np.uint64(32 - bits))
        for i in range(samples):
            cell[i] = rows[c, order[i] & INDEX_MASK] + labels[c, i]
            counts[cell[i]] += 1
        total = 0.0
        for i in range(samples):
            total += logarithms[counts[cell[i]]]
        for i in range(samples):
            counts[cell[i]] = 0
        if apart[c] < SINGLE:
            result[c, b] = 1.0
        else:
            result[c, b] = min(max(2 * (apart[c] - (log_samples - total / samples)) / apart[c], 0.0), 1.0)


@compiled(in_order=True)
def stable_order(words, order, starts, shift):
    """The stable order of `words` [K] uint64 < 2**32, in the low 32 bits of `order` [K] uint64.

    Random words fall evenly into buckets by their leading bits (word >> shift), which leaves next to nothing to sort.
    """
    starts[:] = 0
    for word in words:
        starts[np.int64(word >> shift) + 1] += 1
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    for i in range(len(words)):
        bucket = np.int64(words[i] >> shift)
        order[starts[bucket]] = (words[i] << INDEX_BITS) | np.uint64(i)
        starts[bucket] += 1
    for i in range(1, len(order)):
        item, place = order[i], i
        while place > 0 and order[place - 1] > item:
            order[place] = order[place - 1]
            place -= 1
        order[place] = item


def information_moments(cluster_sizes: np.ndarray, class_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `psi_fast_kernels.permutation_null.reference.information_moments`."""
    channels, total = len(cluster_sizes), int(cluster_sizes[0].sum())
    present = np.zeros((channels, total + 1), bool)
    np.put_along_axis(present, class_sizes, True, axis=1)
    present[:, :2] = False  # f is 0 there
    first, second = np.empty(channels), np.empty(channels)
    _moments_of_sums(present, cluster_sizes, class_sizes, first, second)
    return moments_of_information(first, second, cluster_sizes, class_sizes)


def _moments_of_sums(
    present: np.ndarray, cluster_sizes: np.ndarray, class_sizes: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    """Mean and mean square of sum f of channels that share one table of expectations; `present` sizes of classes in each."""
    size = np.arange(present.shape[1])
    f = xlogy(size, size.astype(np.float64))
    together = np.zeros((len(size), len(size)), bool)
    _mark_pairs(present, together)
    b, b2 = np.nonzero(together)
    if len(b) > rows_per_chunk(8 * len(size)) and len(first) > 1:
        for half in (slice(len(first) // 2), slice(len(first) // 2, None)):
            _moments_of_sums(*(x[half] for x in (present, cluster_sizes, class_sizes, first, second)))
        return
    place = np.full(together.shape, -1)
    place[b, b2] = np.arange(len(b))
    means = np.zeros((len(b), len(size)))
    over_threads(lambda part: _fill_means(b[part], b2[part], means[part], f), len(b))

    def work(part: slice) -> None:
        _moments_each(cluster_sizes[part], class_sizes[part], first[part], second[part], place, means, f)

    over_threads(work, len(first))


@compiled(in_order=True)
def _mark_pairs(present, together):
    """Whether any channel has classes of both sizes."""
    for c in range(len(present)):
        sizes = np.nonzero(present[c])[0]
        for b in sizes:
            for b2 in sizes:
                together[b, b2] = True


@compiled(in_order=True)
def _fill_means(b, b2, means, f):
    """E f(n), n of b2 marked samples among `drawn` of the N - b outside a class of b, for drawn = 0..N - b."""
    total = len(f) - 1
    p = np.empty(total + 1)
    for pair in range(len(b)):
        for drawn in range(total - b[pair] + 1):
            low, high = hypergeometric(p, total - b[pair], drawn, b2[pair])
            means[pair, drawn] = _dot(p, f, low, high)


@compiled(in_order=True)
def _moments_each(cluster_sizes, class_sizes, first, second, place, means, f):
    total = len(f) - 1
    p = np.empty(total + 1)
    for c in range(len(first)):
        a, a_count = _distinct(cluster_sizes[c], total, 1)
        b, b_count = _distinct(class_sizes[c], total, 2)
        elsewhere = np.zeros((len(b), total + 1))  # M_b
        for ib in range(len(b)):
            for jb in range(len(b)):
                others = b_count[jb] - (jb == ib)
                if others:
                    elsewhere[ib] += others * means[place[b[ib], b[jb]]]
        first[c], second[c] = _sums(a, a_count, b, b_count, elsewhere, p, f)


@compiled(in_order=True)
def _sums(a, a_count, b, b_count, elsewhere, p, f):
    """Mean and mean square of sum f, from distinct sizes, how often each occurs, and M_b of each b."""
    total = len(f) - 1
    largest = b.max() if len(b) else 0
    weights = np.zeros((len(b), total + 1))  # P(x) f(x), times how many cells share the sizes
    first = second = 0.0
    for ia in range(len(a)):
        for ib in range(len(b)):
            weights[ib] = 0
            low, high = hypergeometric(p, total, a[ia], b[ib])
            for x in range(max(low, 2), high + 1):
                weights[ib, x] = a_count[ia] * b_count[ib] * p[x] * f[x]
                first += weights[ib, x]
                second += weights[ib, x] * (f[x] + elsewhere[ib, a[ia] - x])
        for ja in range(len(a)):
            others = a_count[ja] - (ja == ia)
            if others == 0:
                continue
            # b - x samples of a class are left for the other clusters, where classes of different b share their P(w)
            for left in range(largest - 1):
                low, high = hypergeometric(p, total - a[ia], left, a[ja])
                within = _dot(p, f, low, high)
                for ib in range(len(b)):
                    weight = weights[ib, b[ib] - left] if b[ib] > left else 0.0
                    if weight > 0:
                        beside = 0.0
                        for w in range(low, high + 1):
                            beside += p[w] * elsewhere[ib, a[ja] - w]
                        second += others * weight * (within + beside)
    return first, second


@compiled(in_order=True)
def _distinct(sizes, total, smallest):
    """The different sizes from `smallest` on, ascending, and how often each occurs."""
    count = np.zeros(total + 1, np.int64)
    for size in sizes:
        count[size] += 1
    count[:smallest] = 0
    values = np.nonzero(count)[0]
    return values, count[values]


@compiled(in_order=True)
def _dot(p, f, low, high):
    total = 0.0
    for n in range(low, high + 1):
        total += p[n] * f[n]
    return total


@compiled(in_order=True)
def hypergeometric(p, total, drawn, marked):
    """P(n) of n marked among `drawn` of `total` into p[n], from the mode outwards; returns the first and last n that matter."""
    fewest, most = max(0, drawn + marked - total), min(drawn, marked)
    mode = min(max((drawn + 1) * (marked + 1) // (total + 2), fewest), most)
    rest = total - drawn - marked
    p[mode] = whole = ratio = 1.0
    high = mode
    while high < most:
        ratio *= (marked - high) * (drawn - high) / ((high + 1) * (rest + high + 1))
        if ratio < NEGLIGIBLE:
            break
        high += 1
        p[high] = ratio
        whole += ratio
    low, ratio = mode, 1.0
    while low > fewest:
        ratio *= low * (rest + low) / ((marked - low + 1) * (drawn - low + 1))
        if ratio < NEGLIGIBLE:
            break
        low -= 1
        p[low] = ratio
        whole += ratio
    for n in range(low, high + 1):
        p[n] /= whole
    return low, high
