"""Locks on folders that end with the process that holds them."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psi_fast.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows, where nothing tells folders of killed runs from those in use
    fcntl = None

GONE = (FileNotFoundError, NotADirectoryError)
PATIENCE, LOOKS = 0.5, 10
"""Seconds that a folder may be locked by whoever only looks whether it is, and how often that is seen meanwhile."""


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on a folder: a descriptor, whose end gives it up, as that of the process does.

    None where another process has it, no folder is there, it is another user's, or the file system knows no such locks.

    Raises
    ------
    StoreError
        It cannot be told, as where this process has too many open files.
    """
    try:
        return _lock(folder, wait)
    except (BlockingIOError, *GONE):
        return None


def locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock; StoreError as of `lock`."""
    try:
        held = _lock(folder, False)
    except BlockingIOError:
        return True
    except GONE:
        return False
    if held is not None:
        os.close(held)
    return False


@contextmanager
def alone(folder: Path, *, among: bool = False) -> Generator[None]:
    """Make the folder and hold its lock, where its file system knows locks; with `among` others may hold it the same way.

    Raises
    ------
    StoreError
        Another process holds it, or as of `lock`.
    OSError
        The folder cannot be made.
    """
    held: int | None = None
    for left in reversed(range(LOOKS)):
        folder.mkdir(parents=True, exist_ok=True)  # each time: whoever had it may have taken it away
        try:
            held = _lock(folder, False, among)
            break
        except (BlockingIOError, *GONE) as error:
            if not left:
                raise StoreError(
                    f"another process is at work in {folder}; wait for it, or choose another folder"
                ) from error
            time.sleep(PATIENCE / LOOKS)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _lock(folder: Path, wait: bool, among: bool = False) -> int | None:
    """As `lock`; BlockingIOError where another process has it, one of GONE where no folder is there."""
    if fcntl is None:
        return None
    for _ in range(LOOKS):
        if (descriptor := _open(folder)) is None:
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if among else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except (BlockingIOError, *GONE):
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # another folder is there by now, whose lock this is not
    return None  # a file system that numbers one folder otherwise each time


def _open(folder: Path) -> int | None:
    """A descriptor of the folder; None of another user's."""
    try:
        return os.open(folder, os.O_RDONLY)
    except PermissionError:
        return None
    except GONE:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot tell whether another process is at work in {folder}: {error.strerror or error}; mend that and run it again"
        ) from error
