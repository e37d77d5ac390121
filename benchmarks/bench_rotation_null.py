"""rotation_null on every backend, its pool of rotations included, and that pool alone."""

import pytest
import torch
from run import BACKENDS
from workloads import Case, runner

from psi_fast_kernels.rotation_null import ROTATIONS, rotation_pool, sphere_null

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("samples", [40, 100, 200])
@pytest.mark.parametrize("backend", BACKENDS[DEVICE.type])
def test_rotation_null(benchmark, backend, samples):
    benchmark(runner(Case(op="rotation_null", channels=16, draws=16, samples=samples, backend=backend), DEVICE))


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotation_pool(benchmark, rotation):
    benchmark(rotation_pool, 100, 512, rotation=rotation, draws=range(16), seed=0, device=DEVICE)


def test_sphere_null(benchmark):
    benchmark(sphere_null, 100, 512, draws=range(16), k_max=6, n_init=4, seed=0, device=DEVICE)
