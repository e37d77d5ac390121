"""What is done with a batch of matrices: the bits of each alone, wherever it stands among however many others."""

import pytest
import torch
from torch.nn.functional import normalize

from psi_fast_kernels._batched import eigh, matvec, ordered_sum, products, solve
from psi_fast_kernels.rotation_null import tangent_space

COUNT = 41
SIDES = [2, 5, 8, 15, 49, 64]
ALONE, PAIRS, ODD = 1, 2, 7


def matrices(*shape, dtype=torch.float64):
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def in_parts(work, size, *batches):
    parts = [work(*(own[start : start + size] for own in batches)) for start in range(0, COUNT, size)]
    return torch.cat(parts)


def symmetric(side):
    own = matrices(side, max(1, side // 2))  # of half the rank, so that small eigenvalues are rounding alone
    return products(own, own.mT)


@pytest.mark.parametrize("size", [ALONE, PAIRS, ODD])
@pytest.mark.parametrize("side", SIDES)
def test_a_matrix_has_the_bits_that_it_has_alone(side, size):
    own, other = symmetric(side), matrices(side, 3)
    works = {
        "values": (lambda a: eigh(a)[0], own),
        "vectors": (lambda a: eigh(a)[1], own),
        "solution": (solve, matrices(side, side), other),
        "product": (products, matrices(side, side), other),
        "vector": (matvec, own, other[..., :1].contiguous()),
        "sum": (lambda a: ordered_sum(a, 1), own),
    }
    for name, (work, *given) in works.items():
        assert torch.equal(in_parts(work, size, *given), work(*given)), name


@pytest.mark.parametrize("side", SIDES)
def test_they_are_right(side):
    own, other = symmetric(side), matrices(side, 3)
    values, vectors = eigh(own)
    torch.testing.assert_close(vectors @ (values[..., None] * vectors.mT), own)
    assert (values.diff(dim=1) >= 0).all()
    square = matrices(side, side)
    torch.testing.assert_close(square @ solve(square, other), other, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(matvec(own, other[..., :1]), own @ other[..., :1])


def test_a_batch_of_none_has_none():
    assert eigh(torch.empty(0, 5, 5))[1].shape == (0, 5, 5)
    assert solve(torch.empty(0, 5, 5), torch.empty(0, 5, 2)).shape == (0, 5, 2)


@pytest.mark.parametrize("rotation", ["marginal", "radial"])
@pytest.mark.parametrize("samples", [16, 50])
def test_a_channels_tangent_space_does_not_depend_on_the_others(rotation, samples):
    """Of embeddings of few dimensions, whose Gram matrix has eigenvalues that are rounding alone."""
    x = normalize(matrices(samples, 12, dtype=torch.float32), dim=-1)
    gram = products(x, x.mT)
    whole = tangent_space(gram, 12, rotation=rotation)
    for size in (ALONE, PAIRS, ODD):
        parts = [tangent_space(gram[start : start + size], 12, rotation=rotation) for start in range(0, COUNT, size)]
        for name, own in zip(whole._fields, whole, strict=True):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), own), name
