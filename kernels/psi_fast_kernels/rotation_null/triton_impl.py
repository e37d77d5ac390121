"""The S nulls in Triton: one program takes a draw from the pool's rotation to its silhouette, and one number leaves it.

The formulas are those of `reference`. Two kernels before it make the columns of the leading axes and their m x m matrices,
the latter for many draws to a program; with more than TILE samples the draws are made by torch and clustered by blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._hardware import architecture_of, free_bytes
from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import (
    TILE,
    cluster_columns,
    launch_bytes,
    pass_columns_of,
    rows_per_chunk,
    tile_of,
    warps_of,
)
from psi_fast_kernels.cluster.triton_tile import best_clustering, split
from psi_fast_kernels.philox.triton_impl import key_words
from psi_fast_kernels.rotation_null import marginals, reference
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.tangent import FLAT_AXES, Tangent

BLOCK = 64  # columns of a Gram matrix made at once
DRAWS = 4  # per program of `_leading_axes`
M = tl.constexpr(FLAT_AXES)
CELLS = tl.constexpr(marginals.CELLS)
ROOT_STEPS = tl.constexpr(
    60
)  # of Newton and Schulz; each brings the smallest eigenvalue's root up by 3/2 until it is near 1
ROOT_TOLERANCE = tl.constexpr(1e-13)


def rotation_null(
    tangent: Tangent, pool: Pool, *, rotation: str, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.rotation_null`; computed in float32."""
    channels, samples = tangent.angles.shape
    start = {"k_max": k_max, "n_init": n_init, "seed": seed}
    if samples > TILE:
        return reference.rotation_null(tangent, pool, rotation=rotation, **start, channel=channel, clustering="triton")
    device, draws = channel.device, len(pool.draw)
    result = torch.empty(channels, draws, dtype=torch.float32, device=device)
    tile = tile_of(samples)
    columns, groups = cluster_columns(k_max, pass_columns_of(architecture_of(device)))
    spread, angles, weights, quantiles = (part.float().contiguous() for part in tangent)
    mix, sources = (part.float().contiguous() for part in pool[1:])
    marginal = rotation == "marginal"
    flat = sources.shape[1] if marginal else sources.shape[1] // 2
    scratch = 4 * FLAT_AXES * (2 * tile + 4 * FLAT_AXES) if flat else 0
    per_channel = draws * (8 * tile * tile + 4 * n_init * columns + scratch)

    def work(part: slice) -> None:
        count = (part.stop - part.start) * draws
        rows = count if flat else 0
        y = torch.empty(rows, 2, FLAT_AXES, tile, dtype=torch.float32, device=device)
        small = torch.empty(rows, 4, FLAT_AXES, FLAT_AXES, dtype=torch.float32, device=device)
        parts = torch.empty(count, 4, tile, tile, dtype=torch.float16, device=device)
        starts = torch.empty(count, n_init, columns, dtype=torch.int32, device=device)
        if flat:
            _columns[(count,)](
                mix, sources, weights[part], quantiles[part], y, small, samples, draws, flat, T=tile, B=min(tile, BLOCK),
                MARGINAL=marginal, num_warps=warps_of(tile),
            )  # fmt: skip
            _leading_axes[(triton.cdiv(count, DRAWS),)](y, small, count, flat, T=tile, N=DRAWS, num_warps=4)
        _rotation[(count,)](
            mix, y, small, spread[part], angles[part], pool.draw, channel[part], parts, starts, result[part], samples,
            draws, flat, k_max, n_init, *key_words(seed), int(Stream.NULL_STARTS), T=tile, B=min(tile, BLOCK), P=columns,
            G=groups, FLAT=flat > 0, KEEP_ANGLES=rotation in reference.KEEP_ANGLES, num_warps=warps_of(tile), num_stages=1,
        )  # fmt: skip

    in_chunks(work, channels, rows_per_chunk(per_channel, budget_bytes=launch_bytes(free_bytes(device))), "channels")
    return result.to(tangent.angles.dtype)


@triton.jit(do_not_specialize=["samples", "draws", "flat"])
def _columns(
    mix, sources, weights, quantiles, y, small, samples, draws, flat,
    T: tl.constexpr, B: tl.constexpr, MARGINAL: tl.constexpr,
):  # fmt: skip
    """For a pair of (channel, draw): rows Y^T and Y^T Q into `y` [2, M, T], Y^T Y into the first of `small` [4, M, M]."""
    pair = tl.program_id(0).to(tl.int64)
    c, b = pair // draws, pair % draws
    axes = samples - 1
    j, sample = tl.arange(0, M)[:, None], tl.arange(0, T)[None, :]
    used = (j < flat) & (sample < samples)
    if MARGINAL:
        place = tl.load(sources + b * flat * samples + j * samples + sample, mask=used, other=0.0) * CELLS
        cell = tl.minimum(place.to(tl.int32), CELLS - 1)
        table = quantiles + c * flat * (CELLS + 1) + j * (CELLS + 1) + cell
        low = tl.load(table, mask=used, other=0.0)
        rows = low + (place - cell.to(tl.float32)) * (tl.load(table + 1, mask=used, other=0.0) - low)
    else:
        own = sources + b * 2 * flat * samples + j * samples + sample
        uniform, normal = tl.load(own, mask=used, other=0.0), tl.load(own + flat * samples, mask=used, other=0.0)
        weights += c * 2 * flat + j
        rows = tl.load(weights, mask=j < flat, other=0.0) * uniform
        rows += tl.load(weights + flat, mask=j < flat, other=0.0) * normal
    rows = tl.where(used, rows - (tl.sum(rows, 1) / samples)[:, None], 0.0)
    y += pair * 2 * M * T
    tl.store(y + j * T + sample, rows)
    tl.debug_barrier()  # other threads wrote what is read now
    other = tl.arange(0, M)
    small += pair * 4 * M * M
    for i in range(flat):
        row = tl.load(y + i * T + tl.arange(0, T))
        tl.store(small + i * M + other, tl.sum(rows * row[None, :], 1))
    sample = tl.arange(0, T)[:, None]
    for first in range(0, axes, B):
        axis = first + tl.arange(0, B)
        block = tl.load(
            mix + b * samples * axes + sample * axes + axis[None, :],
            mask=(sample < samples) & (axis[None, :] < axes),
            other=0.0,
        )
        for i in range(flat):
            row = tl.load(y + i * T + sample)
            tl.store(y + M * T + i * T + axis, tl.sum(row * block, 0))


@triton.jit(do_not_specialize=["pairs", "flat"])
def _leading_axes(shaped, small, pairs, flat, T: tl.constexpr, N: tl.constexpr):
    """For N pairs of (channel, draw): R = (Y^T Y)^(-1/2), A^(-1) and their product, behind Y^T Y in `small` [4, M, M]."""
    pair = tl.program_id(0) * N + tl.arange(0, N)
    real = pair < pairs
    i, j = tl.arange(0, M)[None, :, None], tl.arange(0, M)[None, None, :]
    used = real[:, None, None] & (i < flat) & (j < flat)
    eye = tl.where(i == j, 1.0, 0.0).to(tl.float64)
    place = small + pair[:, None, None].to(tl.int64) * 4 * M * M + i * M + j
    square = tl.load(place, mask=used, other=0.0).to(tl.float64)
    scale = tl.sum(tl.sum(square * eye, 2), 1) / flat
    scale = tl.maximum(scale, tl.max(tl.sum(tl.abs(square), 2), 1) / 2.5)  # the iteration needs eigenvalues below 3
    scale = tl.where(real, scale, 1.0)
    y = tl.where(used, square / scale[:, None, None], eye)
    z = eye + tl.zeros([N, M, M], tl.float64)
    step = 0
    error = 1.0
    while (error > ROOT_TOLERANCE) & (step < ROOT_STEPS):
        rest = eye - _product(z, y)
        error = tl.max(tl.max(tl.max(tl.abs(rest), 2), 1), 0).to(tl.float32)
        t = eye + 0.5 * rest
        y = _product(y, t)
        z = _product(t, z)
        step += 1
    root = z / tl.sqrt(scale)[:, None, None]
    own = shaped + pair[:, None, None].to(tl.int64) * 2 * M * T + M * T + i * T + j
    column = tl.load(own, mask=used, other=0.0).to(tl.float64)
    inverse = _inverse(eye - _product(root, column), i, j, eye)
    tl.store(place + M * M, root.to(tl.float32), mask=real[:, None, None])
    tl.store(place + 2 * M * M, inverse.to(tl.float32), mask=real[:, None, None])
    tl.store(place + 3 * M * M, _product(root, inverse).to(tl.float32), mask=real[:, None, None])


@triton.jit
def _product(left, right):
    """Products of the matrices [N, M, M]."""
    return tl.sum(left[:, :, :, None] * right[:, None, :, :], 2)


@triton.jit
def _inverse(left, i, j, eye):
    """Inverses by Gauss and Jordan without exchanges: the symmetric part of A = I - V^T E is positive definite."""
    right = eye + tl.zeros_like(left)
    for p in tl.static_range(M):
        line, other = tl.sum(tl.where(i == p, left, 0.0), 1), tl.sum(tl.where(i == p, right, 0.0), 1)
        factor = tl.sum(tl.where(j == p, left, 0.0), 2)
        pivot = tl.sum(tl.where(i == p, factor[:, :, None], 0.0), 1)
        line, other = line / pivot, other / pivot
        left = tl.where(i == p, line[:, None, :], left - factor[:, :, None] * line[:, None, :])
        right = tl.where(i == p, other[:, None, :], right - factor[:, :, None] * other[:, None, :])
    return right


@triton.jit(do_not_specialize=["samples", "draws", "flat", "k_max", "n_init", "key0", "key1", "stream"])
def _rotation(
    mix, y, small, spread, angles, draw, channel, parts, starts, out,
    samples, draws, flat, k_max, n_init, key0, key1, stream,
    T: tl.constexpr, B: tl.constexpr, P: tl.constexpr, G: tl.constexpr, FLAT: tl.constexpr, KEEP_ANGLES: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    c, b = pair // draws, pair % draws
    axes = samples - 1
    sample, axis = tl.arange(0, T), tl.arange(0, T)
    valid, inside = sample < samples, axis < axes
    mix += b * samples * axes
    points = tl.load(
        mix + sample[:, None] * axes + axis[None, :], mask=valid[:, None] & inside[None, :], other=0.0
    )  # fmt: skip
    if FLAT:
        # Q H = Q - leading turn^T, one of the m columns at a time
        y += pair * 2 * M * T
        small += pair * 4 * M * M
        for j in range(flat):
            turn = tl.where(axis == j, 1.0, 0.0)
            leading = tl.zeros([T], tl.float32)
            for i in range(flat):
                cell = small + i * M + j
                turn -= tl.load(cell + M * M) * tl.load(y + M * T + i * T + axis, mask=inside, other=0.0)
                leading += tl.load(cell + 2 * M * M) * tl.load(mix + sample * axes + i, mask=valid, other=0.0)
                leading -= tl.load(cell + 3 * M * M) * tl.load(y + i * T + sample)
            points -= leading[:, None] * turn[None, :]
    points *= tl.load(spread + c * axes + axis, mask=inside, other=0.0)[None, :]
    length = tl.sqrt(tl.sum(points * points, 1))
    theta = length
    if KEEP_ANGLES:
        shorter = (length[None, :] < length[:, None]) | (
            (length[None, :] == length[:, None]) & (sample[None, :] < sample[:, None])
        )
        rank = tl.sum((shorter & valid[None, :]).to(tl.int32), 1)
        theta = tl.load(angles + c * samples + rank, mask=valid, other=0.0)
    sine, cosine = _sine_cosine(theta)
    points *= (sine / tl.maximum(length, 1e-12))[:, None]
    points = tl.where((axis == axes)[None, :] & valid[:, None], cosine[:, None], points)
    high, low = split(points)
    parts += pair * 4 * T * T
    place = sample[:, None] * T + axis[None, :]
    tl.store(parts + place, high)
    tl.store(parts + T * T + place, low)
    tl.debug_barrier()  # other threads wrote what is read now
    for first in range(0, T, B):  # block by block, which leaves room in the registers
        column = first + tl.arange(0, B)
        gram = tl.zeros([T, B], tl.float32)
        for inner in range(0, T, B):
            left = parts + sample[:, None] * T + inner + tl.arange(0, B)[None, :]
            right = parts + column[None, :] * T + inner + tl.arange(0, B)[:, None]
            left_high, right_high = tl.load(left), tl.load(right)
            gram = tl.dot(tl.load(left + T * T), right_high, tl.dot(left_high, right_high, gram))
            gram = tl.dot(left_high, tl.load(right + T * T), gram)
        gram_high, gram_low = split(gram)
        result = parts + 2 * T * T + sample[:, None] * T + column[None, :]
        tl.store(result, gram_high)
        tl.store(result + T * T, gram_low)
    tl.debug_barrier()
    value, _ = best_clustering(
        parts + 2 * T * T, starts + pair * n_init * P, starts, samples, k_max, n_init, key0, key1, stream, tl.load(channel + c),
        tl.load(draw + b), T, P, G, False,
    )  # fmt: skip
    tl.store(out + pair, value)


@triton.jit
def _sine_cosine(angle):
    """Sine and cosine of float32 angles in [0, 1e4] to 1e-7; the library's reduction of huge angles takes a stack."""
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)
    # quarter turns are taken off in three parts of pi / 2, the first two exact in the product
    rest = angle - quarter * 1.5703125
    rest = rest - quarter * 4.83751296997070e-4
    rest = rest - quarter * 7.54978995489188e-8
    square = rest * rest
    sine = rest + rest * square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    cosine = 1.0 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    turn = quarter.to(tl.int32)
    swap = (turn & 1) == 1
    first, second = tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)
    return tl.where((turn & 2) == 2, -first, first), tl.where(((turn + 1) & 2) == 2, -second, second)


def specimens() -> list[Specimen]:
    """The kernels at the default shape, to be compiled."""
    floats = ("mix", "y", "small", "spread", "angles", "out")
    numbers = ("samples", "draws", "flat", "k_max", "n_init", "key0", "key1", "stream")
    signature = dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "i32")
    signature |= {"draw": "*i64", "channel": "*i64", "parts": "*fp16", "starts": "*i32"}
    columns, groups = cluster_columns(6, pass_columns_of(90))
    _, fewer = cluster_columns(6, pass_columns_of(80))
    constants = {"T": TILE, "B": BLOCK, "P": columns, "G": groups, "FLAT": True, "KEEP_ANGLES": True}
    made = dict.fromkeys(("mix", "sources", "weights", "quantiles", "y", "small"), "*fp32")
    made |= dict.fromkeys(("samples", "draws", "flat"), "i32")
    axes = {"shaped": "*fp32", "small": "*fp32", "pairs": "i32", "flat": "i32"}
    return [
        *(
            Specimen(f"columns, {name}", _columns, made, {"T": TILE, "B": BLOCK, "MARGINAL": marginal}, warps_of(TILE))
            for name, marginal in (("marginal", True), ("unimodal", False))
        ),
        Specimen("leading axes", _leading_axes, axes, {"T": TILE, "N": DRAWS}, warps=4),
        Specimen("draw", _rotation, signature, constants, warps_of(TILE), products=True, before_90={"G": fewer}),
    ]
