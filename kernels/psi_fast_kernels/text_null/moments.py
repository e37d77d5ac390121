"""Exact mean and standard deviation of the shuffled-text null: linear and quadratic in the bank's mean and covariance.

Concepts are drawn with replacement, so the gap's terms nu_l . T_tau_l are independent,

gap         mean = sum_l nu_l . m              variance = sum_l nu_l^T S nu_l
pairwise    mean = 1 - m . m                   variance = 2 (2 (k - 2) m^T S m + tr S S + 2 m^T S m) / (k (k - 1))

with m and S the mean and covariance of the pool, in the head where there is one; the pairwise value is a
U-statistic (Hoeffding 1948).
"""

import torch
from torch import Tensor

from psi_fast_kernels._batched import products
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.text_null.reference import BUDGET, compared_bank, distinct_pool, gap_vectors

ROUNDING = 1e-12  # of a variance of cosines: nothing varies


def shuffle_moments(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, head: Tensor | None = None, pool: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the shuffled-text null, each [C]; arguments as in `text_null.op.text_shuffle_null`."""
    centre, covariance = _spread(*distinct_pool(compared_bank(text, head, kind), pool))
    if kind == "gap":
        mean, variance = torch.empty_like(k, dtype=torch.float64), torch.empty_like(k, dtype=torch.float64)

        def work(rows: slice) -> None:
            weights = gap_vectors(prototypes[rows].double(), k[rows])
            mean[rows] = products(weights, centre[None, :, None])[..., 0].sum(-1)
            variance[rows] = (products(weights, covariance[None]) * weights).sum((1, 2))

        in_chunks(work, len(k), rows_per_chunk(6 * 8 * prototypes[0].numel(), budget_bytes=BUDGET), "channels")
    else:
        mean = (1 - centre.dot(centre)).expand(len(k))
        one = centre @ covariance @ centre  # variance of E[1 - T_p . T_q | p]
        both = covariance.square().sum() + 2 * one  # variance of T_p . T_q
        clusters = k.double()
        variance = 2 / (clusters * (clusters - 1)) * (2 * (clusters - 2) * one + both)
    variance = torch.where(variance < ROUNDING, 0, variance)
    return mean.to(prototypes.dtype), variance.sqrt().to(prototypes.dtype)


def _spread(bank: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d], float64, of bank[places]."""
    weight = torch.bincount(places, minlength=len(bank)).double() / len(places)
    step = rows_per_chunk(3 * 8 * bank.shape[1], budget_bytes=BUDGET)
    centre = bank.new_zeros(bank.shape[1], dtype=torch.float64)
    covariance = bank.new_zeros(bank.shape[1], bank.shape[1], dtype=torch.float64)
    for rows, share in zip(bank.split(step), weight.split(step), strict=True):
        centre = centre + share @ rows.double()
    for rows, share in zip(bank.split(step), weight.split(step), strict=True):
        apart = rows.double() - centre
        covariance = covariance + apart.T @ (share[:, None] * apart)
    return centre, covariance
