"""The S nulls in plain torch. C channels, B draws, K samples, r = K - 1 axes, m flat axes.

The embeddings go to the tangent space at their mean direction by the log map; a draw mixes the samples there and goes
back by the exp map. With G_T = U Lam U^T the tangent Gram (its zero mode, the mean, dropped) and Q [K, r] orthonormal
columns orthogonal to 1, Haar distributed, the mixed samples are the rows of

    tangent, radial     F = Q Lam^(1/2)
    gaussian            F = A Lam^(1/2)          A_ij ~ N(0, 1 / (K - 1))
    unimodal            F = Q H Lam^(1/2)        H orthogonal, such that the first m columns of Q H are Q_m

where Q_m keeps the flatness (kurtosis) of the data's m leading axes. As R U is Haar distributed for a fixed U, rotating
the samples by R needs no U. Sample i then lies at angle theta_i = |F_i| from the mean (tangent, gaussian), or at the
original angle of the same rank (radial, unimodal), so its unit vector is (sin theta_i F_i / |F_i|, cos theta_i) in
r + 1 coordinates. The fifth null, `independent`, is `sphere_null`: samples anywhere on the sphere, whatever the data.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from psi_fast_kernels._batched import ordered_sum, products
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import draws_per_chunk, padded
from psi_fast_kernels.cluster.reference import cluster
from psi_fast_kernels.philox import normal, uniform

FLAT_AXES = 8
MEAN_STEPS = 8


class Tangent(NamedTuple):
    """The data of C channels as the draws need them; indexing with a slice takes channels.

    spread : [C, r] square roots of the tangent Gram's eigenvalues, descending
    angles : [C, K] angles to the mean direction, ascending, in radians
    flat, peaked : [C, m] weights a_j of the uniform and b_j of the normal part of the leading axes
    """

    spread: Tensor
    angles: Tensor
    flat: Tensor
    peaked: Tensor

    def rows(self, which: slice) -> "Tangent":
        """The channels `which`."""
        return Tangent(*(part[which] for part in self))


class Pool(NamedTuple):
    """Random numbers of B draws, shared by all channels.

    draw : [B] int64 indices of the draws
    mix : [B, K, r] orthonormal columns orthogonal to 1, or normal numbers of variance 1 / (K - 1) for `gaussian`
    uniforms, normals : [B, K, m], uniform with variance 1 and standard normal
    """

    draw: Tensor
    mix: Tensor
    uniforms: Tensor
    normals: Tensor


def rotation_null(
    tangent: Tangent, pool: Pool, *, rotation: str, k_max: int, n_init: int, seed: int, channel: Tensor
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.rotation_null`."""
    channels, samples = tangent.angles.shape
    result = tangent.angles.new_empty(channels, len(pool.draw))
    pairs = torch.cartesian_prod(torch.arange(channels), torch.arange(len(pool.draw))).to(channel.device)
    for chunk in pairs.split(draws_per_chunk(samples, n_init * k_max)):
        c, b = chunk[:, 0], chunk[:, 1]
        points = _draw(tangent, pool, rotation, c, b)
        drawn = cluster(
            (points @ points.mT)[:, :samples, :samples],
            k_max=k_max,
            n_init=n_init,
            seed=seed,
            stream=Stream.NULL_STARTS,
            channel=channel[c],
            draw=pool.draw[b],
        )
        result[c, b] = drawn.silhouette
    return result


def sphere_null(
    samples: int,
    width: int,
    *,
    draws: range,
    k_max: int,
    n_init: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.sphere_null`."""
    parts = []
    draw = torch.arange(draws.start, draws.stop, device=device)
    for part in draw.split(draws_per_chunk(samples, n_init * k_max)):
        none = torch.zeros_like(part)
        points = normal(seed, Stream.SPHERE, none, part, samples * width).unflatten(-1, (samples, width))
        points = normalize(points, dim=-1).to(dtype)
        points = pad(points, (0, padded(width) - width, 0, padded(samples) - samples))
        drawn = cluster(
            (points @ points.mT)[:, :samples, :samples],
            k_max=k_max,
            n_init=n_init,
            seed=seed,
            stream=Stream.INDEPENDENT_STARTS,
            channel=none,
            draw=part,
        )
        parts.append(drawn.silhouette)
    return torch.cat(parts)


def tangent_space(gram: Tensor, width: int) -> Tangent:
    """Log map of the embeddings at their mean direction, from their Gram matrix [C, K, K] alone; computed in float64."""
    g = gram.double()
    samples = g.shape[1]
    ones = torch.ones_like(g[:, :, :1])
    weights = ones / (ones.mT @ g @ ones).clamp(min=1e-24).sqrt()  # mean direction = X^T weights
    for _ in range(MEAN_STEPS):
        _, _, weights_to = _log_map(g, weights)
        step = (weights_to.mT @ g @ weights_to).clamp(min=0).sqrt()
        weights = torch.cos(step) * weights + torch.sinc(step / torch.pi) * weights_to
        weights = weights / (weights.mT @ g @ weights).clamp(min=1e-24).sqrt()
    cosine, scale, _ = _log_map(g, weights)
    tangent_gram = scale * (g - cosine * cosine.mT) * scale.mT
    basis = orthogonal_to_ones(samples, g)
    values, vectors = torch.linalg.eigh(basis.T @ tangent_gram @ basis)
    leading = basis @ vectors.flip(-1)[:, :, : _flat_axes(samples, width)]
    kurtosis = (samples * leading.pow(4).sum(1)).clamp(1.8, 3.0)
    flat = ((3 - kurtosis) / 1.2) ** 0.25
    return Tangent(
        spread=values.flip(-1).clamp(min=0).sqrt().to(gram.dtype),
        angles=tangent_gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sort(-1).values.to(gram.dtype),
        flat=flat.to(gram.dtype),
        peaked=(1 - flat.square()).sqrt().to(gram.dtype),
    )


def rotation_pool(
    samples: int, width: int, *, rotation: str, draws: range, seed: int, dtype: torch.dtype, device: torch.device
) -> Pool:
    """See `psi_fast_kernels.rotation_null.op.rotation_pool`; drawn in float64."""
    draw = torch.arange(draws.start, draws.stop, device=device)
    none = torch.zeros_like(draw)
    axes = samples - 1
    if rotation == "gaussian":
        mix = normal(seed, Stream.ROTATION, none, draw, samples * axes).unflatten(-1, (samples, axes)) / axes**0.5
    else:
        q, r = torch.linalg.qr(normal(seed, Stream.ROTATION, none, draw, axes * axes).unflatten(-1, (axes, axes)))
        mix = orthogonal_to_ones(samples, q) @ (q * r.diagonal(dim1=1, dim2=2).sign()[:, None])  # signs make it Haar
    flat = _flat_axes(samples, width)
    uniforms = (2 * uniform(seed, Stream.FLAT_AXES_UNIFORM, none, draw, samples * flat) - 1) * 3**0.5
    normals = normal(seed, Stream.FLAT_AXES_NORMAL, none, draw, samples * flat)
    return Pool(draw, mix.to(dtype), *(x.unflatten(-1, (samples, flat)).to(dtype) for x in (uniforms, normals)))


def orthogonal_to_ones(samples: int, like: Tensor) -> Tensor:
    """Orthonormal basis [K, K - 1] of the vectors orthogonal to 1: columns 2.. of a Householder reflection."""
    u = torch.full((samples,), samples**-0.5, dtype=like.dtype, device=like.device)
    u[0] -= 1
    u /= u.norm()
    return (torch.eye(samples, dtype=like.dtype, device=like.device) - 2 * torch.outer(u, u))[:, 1:]


def _log_map(gram: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At the mean direction X^T weights: cosines to it, theta / sin theta, the mean tangent vector's weights, each [C, K, 1]."""
    cosine = (gram @ weights).clamp(-1, 1)
    theta = torch.arccos(cosine)
    scale = theta / torch.sin(theta).clamp(min=1e-12)
    scale = torch.where(theta < 1e-6, 1.0, scale)
    toward = (scale - (scale * cosine).sum(1, keepdim=True) * weights) / gram.shape[1]
    return cosine, scale, toward


def _flat_axes(samples: int, width: int) -> int:
    return min(FLAT_AXES, min(samples - 1, width) // 2)


def _draw(tangent: Tangent, pool: Pool, rotation: str, c: Tensor, b: Tensor) -> Tensor:
    """Unit vectors [N, K', K'] of the draws (channel c, rotation b); zeros from row K and column K = r + 1 to K' = padded(K)."""
    samples = pool.mix.shape[1]
    rest = padded(samples) - samples
    mix = pad(pool.mix[b], (0, rest + 1, 0, rest))
    if rotation == "unimodal" and pool.uniforms.shape[-1]:
        mix = _turn_leading_axes(mix, pad(_flat_columns(tangent, pool, c, b), (0, 0, 0, rest)))
    points = mix * pad(tangent.spread, (0, rest + 1))[c][:, None]
    length = points[:, :samples].norm(dim=-1)
    if rotation in ("unimodal", "radial"):
        order = length.argsort(dim=-1, stable=True)
        theta = torch.empty_like(length).scatter_(1, order, tangent.angles[c])
    else:
        theta = length
    points[:, :samples] *= (torch.sin(theta) / length.clamp(min=1e-12))[..., None]
    points[:, :samples, samples - 1] = torch.cos(theta)
    return points


def _flat_columns(tangent: Tangent, pool: Pool, c: Tensor, b: Tensor) -> Tensor:
    """Q_m [N, K, m]: orthonormal, orthogonal to 1, as flat as the data's leading axes; Q_m = Y (Y^T Y)^(-1/2)."""
    y = tangent.flat[c][:, None] * pool.uniforms[b] + tangent.peaked[c][:, None] * pool.normals[b]
    y = y - ordered_sum(y, 1)[:, None] / y.shape[1]
    values, vectors = torch.linalg.eigh(products(y.mT, y))
    return products(y, products(vectors * values.rsqrt()[:, None], vectors.mT))


def _turn_leading_axes(q: Tensor, q_m: Tensor) -> Tensor:
    """Q H like q [N, K, r], whose first m columns are `q_m`, for H = I - (E - V)(I - V^T E)^(-1)(E - V)^T.

    V = Q^T Q_m and E = I[:, :m]. The other columns stay Haar distributed in the complement, for a rank-m update.
    """
    m = q_m.shape[-1]
    v = products(q.mT, q_m)
    eye = torch.eye(m, dtype=q.dtype, device=q.device)
    e_minus_v = -v
    e_minus_v[:, :m] += eye
    # Q (E - V) = Q_E - Q_m, because Q Q^T Q_m = Q_m
    return q - products(q[:, :, :m] - q_m, torch.linalg.solve(eye - v[:, :m].mT, e_minus_v.mT))
