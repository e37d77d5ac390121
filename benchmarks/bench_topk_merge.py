"""topk_merge on every backend that has it: a batch of maps into the running top 100."""

import pytest
import torch

from psi_fast_kernels.topk_merge import empty_top_k, topk_merge

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = {"cpu": ("torch",), "cuda": ("triton", "torch")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_topk_merge(benchmark, backend, dtype):
    x = torch.randn(32, 512, 7, 7, device=DEVICE).to(dtype)
    top, _ = topk_merge(empty_top_k(512, 100, DEVICE), torch.randn_like(x), 0, backend=backend)
    benchmark(topk_merge, top, x, 32, backend=backend)
