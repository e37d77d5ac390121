"""The text nulls on every backend: shuffled concepts, and rotated banks."""

import pytest
import torch
from run import BACKENDS
from workloads import Case, concepts, embeddings, runner

from psi_fast_kernels.text_null import text_rotation_null

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("bank", [1000, 10_000])
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_text_shuffle_null(benchmark, backend, bank):
    benchmark(runner(Case(op="text_null", channels=64, draws=1000, concepts=bank, backend=backend), DEVICE))


@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_text_rotation_null(benchmark, backend):
    prototypes, k = embeddings(16, 6, 512, device=DEVICE), torch.full((16,), 6, device=DEVICE)
    given = {"kind": "gap", "draws": range(32), "seed": 0, "backend": backend}
    benchmark(text_rotation_null, prototypes, k, concepts(1000, 512, device=DEVICE), **given)
