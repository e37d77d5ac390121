"""Locks on folders that end with the process that holds them."""

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing tells folders of killed runs from those in use
    fcntl = None


def lock(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on a folder: a descriptor, whose end gives it up, as that of the process does.

    None where another process has it, or the file system knows no such locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return False
