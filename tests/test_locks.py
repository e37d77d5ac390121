"""Locks on folders that are taken away, made anew or cannot be opened: never two who hold one, never none in silence."""

import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from image_helpers import message

from psi_fast import locks, store
from psi_fast.errors import StoreError
from psi_fast.locks import alone, lock, locked


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.02)


@pytest.fixture
def no_more_files():
    """This process has as many open files as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.open("/", os.O_RDONLY)
    os.close(last)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def instead(monkeypatch, change):
    """Have `change` happen when a folder is open for its lock, which nobody has yet, once."""
    real, todo = locks.fcntl.flock, [change]

    def flock(descriptor, how):
        if todo:
            todo.pop()()
        real(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)


@pytest.mark.usefixtures("quick")
def test_a_folder_made_anew_meanwhile_is_held_by_one(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()

    def anew():
        folder.rename(tmp_path / "old")  # whose number the new one must not get
        folder.mkdir()

    instead(monkeypatch, anew)
    with alone(folder):
        assert locked(folder)
        with pytest.raises(StoreError, match="another process is at work"), alone(folder):
            pytest.fail("two hold it")
    assert not locked(folder)


@pytest.mark.parametrize("among", [False, True])
def test_a_folder_taken_away_meanwhile_is_made_again_and_held(tmp_path, monkeypatch, among):
    folder = tmp_path / "a" / "run"
    folder.mkdir(parents=True)
    instead(monkeypatch, lambda: shutil.rmtree(tmp_path / "a"))
    with store.reserved(folder, among=among):
        assert locked(folder)
        (folder / "file").write_text("")
    assert (folder / "file").exists()


def test_a_folder_that_is_gone_has_no_lock(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert lock(folder) is None
    folder.mkdir()
    instead(monkeypatch, folder.rmdir)
    assert lock(folder) is None


@pytest.mark.usefixtures("quick")
def test_a_run_that_fails_takes_its_folder_from_nobody(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "run"
    real, held = Path.rmdir, []

    def fail():
        with store.reserved(folder, among=True):
            raise LookupError

    def watched(path):
        held.append(locked(folder))
        real(path)

    monkeypatch.setattr(Path, "rmdir", watched)
    with suppress(LookupError):
        fail()
    assert held[0]  # so that nobody who gets the lock then has that of a folder that is no more
    assert not (tmp_path / "a").exists()
    first = store.reserved(folder, among=True)
    first.__enter__()
    with store.reserved(folder, among=True):
        assert not first.__exit__(LookupError, LookupError(), None)
        assert folder.is_dir()


@pytest.mark.usefixtures("no_more_files")
def test_a_process_with_too_many_open_files_is_told_and_does_not_go_on_without_a_lock(tmp_path):
    def hold():
        with alone(tmp_path):
            pytest.fail("went on")

    for use in (lock, locked):
        assert f"at work in {tmp_path}: Too many open files" in message(use, tmp_path, error=StoreError)
    assert "Too many open files" in message(hold, error=StoreError)


@pytest.mark.usefixtures("quick")
def test_a_folder_of_another_user_or_on_a_disk_without_locks_is_not_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    def unknown(*_):
        raise OSError(95, "Operation not supported")

    for name, owner, change in (("open", locks.os, refuse), ("flock", locks.fcntl, unknown)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, change)
            with alone(tmp_path):
                assert lock(tmp_path) is None
