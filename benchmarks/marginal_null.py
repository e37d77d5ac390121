"""A candidate for the null of S: the leading axes keep the closest unimodal distribution to their own, not only the kurtosis.

The formulas of `rotation_null.reference` hold, with other columns Y for the m leading axes: Y_ij = Q_j(u_ij), where Q_j is the
quantile function of axis j's closest unimodal distribution (the one of Hartigan and Hartigan's dip statistic, piecewise linear
between the samples) and the u_ij are uniform in (0, 1) and serve all channels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import padded
from psi_fast_kernels.cluster.numba_impl import best_clustering, workspace
from psi_fast_kernels.rotation_null import Pool, tangent_space
from psi_fast_kernels.rotation_null.numba_impl import _gram, _leading_axes, _mix, _ranks
from psi_fast_kernels.rotation_null.tangent import FLAT_AXES, MEAN_STEPS, _log_map, flat_axes, orthogonal_to_ones

CELLS = 128  # of a quantile function's table


class Marginals(NamedTuple):
    """Spread [C, r] and angles [C, K] as in `Tangent`; quantiles [C, m, CELLS + 1] of the leading axes."""

    spread: Tensor
    angles: Tensor
    quantiles: Tensor


def marginals(gram: Tensor, width: int) -> Marginals:
    """What a draw needs of the data, from their Gram matrices [C, K, K]."""
    tangent = tangent_space(gram, width)
    axes = _leading_coordinates(gram.double(), flat_axes(gram.shape[1], width))
    table = np.empty((*axes.shape[:2], CELLS + 1))
    for c in range(len(axes)):
        for j in range(axes.shape[1]):
            unimodal_quantiles(axes[c, j], table[c, j])
    return Marginals(tangent.spread, tangent.angles, torch.from_numpy(table).to(gram.dtype))


def marginal_null(
    data: Marginals, pool: Pool, u: np.ndarray, *, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """Silhouettes of the draws of each channel [C, B]; `pool` as for `radial`, u [B, m, K] float32 uniform in (0, 1)."""
    channels, samples = data.angles.shape
    result = data.angles.new_empty(channels, len(pool.draw))
    spread = pad(data.spread, (0, padded(samples) - samples + 1)).numpy()
    key = (seed & 0xFFFFFFFF, seed >> 32, int(Stream.NULL_STARTS))
    given = (data.angles.numpy(), data.quantiles.numpy(), pool.draw.numpy(), pool.mix.numpy(), u, channel.numpy())

    def work(part: slice) -> None:
        _null_each(spread, *given, result.numpy(), part.start, part.stop, k_max, n_init, *key)

    over_threads(work, result.numel())
    return result


def _leading_coordinates(gram: Tensor, count: int) -> np.ndarray:
    """Sorted scores [C, m, K] of variance 1 on the leading principal axes of the tangent space."""
    samples = gram.shape[1]
    ones = torch.ones_like(gram[:, :, :1])
    weights = ones / (ones.mT @ gram @ ones).clamp(min=1e-24).sqrt()
    for _ in range(MEAN_STEPS):
        _, _, toward = _log_map(gram, weights)
        step = (toward.mT @ gram @ toward).clamp(min=0).sqrt()
        weights = torch.cos(step) * weights + torch.sinc(step / torch.pi) * toward
        weights = weights / (weights.mT @ gram @ weights).clamp(min=1e-24).sqrt()
    cosine, scale, _ = _log_map(gram, weights)
    basis = orthogonal_to_ones(samples, gram)
    vectors = torch.linalg.eigh(basis.T @ (scale * (gram - cosine * cosine.mT) * scale.mT) @ basis).eigenvectors
    return ((basis @ vectors.flip(-1)[:, :, :count]).mT * samples**0.5).sort(-1).values.numpy()


@compiled
def unimodal_quantiles(x, table):
    """Quantiles at 0, 1/N, .. 1 of the unimodal distribution closest to the sorted samples x, into `table` [N + 1].

    For each mode among the samples: the greatest convex minorant of the distribution function before it and the least
    concave majorant behind it; the mode whose distribution strays least from the samples' counts.
    """
    samples = len(x)
    fit, best = np.empty(samples), np.empty(samples)
    corner = np.empty(samples, np.int64)
    closest = np.inf
    for mode in range(samples):
        _hull(x, fit, corner, 0, mode + 1, 1.0)
        _hull(x, fit, corner, mode, samples, -1.0)
        off = 0.0
        for i in range(samples):
            off = max(off, abs(fit[i] - i / (samples - 1)))
        if off < closest:
            closest = off
            best[:] = fit
    at = 1
    for cell in range(len(table)):
        u = cell / (len(table) - 1)
        while at < samples - 1 and best[at] < u:
            at += 1
        rise = max(best[at] - best[at - 1], 1e-12)
        table[cell] = x[at - 1] + (x[at] - x[at - 1]) * min(max((u - best[at - 1]) / rise, 0.0), 1.0)


@compiled
def _hull(x, fit, corner, first, last, sign):
    """Lower (sign 1) or upper (-1) hull of the points (x_i, i / (K - 1)), i in first..last - 1, at every x_i into `fit`."""
    step = 1 / (len(x) - 1)
    count = 0
    for i in range(first, last):
        while count > 1:
            p, q = corner[count - 2], corner[count - 1]
            if sign * ((q - p) * (x[i] - x[q]) - (i - q) * (x[q] - x[p])) < 0:
                break
            count -= 1
        corner[count] = i
        count += 1
    for c in range(count - 1):
        p, q = corner[c], corner[c + 1]
        slope = (q - p) / max(x[q] - x[p], 1e-12)
        for i in range(p, q):
            fit[i] = step * (p + slope * (x[i] - x[p]))
    fit[last - 1] = step * (last - 1)


@compiled
def _null_each(
    spread, angles, quantiles, draw, mix, u, channel, out, first, last, k_max, n_init, key0, key1, stream
):  # fmt: skip
    """Silhouettes of the pairs first..last of (channel, draw) into `out` [C, B]; see `rotation_null.numba_impl`."""
    draws, samples, axes = mix.shape
    count, cells = quantiles.shape[1], quantiles.shape[2] - 1
    points = np.zeros((samples + -samples % 4, spread.shape[1]), mix.dtype)
    turn, leading = np.zeros((FLAT_AXES, spread.shape[1]), mix.dtype), np.zeros((FLAT_AXES, samples), mix.dtype)
    gram = np.empty((samples, samples), mix.dtype)
    labels = np.empty(samples, np.int32)
    length, rank = np.empty(samples, mix.dtype), np.empty(samples, np.int32)
    columns, projected = np.zeros((2 * count, samples), mix.dtype), np.zeros((2 * count, axes), mix.dtype)
    inner, weights = np.zeros((2 * count, 2 * count), mix.dtype), np.zeros(2 * count, mix.dtype)
    weights[:count] = 1
    space = workspace(gram, k_max, n_init)
    for pair in range(first, last):
        c, b = pair // draws, pair % draws
        for j in range(count):
            table, row = quantiles[c, j], columns[j]
            for i in range(samples):
                place = u[b, j, i] * cells
                cell = min(int(place), cells - 1)
                row[i] = table[cell] + (place - cell) * (table[cell + 1] - table[cell])
            row -= row.mean()
            projected[j] = 0
            for i in range(samples):
                projected[j] += row[i] * mix[b, i]
            for other in range(j + 1):
                inner[j, other] = inner[other, j] = (row * columns[other]).sum()
        _leading_axes(weights, mix[b], columns, projected, inner, turn, leading)
        _mix(mix[b], spread[c], turn, leading, points, length)
        _ranks(length, rank)
        for i in range(samples):
            theta = angles[c, rank[i]]
            scale = mix.dtype.type(np.sin(theta) / max(length[i], 1e-12))
            row = points[i]
            for a in range(axes):
                row[a] *= scale
            row[axes] = np.cos(theta)
        _gram(points, gram)
        out[c, b], _ = best_clustering(gram, labels, k_max, n_init, key0, key1, stream, channel[c], draw[b], space)
