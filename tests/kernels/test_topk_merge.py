"""The streaming top-K against a full sort by (value descending, image ascending, position ascending)."""

import numpy as np
import pytest
import torch

from psi_fast_kernels.topk_merge import empty_top_k, spatial_maxima, topk_merge


def activations(images: int, channels: int, positions: int, seed: int = 0, levels: int | None = None) -> torch.Tensor:
    """[N, C, P] float32; with `levels` few distinct values, so that ties abound."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, channels, positions))
    return torch.from_numpy(np.round(x * levels) / levels if levels else x).float()


def stream(x: torch.Tensor, k: int, batch: int, per_image: int = 1):
    top = empty_top_k(x.shape[1], k)
    for first in range(0, len(x), batch):
        top = topk_merge(top, spatial_maxima(x[first : first + batch], per_image), first)
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


def test_merge_leaves_its_argument_alone():
    x = activations(8, 2, 4)
    top = stream(x[:4], 3, 4)
    before = [part.clone() for part in top]
    topk_merge(top, spatial_maxima(x[4:]), 4)
    assert all(torch.equal(a, b) for a, b in zip(top, before, strict=True))
