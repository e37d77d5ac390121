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
        self.seconds: dict[str, float] = {}

    def bar(self, title: str, total: int, unit: str) -> "tqdm[Any]":
        """A bar to `update`; tqdm itself stays silent when stderr is no terminal."""
        return tqdm(total=total, desc=title, unit=unit, disable=None if self._shown else True, dynamic_ncols=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage under `name`."""
        start = time.perf_counter()
        if self._shown and not sys.stderr.isatty():
            sys.stderr.write(f"{start - self._begun:8.1f} s  {name}\n")
            sys.stderr.flush()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
