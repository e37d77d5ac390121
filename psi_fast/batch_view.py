"""What a person sees of a batch while it runs: a live table on a terminal, else a line a job."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from psi_fast.batch import Batch, Record
from psi_fast.jobs import NamedJob
from psi_fast.present import Terminal
from psi_fast.progress import Progress

SHOWN = 20
"""Jobs in the live table: those around the one that runs."""


class View:
    """How far a batch is.

    bars : Progress of the job that runs, silent itself
    """

    def __init__(self, batch: Batch, todo: Sequence[NamedJob]) -> None:
        self.bars = Progress(False)
        self._todo, self._current = list(todo), ""
        self._records = {job.name: batch.record(job) for job in batch.jobs}
        self._done: list[float] = []
        self._since = time.monotonic()

    def begin(self, job: NamedJob) -> None:
        """A job begins."""
        self._current, self._since = job.name, time.monotonic()
        self.bars = Progress(False)

    def end(self, job: NamedJob, record: Record) -> None:
        """It has ended."""
        self._records[job.name], self._current = record, ""
        self._done.append(record.seconds or 0.0)

    @property
    def summary(self) -> str:
        """How many are finished, failed and left, how fast they go and how long the rest will take at that pace."""
        states = [record.state for record in self._records.values()]
        left = len(self._todo) - len(self._done)
        said = f"{states.count('finished')} finished, {states.count('failed')} failed, {left} to go"
        if not self._done or not left:
            return said
        each = sum(self._done) / len(self._done)
        running = time.monotonic() - self._since if self._current else 0.0
        return f"{said}; {3600 / max(each, 1e-9):.3g} jobs an hour, about {_span(max(0.0, each * left - running))} left"

    def __rich__(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("job", "state", "stage or error"):
            table.add_column(name, overflow="fold")
        table.add_column("time", justify="right")
        current = self._current  # once: the thread that draws is not the one that works
        names = list(self._records)
        middle = names.index(current) if current else len(names)
        first = max(0, min(middle - SHOWN // 2, len(names) - SHOWN))
        for name in names[first : first + SHOWN]:
            record = self._records[name]
            if name == current:
                row = ("running", _stage(self.bars), _span(time.monotonic() - self._since))
            else:
                row = (record.state, record.error, "" if record.seconds is None else _span(record.seconds))
            table.add_row(escape(name), row[0], escape(row[1]), row[2])
        return Group(table, self.summary)


def _stage(bars: Progress) -> str:
    """What a job is at: the stage, and of its bar how much is done of how much, how fast, and the time left."""
    bar = bars.last
    if bar is None or not bar.count < bar.total:
        return bars.current
    left = f", {_span((bar.total - bar.count) / bar.rate)} left" if bar.rate else ""
    return f"{bars.current}: {bar.count:,} of {bar.total:,} {bar.unit_name}, {bar.rate:.3g}/s{left}"


@contextmanager
def watching(batch: Batch, todo: Sequence[NamedJob], shown: bool) -> Iterator[View]:
    """A View that is shown on stderr as it changes."""
    view = View(batch, todo)
    if not shown:
        yield view
    elif sys.stderr.isatty():
        with Live(view, console=Terminal(stderr=True), refresh_per_second=2):
            yield view
    else:
        yield _Lines(view)  # pyright: ignore[reportReturnType]  # has what is used of a View


class _Lines:
    """A View that tells in lines what begins and what ends."""

    def __init__(self, view: View) -> None:
        self._view, self._say = view, Progress(True).say

    @property
    def bars(self) -> Progress:
        return self._view.bars

    def begin(self, job: NamedJob) -> None:
        self._view.begin(job)
        self._say(f"{job.name}: begins")

    def end(self, job: NamedJob, record: Record) -> None:
        self._view.end(job, record)
        said = f": {record.error}" if record.error else ""
        self._say(f"{job.name}: {record.state} in {_span(record.seconds or 0.0)}{said} ({self._view.summary})")


def _span(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
