"""A stream gives what a bank on the disk gives, decodes no image twice in a pass and holds few of them."""

import os
import weakref
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message

from psi_fast import image_stream
from psi_fast.crops import embed
from psi_fast.errors import ConfigError
from psi_fast.image_stream import open_stream
from psi_fast.images import open_images
from psi_fast.progress import Progress

CPU = torch.device("cpu")
SIDE = 32


def stream(count=40, side=SIDE):
    return open_stream(tiny.image_set(count), side, side=side)


def sorted_crops(rng, count=90, images=40):
    """Crops [U, 5] in order of their images, of three sizes; an image's may lie in two batches."""
    corners = rng.integers(0, 10, (count, 2))
    sizes = rng.choice([8, 13, 20], (count, 1))
    return np.column_stack((np.sort(rng.integers(0, images, count)), corners, corners + sizes)).astype(float)


@pytest.fixture
def loads(monkeypatch):
    """Every image that is decoded, in the order they were asked for."""
    asked, plain = [], image_stream.ImageSet.load
    monkeypatch.setattr(image_stream.ImageSet, "load", lambda self, row: (asked.append(row), plain(self, row))[1])
    return asked


def test_squares_and_boxes_are_those_of_a_bank():
    images = tiny.image_set(40)
    bank, streamed = tiny.bank(images, SIDE), open_stream(images, SIDE, side=SIDE)
    assert (len(streamed), streamed.side) == (len(bank), bank.side)
    for rows in (slice(None), slice(3, 30), np.array([5, 1, 1, 39])):
        assert torch.equal(streamed.read(rows, CPU), bank.read(rows, CPU))
    boxes = np.random.default_rng(0).random((3, 40, 4)) * SIDE
    fresh = open_stream(images, SIDE, side=SIDE)  # nothing was decoded that would tell the sizes
    of = np.array([np.arange(40), np.arange(40)[::-1], [7] * 40])
    np.testing.assert_array_equal(fresh.to_image(boxes, of), bank.to_image(boxes, of))
    np.testing.assert_array_equal(streamed.sizes, bank.sizes)


def test_parts_hold_the_images_asked_for():
    images = tiny.image_set(40)
    bank = tiny.bank(images, SIDE)
    parts = [np.array([0, 0, 3]), np.array([3, 4, 9, 9]), np.array([9]), np.array([9, 39])]
    corners = np.random.default_rng(0).integers(0, 20, (4, 2))
    with closing(open_stream(images, SIDE, side=SIDE).walk(parts)) as walk:
        for part, (squares, rows) in zip(parts, walk, strict=True):
            box = (corners[: len(part)], (7, 12), CPU)
            assert torch.equal(squares.cut(rows, *box), bank.cut(part, *box))


def test_the_side_is_chosen_as_for_a_bank():
    images = tiny.image_set(10)  # shorter sides 32 to 41
    assert [open_stream(images, largest).side for largest in (36, 224)] == [36, 41]
    assert "1..4096" in message(open_stream, images, 224, side=0, error=ConfigError)


def test_mining_and_crops_decode_each_image_once(loads):
    crops, streamed = sorted_crops(np.random.default_rng(0)), stream()
    parts = [slice(first, first + 8) for first in range(0, 40, 8)]
    assert [len(squares) for squares, _ in streamed.walk(parts)] == [8] * 5
    assert sorted(loads) == list(range(40))
    loads.clear()
    found = embed(
        crops, streamed, [""] * 40, tiny.TinyEncoder(), CPU, replace(tiny.CONFIG, batch_size=8), Progress(False)
    )
    assert sorted(loads) == np.unique(crops[:, 0]).tolist()
    bank = tiny.bank(tiny.image_set(40), SIDE)
    assert torch.equal(found, embed(crops, bank, [""] * 40, tiny.TinyEncoder(), CPU, tiny.CONFIG, Progress(False)))


@pytest.mark.parametrize("count", [60, 240])
def test_few_images_are_held_at_a_time(monkeypatch, count):
    alive, most, plain = set(), [0], image_stream.squared

    def counted(image, side):
        square = plain(image, side).copy()
        key = object()
        alive.add(key)
        weakref.finalize(square, alive.discard, key)
        return square

    monkeypatch.setattr(image_stream, "squared", counted)
    monkeypatch.setattr(image_stream, "AHEAD", 16)
    for parts in (
        [slice(first, first + 8) for first in range(0, count, 8)],
        np.array_split(np.repeat(np.arange(count), 3), count // 4),  # 12 crops of 4 or 5 images
    ):
        with closing(stream(count, side=8).walk(parts)) as walk:
            for _ in walk:
                most.append(len(alive))
        assert len(alive) == 0
    assert 8 <= max(most) <= 16 + 2 * 8


def test_scores_are_those_of_a_bank_and_nothing_is_written(tmp_path, monkeypatch):
    layers = ["2", "3"]
    wanted = tiny.score(layer=layers)
    monkeypatch.setenv("PSI_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = tiny.score(layer=layers, bank="stream")
    assert found.table.equals(wanted.table)
    assert found.patches.equals(wanted.patches)
    assert found.manifest["identity"] == wanted.manifest["identity"]
    assert found.manifest["bank"] == {"side_px": SIDE, "folder": "none, decoded when needed"}
    assert list(tmp_path.iterdir()) == []
    tiny.score(bank="./stream")
    assert [path.name for path in tmp_path.iterdir()] == ["stream"]


def test_a_dataset_can_be_streamed():
    wanted, found = tiny.score(images=tiny.Pictures()), tiny.score(images=tiny.Pictures(), bank="stream")
    assert found.table.equals(wanted.table)


def test_an_image_that_cannot_be_decoded_is_named(image_folder):
    (image_folder / "dog" / "a.png").write_bytes(b"no image")
    streamed = open_stream(open_images(image_folder), 8, side=8)
    with closing(streamed.walk([slice(0, 2), slice(2, 5)])) as walk:
        assert len(next(walk)[0]) == 2
        assert "'dog/a.png'" in message(next, walk)


def test_the_command_streams(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PSI_FAST_CACHE", os.fspath(tmp_path / "cache"))
    flags = {"--network": "tiny:network", "--layer": "2", "--encoder": "classifier:tiny:classifier", "--out": "run"}
    flags |= {"--images": pictures, "--channels": "0:3", "--bank": "stream", **tiny.SETTINGS}
    assert tiny.run("score", *(part for pair in flags.items() for part in pair)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
