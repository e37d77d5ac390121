"""A candidate for the null of S: the leading axes keep the unimodal distribution nearest to their own, not only the kurtosis.

The formulas of `rotation_null.reference` hold, with other columns Y for the m leading axes: Y_ij = Q_j(u_ij). Q_j is the quantile
function of a unimodal distribution near axis j's: the taut string through the narrowest tube around the samples' distribution
function that leaves one mode (Davies and Kovac 2001). u_j is uniform in (0, 1), with equally many samples in each of two or four
parts, as the fit has taken up the data's coarse shape already: without such strata draws vary more than data do. The u serve all
channels.
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

TUBE_STEPS = 24  # bisections of the tube's radius
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


def stratified(samples: int, axes: int, draws: int, seed: int, strata: int) -> np.ndarray:
    """Uniform numbers [draws, axes, samples] float32, equally many (within one) in each of `strata` parts of (0, 1)."""
    rng = np.random.default_rng(seed)
    part = np.arange(samples) * strata // samples
    low, high = (np.searchsorted(part, part, side) / samples for side in ("left", "right"))
    return rng.permuted(low + (high - low) * rng.random((draws, axes, samples)), axis=2).astype(np.float32)


def marginal_null(
    data: Marginals, pool: Pool, u: np.ndarray, *, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """Silhouettes of the draws of each channel [C, B]; `pool` as for `radial`, `u` [B, m, K] from `stratified`."""
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
    """Quantiles at 0, 1/N, .. 1 of the unimodal distribution near the sorted samples x, into `table` [N + 1]."""
    fit = np.empty(len(x))
    narrow, wide = 0.0, 0.5
    for _ in range(TUBE_STEPS):
        radius = (narrow + wide) / 2
        if _taut_string(x, radius, fit):
            wide = radius
        else:
            narrow = radius
    _taut_string(x, wide, fit)
    at = 1
    for cell in range(len(table)):
        u = cell / (len(table) - 1)
        while at < len(x) - 1 and fit[at] < u:
            at += 1
        rise = max(fit[at] - fit[at - 1], 1e-12)
        table[cell] = x[at - 1] + (x[at] - x[at - 1]) * min(max((u - fit[at - 1]) / rise, 0.0), 1.0)


@compiled
def _taut_string(x, radius, fit):
    """Shortest path from (x_0, 0) to (x_n, 1) within `radius` of the points (x_i, i / n), at every x_i into `fit`.

    Returns whether its slope, a density, first rises and then falls.
    """
    last = len(x) - 1
    start, height = 0, 0.0
    falls, unimodal = False, True
    fit[0] = 0.0
    while start < last:
        lowest, highest = -np.inf, np.inf  # slopes that pass all points seen
        low, high, end, slope = start, start, last, 0.0
        for i in range(start + 1, last + 1):
            room = radius if i < last else 0.0
            run = max(x[i] - x[start], 1e-12)
            floor, ceiling = (i / last - room - height) / run, (i / last + room - height) / run
            if floor > highest:  # the path bends up around the tube's upper side
                end, slope, reached = high, highest, high / last + radius
                unimodal = unimodal and not falls
                break
            if ceiling < lowest:
                end, slope, reached = low, lowest, low / last - radius
                falls = True
                break
            if floor >= lowest:
                lowest, low = floor, i
            if ceiling <= highest:
                highest, high = ceiling, i
        else:
            reached = 1.0
            slope = (1.0 - height) / max(x[last] - x[start], 1e-12)
        for i in range(start + 1, end + 1):
            fit[i] = height + slope * (x[i] - x[start])
        start, height = end, reached
    return unimodal


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
