"""The S nulls compiled for the CPU: a draw goes from the pool's rotation to its silhouette without leaving the cache.

The formulas are those of `reference`.
"""

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import padded
from psi_fast_kernels.cluster.numba_impl import best_clustering, workspace
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.reference import KEEP_ANGLES
from psi_fast_kernels.rotation_null.tangent import FLAT_AXES, Tangent

ROOT_STEPS = 60  # of Newton and Schulz; each brings the smallest eigenvalue's root up by 3/2 until it is near 1
ROOT_TOLERANCE = 1e-13


def rotation_null(
    tangent: Tangent, pool: Pool, *, rotation: str, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.rotation_null`."""
    channels, samples = tangent.angles.shape
    result = tangent.angles.new_empty(channels, len(pool.draw))
    line = padded(samples)
    # axes up to whole cache lines: a dot product of rows has no remainder
    spread = pad(tangent.spread, (0, line - samples + 1)).numpy()
    angles, weights, quantiles = (part.contiguous().numpy() for part in tangent[1:])
    pools = [part.contiguous().numpy() for part in pool]
    ids, out = channel.numpy(), result.numpy()
    how = (rotation in KEEP_ANGLES, rotation == "marginal", k_max, n_init)
    key = (seed & 0xFFFFFFFF, seed >> 32, int(Stream.NULL_STARTS))

    def work(part: slice) -> None:
        _null_each(spread, angles, weights, quantiles, *pools, ids, out, part.start, part.stop, *how, *key)

    over_threads(work, result.numel())
    return result


@compiled
def _null_each(
    spread, angles, weights, quantiles, draw, mix, columns, channel, out, first, last, keep_angles, marginal, k_max, n_init,
    key0, key1, stream,
):  # fmt: skip
    """Silhouettes of the pairs first..last of (draw, channel), draw by draw, into `out` [C, B]: a draw's mix stays cached."""
    channels, (_, samples, axes) = len(angles), mix.shape
    points = np.zeros((samples + -samples % 4, spread.shape[1]), mix.dtype)
    flat = columns.shape[1] if marginal else columns.shape[1] // 2
    turn, leading = np.zeros((FLAT_AXES, spread.shape[1]), mix.dtype), np.zeros((FLAT_AXES, samples), mix.dtype)
    y, projected = np.zeros((flat, samples + -samples % 4), mix.dtype), np.empty((flat, axes), mix.dtype)
    gram = np.empty((samples, samples), mix.dtype)
    labels = np.empty(samples, np.int32)
    length, rank = np.empty(samples, mix.dtype), np.empty(samples, np.int32)
    space = workspace(gram, k_max, n_init)
    for pair in range(first, last):
        b, c = pair // channels, pair % channels
        if flat:
            if marginal:
                _by_quantiles(quantiles[c], columns[b], y)
            else:
                _by_weights(weights[c], columns[b], y)
            _leading_axes(y, mix[b], projected, turn, leading)
        _mix(mix[b], spread[c], turn, leading, points, length)
        if keep_angles:
            _ranks(length, rank)
        for i in range(samples):
            theta = angles[c, rank[i]] if keep_angles else length[i]
            scale = mix.dtype.type(np.sin(theta) / max(length[i], 1e-12))
            row = points[i]
            for a in range(axes):
                row[a] *= scale
            row[axes] = np.cos(theta)
        _gram(points, gram)
        out[c, b], _ = best_clustering(gram, labels, k_max, n_init, key0, key1, stream, channel[c], draw[b], space)


@compiled
def _by_weights(weights, columns, y):
    """Rows Y^T of uniform and normal numbers, less their means, into `y` [m, K up to a multiple of 4]."""
    flat, samples = len(y), columns.shape[1]
    for j in range(flat):
        row, uniform, normal = y[j, :samples], columns[j], columns[flat + j]
        for i in range(samples):
            row[i] = weights[j] * uniform[i] + weights[flat + j] * normal[i]
        _centre(row)


@compiled
def _by_quantiles(quantiles, columns, y):
    """Rows Y^T of the quantiles at `columns` [m, K], less their means, into `y` [m, K up to a multiple of 4]."""
    cells = quantiles.shape[1] - 1
    for j in range(len(y)):
        table, own, row = quantiles[j], columns[j], y[j, : columns.shape[1]]
        for i in range(len(row)):
            place = own[i] * row.dtype.type(cells)
            cell = min(np.int32(place), np.int32(cells - 1))
            row[i] = table[cell] + (place - row.dtype.type(cell)) * (table[cell + 1] - table[cell])
        _centre(row)


@compiled
def _centre(row):
    total = row.dtype.type(0)
    for value in row:
        total += value
    mean = total / row.dtype.type(len(row))
    for i in range(len(row)):
        row[i] -= mean


@compiled
def _leading_axes(y, mix, projected, turn, leading):
    """The update Q H = Q - leading^T turn that turns the first m columns to Q_m: turn [m, r], leading [m, K].

    turn = (E - V)^T and leading = A^(-T) (Q_E - Q_m)^T, with A = I - V^T E; see `reference`. `projected` [m, r] gets Y^T Q.
    """
    flat, (samples, axes) = len(y), mix.shape
    square = np.empty((flat, flat))
    for i in range(flat):
        for j in range(i + 1):
            total = y.dtype.type(0)
            for sample in range(samples):
                total += y[i, sample] * y[j, sample]
            square[i, j] = square[j, i] = total
    projected[:] = 0
    for i in range(0, samples, 4):
        # beyond the last sample y is zero, so its row counts once
        q0, q1 = mix[i], mix[min(i + 1, samples - 1)]
        q2, q3 = mix[min(i + 2, samples - 1)], mix[min(i + 3, samples - 1)]
        for j in range(flat):
            y0, y1, y2, y3 = y[j, i], y[j, i + 1], y[j, i + 2], y[j, i + 3]
            row = projected[j]
            for axis in range(axes):
                row[axis] += (y0 * q0[axis] + y1 * q1[axis]) + (y2 * q2[axis] + y3 * q3[axis])
    root = _inverse_root(square)
    for j in range(flat):
        row = turn[j]
        row[:] = 0
        for i in range(flat):
            a, own = row.dtype.type(root[i, j]), projected[i]
            for axis in range(axes):
                row[axis] -= a * own[axis]
        row[j] += 1
    small = np.empty((flat, flat))  # A: V^T E = E - turn restricted to the first m axes
    first = np.empty((flat, samples), mix.dtype)  # Q_E^T
    for i in range(flat):
        for j in range(flat):
            small[i, j] = turn[i, j]
        for sample in range(samples):
            first[i, sample] = mix[sample, i]
    inverse = _inverse(small)
    both = _product(root, inverse)
    for j in range(flat):
        row = leading[j]
        row[:] = 0
        for i in range(flat):
            q, a, old, new = row.dtype.type(inverse[i, j]), row.dtype.type(both[i, j]), first[i], y[i]
            for sample in range(samples):
                row[sample] += q * old[sample] - a * new[sample]


@compiled
def _mix(mix, spread, turn, leading, points, length):
    """Rows F = (Q - leading^T turn) Lam^(1/2) into `points`, and their lengths."""
    samples, axes = mix.shape
    for i in range(samples):
        row = points[i]  # whole cache lines: beyond the axes spread is 0
        row[:axes] = mix[i]
        for j in range(0, FLAT_AXES, 2):  # two at a time: with more arrays in a loop the compiler gives up on vectors
            a0, a1, t0, t1 = leading[j, i], leading[j + 1, i], turn[j], turn[j + 1]
            for a in range(len(row)):
                row[a] -= a0 * t0[a] + a1 * t1[a]
        square = row.dtype.type(0)
        for a in range(len(row)):
            row[a] *= spread[a]
            square += row[a] * row[a]
        length[i] = np.sqrt(square)


@compiled
def _ranks(values, rank):
    """Place of each value in ascending order, equal ones in the order they stand."""
    rank[:] = 0
    for i in range(len(values)):
        value = values[i]
        before, behind = values[:i], values[i + 1 :]
        for j in range(len(before)):
            rank[j] += value < before[j]
        after = rank[i + 1 :]
        for j in range(len(behind)):
            after[j] += value <= behind[j]


@compiled
def _gram(points, gram):
    """Products of the rows of `points` [K up to a multiple of 4, r up to a cache line] into `gram` [K, K]."""
    samples = len(gram)
    zero = points.dtype.type(0)
    for i in range(0, samples, 4):
        x0, x1, x2, x3 = points[i], points[i + 1], points[i + 2], points[i + 3]
        for j in range(i, samples, 2):
            y0, y1 = points[j], points[j + 1]
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = zero
            for a in range(points.shape[1]):
                s00 += x0[a] * y0[a]
                s01 += x0[a] * y1[a]
                s10 += x1[a] * y0[a]
                s11 += x1[a] * y1[a]
                s20 += x2[a] * y0[a]
                s21 += x2[a] * y1[a]
                s30 += x3[a] * y0[a]
                s31 += x3[a] * y1[a]
            if i + 4 <= samples and j + 2 <= samples:
                gram[i, j], gram[i, j + 1] = s00, s01
                gram[i + 1, j], gram[i + 1, j + 1] = s10, s11
                gram[i + 2, j], gram[i + 2, j + 1] = s20, s21
                gram[i + 3, j], gram[i + 3, j + 1] = s30, s31
            else:
                tile = ((s00, s01), (s10, s11), (s20, s21), (s30, s31))
                for p in range(min(4, samples - i)):
                    for q in range(min(2, samples - j)):
                        gram[i + p, j + q] = tile[p][q]
    for i in range(samples):
        row = gram[i]
        for j in range(i):
            row[j] = gram[j, i]


@compiled
def _inverse_root(matrix):
    """M^(-1/2) of a symmetric positive definite matrix, by the coupled iteration of Newton and Schulz."""
    size = len(matrix)
    scale, largest = 0.0, 0.0
    for i in range(size):
        scale += matrix[i, i] / size
        total = 0.0
        for value in matrix[i]:
            total += abs(value)
        largest = max(largest, total)
    scale = max(scale, largest / 2.5)  # the iteration needs eigenvalues below 3
    y, z = np.empty((size, size)), np.eye(size)
    for i in range(size):
        for j in range(size):
            y[i, j] = matrix[i, j] / scale
    for _ in range(ROOT_STEPS):
        t = _product(z, y)
        error = 0.0
        for i in range(size):
            for j in range(size):
                t[i, j] = (3.0 * (i == j) - t[i, j]) / 2
                error = max(error, abs(t[i, j] - (i == j)))
        y, z = _product(y, t), _product(t, z)
        if error < ROOT_TOLERANCE:
            break
    for i in range(size):
        for j in range(size):
            z[i, j] /= np.sqrt(scale)
    return z


@compiled
def _inverse(matrix):
    """Inverse by Gauss and Jordan without exchanges: the symmetric part of A = I - V^T E is positive definite."""
    size = len(matrix)
    left, right = matrix.copy(), np.eye(size)
    for p in range(size):
        pivot = 1 / left[p, p]
        for j in range(size):
            left[p, j] *= pivot
            right[p, j] *= pivot
        for i in range(size):
            if i != p:
                factor = left[i, p]
                for j in range(size):
                    left[i, j] -= factor * left[p, j]
                    right[i, j] -= factor * right[p, j]
    return right


@compiled
def _product(left, right):
    size = len(left)
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            for k in range(size):
                result[i, k] += left[i, j] * right[j, k]
    return result
