"""Who does the parts of a run: this process, one task of an array, or the workers of an engine. All come to the same bits."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar

from psi_fast.errors import ConfigError, PsiFastError

Result = TypeVar("Result")
MINING, EMBEDDING, DRAWS = "mining", "embedding", "null draws"
"""Stages that are done in parts."""
PARTS_PER_WORKER = 4
"""Parts that work is cut into for each worker, so that none waits long for the last."""


class OthersMissing(PsiFastError):
    """What this process was to do is done and kept; the parts of others are not there yet."""


class Workers(Protocol):
    """Whoever works on parts of a run."""

    @property
    def count(self) -> int:
        """How many parts are worked on at once."""
        ...

    def results(
        self, work: Callable[..., Result], tasks: Mapping[int, tuple[Any, ...]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        """`work(*task)` of each task by its number, as they are done; with `shared`, which goes to each worker once,
        `work(shared, *task)`."""
        ...

    def own(self, stage: str, number: int) -> bool:
        """Whether the part `number` of a stage is for these workers."""
        ...


class Here:
    """This process, part by part."""

    count = 1

    def results(
        self, work: Callable[..., Result], tasks: Mapping[int, tuple[Any, ...]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        """See `Workers`."""
        given = () if shared is None else (shared,)
        for number, task in tasks.items():
            yield number, work(*given, *task)

    def own(self, stage: str, number: int) -> bool:
        """See `Workers`."""
        return True


class ArrayTask(Here):
    """One of `of` processes that share a folder and nothing else, such as the tasks of a Slurm array: the `task`-th from 1 on."""

    def __init__(self, task: int, of: int) -> None:
        self.task, self.of = task, of
        self.count = of  # who share the work

    def own(self, stage: str, number: int) -> bool:
        """See `Workers`."""
        return number % self.of == self.task - 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "i/n".

        Raises
        ------
        ConfigError
            The text is not two whole numbers with 1 <= i <= n.
        """
        task, slash, of = text.partition("/")
        try:
            found = cls(int(task), int(of))
        except ValueError:
            found = cls(0, 0)
        if not slash or not 1 <= found.task <= found.of:
            raise ConfigError(f"--array-task must be i/n with 1 <= i <= n, such as 3/8, got {text!r}")
        return found


class Merging(Here):
    """This process, which goes on where the tasks of an array ended.

    complete : mine the parts that no task has mined, too
    """

    def __init__(self, complete: bool = False) -> None:
        self._complete = complete

    def own(self, stage: str, number: int) -> bool:
        """See `Workers`."""
        return self._complete or stage != MINING


def require_all(found: Mapping[int, Any], count: int, stage: str) -> None:
    """See that the results of all `count` parts are there; OthersMissing where some are other tasks'."""
    if missing := count - len(found):
        raise OthersMissing(
            f"{missing} of the {count} parts of {stage} are other tasks', and not there yet; what is done is kept"
        )


def part_size(rows: int, workers: Workers, least: int, most: int) -> int:
    """Rows of a part of work on `rows`: `most`, or with several workers fewer, so that each has some, but not under `least`."""
    if workers.count == 1:
        return most
    return max(least, min(most, -(-rows // (PARTS_PER_WORKER * workers.count))))
