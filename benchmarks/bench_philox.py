"""philox on every backend that has it: words, numbers and permutations for many pairs of channel and draw."""

import pytest
import torch

from psi_fast_kernels import philox

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = {"cpu": ("torch",), "cuda": ("triton", "torch")}


@pytest.mark.parametrize("kind", ["uint32", "uniform", "normal", "permutation"])
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_philox(benchmark, backend, kind):
    draw = torch.arange(256, device=DEVICE)
    benchmark(getattr(philox, kind), 0, 1, torch.zeros_like(draw), draw, 100, backend=backend)
