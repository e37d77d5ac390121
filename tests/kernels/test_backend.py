"""Choosing an implementation, and bounds on chunk sizes."""

import pytest
import torch

from psi_fast_kernels import _backend
from psi_fast_kernels._backend import BACKENDS, BackendError, missing_for, select_backend
from psi_fast_kernels._tiling import draws_per_chunk, rows_per_chunk
from psi_fast_kernels.cluster import cluster
from psi_fast_kernels.permutation_null import permutation_null
from psi_fast_kernels.rotation_null import rotation_null, rotation_pool, sphere_null, tangent_space
from psi_fast_kernels.text_null import text_rotation_null, text_shuffle_null

GRAM = torch.eye(6).expand(2, 6, 6)
IDS = torch.arange(2)
TWO = torch.tensor([2, 2])
POOL = rotation_pool(6, 8, rotation="radial", draws=range(2), seed=0)
STARTS = {"k_max": 2, "n_init": 1, "seed": 0}
TEXT = (torch.eye(3).expand(2, 3, 3), TWO, torch.eye(3))
OPS = {
    "cluster": lambda name: cluster(GRAM, **STARTS, stream=1, channel=IDS, draw=IDS, backend=name),
    "rotation_null": lambda name: rotation_null(
        tangent_space(GRAM, 8, rotation="radial"), POOL, **STARTS, rotation="radial", channel=IDS, backend=name
    ),
    "sphere_null": lambda name: sphere_null(6, 8, **STARTS, draws=range(2), backend=name),
    "permutation_null": lambda name: permutation_null(
        TWO[:, None].expand(2, 6), TWO[:, None].expand(2, 6), draws=range(2), seed=0, channel=IDS, backend=name
    ),
    "text_shuffle_null": lambda name: text_shuffle_null(
        *TEXT, kind="gap", pool=None, draws=range(2), seed=0, channel=IDS, backend=name
    ),
    "text_rotation_null": lambda name: text_rotation_null(*TEXT, kind="gap", draws=range(2), seed=0, backend=name),
}


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EVERY = tuple(name for name in BACKENDS if name != "auto")


def lacking(*names):
    return lambda name, device: f"no {name}" if name in names else None


@pytest.mark.parametrize(
    ("name", "device", "offers", "absent", "chosen"),
    [
        ("auto", CPU, EVERY, (), "numba"),
        ("auto", CPU, EVERY, ("numba",), "torch"),
        ("auto", CPU, ("torch", "triton"), (), "torch"),  # an interpreted kernel is for tests
        ("auto", CUDA, EVERY, ("numba",), "triton"),
        ("auto", CUDA, EVERY, ("triton", "cuml"), "torch"),
        ("auto", torch.device("mps"), EVERY, (), "torch"),
        ("torch", CUDA, EVERY, (), "torch"),
        ("cuml", CUDA, EVERY, (), "cuml"),
    ],
)
def test_choice_of_an_implementation(name, device, offers, absent, chosen):
    assert select_backend(name, device, offers=offers, missing=lacking(*absent)) == chosen


def test_an_explicit_backend_runs_or_raises(monkeypatch):
    with pytest.raises(BackendError, match="'cuml' cannot run here: no cuml; 'auto' takes"):
        select_backend("cuml", CUDA, offers=EVERY, missing=lacking("cuml"))
    with pytest.raises(ValueError, match="no 'cuml' backend; it has auto, torch, numba"):
        select_backend("cuml", CUDA, offers=("torch", "numba"), missing=lacking())
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match=r"needs a CUDA device .*the data are on cpu"):
        select_backend("triton", CPU, offers=EVERY)
    with pytest.raises(BackendError, match="runs on a CPU, and the data are on cuda"):
        select_backend("numba", CUDA, offers=EVERY)


def test_what_is_missing_names_the_packages(monkeypatch):
    monkeypatch.setattr(_backend, "find_spec", lambda package: None)
    assert missing_for("cuml", CUDA) == "it needs the package cuml and cupy, which are not installed"
    assert missing_for("triton", CUDA) == "it needs the package triton, which is not installed"
    assert missing_for("torch", CPU) is None


@pytest.mark.parametrize("name", ["triton-x", "", "Torch"])
def test_unknown_backend_lists_what_there_is(name):
    with pytest.raises(ValueError, match=r"auto, .*torch"):
        select_backend(name, CPU, offers=EVERY)


@pytest.mark.parametrize("op", OPS)
def test_every_op_refuses_an_unknown_backend(op):
    with pytest.raises(ValueError, match="unknown backend 'nope'"):
        OPS[op]("nope")


@pytest.mark.parametrize("op", OPS)
def test_auto_and_torch_agree_on_a_cpu(op):
    auto, torch_ = OPS[op]("auto"), OPS[op]("torch")
    for a, b in zip(*([x] if torch.is_tensor(x) else x for x in (auto, torch_)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gram": torch.eye(6)}, r"gram must be \[N, K, K\], got \(6, 6\)"),
        ({"gram": torch.ones(2, 6, 5)}, r"gram must be \[N, K, K\]"),
        ({"k_max": 1}, "k_max must lie in 2..K = 6, got 1"),
        ({"k_max": 7}, "k_max must lie in 2..K = 6, got 7"),
        ({"n_init": 0}, "n_init must be at least 1, got 0"),
        ({"channel": torch.arange(3)}, r"channel and draw must be \[2\]"),
    ],
)
def test_cluster_names_a_bad_argument(change, said):
    arguments = {"gram": GRAM, **STARTS, "stream": 1, "channel": IDS, "draw": IDS} | change
    with pytest.raises(ValueError, match=said):
        cluster(arguments.pop("gram"), **arguments)


def test_null_ops_name_a_bad_argument():
    with pytest.raises(ValueError, match="unknown rotation 'spin'; there are marginal"):
        rotation_pool(6, 8, rotation="spin", draws=range(2), seed=0)
    with pytest.raises(ValueError, match="at least 4 samples are needed, got 3"):
        rotation_pool(3, 8, rotation="radial", draws=range(2), seed=0)
    tangent = tangent_space(torch.eye(7)[None], 8, rotation="radial")
    with pytest.raises(ValueError, match="the pool has 6 samples, the channels 7"):
        rotation_null(tangent, POOL, **STARTS, rotation="radial", channel=one_id())
    with pytest.raises(ValueError, match="must be int64"):
        permutation_null(torch.zeros(2, 6), torch.zeros(2, 6), draws=range(2), seed=0, channel=IDS)
    with pytest.raises(ValueError, match=r"prototypes must be \[C, k_max, d\] and text \[P, d\]"):
        text_shuffle_null(TEXT[0], TWO, torch.eye(4), kind="gap", pool=None, draws=range(2), seed=0, channel=IDS)


def one_id() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(("samples", "columns"), [(4, 2), (100, 24), (129, 24), (5000, 64)])
def test_draws_per_chunk_keeps_to_the_budget_but_never_stops(samples, columns):
    count = draws_per_chunk(samples, columns, budget_bytes=2**20)
    assert count >= 1
    assert count == 1 or count * 4 * samples * (3 * samples + 4 * columns) <= 2**20
    assert draws_per_chunk(samples, columns, budget_bytes=2**24) >= count


def test_rows_per_chunk():
    assert rows_per_chunk(100, budget_bytes=1000) == 10
    assert rows_per_chunk(10_000, budget_bytes=1000) == 1
    assert rows_per_chunk(0, budget_bytes=1000) == 1000


@pytest.mark.parametrize(
    ("architecture", "installed", "runs"),
    [(90, "3.6.0", True), (80, "3.6.0", True), (100, "3.6.0", False), (100, "3.9.0", True), (120, "3.10.1", True)],
)
def test_triton_must_be_recent_enough_for_the_gpu(architecture, installed, runs, monkeypatch):
    monkeypatch.setattr(_backend, "architecture_of", lambda device: architecture)
    monkeypatch.setattr(_backend, "version", lambda package: installed)
    lacking = missing_for("triton", CUDA)
    assert lacking is None if runs else "from triton 3.9 on, and 3.6.0 is installed" in lacking
