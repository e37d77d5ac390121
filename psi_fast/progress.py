"""Progress: bars with rates on a terminal, a plain line a stage elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """Bars on stderr, or where that is no terminal a line for each stage that begins; and the seconds each stage took."""

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._begun = time.perf_counter()
        self._of = ""
        self.current = ""
        """The stage that runs."""
        self.seconds: dict[str, float] = {}

    def bar(self, title: str, total: int, unit: str) -> "tqdm[Any]":
        """A bar to `update`; tqdm itself stays silent when stderr is no terminal."""
        return tqdm(
            total=total, desc=title + self._of, unit=unit, disable=None if self._shown else True, dynamic_ncols=True
        )

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
