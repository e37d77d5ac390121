"""Disks that are full, or that are only read, at any moment: one line or a right result, and no file half-written."""

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_helpers import message
from safetensors.torch import load_file
from test_text_banks import Tower

from psi_fast import api, decoding, image_bank, shelf, store
from psi_fast.errors import StoreError

FILES = store.FILES
SIZES = range(4, 400, 12)
"""Of disks in KB, from next to nothing to all that a run writes."""


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")


def score(images, root, **changes):
    """A run below `root`, with its squares and its concepts; the scores of the first 24 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSI_FAST_CACHE", str(root / "cache"))
        options = {"out": root / "run", "encoder": Tower(), "config": replace(tiny.CONFIG, per_image=1)} | changes
        return tiny.score(images=str(images), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pictures):
    """The files of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")
        score(pictures, root)
    return {name: (root / "run" / name).read_bytes() for name in FILES}


def held(root):
    return {name: (root / "run" / name).read_bytes() for name in FILES}


def check_whole(root):
    """Whatever stands under its name can be read; nothing temporary lies there, and no run looks finished."""
    assert not (root / "run" / "manifest.json").exists()
    for path in root.rglob("*"):
        assert not path.name.startswith((store.TEMPORARY, image_bank.BUILDING)), path
        if path.suffix in (".safetensors", ".unfinished"):
            load_file(path)
        elif path.suffix == ".npy":
            np.load(path)


def test_a_disk_that_is_full_at_any_write_ends_in_one_line_and_the_next_run_goes_on(
    tmp_path, pictures, whole, monkeypatch
):
    """Each write in turn gets half-way. State is written behind every batch."""
    monkeypatch.setattr(shelf, "EVERY", 0.0)
    monkeypatch.setattr(shelf, "SHARE", float("inf"))
    real, failed = store.write_whole, set()

    def kind(path):
        return path.name.split("-")[0] + path.suffix if path.parent.name == "unfinished" else path.name

    def failing(path, write):
        def half(place):
            write(place)
            os.truncate(place, place.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if path in failed:
            return real(path, write)
        failed.add(path)
        return real(path, half)

    monkeypatch.setattr(store, "write_whole", failing)
    lines = []
    while True:
        try:
            score(pictures, tmp_path)
            break
        except StoreError as error:
            lines.append(str(error))
            check_whole(tmp_path)
    assert {kind(path) for path in failed} >= {*FILES, "manifest.json", "tops.unfinished", "tops.safetensors"}
    assert {kind(path) for path in failed} >= {"crops.unfinished", "crops.safetensors"}
    assert any(path.parent.name == "text" for path in failed)  # of concepts: a warning
    assert len(lines) == len(failed) - 1
    assert all("cannot write to" in line and "No space left" in line and "\n" not in line for line in lines)
    assert held(tmp_path) == whole
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*FILES, "manifest.json"])


@pytest.mark.parametrize(
    ("module", "name"), [(os, "posix_fallocate"), (decoding, "open_memmap"), (Path, "write_text"), (Path, "rename")]
)
def test_a_full_disk_while_images_are_decoded_leaves_none_of_them(tmp_path, pictures, whole, monkeypatch, module, name):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        text = message(score, pictures, tmp_path, error=StoreError)
    assert text.startswith(f"cannot write decoded images to {tmp_path / 'cache' / 'banks'}: No space left")
    assert list((tmp_path / "cache" / "banks").iterdir()) == []
    check_whole(tmp_path)
    score(pictures, tmp_path)
    assert held(tmp_path) == whole


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, and a function that mounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        remount = "remount," if folder.is_mount() else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("no right to mount a disk; the tests above raise the errors instead")

    mount("size=4k")
    yield folder, mount
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_small_disk_is_full_at_some_moment_and_the_next_run_goes_on_with_more(disk, pictures, whole, monkeypatch):
    """Also in the middle of a file, and while images are decoded."""
    for module in (api, image_bank):  # which would tell before the work
        monkeypatch.setattr(module, "require_free", lambda *_: None)
    folder, mount = disk
    said = []
    for kilobytes in SIZES:
        mount(f"size={kilobytes}k")
        try:
            score(pictures, folder)
            break
        except StoreError as error:
            said.append(str(error).replace(str(folder), ""))
            check_whole(folder)
    assert len(set(said)) > 2, said
    assert all("cannot write" in line and "No space left" in line for line in said), said
    mount("size=9m")
    score(pictures, folder)
    assert held(folder) == whole


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_disk_that_is_only_read(disk, tmp_path, pictures, whole):
    folder, mount = disk
    mount("size=9m")
    kept = {"bank": folder / "banks", "share": folder / "share"}
    score(pictures, folder, **kept, out=folder / "first")
    for path in (folder / "first").iterdir():
        path.unlink()
    mount("ro")
    text = message(score, pictures, tmp_path, out=folder / "new", error=StoreError)
    assert text == f"cannot write to {folder / 'new'}: Read-only file system; choose another folder"
    text = message(score, pictures, tmp_path, bank=folder / "other", error=StoreError)
    assert text.startswith(f"cannot write decoded images to {folder / 'other'}: Read-only file system")
    text = message(score, pictures, tmp_path, share=folder / "other", error=StoreError)
    assert text.startswith(f"cannot write to {folder / 'other'}: Read-only file system")
    check_whole(tmp_path)
    score(pictures, tmp_path, **kept)  # all it needs is there
    assert held(tmp_path) == whole
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*FILES, "manifest.json"])
