"""The random numbers of the draws, which all channels share."""

from typing import NamedTuple

import torch
from torch import Tensor

from psi_fast_kernels._batched import products
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import padded
from psi_fast_kernels.philox import normal, permutation, uniform
from psi_fast_kernels.rotation_null.tangent import flat_axes, orthogonal_to_ones


class Pool(NamedTuple):
    """B draws; K samples, r = K - 1 axes, m flat axes.

    draw : [B] int64 indices of the draws
    mix : [B, K, r] orthonormal columns orthogonal to 1, or normal numbers of variance 1 / (K - 1) for `gaussian`
    columns : what the leading axes are made of: [B, 2m, K] m rows of uniform, then m of normal numbers of variance 1 for
        `unimodal`, [B, m, K] uniform numbers in (0, 1) for `marginal`, [B, 0, K] for the others
    """

    draw: Tensor
    mix: Tensor
    columns: Tensor


def rotation_pool(
    samples: int, width: int, *, rotation: str, draws: range, seed: int, dtype: torch.dtype, device: torch.device
) -> Pool:
    """See `psi_fast_kernels.rotation_null.op.rotation_pool`; drawn in float64."""
    draw = torch.arange(draws.start, draws.stop, device=device)
    none = torch.zeros_like(draw)
    axes, flat = samples - 1, flat_axes(samples, width)
    if rotation == "gaussian":
        mix = normal(seed, Stream.ROTATION, none, draw, samples * axes).unflatten(-1, (samples, axes)) / axes**0.5
    else:
        q = haar(normal(seed, Stream.ROTATION, none, draw, axes * axes).unflatten(-1, (axes, axes)))
        mix = products(orthogonal_to_ones(samples, q).expand(len(q), -1, -1), q)
    if rotation == "unimodal":
        uniforms = (2 * uniform(seed, Stream.FLAT_AXES_UNIFORM, none, draw, samples * flat) - 1) * 3**0.5
        normals = normal(seed, Stream.FLAT_AXES_NORMAL, none, draw, samples * flat)
        columns = torch.cat([part.unflatten(-1, (samples, flat)) for part in (uniforms, normals)], dim=-1).mT
    elif rotation == "marginal":
        columns = stratified(seed, draw, flat, samples)
    else:
        columns = mix.new_empty(len(draw), 0, samples)
    return Pool(draw, *(part.to(dtype).contiguous() for part in (mix, columns)))


def stratified(seed: int, draw: Tensor, axes: int, samples: int) -> Tensor:
    """Uniform numbers in (0, 1), float64 [B, axes, samples], equally many (within one) in each of two parts of (0, 1).

    The fit has taken up the data's coarse shape already; without strata a draw would vary it a second time.
    """
    ids = torch.arange(axes, device=draw.device), draw[:, None]
    place = uniform(seed, Stream.MARGINAL_PLACES, *ids, samples)
    lower = (samples + 1) // 2
    border = lower / samples
    first = permutation(seed, Stream.MARGINAL_STRATA, *ids, samples) < lower
    return torch.where(first, border * place, border + (1 - border) * place)


def haar(normals: Tensor) -> Tensor:
    """The orthogonal factors Q of normal matrices X = Q R [B, n, n] with a positive diagonal of R: Haar distributed."""
    if normals.device.type == "cpu":
        return by_reflections(normals)
    # a GPU's library takes reflections matrix by matrix, but factors and solves a batch at once
    q, failed = by_cholesky(normals)
    return by_reflections(normals) if failed else q


def by_reflections(x: Tensor) -> Tensor:
    """Q by Householder's reflections, of each matrix within an identity of whole cache lines; see `padded`."""
    size = x.shape[-1]
    wide = torch.eye(padded(size), dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
    wide[:, :size, :size] = x
    q, r = (part[:, :size, :size] for part in torch.linalg.qr(wide))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


def by_cholesky(x: Tensor) -> tuple[Tensor, bool]:
    """Q by Cholesky factors of X^T X, twice since the first pass squares the condition; and whether a factor failed."""
    failed = False
    for _ in range(2):
        r, info = torch.linalg.cholesky_ex(x.mT @ x, upper=True)
        failed |= bool(info.any())
        x = torch.linalg.solve_triangular(r, x, upper=True, left=False)
    return x, failed
