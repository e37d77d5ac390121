"""Runs of a batch, one after the other: what they share is computed once, failures are recorded, results gathered."""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import pandas as pd
import pyarrow as pa

from psi_fast import store
from psi_fast.api import score
from psi_fast.errors import ConfigError, PsiFastError, StoreError, printable
from psi_fast.jobs import NamedJob, name_jobs, require_trust, varied_values
from psi_fast.locks import locked
from psi_fast.paths import require_path
from psi_fast.progress import Progress
from psi_fast.workers import Workers

RECORDS, RESULTS = "records", "results.parquet"
State = Literal["waiting", "running", "cut short", "finished", "failed"]


@dataclass(frozen=True)
class Record:
    """What is known of a job.

    values : what it was asked to do
    seconds : how long it took, None before it ended
    error : of a failed job, one line
    traceback : of a job that failed by no PsiFastError
    made : when this was written, with the offset from UTC
    """

    values: Mapping[str, Any]
    state: State = "waiting"
    seconds: float | None = None
    error: str = ""
    traceback: str = ""
    made: str = ""


KINDS = {"values": dict, "seconds": (int, float, NoneType), "error": str, "traceback": str, "made": str}
"""Of a record's values, as a file may hold any."""


class Batch:
    """Jobs and the folder that their runs lie in: a run folder each, `shared` between them, `records`, and the results.

    Attributes
    ----------
    folder : Path
    jobs : list[NamedJob]

    Raises
    ------
    ConfigError
        As `name_jobs`; or a job is called like a file of the batch.
    StoreError
        The folder is a file, or would lie in one.
    """

    def __init__(self, folder: str | Path, jobs: Sequence[NamedJob | Mapping[str, Any]]) -> None:
        self.folder = Path(folder)
        require_path("the folder", folder)
        given = [{**job.values, "name": job.name} if isinstance(job, NamedJob) else job for job in jobs]
        self.jobs = name_jobs(given)
        if taken := [job.name for job in self.jobs if job.name in (RECORDS, RESULTS, store.SHARED)]:
            raise ConfigError(
                f"a job cannot be called {taken[0]!r}, which the batch's folder has already; name it otherwise"
            )
        for own in (self.folder, *self.folder.parents):
            if own.exists() and not own.is_dir():
                raise StoreError(f"out must name a folder, but {own} is a file; choose another one")

    def record(self, job: NamedJob) -> Record:
        """What is known of a job; one that was asked for with other values has not been done."""
        found = self._read(job)
        if found is None or found.values != _plain(job.values):
            return Record(job.values)
        if found.state == "finished" and not (self.folder / job.name / store.MANIFEST).exists():
            return Record(job.values)
        if found.state == "running" and not locked(self.folder):
            return Record(job.values, "cut short")
        return found

    def table(self) -> pd.DataFrame:
        """A row a job: job, state, seconds, error, and the values that are not the same in all jobs."""
        records = [self.record(job) for job in self.jobs]
        return pd.DataFrame(
            {
                "job": [job.name for job in self.jobs],
                "state": [own.state for own in records],
                "seconds": pd.Series([own.seconds for own in records], dtype=float),
                "error": [own.error for own in records],
                **varied_values(self.jobs),
            }
        )

    def begin(self, failed: bool = False) -> list[NamedJob]:
        """The jobs that are to be run, all that have not ended, or with `failed` those that have failed.

        For whoever has the batch's folder alone: a job that an earlier process left running was cut short.
        """
        store.sweep(self.folder / RECORDS)
        store.sweep_shared(self.folder / store.SHARED)  # a run with `share` may be writing there
        for job in self.jobs:
            if (found := self._read(job)) is not None and found.state == "running":
                self._write(job, replace(found, state="cut short"))
        wanted = ("failed",) if failed else ("waiting", "cut short")
        return [job for job in self.jobs if self.record(job).state in wanted]

    def run(self, job: NamedJob, bars: Progress, workers: Workers | None = None) -> Record:
        """Run one job and record how it ended; errors do not come through."""
        folder, begun = self.folder / job.name, time.perf_counter()
        if (held := self._read(job)) is not None and held.values != _plain(job.values):
            (folder / store.MANIFEST).unlink(missing_ok=True)  # the batch's own run, now of another job
        self._write(job, Record(job.values, "running"))
        found = Record(job.values, "finished")
        try:
            first, others = job.arguments()
            score(*first, **others, out=folder, share=self.folder / store.SHARED, progress=bars, workers=workers)
        except PsiFastError as error:
            found = Record(job.values, "failed", error=printable(str(error)))
        except Exception as error:  # a job's fault, whatever it is, ends that job alone
            said = printable(" ".join(traceback.format_exception_only(error)))
            found = Record(job.values, "failed", error=said, traceback=traceback.format_exc())
        found = replace(found, seconds=round(max(0.0, time.perf_counter() - begun), 3))
        self._write(job, found)
        return found

    def gather(self) -> None:
        """Write the scores of all finished jobs to `results.parquet`, with the job and what varies in front.

        A job whose run cannot be read, as where a file of it is damaged, has failed from then on.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        varied = {name: _cells(held) for name, held in varied_values(self.jobs).items()}
        parts: list[pd.DataFrame] = []
        for number, job in enumerate(self.jobs):
            if (held := self.record(job)).state == "finished":
                try:
                    own = store.load(self.folder / job.name).table
                except StoreError as error:
                    self._write(job, replace(held, state="failed", error=printable(str(error))))
                    continue
                front = {"job": job.name, **{name: cells[number] for name, cells in varied.items() if name not in own}}
                parts.append(own.assign(**front)[[*front, *own]])
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"job": pd.Series(dtype=str)})
        try:
            store.write_whole(self.folder / RESULTS, lambda path: table.to_parquet(path, index=False))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"cannot write {self.folder / RESULTS}: {error}; free some room and run it again"
            ) from error

    def _path(self, job: NamedJob) -> Path:
        return self.folder / RECORDS / f"{job.name}.json"

    def _read(self, job: NamedJob) -> Record | None:
        """What was written of a job of that name; None where nothing whole was."""
        try:
            found = Record(**json.loads(self._path(job).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        held: dict[str, Any] = vars(found)
        right = all(isinstance(held[name], kinds) for name, kinds in KINDS.items()) and found.state in get_args(State)
        return found if right and 0 <= (found.seconds or 0) <= sys.float_info.max else None

    def _write(self, job: NamedJob, record: Record) -> None:
        path = self._path(job)
        text = json.dumps(asdict(replace(record, values=dict(record.values), made=store.now())), indent=2) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            store.write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another folder (out)") from error


def run_jobs(
    jobs: Sequence[NamedJob | Mapping[str, Any]],
    out: str | Path,
    *,
    failed: bool = False,
    allow_code: bool = False,
    progress: bool = True,
    workers: Workers | None = None,
) -> pd.DataFrame:
    """Run jobs into one folder, and return a row for each: job, state, seconds, error and what varies.

    Patches that one job has mined serve all jobs of the same network, layers and images, and its embeddings those with the
    same encoder. A job that fails is recorded with its error, and the others go on. Finished jobs are not run again; one
    that was cut short goes on, and one that is asked for with other values takes the place of its earlier run.

    Parameters
    ----------
    jobs : sequence of mappings
        Inputs and settings by name, as `psi-fast score --config` takes them; `name` is optional.
    out : path
        Folder of the batch. A run folder lies in it for each job, and `results.parquet`, the score tables of all.
    failed : bool
        Run those that have failed, instead of those that have not ended.
    allow_code : bool
        Let jobs name a network as package.module:function, which is imported and called, and set `trust_checkpoint`.
    progress : bool
        Show a live table on stderr, or a line a job where it is no terminal.
    workers : Workers, optional
        Who mines, encodes and draws for each job in turn, as `psi_fast.RayWorkers()`; None is this process.

    Raises
    ------
    ConfigError
        A job lacks an input, has one that there is not, names or trusts code without `allow_code`, or two have one name.
    StoreError
        The folder cannot be written, or another batch is at work in it.
    """
    from psi_fast.batch_view import watching

    batch = Batch(out, jobs)
    require_trust(batch.jobs, allow_code)
    with store.reserved(batch.folder):
        todo = batch.begin(failed)
        try:
            with watching(batch, todo, progress) as view:
                for job in todo:
                    view.begin(job)
                    view.end(job, batch.run(job, view.bars, workers))
        except BaseException:  # the others were interrupted, which no fault of the results hides
            with contextlib.suppress(Exception):
                batch.gather()
            raise
        batch.gather()
    return batch.table()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back."""
    return json.loads(json.dumps(dict(values)))


def _cells(values: Sequence[Any]) -> list[Any]:
    """What jobs say of one input, as a column of a table takes it: lists as JSON, all as text where types differ."""
    cells = [json.dumps(own) if isinstance(own, (list, tuple)) else own for own in values]
    kinds: set[type[Any]] = {type(own) for own in cells if own is not None}
    return cells if len(kinds) == 1 or kinds == {int, float} else [None if own is None else str(own) for own in cells]
