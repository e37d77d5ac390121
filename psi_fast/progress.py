"""Progress: bars with rates on a terminal, a plain line a stage elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A bar that counts, whether or not it is shown.

    count, total : how much is done, with what an earlier run had done, and of how much
    rate : how much a second
    """

    def __init__(self, counts: dict[str, int], title: str, of: str, done: int, **options: Any) -> None:
        self._counts, self._title, self._first = counts, title, done
        self._from = time.perf_counter()
        self.count, self.unit_name = done, options["unit"]
        super().__init__(desc=title + of, initial=done, dynamic_ncols=True, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more."""
        self.count += int(n or 0)
        self._counts[self._title] = self._counts.get(self._title, 0) + int(n or 0)
        return super().update(n)

    @property
    def rate(self) -> float:
        return (self.count - self._first) / max(time.perf_counter() - self._from, 1e-9)


class Progress:
    """Bars on stderr, or where that is no terminal a line for each stage that begins; and the seconds each stage took."""

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
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
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

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
        start = time.perf_counter()
        self.current = name + self._of
        if self._shown and not sys.stderr.isatty():
            self.say(f"{start - self._begun:8.1f} s  {name}{self._of}")
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
