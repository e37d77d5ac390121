"""topk_merge in Triton against plain torch, to the last bit, over shapes, strides and ties."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")
import triton

from psi_fast_kernels.topk_merge import empty_top_k, topk_merge, triton_impl

NAN, INF = float("nan"), float("inf")


class Case(NamedTuple):
    """A run of batches: sizes of the batches, channels, positions, places, positions kept per image."""

    batches: tuple[int, ...]
    channels: int
    positions: int
    k: int
    per_image: int = 1


CASES = {
    "one of everything": Case((1,), 1, 1, 1),
    "one image": Case((1,), 5, 49, 3),
    "one position": Case((3, 4), 5, 1, 5),
    "several blocks of channels": Case((2,), 130, 1, 0),
    "one place": Case((2, 3, 1), 7, 9, 1),
    "no place": Case((2, 1), 35, 49, 0),
    "more places than images": Case((2, 3), 3, 6, 40),
    "usual": Case((8, 8, 5), 11, 49, 10),
    "more candidates than one step": Case((34, 3), 2, 5, 17),
    "many places": Case((6, 6), 2, 4, 513),
    "several per image": Case((3, 4), 9, 50, 10, 5),
    "every position": Case((2, 2), 3, 7, 20, 7),
    "a large map": Case((1, 2), 2, 112 * 112, 4, 2),
}
VALUES = ("ties", "all equal", "negative", "not finite")


def values_of(kind: str, images: int, case: Case) -> torch.Tensor:
    """[N, C, P] float32."""
    rng = np.random.default_rng(images + case.positions)
    x = rng.normal(size=(images, case.channels, case.positions))
    if kind == "ties":
        x = np.round(x)
    if kind == "all equal":
        x[:] = -0.25
    if kind == "negative":
        x = -1 - np.abs(x)
    if kind == "not finite":
        x = rng.choice([NAN, INF, -INF, 0.0, -0.0, 1e-42, -3.0], size=x.shape, p=[0.05, 0.1, 0.3, 0.2, 0.2, 0.05, 0.1])
    return torch.from_numpy(x).float()


def agree(x: torch.Tensor, case: Case) -> None:
    """Every batch merged on both backends: same places, same extremes."""
    tops = dict.fromkeys(("triton", "torch"), empty_top_k(case.channels, case.k, x.device))
    first = 0
    for batch in x.split(list(case.batches)):
        found = {}
        for backend, top in tops.items():
            tops[backend], extremes = topk_merge(top, batch, first, per_image=case.per_image, backend=backend)
            found[backend] = {**tops[backend]._asdict(), **{f"extreme {n}": v for n, v in extremes._asdict().items()}}
        for name, expected in found["torch"].items():
            got = found["triton"][name]
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            np.testing.assert_array_equal(got.cpu(), expected.cpu(), err_msg=name)
            if got.is_floating_point():
                nan = torch.isnan(expected)
                assert torch.equal(torch.signbit(got[~nan]), torch.signbit(expected[~nan])), name
        first += len(batch)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", CASES)
def test_places_and_extremes_are_those_of_torch(name, kind, triton_device):
    case = CASES[name]
    if case.positions > 1000 and kind != "ties":
        case = case._replace(batches=(1,), channels=1)  # a large map takes the interpreter long
    agree(values_of(kind, sum(case.batches), case).to(triton_device), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_image", [1, 3])
def test_channels_that_lie_next_to_each_other(dtype, per_image, triton_device):
    """Tokens [B, T, C] come transposed, and maps in channels_last order; the latter need more than one tile of positions."""
    case = Case((2,), 35, 5 * 15, 2, per_image)
    x = values_of("ties", 2, case).to(triton_device, dtype)
    agree(x.transpose(1, 2).contiguous().transpose(1, 2), case)
    agree(x.unflatten(2, (5, 15)).contiguous(memory_format=torch.channels_last), case)


def test_channels_and_images_of_a_larger_tensor(triton_device):
    case = Case((2, 2), 4, 6, 3)
    x = values_of("ties", 4, Case((4,), 9, 12, 1)).to(triton_device)
    agree(x[:, 2:6, ::2], case)


@pytest.mark.parametrize("per_image", [1, 2, 3])
@pytest.mark.parametrize("kind", ["ties", "all equal", "not finite"])
def test_maps_larger_than_a_program_holds(kind, per_image, triton_device, monkeypatch):
    monkeypatch.setattr(triton_impl, "WHOLE_MAP", 16)
    monkeypatch.setattr(triton_impl, "LOADED", 16)
    case = Case((2, 1), 3, 75, 4, per_image)
    tile = triton_impl.extremes_tile(3, 75, by_channel=False)
    assert (tile.positions, tile.whole) == (16, False)
    agree(values_of(kind, 3, case).to(triton_device), case)


@pytest.mark.parametrize("limit", [4, 7, 8])
def test_more_places_or_candidates_than_are_ranked(limit, triton_device, monkeypatch):
    monkeypatch.setattr(triton_impl, "RANKED", limit)
    for case in (Case((3, 4), 3, 6, 8), Case((8, 4), 3, 6, 2), Case((2, 3), 3, 6, 4, 4)):
        agree(values_of("ties", sum(case.batches), case).to(triton_device), case)


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 64, 768, 2048])
@pytest.mark.parametrize("positions", [1, 2, 49, 50, 196, 3136, 112 * 112, 224 * 224])
def test_tiles_fit_the_registers_and_read_neighbours_together(channels, positions, by_channel):
    tile = triton_impl.extremes_tile(channels, positions, by_channel=by_channel)
    height, width, whole, warps = tile
    assert height & (height - 1) == width & (width - 1) == warps & (warps - 1) == 0
    assert height * width <= 32 * 32 * warps  # 32 numbers per thread
    assert whole == (positions <= width)
    assert width < 2 * positions
    assert height < 2 * channels
    if by_channel:
        assert height >= min(channels, 32)
    else:
        assert whole or positions > triton_impl.WHOLE_MAP


@pytest.mark.parametrize("k", [1, 2, 7, 100, 512, triton_impl.RANKED])
def test_merge_tiles_hold_all_places(k):
    places, step = triton_impl.merge_tile(k)
    assert k <= places < 2 * k
    assert step == triton.next_power_of_2(step)
    assert places * step <= triton_impl.COMPARED
