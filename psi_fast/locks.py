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

PATIENCE, LOOKS = 0.5, 10
"""Seconds that a folder may be locked by whoever only looks whether it is, and how often that is seen meanwhile."""


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on a folder: a descriptor, whose end gives it up, as that of the process does.

    None where another process has it, or the file system knows no such locks.
    """
    try:
        return _lock(folder, wait)
    except BlockingIOError:
        return None


def locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        held = _lock(folder, False)
    except BlockingIOError:
        return True
    if held is not None:
        os.close(held)
    return False


@contextmanager
def alone(folder: Path, *, among: bool = False) -> Generator[None]:
    """Hold the folder's lock, where its file system knows locks; with `among` other processes may hold it the same way.

    Raises
    ------
    StoreError
        Another process holds it.
    """
    held: int | None = None
    for left in reversed(range(LOOKS)):
        try:
            held = _lock(folder, False, among)
            break
        except BlockingIOError as error:
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
    """As `lock`; BlockingIOError where another process has it."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if among else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
