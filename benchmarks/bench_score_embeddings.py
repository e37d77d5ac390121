"""All three nulls of a few channels, as pytest-benchmark times them; `run.py` compares them with other libraries.

pytest benchmarks --benchmark-only
"""

import pytest
import torch
from workloads import Case, runner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("n_init", [1, 4])
def test_score_embeddings(benchmark, n_init):
    benchmark(runner(Case(op="score_embeddings", channels=16, draws=64, n_init=n_init), DEVICE))
