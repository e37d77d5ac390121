"""Progress bars with rates, silent where nobody watches."""

import time
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """Bars on stderr, and the seconds each stage took."""

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self.seconds: dict[str, float] = {}

    def bar(self, title: str, total: int, unit: str) -> "tqdm[Any]":
        """A bar to `update`; tqdm itself stays silent when stderr is no terminal."""
        return tqdm(total=total, desc=title, unit=unit, disable=None if self._shown else True, dynamic_ncols=True)

    @contextmanager
    def stage(self, name: str):
        """Count the seconds of a stage under `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
