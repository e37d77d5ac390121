"""Work on the next items in threads while the current ones are used."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int, workers: int | None = None
) -> Generator[Result, None, None]:
    """`work(item)` for every item, in order, computed at most `ahead` items early; an error surfaces at its item."""
    workers = workers or min(8, os.cpu_count() or 1)
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="psi-fast-load") as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(remaining, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
