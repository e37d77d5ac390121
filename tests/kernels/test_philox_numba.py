"""Philox compiled for the CPU gives the numbers of torch."""

import numpy as np
import pytest
import torch
from test_philox import KNOWN_ANSWERS

from psi_fast_kernels import philox
from psi_fast_kernels._compiled import compiled
from psi_fast_kernels.philox.numba_impl import philox4x32

KINDS = {"uint32": 0, "uniform": 0, "normal": 1e-12, "permutation": 0}  # largest difference from torch
COUNTS = (1, 2, 3, 4, 7, 100, 129)
IDS = {
    "scalars": (torch.tensor(3), torch.tensor(2**32 - 1)),
    "a table": (torch.arange(3)[:, None], torch.tensor([0, 7, 2**31, 2**32 - 1, 1])),
    "nothing": (torch.arange(0), torch.arange(0)),
}


@compiled
def first_words(counter, key):
    """The inlined function, called from compiled code."""
    return philox4x32(counter[0], counter[1], counter[2], counter[3], key[0], key[1])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_vectors(counter, key, words):
    assert first_words(np.array(counter, np.int64), np.array(key, np.int64)) == tuple(words)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_torch(kind, ids, count):
    for seed in (0, 2**64 - 1):
        ours, theirs = (getattr(philox, kind)(seed, 5, *IDS[ids], count, backend=name) for name in ("numba", "torch"))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=KINDS[kind])


@pytest.mark.parametrize("below", [1, 3, 2**31])
def test_integers_are_those_of_torch(below):
    ours, theirs = (philox.integers(1, 5, *IDS["a table"], 9, below, backend=name) for name in ("numba", "torch"))
    assert torch.equal(ours, theirs)
