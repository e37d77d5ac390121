"""Products, sums and factorisations of batches, whose result for one row or matrix does not depend on the others there are."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._tiling import CACHE_LINE, ROWS, padded


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


def matvec(matrices: Tensor, vectors: Tensor) -> Tensor:
    """matrices [N, M, K] times vectors [N, K, 1] -> [N, M, 1], summed in order."""
    return ordered_sum(matrices * vectors.mT, 2)[..., None]


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [N, n], ascending, and eigenvectors [N, n, n] of symmetric matrices."""
    if _aligned(matrices):
        return tuple(torch.linalg.eigh(matrices))
    found = [torch.linalg.eigh(own) for own in matrices]
    return torch.stack([own.eigenvalues for own in found]), torch.stack([own.eigenvectors for own in found])


def solve(left: Tensor, right: Tensor) -> Tensor:
    """X [N, n, P] of left [N, n, n] @ X = right [N, n, P]."""
    if _aligned(left, right):
        return torch.linalg.solve(left, right)
    return torch.stack([torch.linalg.solve(*own) for own in zip(left, right, strict=True)])


def _aligned(*batches: Tensor) -> bool:
    """Whether a factorisation may take the batch as it is.

    LAPACK chooses its loops by where a matrix starts. Behind one that does not end with a cache line the next starts
    elsewhere; alone it starts on one.
    """
    return all(len(own) == 0 or not own.is_cpu or own[0].nbytes % CACHE_LINE == 0 for own in batches)


def ordered_sum(values: Tensor, dim: int) -> Tensor:
    """Sum over `dim` from first to last; torch.sum orders its terms by the shape of the whole."""
    return values.cumsum(dim).select(dim, -1)
