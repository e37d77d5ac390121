"""The data as the null draws need them: the tangent space at the mean direction, from the Gram matrix alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from psi_fast_kernels._batched import eigh, matvec, ordered_sum, products
from psi_fast_kernels.rotation_null.marginals import CELLS, quantiles

FLAT_AXES = 8
MEAN_STEPS = 8
NO_MEAN = 1e-7
"""Square of the length below which a mean of unit rows is the rounding of a float32 Gram matrix."""


class Tangent(NamedTuple):
    """The data of C channels; K samples, r = K - 1 axes, m flat axes.

    spread : [C, r] square roots of the tangent Gram's eigenvalues, descending
    angles : [C, K] angles to the mean direction, ascending, in radians
    weights : [C, 2m] weights a_j of the uniform and b_j of the normal part of the leading axes
    quantiles : [C, m, CELLS + 1] quantile functions of the leading axes, or [C, 0, CELLS + 1] where they are not asked for
    """

    spread: Tensor
    angles: Tensor
    weights: Tensor
    quantiles: Tensor

    def rows(self, which: slice) -> "Tangent":
        """The channels `which`."""
        return Tangent(*(part[which] for part in self))


def tangent_space(gram: Tensor, width: int, *, rotation: str = "marginal") -> Tangent:
    """Log map of the embeddings at their mean direction, from their Gram matrix [C, K, K] alone; computed in float64.

    Only `rotation="marginal"` takes the time for `Tangent.quantiles`.
    """
    g = gram.double()
    samples = g.shape[1]
    ones = torch.ones_like(g[:, :, :1])
    weights = _scaled(g, ones / samples)  # mean direction = X^T weights
    for _ in range(MEAN_STEPS):
        _, _, weights_to = _log_map(g, weights)
        step = _square(g, weights_to).clamp(min=0).sqrt()
        weights = torch.cos(step) * weights + torch.sinc(step / torch.pi) * weights_to
        weights = _scaled(g, weights)
    cosine, scale, _ = _log_map(g, weights)
    tangent_gram = scale * (g - cosine * cosine.mT) * scale.mT
    basis = orthogonal_to_ones(samples, g)[None]
    values, vectors = eigh(products(products(tangent_gram, basis).mT, basis))
    leading = products(vectors.flip(-1)[:, :, : flat_axes(samples, width)].mT, basis.mT).mT
    kurtosis = (samples * ordered_sum(leading.pow(4), 1)).clamp(1.8, 3.0)
    flat = ((3 - kurtosis) / 1.2) ** 0.25
    tables = quantiles(leading) if rotation == "marginal" else g.new_empty(len(g), 0, CELLS + 1)
    return Tangent(
        spread=values.flip(-1).clamp(min=0).sqrt().to(gram.dtype),
        angles=tangent_gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sort(-1).values.to(gram.dtype),
        weights=torch.cat((flat, (1 - flat.square()).sqrt()), dim=-1).to(gram.dtype),
        quantiles=tables.to(gram.dtype),
    )


def orthogonal_to_ones(samples: int, like: Tensor) -> Tensor:
    """Orthonormal basis [K, K - 1] of the vectors orthogonal to 1: columns 2.. of a Householder reflection."""
    u = torch.full((samples,), samples**-0.5, dtype=like.dtype, device=like.device)
    u[0] -= 1
    u /= u.norm()
    return (torch.eye(samples, dtype=like.dtype, device=like.device) - 2 * torch.outer(u, u))[:, 1:]


def flat_axes(samples: int, width: int) -> int:
    """How many leading axes keep their shape (m)."""
    return min(FLAT_AXES, min(samples - 1, width) // 2)


def _scaled(gram: Tensor, weights: Tensor) -> Tensor:
    """The weights of X^T weights at length 1; as they are where rows cancel, which then all lie at a right angle to it."""
    square = _square(gram, weights)
    return weights / torch.where(square < NO_MEAN, 1.0, square).sqrt()


def _square(gram: Tensor, weights: Tensor) -> Tensor:
    """|X^T weights|^2, [C, 1, 1]."""
    return ordered_sum(weights * matvec(gram, weights), 1)[:, None]


def _log_map(gram: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At the mean direction X^T weights: cosines to it, theta / sin theta, the mean tangent vector's weights, each [C, K, 1]."""
    cosine = matvec(gram, weights).clamp(-1, 1)
    theta = torch.arccos(cosine)
    scale = theta / torch.sin(theta).clamp(min=1e-12)
    # at the mean there is no way to go, at its antipode no way is the shortest
    scale = torch.where((theta < 1e-6) | (theta > torch.pi - 1e-6), 1.0, scale)
    toward = (scale - ordered_sum(scale * cosine, 1)[:, None] * weights) / gram.shape[1]
    return cosine, scale, toward
