"""cluster on every backend: clusterings of null-like Gram matrices at the default size, and at larger ones."""

import pytest
import torch
from run import BACKENDS
from workloads import Case, runner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("samples", [40, 100, 200])
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_cluster(benchmark, backend, samples):
    benchmark(runner(Case(op="cluster", channels=16, draws=16, samples=samples, backend=backend), DEVICE))
