"""Batched products and sums whose result for one row or matrix does not depend on how many others there are."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._tiling import ROWS, padded


def products(left: Tensor, right: Tensor) -> Tensor:
    """left [N, M, K] @ right [N or 1, K, P] -> [N, M, P], each product on its own.

    Matrix libraries choose their loops by shape and alignment: a batch folded into one product, or matrices that do not
    start on a cache line, give other last bits when the batch changes.
    """
    rows, columns = left.shape[1], right.shape[2]
    inner = padded(left.shape[2]) - left.shape[2]
    left = pad(left, (0, inner, 0, padded(rows, ROWS) - rows))
    right = pad(right, (0, padded(columns) - columns, 0, inner))
    return torch.bmm(left, right.expand(len(left), -1, -1))[:, :rows, :columns]


def ordered_sum(values: Tensor, dim: int) -> Tensor:
    """Sum over `dim` from first to last; torch.sum orders its terms by the shape of the whole."""
    return values.cumsum(dim).select(dim, -1)
