"""Pictures of a report: the run's own images, found again, and of each patch the pixels that the encoder was given."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message, paint
from PIL import Image

from psi_fast import crops, store
from psi_fast.errors import InputError
from psi_fast.image_bank import from_square, open_bank, to_square
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images
from psi_fast.progress import Progress
from psi_fast.report import pictures as module
from psi_fast.report.pictures import BESIDE, Pictures, locate, open_pictures

QUIET = Progress(False)
HALVES = replace(tiny.CONFIG, patch=0.37)  # boxes end between pixels


def scored(folder, **changes):
    """A run on the images of `folder`."""
    return tiny.score(images=folder, **{"config": HALVES} | changes)


def whole(own, row, side):
    return next(own.tiles(np.array([row]), None, side))


def cut(own, row, box, side):
    return next(own.tiles(np.array([row]), np.array([box], dtype=np.float32), side))


def reopened(scores, images=None):
    return open_pictures(scores.manifest, scores.patches, images, bars=QUIET)


@pytest.fixture
def folder(tmp_path):
    return tiny.write_pictures(tmp_path / "images")


@pytest.fixture
def loads(monkeypatch):
    """Every image that is decoded."""
    asked, plain = [], ImageSet.load
    monkeypatch.setattr(ImageSet, "load", lambda self, row: (asked.append(self.names[row]), plain(self, row))[1])
    return asked


def with_box(box, size=(90, 60), side=30):
    """An image of noise as the only picture, its pixels, and `box` of it as a tile of 15 px."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = ImageSet(["noise"], lambda _: Image.fromarray(pixels), ["noise"])
    own = Pictures(["noise"], open_bank(images, side, side=side, progress=QUIET), np.array([0]))
    return own, cut(own, 0, box, 15)


def test_boxes_go_to_the_square_and_back():
    rng = np.random.default_rng(0)
    sizes, boxes = rng.integers(20, 300, (5, 7, 2)), rng.random((5, 7, 4)) * 60
    np.testing.assert_allclose(to_square(from_square(boxes, 60, sizes), 60, sizes), boxes, atol=1e-9)
    # the centre 60 px of 90 x 60 px lie at x 15..75
    np.testing.assert_allclose(to_square(np.array([15, 0, 75, 30]), 30, np.array([90, 60])), [0, 0, 30, 15])


def test_a_patch_is_cut_where_its_box_lies():
    own, tile = with_box([25, 10, 55, 40])
    wanted = Image.fromarray(whole(own, 0, 30)[5:20, 5:20]).resize((15, 15), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tile, np.asarray(wanted))
    np.testing.assert_allclose(
        own.on_square(np.array([0]), np.array([[25, 10, 55, 40]])), [[1 / 6, 1 / 6, 2 / 3, 2 / 3]]
    )
    np.testing.assert_array_equal(own.on_square(np.array([0]), np.array([[0, -9, 90, 99]])), [[0, 0, 1, 1]])


def test_a_box_outside_the_square_gives_what_is_nearest():
    own, tile = with_box([2, 0, 14, 12])  # of an image that has changed its size
    wanted = cut(own, 0, [15, 0, 17, 12], 15)
    np.testing.assert_array_equal(tile, wanted)


def test_a_patch_that_is_no_square_keeps_its_shape():
    _, tile = with_box([25, 10, 55, 20])  # 15 x 5 px of the square
    assert (tile[[*range(5), *range(10, 15)]] == BESIDE).all()
    assert tile[5:10].std() > 20
    _, tile = with_box([25, 10, 55, 38])  # 15 x 14 px: as wide as high but for whole pixels
    assert tile[[0, -1]].std() > 20


def test_boxes_of_whole_pixels_are_not_widened_by_what_float32_loses(monkeypatch):
    cut, plain = [], crops.whole_pixels
    monkeypatch.setattr(module, "whole_pixels", lambda boxes, side: (cut.append(plain(boxes, side)), cut[-1])[1])
    images = tiny.image_set(3)
    own = Pictures(images.names, tiny.bank(images, 47), np.arange(3))
    low = np.random.default_rng(0).integers(0, 23, (300, 2))
    boxes, rows = np.concatenate((low, low + 24), axis=1), np.repeat(np.arange(3), 100)
    sizes = np.array([tiny.sizes(row) for row in rows])
    list(own.tiles(rows, from_square(boxes, 47, sizes).astype(np.float32), 4))
    np.testing.assert_array_equal(cut[0], boxes)


def test_the_pixels_are_those_that_the_encoder_was_given(folder, monkeypatch):
    given, plain = [], crops.whole_pixels
    monkeypatch.setattr(crops, "whole_pixels", lambda boxes, side: (given.append(plain(boxes, side)), given[-1])[1])
    scores = scored(folder)
    encoded = {tuple(box) for box in np.concatenate(given).tolist()}
    shown = []
    monkeypatch.setattr(module, "whole_pixels", lambda boxes, side: (shown.append(plain(boxes, side)), shown[-1])[1])
    own = reopened(scores)
    rows, boxes = locate(scores, own)
    assert len(list(own.tiles(rows.ravel(), boxes.reshape(-1, 4), 8))) == rows.size
    found = {tuple(box) for box in np.concatenate(shown).tolist()}
    assert len(found) > 10
    assert found <= encoded


@pytest.mark.parametrize("source", ["owner/name", "owner/name@train"])
def test_a_dataset_of_the_hub_is_fetched_only_where_images_name_it(folder, monkeypatch, source):
    scores, asked = scored(folder), []
    scores.manifest["source"] = source

    def opened(images, **_):
        asked.append(images)
        raise InputError("asked")

    monkeypatch.setattr(module, "open_images", opened)
    text = message(reopened, scores)
    assert f"give --images {source} for it, or --no-pictures" in text
    assert asked == []
    assert message(reopened, scores, source) == "asked"
    assert asked == [source]


def test_the_run_s_own_squares_are_read_again(folder, loads):
    scores = scored(folder)
    loads.clear()
    own = reopened(scores)
    assert own.warnings == []
    assert own.names == sorted(set(scores.patches["image"]))
    assert own.rows(own.names[::-1]).tolist() == list(range(len(own)))[::-1]
    assert own.rows(["none"]).tolist() == [-1]
    assert loads == []
    square = open_bank(open_images(folder), 32, side=32, progress=QUIET).read(slice(None), torch.device("cpu")).numpy()
    names = open_images(folder).names
    for row, name in enumerate(own.names):
        np.testing.assert_array_equal(whole(own, row, own.side), square[names.index(name)])


@pytest.mark.parametrize("kept", ["deleted", "streamed"])
def test_images_that_were_not_kept_are_decoded_where_patches_lie(folder, loads, tmp_path, kept):
    bank = tmp_path / "bank"
    scores = scored(folder, bank="stream" if kept == "streamed" else bank, channels=[0])
    shutil.rmtree(bank, ignore_errors=True)
    loads.clear()
    own = reopened(scores)
    assert sorted(loads) == own.names == sorted(set(scores.patches["image"]))
    assert len(own) < 24
    assert not any(bank.glob("*"))
    images = open_images(folder)
    squares = tiny.bank(images).read(slice(None), torch.device("cpu")).numpy()
    for row, name in enumerate(own.names):
        np.testing.assert_array_equal(whole(own, row, own.side), squares[images.names.index(name)])
    left = own._bank.folder
    assert left.exists()
    del own
    assert not left.exists()


def test_a_part_of_the_images_is_found_again(folder):
    paint(folder / "class1" / "broken.png")
    (folder / "class1" / "broken.png").write_bytes(b"no image")
    scores = scored(folder, max_images=17, skip_unreadable=True)
    assert reopened(scores).warnings == []
    scores.manifest["max_images"] = 12
    assert "not among the 12 given" in message(reopened, scores)


def test_images_that_were_moved_are_told_by_the_user(folder, tmp_path):
    scores = scored(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    said = message(reopened, scores)
    assert "--images" in said
    assert str(folder) in said
    own = reopened(scores, moved)
    assert own.warnings == []
    os.utime(moved / scores.patches["image"][0], (0, 0))
    assert "not quite those" in reopened(scores, str(moved)).warnings[0]
    said = message(reopened, scores, tmp_path / "nothing")
    assert "nothing" in said
    assert "opened again" not in said


def test_images_that_lack_some_are_refused(folder):
    scores = scored(folder)
    lost = scores.patches["image"][0]
    (folder / lost).unlink()
    said = message(reopened, scores)
    assert repr(lost) in said
    assert "1 of the" in said
    assert "--images" in said


def test_a_dataset_is_given_again():
    scores = scored(tiny.Pictures())
    assert "--images" in message(reopened, scores)
    own = reopened(scores, tiny.Pictures())
    assert len(own.warnings) == 1
    assert "dataset" in own.warnings[0]
    assert own.names == sorted(set(scores.patches["image"]), key=int)


def test_names_that_are_no_text_are_found(folder):
    odd = folder / "class0" / os.fsdecode(b"a\xff.png")
    (folder / "class0" / "000.png").rename(odd)
    scores = scored(folder)
    assert "class0/a\\xff.png" in set(scores.patches["image"])
    assert "class0/a\\xff.png" in reopened(scores).names


def test_patches_are_placed_by_channel_and_rank(folder, tmp_path):
    scored(folder, layer=["2", "3"], out=tmp_path / "run", config=replace(HALVES, per_image=1))
    scores = store.load(tmp_path / "run")
    scores = replace(scores, patches=scores.patches.drop(index=3))
    own = reopened(scores)
    rows, boxes = locate(scores, own)
    assert rows.shape == scores.labels.shape
    assert (rows == -1).sum() == 1
    assert rows[0, 3] == -1
    some = scores.patches[(scores.patches["layer"] == "3") & (scores.patches["channel"] == 2)].set_index("rank")
    row = int(np.flatnonzero((scores.table["layer"] == "3") & (scores.table["channel"] == 2))[0])
    for rank in (0, 5):
        assert own.names[rows[row, rank]] == some.loc[rank, "image"]
        np.testing.assert_array_equal(boxes[row, rank], some.loc[rank, "box"])
