"""Sizes of tiles, passes and programs as pure functions of shape and architecture."""

import pytest

from psi_fast_kernels._tiling import TILE, cluster_columns, padded, pass_columns_of, tile_of, warps_of

ARCHITECTURES = [80, 86, 90, 100, 120]


@pytest.mark.parametrize(
    ("samples", "tile"),
    [(2, 16), (4, 16), (16, 16), (17, 32), (40, 64), (100, 128), (128, 128), (129, 256), (300, 512)],
)
def test_a_tile_is_the_smallest_power_of_two_that_holds_the_samples(samples, tile):
    assert tile_of(samples) == tile


@pytest.mark.parametrize(
    ("k_max", "pass_columns", "expected"),
    [
        (2, 64, (2, 1)),  # one number of clusters
        (3, 64, (4, 2)),
        (4, 64, (4, 4)),
        (6, 64, (8, 8)),  # k = 2..6 at once
        (6, 16, (8, 2)),
        (16, 64, (16, 4)),
        (17, 64, (32, 2)),
        (100, 64, (128, 1)),  # never less than one
    ],
)
def test_cluster_columns(k_max, pass_columns, expected):
    assert cluster_columns(k_max, pass_columns) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("k_max", range(2, 40))
def test_passes_hold_every_number_of_clusters(k_max, architecture):
    columns, groups = cluster_columns(k_max, pass_columns_of(architecture))
    for size in (columns, groups):
        assert size & (size - 1) == 0
    assert k_max <= columns < 2 * k_max
    assert groups == 1 or columns * groups <= pass_columns_of(architecture)
    assert groups < 2 * (k_max - 1)  # not twice as many as there are numbers of clusters


def test_older_architectures_hold_fewer_columns():
    assert [pass_columns_of(architecture) for architecture in ARCHITECTURES] == [16, 16, 64, 64, 64]


@pytest.mark.parametrize(("tile", "warps"), [(16, 4), (64, 4), (TILE, 8), (2 * TILE, 8)])
def test_large_tiles_take_more_warps(tile, warps):
    assert warps_of(tile) == warps


@pytest.mark.parametrize(("size", "whole"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_padded_to_whole_cache_lines(size, whole):
    assert padded(size) == whole
    assert padded(size, 4) == -(-size // 4) * 4
