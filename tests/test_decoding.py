"""Decoding that was cut short goes on with the images that are left, and ends in the bytes of one that was not."""

import os

import numpy as np
import pytest
import tiny

from psi_fast import image_bank
from psi_fast.decoding import CHECKS, PIXELS, SIZES
from psi_fast.image_bank import open_bank
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images
from psi_fast.locks import lock
from psi_fast.progress import Progress
from psi_fast.stopping import Stopped

COUNT, SIDE = 30, 32


@pytest.fixture
def source(tmp_path):
    return str(tiny.write_pictures(tmp_path / "pictures", COUNT))


@pytest.fixture
def loaded(monkeypatch):
    """The images that are decoded; from number `stop["at"]` on `stop["by"]` is raised."""
    real, found, stop = ImageSet.load, [], {"at": None, "by": None}

    def load(images, index):
        if stop["at"] is not None and index >= stop["at"]:
            raise stop["by"]
        found.append(index)
        return real(images, index)

    monkeypatch.setattr(ImageSet, "load", load)
    return found, stop


def opened(source, root):
    return open_bank(open_images(source), SIDE, folder=root, side=SIDE, progress=Progress(False))


def held(bank):
    return {path.name: path.read_bytes() for path in bank.folder.iterdir()}


def cut_short(source, root, loaded, by):
    found, stop = loaded
    stop |= {"at": 17, "by": by}
    with pytest.raises(type(by)):
        opened(source, root)
    stop["at"] = None
    done = sorted(found)
    found.clear()
    return done


@pytest.mark.parametrize("by", [Stopped(), KeyboardInterrupt()], ids=["SIGTERM", "Ctrl-C"])
def test_a_bank_that_was_cut_short_takes_up_what_is_decoded(tmp_path, source, loaded, by):
    whole = held(opened(source, tmp_path / "whole"))
    loaded[0].clear()
    done = cut_short(source, tmp_path / "cut", loaded, by)
    assert done == list(range(17))
    (left,) = (tmp_path / "cut").iterdir()
    bank = opened(source, tmp_path / "cut")
    assert sorted(loaded[0]) == list(range(17, COUNT))
    assert held(bank) == whole
    assert set(whole) == {PIXELS, SIZES, "bank.json"}
    assert not left.exists()


def spoil_pixel(folder):
    with (folder / PIXELS).open("r+b") as file:
        file.seek(128 + 3 * SIDE * SIDE * 4 + 77)  # behind the header, in image 4
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def spoil_check(folder):
    checks = np.load(folder / CHECKS, mmap_mode="r+")
    checks[4] ^= 1
    checks.flush()


def half_told(folder):
    sizes = np.load(folder / SIZES, mmap_mode="r+")
    sizes[4, 1] = 0  # as of a process that was killed between the two numbers
    sizes.flush()


ONE = {"a wrong bit": spoil_pixel, "a wrong checksum": spoil_check, "half of a size": half_told}
ALL = {
    "no checksums": lambda folder: (folder / CHECKS).unlink(),
    "a header of nothing": lambda folder: (folder / SIZES).write_bytes(b"\x93NUMPY\x01\x00"),
    "other images": lambda folder: np.save(folder / SIZES, np.ones((COUNT + 1, 2), dtype=np.int64)),
}


@pytest.mark.parametrize("what", [*ONE, *ALL])
def test_what_is_not_sound_is_decoded_again(tmp_path, source, loaded, what):
    whole = held(opened(source, tmp_path / "whole"))
    loaded[0].clear()
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    (left,) = (tmp_path / "cut").iterdir()
    (ONE | ALL)[what](left)
    bank = opened(source, tmp_path / "cut")
    assert sorted(loaded[0]) == ([4, *range(17, COUNT)] if what in ONE else list(range(COUNT)))
    assert held(bank) == whole


def test_of_a_file_that_is_cut_the_images_before_are_taken(tmp_path, source, loaded):
    whole = held(opened(source, tmp_path / "whole"))
    loaded[0].clear()
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    (left,) = (tmp_path / "cut").iterdir()
    os.truncate(left / PIXELS, 128 + 3 * SIDE * SIDE * 2 + 5)
    bank = opened(source, tmp_path / "cut")
    assert sorted(loaded[0]) == list(range(2, COUNT))
    assert held(bank) == whole


def test_an_error_leaves_nothing(tmp_path, source, loaded):
    cut_short(source, tmp_path / "cut", loaded, LookupError("broken"))
    assert list((tmp_path / "cut").iterdir()) == []


def test_other_images_take_away_what_they_do_not_go_on_from(tmp_path, source, loaded):
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    other = opened(str(tiny.write_pictures(tmp_path / "others", 8)), tmp_path / "cut")
    assert list((tmp_path / "cut").iterdir()) == [other.folder]


def test_a_second_process_that_decodes_the_same_has_a_folder_of_its_own(tmp_path, source, loaded):
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    (left,) = (tmp_path / "cut").iterdir()
    first = lock(left)
    try:
        bank = opened(source, tmp_path / "cut")
        assert sorted(loaded[0]) == list(range(COUNT))
        assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted([left.name, bank.folder.name])
    finally:
        os.close(first)


def test_room_that_is_taken_already_is_not_asked_for_again(tmp_path, source, loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(image_bank, "require_free", lambda _root, needed, *_: asked.append(needed))
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    opened(source, tmp_path / "cut")
    assert asked[0] == COUNT * SIDE * SIDE * 3
    assert asked[1] <= 0.1 * asked[0]


def test_progress_counts_what_is_done(tmp_path, source, loaded):
    cut_short(source, tmp_path / "cut", loaded, Stopped())
    bars, begun = Progress(False), []
    real = bars.bar
    bars.bar = lambda name, total, unit, done=0: begun.append((name, total, done)) or real(name, total, unit, done)
    open_bank(open_images(source), SIDE, folder=tmp_path / "cut", side=SIDE, progress=bars)
    assert begun == [("decoding", COUNT, 17)]
