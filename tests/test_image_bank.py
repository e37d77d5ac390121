"""Images are decoded once, found again when nothing changed, and made anew when anything did."""

import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message, paint
from PIL import Image

import psi_fast
from psi_fast import image_bank, locks, subject
from psi_fast.errors import ConfigError, StoreError
from psi_fast.image_bank import gathered, open_bank
from psi_fast.images import open_images
from psi_fast.progress import Progress

CPU = torch.device("cpu")


def opened(images, folder, largest=32, side=None):
    return open_bank(images, largest, folder=folder, side=side, progress=Progress(False))


def counted(images):
    """The images, and the list of those that were decoded for the bank."""
    loads, plain = [], images.load
    images.load = lambda index: (loads.append(index), plain(index))[1]
    return images, loads


class Counter:
    """A bar that counts what it is told."""

    def __init__(self, *about):
        self.about, self.count = about, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self):
        self.count += 1


def folders(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("side", [16, 32, 47])
def test_pixels_are_the_centre_squares_resized(tmp_path, side):
    images = tiny.image_set(10)
    bank = opened(images, tmp_path, side=side)
    assert len(bank) == 10
    assert bank.side == side
    np.testing.assert_array_equal(bank.sizes, [tiny.sizes(i) for i in range(10)])
    pixels = bank.read(slice(None), CPU)
    assert pixels.shape == (10, side, side, 3)
    assert pixels.dtype == torch.uint8
    for i in range(10):
        image = images.load(i)
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        square = image.crop((left, top, left + short, top + short))
        wanted = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=int)
        # at the border the bank's pixels know what lies outside the square; a shift by half a pixel gives 10 and more
        assert np.abs(pixels[i].numpy() - wanted).mean() < 2


def test_images_of_the_banks_size_are_kept_as_they_are(tmp_path):
    images = tiny.image_set(10)
    pixels = opened(images, tmp_path, side=32).read(slice(None), CPU)
    assert tiny.sizes(2) == (32, 32)
    np.testing.assert_array_equal(pixels[2].numpy(), np.asarray(images.load(2)))


def test_the_side_is_what_is_needed_but_no_more_than_there_is(tmp_path):
    images = tiny.image_set(10)  # shorter sides 32 to 41
    assert opened(images, tmp_path, largest=36).side == 36
    assert opened(images, tmp_path, largest=224).side == 41
    assert opened(images, tmp_path, largest=224, side=20).side == 20


def test_a_bank_is_found_again_without_decoding(tmp_path):
    first = opened(tiny.image_set(10), tmp_path, side=32).read(slice(None), CPU).clone()
    images, loads = counted(tiny.image_set(10))
    again = opened(images, tmp_path, side=32)
    assert loads == []
    assert torch.equal(again.read(slice(None), CPU), first)
    assert len(folders(tmp_path)) == 1


def test_other_images_or_another_side_make_another_bank(tmp_path):
    for images, side in ((tiny.image_set(10), 32), (tiny.image_set(11), 32), (tiny.image_set(10), 30)):
        made, loads = counted(images)
        opened(made, tmp_path, side=side)
        assert len(loads) >= len(made)
    assert len(folders(tmp_path)) == 3


def test_a_changed_image_makes_another_bank(image_folder, tmp_path):
    before = opened(open_images(image_folder), tmp_path / "banks", side=8).read(slice(None), CPU)
    paint(image_folder / "cat" / "a.png", (200, 0, 0), size=(5, 9))
    after = opened(open_images(image_folder), tmp_path / "banks", side=8).read(slice(None), CPU)
    assert after[0, 0, 0].tolist() == [200, 0, 0]
    assert torch.equal(after[1:], before[1:])


def test_another_decoder_makes_another_bank(tmp_path, monkeypatch):
    opened(tiny.image_set(10), tmp_path, side=32)
    monkeypatch.setattr("PIL.__version__", "0.0")
    images, loads = counted(tiny.image_set(10))
    opened(images, tmp_path, side=32)
    assert sorted(loads) == list(range(10))
    monkeypatch.setattr(image_bank, "squared", lambda image, side: np.asarray(image.resize((side, side))))
    images, loads = counted(tiny.image_set(10))
    opened(images, tmp_path, side=32)
    assert sorted(loads) == list(range(10))


def spoil_format(folder):
    text = (folder / "bank.json").read_text()
    (folder / "bank.json").write_text(text.replace(f'"format": {image_bank.FORMAT}', '"format": 0'))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "bank.json").unlink(),
        lambda folder: (folder / "bank.json").write_text("{"),
        lambda folder: (folder / "bank.json").write_text("[]"),
        lambda folder: (folder / "sizes.npy").unlink(),
        lambda folder: (folder / "pixels.npy").write_bytes((folder / "pixels.npy").read_bytes()[:-1]),
        lambda folder: (folder / "pixels.npy").write_bytes(b""),
        spoil_format,
    ],
    ids=["no about", "cut about", "list", "no sizes", "cut pixels", "no pixels", "other version"],
)
def test_a_bank_that_is_not_whole_or_of_another_version_is_made_anew(tmp_path, spoil):
    first = opened(tiny.image_set(10), tmp_path, side=32).read(slice(None), CPU).clone()
    (folder,) = tmp_path.iterdir()
    spoil(folder)
    images, loads = counted(tiny.image_set(10))
    assert torch.equal(opened(images, tmp_path, side=32).read(slice(None), CPU), first)
    assert sorted(loads) == list(range(10))
    assert len(folders(tmp_path)) == 1


def test_a_datasets_bank_is_gone_after_its_run(tmp_path):
    bank = opened(open_images(tiny.Pictures(10)), tmp_path, side=32)
    wanted = opened(tiny.image_set(10), tmp_path / "other", side=32).read(slice(None), CPU)
    assert torch.equal(bank.read(slice(None), CPU), wanted)
    folder = bank.folder
    assert folder.is_dir()
    del bank
    assert not folder.exists()


def test_an_image_that_cannot_be_decoded_leaves_no_bank(image_folder, tmp_path):
    (image_folder / "dog" / "a.png").write_bytes(b"no image")
    text = message(opened, open_images(image_folder), tmp_path / "banks", side=8)
    assert "'dog/a.png'" in text
    assert folders(tmp_path / "banks") == []


def test_too_little_room_is_said_before_decoding(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 5000, 5000))
    images, loads = counted(tiny.image_set(10))
    text = message(opened, images, tmp_path, side=32, error=StoreError)
    assert loads == []
    assert text.startswith("the decoded images need 0.03 MB, but")  # not told in the words of another error
    assert "--bank stream" in text
    assert str(tmp_path) in text
    assert folders(tmp_path) == []


@pytest.mark.parametrize("source", [tiny.image_set, tiny.Pictures])
def test_too_little_room_is_said_before_anything_takes_long(tmp_path, monkeypatch, source):
    def long(*_):
        raise AssertionError("this takes long")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(subject, "choose_pace", long)
    monkeypatch.setattr(tiny.TinyEncoder, "concepts", long)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 5000, 5000))
    text = message(tiny.score, images=source(), bank=tmp_path, error=StoreError)
    assert text.startswith("the decoded images need 0.12 MB, but")
    assert folders(tmp_path) == []
    with pytest.raises(AssertionError, match="this takes long"):
        tiny.score(images=source(), bank="stream")


def test_a_bank_that_is_there_needs_no_room(tmp_path, monkeypatch):
    tiny.score(bank=tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 0))
    tiny.score(bank=tmp_path)


# Decodes a Dataset into the folder; keeps what it decoded, or stops at the last item, until it is killed.
CHILD = """
import sys, time
from pathlib import Path
import tiny
from psi_fast.image_bank import gathered, open_bank
from psi_fast.images import open_images
from psi_fast.progress import Progress

class Slow(tiny.Pictures):
    targets = [i % 4 for i in range(70)]

    def __getitem__(self, index):
        if index == 69 and sys.argv[2] == "decoding":
            print("ready", flush=True)
            time.sleep(600)
        return super().__getitem__(index)

images = open_images(Slow(70))
bank = open_bank(images, 32, folder=Path(sys.argv[1]), side=32, progress=Progress(False))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stage", ["decoding", "decoded"])
def test_what_a_killed_run_left_is_taken_away_but_nothing_in_use(tmp_path, stage):
    command = [sys.executable, "-c", CHILD, str(tmp_path), stage]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}  # the modules of this process
    with subprocess.Popen(command, env=found, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            (left,) = tmp_path.iterdir()
            own = opened(open_images(tiny.Pictures(10)), tmp_path, side=32)
            assert {path.name for path in tmp_path.iterdir()} == {left.name, own.folder.name}
        finally:
            child.kill()
    kept = opened(tiny.image_set(10), tmp_path, side=32)
    assert {path.name for path in tmp_path.iterdir()} == {own.folder.name, kept.folder.name}


def test_where_folders_cannot_be_locked_none_is_taken_away(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(9, "Bad file descriptor")

    (tmp_path / f"{image_bank.BUILDING}other").mkdir()
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    bank = opened(tiny.image_set(10), tmp_path, side=32)
    assert folders(tmp_path) == sorted([bank.folder.name, f"{image_bank.BUILDING}other"])


@pytest.mark.parametrize("side", [0, -3, 5000, 2.0, True])
def test_a_side_out_of_range_is_one_line(tmp_path, side):
    assert "1..4096" in message(opened, tiny.image_set(10), tmp_path, side=side, error=ConfigError)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "--bank" in message(opened, tiny.image_set(10), tmp_path / "file" / "banks", side=32, error=StoreError)


def test_cut_gives_the_pixels_of_each_box(tmp_path):
    bank = opened(tiny.image_set(10), tmp_path, side=32)
    pixels, rng = bank.read(slice(None), CPU), np.random.default_rng(0)
    rows, corners = rng.integers(0, 10, 20), rng.integers(0, 20, (20, 2))
    found = bank.cut(rows, corners, (7, 12), CPU)
    assert found.shape == (20, 12, 7, 3)
    for row, (x, y), part in zip(rows, corners, found, strict=True):
        assert torch.equal(part, pixels[row, y : y + 12, x : x + 7])


def test_boxes_gathered_on_a_device_are_those_cut_from_memory(tmp_path):
    bank = opened(tiny.image_set(10), tmp_path, side=32)
    pixels, rng = bank.read(slice(None), CPU), np.random.default_rng(0)
    rows, corners = rng.integers(0, 10, 20), rng.integers(0, 20, (20, 2))
    found = gathered(pixels, torch.from_numpy(rows), torch.from_numpy(corners), (7, 12))
    assert torch.equal(found, bank.cut(rows, corners, (7, 12), CPU))


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_holds_the_bank_where_it_fits_and_gets_pinned_parts_where_not(tmp_path, monkeypatch, fits):
    bank = opened(tiny.image_set(10), tmp_path, side=32)
    whole, moves = bank.read(slice(None), CPU), []
    free = int(whole.nbytes / image_bank.RESIDENT_SHARE) - (not fits)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 2 * free))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda pixels: (moves.append("pin"), pixels)[1])

    def to(pixels, device, non_blocking=False):
        moves.append((len(pixels), device.type, non_blocking))
        return pixels

    monkeypatch.setattr(torch.Tensor, "to", to)
    gpu = torch.device("cuda")
    bank.to(gpu)
    assert moves == ([(10, "cuda", False)] if fits else [])
    moves.clear()  # no GPU is here: what follows is as for a bank that stayed in memory
    assert torch.equal(bank.read(slice(2, 5), gpu), whole[2:5])
    assert torch.equal(bank.cut(np.array([3]), np.array([[1, 2]]), (4, 5), gpu), whole[3:4, 2:7, 1:5])
    assert moves == ["pin", (3, "cuda", True), "pin", (1, "cuda", True)]


def test_images_are_decoded_side_by_side_and_counted(tmp_path, monkeypatch):
    images, together = tiny.image_set(6), threading.Barrier(2, timeout=20)
    plain, bars = images.load, []
    images.load = lambda index: (together.wait(), plain(index))[1]  # goes on when another image is being decoded
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    progress = Progress(False)
    monkeypatch.setattr(progress, "bar", lambda *about: bars.append(Counter(*about)) or bars[-1])
    open_bank(images, 32, folder=tmp_path, side=32, progress=progress)
    assert [(bar.about, bar.count) for bar in bars] == [(("decoding", 6, "img", 0), 6)]


def test_boxes_return_to_the_originals(tmp_path):
    bank = opened(tiny.image_set(10), tmp_path, side=20)
    of = np.array([[0, 1], [2, 4]])
    boxes = np.tile([0.0, 0, 20, 20], (2, 2, 1))
    boxes[1, 1] = (5, 10, 15, 20)
    wanted = [[[3, 0, 37, 34], [0, 8, 33, 41]], [[0, 0, 32, 32], [14 + 9, 18, 14 + 27, 36]]]
    np.testing.assert_allclose(bank.to_image(boxes, of), wanted)


def test_runs_share_a_bank(tmp_path, pictures):
    config = tiny.CONFIG
    given = {"encoder": tiny.TinyEncoder(), "config": config, "device": "cpu", "progress": False, "bank": tmp_path}
    first = psi_fast.score(tiny.network(), tiny.LAYER, pictures, **given)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "pixels.npy").stat().st_mtime_ns
    psi_fast.score(tiny.network(), "3", pictures, **given)
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("*/pixels.npy")] == [stamp]
    assert first.manifest["bank"] == {"side_px": 32, "folder": str(folder)}
