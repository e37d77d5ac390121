"""Without a GPU, Triton kernels run in Triton's interpreter, on the CPU's tensors."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so it has to be set before any is imported


@pytest.fixture(scope="session")
def triton_device() -> torch.device:
    """Where a Triton kernel can run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
