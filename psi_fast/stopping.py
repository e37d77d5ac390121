"""SIGTERM, as schedulers send it before they kill: what is done is kept, then the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Stopped(BaseException):
    """SIGTERM came; no Exception, so that nothing takes it for the fault of a job."""


class _Asked:
    """Whether SIGTERM came, and how many results postpone what follows until their state is written."""

    now = False
    postponed = 0


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGTERM raises Stopped: at once, or where a result is being kept once its state is written.

    Only the main thread gets signals: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _Asked.now = False


@contextmanager
def postponed() -> Iterator[None]:
    """Within, only `stop_if_asked(kept=True)` stops."""
    _Asked.postponed += 1
    try:
        yield
    finally:
        _Asked.postponed -= 1


def asked() -> bool:
    """Whether SIGTERM came."""
    return _Asked.now


def stop_if_asked(kept: bool = False) -> None:
    """Raise Stopped if SIGTERM came; where it is postponed only with `kept`: the state is written now."""
    if _Asked.now and (kept or not _Asked.postponed):
        raise Stopped


def _ask(*_: Any) -> None:
    if not _Asked.now:  # one that is sent again disturbs no clearing up
        _Asked.now = True
        stop_if_asked()
