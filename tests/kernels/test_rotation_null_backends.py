"""The S nulls on every backend: the reference's draws, whatever the rotation, the shape, the chunk and the threads."""

from typing import NamedTuple

import numpy as np
import pytest
import replicas
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no build for this platform")

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.rotation_null import (
    ROTATIONS,
    Pool,
    Tangent,
    rotation_null,
    rotation_pool,
    sphere_null,
    tangent_space,
)

SEED = 2**64 - 3
LAST_ID = 2**32 - 1
CPU = torch.device("cpu")


class Bound(NamedTuple):
    """How far draws may lie from those of torch on a CPU: all but a `share` of them `near`, the others `far`.

    Rounding may move a sample that lies between two centres, and the clustering found then is another one, as valid.
    """

    near: float
    share: float
    far: float


BOUNDS = {
    ("numba", torch.float64): Bound(near=1e-12, share=0.0, far=0.0),
    ("numba", torch.float32): Bound(near=1e-6, share=0.02, far=0.01),
    ("triton", torch.float32): Bound(near=1e-6, share=0.02, far=0.01),
}
CLOSE = 100  # times less near where samples of few dimensions come close, and 1 - cosine is small beside its rounding
FLOAT16_PARTS = 1e-3  # what a silhouette may move by as Triton multiplies numbers in two float16 parts
BACKENDS = pytest.mark.parametrize(("backend", "dtype"), BOUNDS, ids=lambda x: str(x).removeprefix("torch."))
# samples K, width d, k_max, n_init; 5 restarts are more than Triton starts at once, 16 clusters take it several passes
SHAPES = [(4, 3, 2, 1), (7, 2, 3, 5), (12, 64, 6, 2), (40, 5, 16, 1), (100, 64, 6, 1), (128, 32, 2, 1), (129, 32, 3, 1)]


def cloud(samples: int, width: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return np.stack([replicas.gaussian_cloud(samples, width, rng) for _ in range(channels)])


def duplicates(samples: int, distinct: int) -> np.ndarray:
    """Three channels of samples at `distinct` points."""
    points = replicas.unit(np.random.default_rng(distinct).normal(size=(3, distinct, 16)))
    return points[:, np.arange(samples) % distinct]


def space_of(x: np.ndarray, dtype: torch.dtype) -> Tangent:
    rows = torch.from_numpy(x)
    return Tangent(*(part.to(dtype) for part in tangent_space(rows @ rows.mT, x.shape[-1])))


def pool_of(x: np.ndarray, dtype: torch.dtype, rotation: str, draws: range) -> Pool:
    return rotation_pool(x.shape[1], x.shape[2], rotation=rotation, draws=draws, seed=SEED, dtype=dtype)


def draw(
    backend: str, device: torch.device, space: Tangent, pool: Pool, rotation: str, *, k_max: int = 3, n_init: int = 2,
    first: int = 0, seed: int = SEED,
) -> Tensor:  # fmt: skip
    """Draws of the channels `first`.. of a layer: ids end at the largest there is."""
    device = device if backend == "triton" else CPU
    space, pool = Tangent(*(part.to(device) for part in space)), Pool(*(part.to(device) for part in pool))
    channel = LAST_ID - torch.arange(first, first + len(space.angles), device=device)
    drawn = rotation_null(
        space, pool, rotation=rotation, k_max=k_max, n_init=n_init, seed=seed, channel=channel, backend=backend
    )
    assert drawn.dtype == space.angles.dtype
    return drawn.cpu()


def assert_alike(drawn: Tensor, expected: Tensor, bound: Bound, *, looser: int = 1) -> None:
    assert drawn.shape == expected.shape
    difference = (drawn - expected).abs()
    assert int((difference > looser * bound.near).sum()) <= int(bound.share * drawn.numel())
    assert float(difference.max()) <= max(looser * bound.near, bound.far)


@BACKENDS
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(("samples", "width", "k_max", "n_init"), SHAPES)
def test_draws_equal_torch_at_awkward_sizes(backend, dtype, rotation, samples, width, k_max, n_init, triton_device):
    channels, draws = (2, range(30)) if backend == "numba" else (1, range(2))
    x = cloud(samples, width, channels)
    space, pool = space_of(x, dtype), pool_of(x, dtype, rotation, draws)
    starts = {"k_max": k_max, "n_init": n_init}
    drawn, expected = (draw(name, triton_device, space, pool, rotation, **starts) for name in (backend, "torch"))
    assert_alike(drawn, expected, BOUNDS[backend, dtype], looser=CLOSE if samples < 12 else 1)
    assert len(expected.unique()) > 1


@BACKENDS
@pytest.mark.parametrize("samples", [300, 512])
def test_draws_equal_torch_where_a_matrix_exceeds_the_tile(backend, dtype, samples, triton_device):
    x = cloud(samples, 32, 1)
    space, pool = space_of(x, dtype), pool_of(x, dtype, "marginal", range(8 if backend == "numba" else 1))
    starts = {"k_max": 2, "n_init": 1}
    drawn, expected = (draw(name, triton_device, space, pool, "marginal", **starts) for name in (backend, "torch"))
    assert_alike(drawn, expected, BOUNDS[backend, dtype])


@BACKENDS
@pytest.mark.parametrize(("samples", "width", "k_max", "n_init"), [(7, 3, 3, 5), (40, 64, 6, 2), (129, 8, 3, 1)])
def test_sphere_draws_equal_torch(backend, dtype, samples, width, k_max, n_init, triton_device):
    draws = range(50) if backend == "numba" else range(7, 9)
    common = {"draws": draws, "k_max": k_max, "n_init": n_init, "seed": SEED, "dtype": dtype}
    device = triton_device if backend == "triton" else CPU
    drawn = sphere_null(samples, width, **common, device=device, backend=backend).cpu()
    assert drawn.dtype == dtype
    expected = sphere_null(samples, width, **common, backend="torch")
    assert_alike(drawn, expected, BOUNDS[backend, dtype])
    assert len(expected.unique()) == len(draws)


@BACKENDS
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_draws_of_equal_samples(backend, dtype, rotation, distinct, triton_device):
    """Samples at one point have no tangent space to turn in: silhouette 0. Those at few points are spread by the draw."""
    x = duplicates(20, distinct)
    space, pool = space_of(x, dtype), pool_of(x, dtype, rotation, range(2))
    drawn, expected = (draw(name, triton_device, space, pool, rotation) for name in (backend, "torch"))
    if distinct == 1:
        assert (drawn == 0).all()
    else:
        assert (drawn > 0).all()
    assert_alike(drawn, expected, BOUNDS[backend, dtype])


@BACKENDS
@pytest.mark.parametrize("rotation", ["unimodal", "tangent"])
def test_neither_chunks_nor_company_nor_threads_change_a_bit(backend, dtype, rotation, triton_device, monkeypatch):
    """One channel alone, draws in two parts: the bits are those of one whole call."""
    x = cloud(12, 8, 3)
    space = space_of(x, dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    whole = draw(backend, triton_device, space, pool_of(x, dtype, rotation, range(5)), rotation)
    assert len(whole.unique()) == 15
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for channels, draws in ((slice(0, 3), range(5)), (slice(1, 2), range(5)), (slice(1, 3), range(3, 5))):
        pool = pool_of(x, dtype, rotation, draws)
        part = draw(backend, triton_device, space.rows(channels), pool, rotation, first=channels.start)
        assert torch.equal(part, whole[channels, draws.start : draws.stop])
    other = draw(backend, triton_device, space, pool_of(x, dtype, rotation, range(5)), rotation, seed=SEED + 1)
    assert not torch.equal(other, whole)


def test_out_of_memory_gives_the_same_draws_in_smaller_chunks(triton_device, monkeypatch):
    x = cloud(7, 8, 3)
    space, pool = space_of(x, torch.float32), pool_of(x, torch.float32, "unimodal", range(2))
    whole = draw("triton", triton_device, space, pool, "unimodal")
    module = implementation("psi_fast_kernels.rotation_null.op", "triton", triton_device, offers=("triton",))
    kernel = module._rotation

    class RoomForTwo:
        def __getitem__(self, grid):
            if grid[0] > 2:
                raise torch.OutOfMemoryError
            return kernel[grid]

    monkeypatch.setattr(module, "_rotation", RoomForTwo())
    monkeypatch.setattr(module, "rows_per_chunk", lambda *_, **__: 2)
    with pytest.warns(UserWarning, match="out of memory with 2 channels at once; going on with 1"):
        assert torch.equal(draw("triton", triton_device, space, pool, "unimodal"), whole)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_float16_parts_move_a_draw_by_little(rotation, triton_device):
    """Against float64 throughout, from one pool: rounding is all that differs, and no near tie may hide in it."""
    x = cloud(40, 16, 2)
    exact = draw("torch", CPU, space_of(x, torch.float64), pool_of(x, torch.float64, rotation, range(2)), rotation)
    drawn = draw(
        "triton", triton_device, space_of(x, torch.float32), pool_of(x, torch.float32, rotation, range(2)), rotation
    )
    assert float((drawn - exact).abs().max()) < FLOAT16_PARTS
