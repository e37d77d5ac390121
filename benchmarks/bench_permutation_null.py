"""permutation_null on every backend, and the exact moments it converges to."""

import pytest
import torch
from run import BACKENDS
from workloads import CLASSES, Case, labels, runner

from psi_fast_kernels.permutation_null import permutation_moments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("samples", [40, 100, 400])
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_permutation_null(benchmark, backend, samples):
    benchmark(runner(Case(op="permutation_null", channels=64, draws=100, samples=samples, backend=backend), DEVICE))


def test_permutation_moments_of_a_layer(benchmark):
    case = Case(op="permutation_null", channels=2048)
    benchmark(permutation_moments, labels(case, case.k_max, DEVICE), labels(case, CLASSES, DEVICE))
