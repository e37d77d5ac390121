"""Progress: bars with rates on a terminal, a plain line a stage elsewhere."""

import io
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

from tqdm import tqdm

from psi_fast.errors import spelled
from psi_fast.stopping import stop_if_asked

PIECE = 1024
"""Characters, or bytes, written at once: a pipe that takes anything takes that."""


def tell(line: str) -> None:
    """Write a line to stderr. Where that is closed, or a pipe that nobody reads is full, the line is dropped: no run waits.

    What would command the terminal, as in a name of a file, is spelled out.
    """
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    text = f"{spelled(line)}\n".encode(encoding, "backslashreplace").decode(encoding)
    with suppress(OSError, ValueError):  # closed
        for start in range(0, len(text), PIECE):
            if sys.stderr is None or not _takes_more(sys.stderr):
                return
            sys.stderr.write(text[start : start + PIECE])
            sys.stderr.flush()


@contextmanager
def unhindered() -> Iterator[None]:
    """Within, what Python writes to stderr, such as warnings and logs, is dropped where it would have to wait."""
    try:
        file = _Dropping(sys.stderr.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        yield
        return
    stream = io.TextIOWrapper(io.BufferedWriter(file), sys.stderr.encoding, "backslashreplace", line_buffering=True)
    with redirect_stderr(stream):
        try:
            yield
        finally:
            stream.flush()  # not closed: a handler of logs may keep it


class _Dropping(io.FileIO):
    """A file that takes everything, and drops what it would have to wait for."""

    def write(self, held: Any, /) -> int:
        rest = memoryview(held)
        with suppress(OSError):  # closed
            while rest and _takes_more(self):
                rest = rest[super().write(rest[:PIECE]) or len(rest) :]
        return len(held)


def _takes_more(stream: Any) -> bool:
    """Whether a write to the stream ends at once."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except OSError:  # no file, as in a notebook
        return True
    return bool(poll.poll(0))


class Bar(tqdm):
    """A bar that counts, whether or not it is shown.

    count, total : how much is done, with what an earlier run had done, and of how much
    rate : how much a second
    """

    def __init__(self, counts: dict[str, int], title: str, of: str, done: int, **options: Any) -> None:
        self._counts, self._title, self._first = counts, title, done
        self._from = time.perf_counter()
        self.count, self.unit_name = done, options["unit"]
        super().__init__(desc=spelled(title + of), initial=done, dynamic_ncols=True, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more; where SIGTERM came, the run ends here."""
        stop_if_asked()
        self.count += int(n or 0)
        self._counts[self._title] = self._counts.get(self._title, 0) + int(n or 0)
        return super().update(n)

    @property
    def rate(self) -> float:
        return (self.count - self._first) / max(time.perf_counter() - self._from, 1e-9)


class Progress:
    """Bars on stderr, or where that is no terminal a line for each stage that begins; and the seconds each stage took."""

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown and sys.stderr is not None
        self._begun = time.perf_counter()
        self._of = ""
        self.current = ""
        """The stage that runs."""
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        """By title of a bar, what was done under it."""
        self.last: Bar | None = None
        """The bar that began last."""

    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Bar:
        """A bar to `update`, of which an earlier run has done a part; tqdm itself stays silent when stderr is no terminal."""
        self.last = Bar(
            self.counts, title, self._of, done, total=total, unit=unit, disable=None if self._shown else True
        )
        return self.last

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._shown:
            tell(line)

    def rate(self, title: str) -> float:
        """How much this run did itself under the bar `title`, a second of the stage of that name; 0 where nothing."""
        seconds = self.seconds.get(title, 0.0)
        return self.counts.get(title, 0) / seconds if seconds else 0.0

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        """Tell `what`, such as one layer of several, behind the titles of bars and stages; nothing where it is empty."""
        before, self._of = self._of, f", {what}" if what else ""
        try:
            yield
        finally:
            self._of = before

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage under `name`."""
        stop_if_asked()
        start = time.perf_counter()
        self.current = name + self._of
        if self._shown and not sys.stderr.isatty():
            self.say(f"{start - self._begun:8.1f} s  {name}{self._of}")
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, time.perf_counter() - start)
