"""The streaming top-K against a full sort by (value descending, image ascending, position ascending)."""

import numpy as np
import pytest
import torch

from psi_fast_kernels.topk_merge import cost, empty_top_k, topk_merge

NAN, INF = float("nan"), float("inf")


def activations(images: int, channels: int, positions: int, seed: int = 0, levels: int | None = None) -> torch.Tensor:
    """[N, C, P] float32; with `levels` few distinct values, so that ties abound."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, channels, positions))
    return torch.from_numpy(np.round(x * levels) / levels if levels else x).float()


def stream(x: torch.Tensor, k: int, batch: int, per_image: int = 1):
    top = empty_top_k(x.shape[1], k)
    for first in range(0, len(x), batch):
        top, _ = topk_merge(top, x[first : first + batch], first, per_image=per_image)
    return top


def full_sort(x: torch.Tensor, k: int, per_image: int = 1) -> tuple[list, list, list]:
    """Values, images and positions [C, K] by one sort over everything, in Python."""
    result = ([], [], [])
    for c in range(x.shape[1]):
        rows = []
        for image in range(len(x)):
            own = sorted((-float(v), position) for position, v in enumerate(x[image, c]))[:per_image]
            rows += [(value, image, position) for value, position in own]
        rows = sorted(rows)[:k]
        empty = k - len(rows)
        result[0].append([-v for v, _, _ in rows] + [-float("inf")] * empty)
        result[1].append([i for _, i, _ in rows] + [-1] * empty)
        result[2].append([p for _, _, p in rows] + [-1] * empty)
    return result


@pytest.mark.parametrize("per_image", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 7, 41])
@pytest.mark.parametrize("levels", [None, 2])
def test_equals_a_full_sort_whatever_the_batch(batch, levels, per_image):
    x = activations(41, 3, 6, levels=levels)
    found = stream(x, 17, batch, per_image)
    for ours, expected in zip(found, full_sort(x, 17, per_image), strict=True):
        assert ours.tolist() == expected
    assert found.values.dtype == torch.float32


@pytest.mark.parametrize("positions", [1, 49])
def test_channel_that_is_never_positive_ranks_as_well(positions):
    x = -1 - activations(20, 2, positions).abs()
    found = stream(x, 5, 4)
    assert (found.values < -1).all()
    assert (found.images >= 0).all()
    assert found.images.tolist() == full_sort(x, 5)[1]


def test_fewer_images_than_places_leaves_empty_ones():
    found = stream(activations(3, 2, 4), 5, 2)
    assert (found.images[:, 3:] == -1).all()
    assert (found.positions[:, 3:] == -1).all()
    assert (found.values[:, 3:] == -torch.inf).all()
    assert (found.images[:, :3] >= 0).all()


def test_constant_channel_takes_the_first_images_at_position_zero():
    found = stream(torch.full((10, 2, 9), 0.25), 4, 3)
    assert found.images.tolist() == [[0, 1, 2, 3]] * 2
    assert found.positions.tolist() == [[0] * 4] * 2


def test_values_a_bfloat16_apart_are_told_apart():
    x = torch.tensor([1.0, 1.0001, 1.0002, 0.9999])[:, None, None]
    assert stream(x, 4, 1).images.tolist() == [[2, 1, 0, 3]]


def test_values_a_bfloat16_apart_are_compared_as_they_come():
    x = activations(9, 3, 16, levels=2).bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(stream(x, 5, 4), stream(x.float(), 5, 4), strict=True))


def test_merge_leaves_its_argument_alone():
    x = activations(8, 2, 4)
    top = stream(x[:4], 3, 4)
    before = [part.clone() for part in top]
    topk_merge(top, x[4:], 4)
    assert all(torch.equal(a, b) for a, b in zip(top, before, strict=True))


@pytest.mark.parametrize("per_image", [1, 3])
def test_extremes_are_those_of_each_image_whatever_is_kept(per_image):
    x = activations(6, 4, 9, levels=1)
    for k in (0, 1, 50):
        top, extremes = topk_merge(empty_top_k(4, k), x, 0, per_image=per_image)
        assert torch.equal(extremes.maxima, x.amax(2))
        assert torch.equal(extremes.minima, x.amin(2))
        assert torch.equal(extremes.positions, torch.from_numpy(x.numpy().argmax(2)))
        assert top.values.shape == (4, k)


def test_a_map_and_its_flat_positions_are_the_same():
    x = activations(5, 3, 12)
    flat, square = (topk_merge(empty_top_k(3, 4), part, 0) for part in (x, x.unflatten(2, (3, 4))))
    assert all(torch.equal(a, b) for a, b in zip((*flat[0], *flat[1]), (*square[0], *square[1]), strict=True))


@pytest.mark.parametrize("per_image", [1, 2])
def test_nan_ranks_first_and_shows_in_both_extremes(per_image):
    x = torch.tensor([[3.0, INF, 1.0], [2.0, NAN, NAN], [-INF, 5.0, 4.0]])[:, None]
    top, extremes = topk_merge(empty_top_k(1, 3), x, 7, per_image=per_image)
    assert top.images[0].tolist() == ([8, 7, 9] if per_image == 1 else [8, 8, 7])
    assert top.positions[0].tolist() == ([1, 1, 1] if per_image == 1 else [1, 2, 1])
    assert extremes.positions[:, 0].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(extremes.maxima[:, 0], [INF, NAN, 5])
    np.testing.assert_array_equal(extremes.minima[:, 0], [1, NAN, -INF])


def test_minus_inf_takes_no_place():
    x = torch.full((3, 1, 2), -INF)
    x[1, 0, 1] = -9.0
    top, extremes = topk_merge(empty_top_k(1, 2), x, 0)
    assert top.images.tolist() == [[1, -1]]
    assert top.positions.tolist() == [[1, -1]]
    assert extremes.maxima[:, 0].tolist() == [-INF, -9, -INF]


def test_a_zero_loses_its_sign_and_ties_with_the_other():
    x = torch.tensor([[-0.0, 0.0], [0.0, -0.0]])[:, None]
    top, extremes = topk_merge(empty_top_k(1, 2), x, 0)
    assert top.images.tolist() == [[0, 1]]
    assert top.positions.tolist() == [[0, 0]]
    assert not any(torch.signbit(part).any() for part in (top.values, extremes.maxima, extremes.minima))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activations": torch.zeros(2, 3)}, r"must be a float32.* got torch.float32 \(2, 3\)"),
        ({"activations": torch.zeros(2, 3, 4, dtype=torch.float64)}, r"got torch.float64 \(2, 3, 4\)"),
        ({"activations": torch.zeros(0, 3, 4)}, r"with something in it, got torch.float32 \(0, 3, 4\)"),
        ({"top": empty_top_k(4, 5)}, r"top must be \[3, K\] on cpu, got \(4, 5\) on cpu"),
        ({"top": empty_top_k(3, 5, "meta")}, r"top must be \[3, K\] on cpu, got \(3, 5\) on meta"),
        ({"per_image": 5}, r"per_image must lie in 1\.\.P = 4, got 5"),
        ({"per_image": 0}, r"per_image must lie in 1\.\.P = 4, got 0"),
        ({"first_image": -1}, "first_image must be at least 0, got -1"),
        ({"backend": "numba"}, "no 'numba' backend"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, text):
    arguments = {"top": empty_top_k(3, 5), "activations": torch.zeros(2, 3, 4), "first_image": 0, **change}
    with pytest.raises(ValueError, match=text):
        topk_merge(**arguments)


def test_cost_counts_every_activation_once():
    assert cost.bytes_moved(32, 2048, 49, 0, itemsize=2) == 32 * 2048 * (49 * 2 + 16)
    assert cost.bytes_moved(32, 2048, 49, 100) - cost.bytes_moved(32, 2048, 49, 0) == 2048 * (32 * 12 + 2 * 100 * 20)
    assert cost.operations(32, 2048, 49, 0) == 32 * 2048 * 49 * 2
    assert cost.operations(1, 1, 1, 100) == 2 + 2 * 100 + 1
