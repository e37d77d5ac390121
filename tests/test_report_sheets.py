"""Sheets of a report: every tile lies where the plan says, once a sheet, and the budget decides how large it is."""

import numpy as np
import pytest
import tiny
from image_helpers import message
from PIL import Image

from psi_fast.image_bank import from_square
from psi_fast.progress import Progress
from psi_fast.report import sheets
from psi_fast.report.pictures import BESIDE, Pictures
from psi_fast.report.sheets import (
    STEPS,
    STRIP,
    Tiles,
    plan_images,
    plan_patches,
    plan_strips,
    split_channels,
    write_sheets,
)

SIDE = 32
QUIET = Progress(False)
PLENTY = 10**9


@pytest.fixture(scope="module")
def own():
    """40 pictures."""
    images = tiny.image_set(40)
    return Pictures(images.names, tiny.bank(images, SIDE), np.arange(40))


def places(channels=30, patches=20, seed=0, images=40):
    """Patches of 12 to 23 px of the squares, some of them shared by channels."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, images, (channels, patches))
    corners, sides = rng.integers(0, 9, (channels, patches, 2)), rng.integers(12, 24, (channels, patches, 1))
    boxes = np.concatenate((corners, corners + sides), axis=2).astype(float)
    odd = slice(1, None, 2)
    rows[odd, :7], boxes[odd, :7] = rows[:-1:2, :7], boxes[:-1:2, :7]
    return rows, from_square(boxes, SIDE, np.array([tiny.sizes(i) for i in range(images)])[rows])


def written(plan, pictures, folder):
    paths = [folder / f"{i}.webp" for i in range(len(plan.firsts))]
    write_sheets(plan, paths, pictures, QUIET)
    return [np.asarray(Image.open(path)) for path in paths]


def tile_of(plan, images, channel, place):
    sheet = np.searchsorted(plan.firsts, channel, side="right") - 1
    line, column = divmod(int(plan.numbers[channel, place]), plan.tiles.columns)
    side = plan.tiles.side
    return images[sheet][line * side : (line + 1) * side, column * side : (column + 1) * side].astype(float)


@pytest.mark.parametrize(
    ("plan_of", "firsts"),
    [
        (lambda own, *where: plan_patches(own, *where, PLENTY), [0]),
        (lambda _, *where: plan_strips(*where), [0, 8, 16, 24]),
    ],
)
def test_every_patch_is_found_in_its_channel_s_sheet(own, tmp_path, monkeypatch, plan_of, firsts):
    monkeypatch.setattr(sheets, "STRIP_CHANNELS", 8)
    rows, boxes = places()
    rows[3, 5:] = -1
    plan = plan_of(own, rows, boxes)
    images = written(plan, own, tmp_path)
    assert plan.firsts == firsts
    assert (plan.numbers[3, 5:] == -1).all()
    assert (plan.numbers >= 0).sum() == (rows >= 0).sum()
    off = []
    for channel, place in np.argwhere(rows >= 0):
        wanted = next(own.tiles(rows[channel, [place]], boxes[channel, [place]], plan.tiles.side))
        off.append(np.abs(tile_of(plan, images, channel, place) - wanted).mean())
    other = next(own.tiles(rows[0, :1], boxes[0, :1], plan.tiles.side))
    assert max(off) < 20 < np.abs(tile_of(plan, images, 0, 1) - other).mean()
    assert np.mean(off) < 10


def test_a_patch_lies_once_in_a_sheet(own):
    rows, boxes = places()
    plan = plan_patches(own, rows, boxes, PLENTY)
    assert plan.firsts == [0]
    distinct = len(np.unique(np.concatenate((rows[..., None], boxes), axis=2).reshape(-1, 5), axis=0))
    assert distinct < rows.size
    assert len(plan.rows[0]) == len(plan.boxes[0]) == distinct == plan.numbers.max() + 1
    np.testing.assert_array_equal(plan.rows[0][plan.numbers], rows)
    np.testing.assert_array_equal(plan.boxes[0][plan.numbers], boxes)


def test_channels_are_split_where_a_sheet_is_full():
    index = np.array([[0, 1, 2], [2, 1, 0], [2, 3, -1], [4, 5, 6], [4, 5, 7], [8, 9, -1], [8, 9, -1], [9, 8, -1]])
    assert split_channels(index, 4, 100) == [0, 3, 5]
    assert split_channels(index, 100, 3) == [0, 3, 6]
    assert split_channels(index, 2, 100) == [0, 1, 2, 3, 4, 5]
    assert split_channels(index[:0], 2, 100) == []


def test_a_channel_with_more_patches_than_a_sheet_is_wide_and_high_has_a_higher_one(own, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "SHEET", 160)  # 2 x 2 tiles
    rows, boxes = places(channels=2, patches=9)
    plan = plan_patches(own, rows, boxes, PLENTY)
    assert plan.firsts == [0, 1]
    images = written(plan, own, tmp_path)
    assert [image.shape for image in images] == [(64 * 5, 128, 3)] * 2
    monkeypatch.setattr(sheets, "TALLEST", 64 * 4 + 63)
    assert "9 patches, and a sheet of pictures holds 8" in message(plan_patches, own, rows, boxes, PLENTY)


def test_the_budget_decides_and_is_kept(own, tmp_path):
    rows, boxes = places(channels=10)
    sizes = []
    for budget in (PLENTY, 70_000, 45_000, 1):
        plan = plan_patches(own, rows, boxes, budget)
        written(plan, own, tmp_path)
        sizes.append((tmp_path / "0.webp").stat().st_size)
        assert sizes[-1] <= budget * 1.05 or plan.tiles == STEPS[-1]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[1] > 45_000


def test_what_is_written_is_always_the_same(own, tmp_path):
    plan = plan_patches(own, *places(), PLENTY)
    for name in "ab":
        write_sheets(plan, [tmp_path / name], own, QUIET)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_patches_are_not_blown_up():
    images = tiny.image_set(40)
    large = Pictures(images.names, tiny.bank(images, 300), np.arange(40))
    rows, boxes = places()
    assert plan_patches(large, rows, boxes, PLENTY).tiles.side == 128
    own = Pictures(images.names, tiny.bank(images, 120), np.arange(40))
    tiles = plan_patches(own, rows, boxes, PLENTY).tiles  # nine of ten are at most 22 of 32 px
    assert tiles.side == 80
    assert plan_images(large, PLENTY).tiles.side == 256


def test_one_sheet_holds_all_patches_where_it_can(own, monkeypatch):
    rows, boxes = places()
    distinct = len(np.unique(np.concatenate((rows[..., None], boxes), axis=2).reshape(-1, 5), axis=0))
    columns = int(np.ceil(np.sqrt(distinct)))
    images = tiny.image_set(40)
    large = Pictures(images.names, tiny.bank(images, 300), np.arange(40))
    for side in (64, 80, 96, 112):
        monkeypatch.setattr(sheets, "SHEET", columns * side)
        plan = plan_patches(large, rows, boxes, PLENTY)
        assert (plan.tiles.side, plan.firsts) == (side, [0])
    monkeypatch.setattr(sheets, "SHEET", (columns - 1) * 64)  # none of that size could: quality decides
    plan = plan_patches(large, rows, boxes, PLENTY)
    assert plan.tiles.side == 128
    assert len(plan.firsts) > 2


def test_whole_images_lie_in_order(own, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "IMAGES", 16)
    plan = plan_images(own, PLENTY)
    assert plan.tiles == Tiles(64, 75)
    assert plan.firsts == [0, 16, 32]
    assert plan.numbers[:, 0].tolist() == [*range(16), *range(16), *range(8)]
    images = written(plan, own, tmp_path)
    for row in range(40):
        assert np.abs(tile_of(plan, images, row, 0) - next(own.tiles(np.array([row]), None, 64))).mean() < 20
    assert plan_images(own, 40 * 500).tiles.quality < 75


def test_a_sheet_of_channels_without_patches_is_grey(own, tmp_path):
    rows, boxes = places(channels=4)
    for plan in (plan_patches(own, np.full_like(rows, -1), boxes, PLENTY), plan_strips(np.full_like(rows, -1), boxes)):
        (image,) = written(plan, own, tmp_path)
        assert (plan.numbers == -1).all()
        assert np.abs(image.astype(int) - BESIDE).max() <= 2


def test_thumbnails_of_the_table_are_small():
    plan = plan_strips(*places(channels=600, patches=3))
    assert plan.tiles == STRIP
    assert plan.firsts == [0, 256, 512]
