"""D and its nulls in plain torch. C channels, B draws, k clusters of d-wide unit prototypes mu_j, P concepts T_p.

gap         D = mean_j [ mu_j . T_tj - mean_{l != j} mu_j . T_tl ] = sum_l h_l(t_l)
            h_l(p) = A_lp / (k - 1) - sum_j A_jp / (k (k - 1)),   A = mu T^T
pairwise    D = mean over pairs j < l of 1 - T_tj . T_tl
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from psi_fast_kernels._batched import ordered_sum, products
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.philox import integers, normal

ROUNDING = 1e-12  # of a variance of cosines: nothing varies


class Concepts(NamedTuple):
    """D [C] of each channel, and the concept index of each cluster [C, k_max] int64, -1 from k on."""

    value: Tensor
    index: Tensor


def distinctness(prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str) -> Concepts:
    """D of each channel with every cluster's nearest concept; arguments as in `text_null.op.text_shuffle_null`."""
    used = _used(prototypes, k)
    chosen = _similarity(prototypes, text).argmax(-1)
    value = _value(_affinity(prototypes, k, text, kind), chosen[:, None], k, text, kind)[:, 0]
    return Concepts(value, torch.where(used, chosen, -1))


def text_shuffle_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    pool: Tensor | None,
    draws: range,
    seed: int,
    channel: Tensor,
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_shuffle_null`."""
    channels, k_max, _ = prototypes.shape
    concepts = torch.arange(len(text), device=text.device) if pool is None else pool
    draw = torch.arange(draws.start, draws.stop, device=text.device)
    parts = []
    for rows in torch.arange(channels, device=text.device).split(rows_per_chunk(40 * k_max * (len(text) + len(draws)))):
        tau = integers(seed, Stream.TEXT_SHUFFLE, channel[rows, None], draw[None], k_max, len(concepts))
        affinity = _affinity(prototypes[rows], k[rows], text, kind)
        parts.append(_value(affinity, concepts[tau], k[rows], text, kind))
    return torch.cat(parts)


def text_rotation_null(prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, draws: range, seed: int) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_rotation_null`.

    Turning the bank by a Haar rotation R leaves A' = mu R T^T = L F T^T, with L L^T = mu mu^T and F [k, d] a random
    orthonormal frame: F T^T is drawn once for all channels.
    """
    channels, k_max, width = prototypes.shape
    frame_size = min(k_max, width)
    values, vectors = torch.linalg.eigh(
        torch.where(_used(prototypes, k)[..., None], prototypes, 0).double() @ prototypes.mT.double()
    )
    root = (vectors * values.clamp(min=0).sqrt()[:, None])[..., -frame_size:].to(prototypes.dtype)
    result = prototypes.new_empty(channels, len(draws))
    per_draw = 4 * (frame_size + 2 * k_max) * len(text)
    for start in range(draws.start, draws.stop, rows_per_chunk(per_draw, budget_bytes=64 * 2**20)):
        draw = torch.arange(
            start, min(draws.stop, start + rows_per_chunk(per_draw, budget_bytes=64 * 2**20)), device=text.device
        )
        gaussian = normal(seed, Stream.TEXT_ROTATION, torch.zeros_like(draw), draw, width * frame_size)
        q, r = torch.linalg.qr(gaussian.unflatten(-1, (width, frame_size)))
        frame = products(
            (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).mT.to(text.dtype), text.T[None]
        )  # F T^T [b, frame, P]
        for channel in range(channels):
            turned = products(root[channel].expand(len(draw), -1, -1), frame)  # [b, k_max, P]
            one, drawn = k[channel : channel + 1].expand(len(draw)), turned.argmax(-1)
            affinity = _gap_weights(turned, one) if kind == "gap" else turned
            result[channel, draw - draws.start] = _value(affinity, drawn[:, None], one, text, kind)[:, 0]
    return result


def shuffle_moments(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, pool: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the shuffled-text null, each [C]; arguments as in `text_null.op.text_shuffle_null`.

    Concepts are drawn with replacement, so the gap's h_l are independent, and the pairwise value is a U-statistic.
    """
    bank = text if pool is None else text[pool]
    if kind == "gap":
        means, variances = [], []
        for rows in torch.arange(len(k), device=k.device).split(rows_per_chunk(40 * prototypes.shape[1] * len(bank))):
            h = torch.where(
                _used(prototypes[rows], k[rows])[..., None], _affinity(prototypes[rows], k[rows], bank, kind), 0
            )
            h = h.double()
            means.append(h.mean(-1).sum(-1))
            variances.append(h.var(-1, correction=0).sum(-1))
        mean, variance = torch.cat(means), torch.cat(variances)
    else:
        bank = normalize(bank.double(), dim=1)
        centre = bank.mean(0)
        second = bank.T @ bank / len(bank)
        zeta1 = (bank @ centre).var(correction=0)  # variance of E[1 - T_p . T_q | p]
        zeta2 = second.square().sum() - centre.dot(centre) ** 2  # variance of T_p . T_q
        mean = (1 - centre.dot(centre)).expand(len(k))
        kk = k.double()
        variance = 2 / (kk * (kk - 1)) * (2 * (kk - 2) * zeta1 + zeta2)
    variance = torch.where(variance < ROUNDING, 0, variance)
    return mean.to(prototypes.dtype), variance.sqrt().to(prototypes.dtype)


def _used(prototypes: Tensor, k: Tensor) -> Tensor:
    return torch.arange(prototypes.shape[1], device=k.device) < k[:, None]


def _affinity(prototypes: Tensor, k: Tensor, text: Tensor, kind: str) -> Tensor:
    """h_l(p) [C, k_max, P] of the gap; for `pairwise` only the shape counts, and the similarities are returned as they are."""
    similarity = _similarity(prototypes, text)
    return _gap_weights(similarity, k) if kind == "gap" else similarity


def _similarity(prototypes: Tensor, text: Tensor) -> Tensor:
    """mu_j . T_p [C, k_max, P]."""
    return products(prototypes, text.T[None])


def _gap_weights(similarity: Tensor, k: Tensor) -> Tensor:
    used = _used(similarity, k)[..., None]
    kk = k[:, None, None].clamp(min=2).to(similarity.dtype)
    total = ordered_sum(torch.where(used, similarity, 0), 1)[:, None]
    return similarity / (kk - 1) - total / (kk * (kk - 1))


def _value(affinity: Tensor, chosen: Tensor, k: Tensor, text: Tensor, kind: str) -> Tensor:
    """D [C, B] of the concepts `chosen` [C, B, k_max], for affinity [C, k_max, P]."""
    used = _used(affinity, k)[:, None]  # [C, 1, k_max]
    if kind == "gap":
        picked = affinity.gather(2, chosen.transpose(1, 2)).transpose(1, 2)
        return ordered_sum(torch.where(used, picked, 0), -1)
    vectors = torch.where(used[..., None], text[chosen], 0)
    # sum over pairs j != l of T_j . T_l = |sum_j T_j|^2 - k, the rows being unit
    kk = k[:, None].clamp(min=2).to(text.dtype)
    return 1 - (vectors.sum(2).square().sum(-1) - vectors.square().sum((-1, -2))) / (kk * (kk - 1))
