"""Every Triton kernel compiles for three GPU generations on a machine without a GPU, without spilling, within shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import psi_fast_kernels

pytest.importorskip("triton", reason="Triton has no build for this platform")
ROOT = Path(__file__).resolve().parents[2]
OPS = sorted(path.parent.name for path in Path(psi_fast_kernels.__file__).parent.rglob("triton_impl.py"))


@pytest.fixture(scope="module", params=OPS)
def rows(request):
    """The compiled kernels of one op, from a process of its own: interpreted functions do not compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kernel_resources.py", "--json", request.param],
        capture_output=True, text=True, env=environment, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_op_compiles_for_every_architecture(rows):
    kernels = {row["kernel"] for row in rows}
    assert kernels
    assert {(row["kernel"], row["architecture"]) for row in rows} == {(k, sm) for k in kernels for sm in (80, 90, 100)}


def test_no_default_shape_spills(rows):
    assert [row for row in rows if row["default"] and row["spill_bytes"] > 0] == []


def test_shared_memory_fits(rows):
    assert [row for row in rows if row["shared_bytes"] > row["shared_limit"]] == []


def test_products_use_the_tensor_cores_of_sm_90(rows):
    assert [row for row in rows if row["products"] and row["architecture"] == 90 and row["wgmma"] == 0] == []
