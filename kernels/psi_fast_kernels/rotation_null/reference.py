"""The S nulls in plain torch. C channels, B draws, K samples, r = K - 1 axes, m flat axes.

The embeddings go to the tangent space at their mean direction by the log map; a draw mixes the samples there and goes
back by the exp map. With G_T = U Lam U^T the tangent Gram (its zero mode, the mean, dropped) and Q [K, r] orthonormal
columns orthogonal to 1, Haar distributed, the mixed samples are the rows of

    tangent, radial     F = Q Lam^(1/2)
    gaussian            F = A Lam^(1/2)          A_ij ~ N(0, 1 / (K - 1))
    unimodal, marginal  F = Q H Lam^(1/2)        H orthogonal, such that the first m columns of Q H are Q_m

where Q_m = Y (Y^T Y)^(-1/2), for columns Y [K, m] less their means, keeps something of the data's m leading axes:

    unimodal            Y_ij = a_j t_ij + b_j n_ij    their flatness (kurtosis); t uniform, n normal, of variance 1
    marginal            Y_ij = W_j(u_ij)              the unimodal distribution nearest to theirs, W_j its quantile function

u is uniform in (0, 1), with equally many samples in either half. As R U is Haar distributed for a fixed U, rotating
the samples by R needs no U. Sample i then lies at angle theta_i = |F_i| from the mean (tangent, gaussian), or at the
original angle of the same rank (radial, unimodal, marginal), so its unit vector is (sin theta_i F_i / |F_i|, cos theta_i) in
r + 1 coordinates. The sixth null, `independent`, is `sphere_null`.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._batched import eigh, ordered_sum, products, solve
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import draws_per_chunk, padded
from psi_fast_kernels.cluster import cluster
from psi_fast_kernels.rotation_null.marginals import CELLS
from psi_fast_kernels.rotation_null.pool import Pool
from psi_fast_kernels.rotation_null.tangent import Tangent

KEEP_ANGLES = ("marginal", "unimodal", "radial")  # the rotations that put the angles to the mean back by rank


def rotation_null(
    tangent: Tangent,
    pool: Pool,
    *,
    rotation: str,
    k_max: int,
    n_init: int,
    seed: int,
    channel: Tensor,
    clustering: str = "torch",
) -> Tensor:
    """See `psi_fast_kernels.rotation_null.op.rotation_null`; `clustering` is the backend that clusters the draws."""
    channels, samples = tangent.angles.shape
    result = tangent.angles.new_empty(channels, len(pool.draw))
    pairs = torch.cartesian_prod(torch.arange(channels), torch.arange(len(pool.draw))).to(channel.device)

    def work(part: slice) -> None:
        c, b = pairs[part].T
        points = _draw(tangent, pool, rotation, c, b)
        drawn = cluster(
            (points @ points.mT)[:, :samples, :samples],
            k_max=k_max,
            n_init=n_init,
            seed=seed,
            stream=Stream.NULL_STARTS,
            channel=channel[c],
            draw=pool.draw[b],
            backend=clustering,
        )
        result[c, b] = drawn.silhouette

    in_chunks(work, len(pairs), draws_per_chunk(samples, n_init * k_max, itemsize=result.element_size()), "draws")
    return result


def _draw(tangent: Tangent, pool: Pool, rotation: str, c: Tensor, b: Tensor) -> Tensor:
    """Unit vectors [N, K', K'] of the draws (channel c, rotation b); zeros from row K and column K = r + 1 to K' = padded(K)."""
    samples = pool.mix.shape[1]
    rest = padded(samples) - samples
    mix = pad(pool.mix[b], (0, rest + 1, 0, rest))
    if pool.columns.shape[1]:
        mix = _turn_leading_axes(mix, pad(_leading_axes(tangent, pool, rotation, c, b), (0, 0, 0, rest)))
    points = mix * pad(tangent.spread, (0, rest + 1))[c][:, None]
    length = points[:, :samples].norm(dim=-1)
    if rotation in KEEP_ANGLES:
        order = length.argsort(dim=-1, stable=True)
        theta = torch.empty_like(length).scatter_(1, order, tangent.angles[c])
    else:
        theta = length
    points[:, :samples] *= (torch.sin(theta) / length.clamp(min=1e-12))[..., None]
    points[:, :samples, samples - 1] = torch.cos(theta)
    return points


def _leading_axes(tangent: Tangent, pool: Pool, rotation: str, c: Tensor, b: Tensor) -> Tensor:
    """Q_m [N, K, m]: orthonormal, orthogonal to 1, shaped like the data's leading axes; Q_m = Y (Y^T Y)^(-1/2)."""
    y = _columns(tangent, pool, rotation, c, b)
    # in float64: a column that hardly varies has a small eigenvalue
    values, vectors = eigh(products(y.mT, y).double())
    return products(y, products(vectors * values.rsqrt()[:, None], vectors.mT).to(y.dtype))


def _columns(tangent: Tangent, pool: Pool, rotation: str, c: Tensor, b: Tensor) -> Tensor:
    """Y [N, K, m]: columns less their means."""
    if rotation == "marginal":
        table, place = tangent.quantiles[c], pool.columns[b] * CELLS
        cell = place.long().clamp(max=CELLS - 1)
        low, high = table.gather(-1, cell), table.gather(-1, cell + 1)
        y = low + (place - cell) * (high - low)
    else:
        flat, peaked = (pool.columns[b] * tangent.weights[c][..., None]).chunk(2, dim=1)
        y = flat + peaked
    return (y - ordered_sum(y, -1)[..., None] / y.shape[-1]).mT


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
    return q - products(q[:, :, :m] - q_m, solve(eye - v[:, :m].mT, e_minus_v.mT))
