"""Runs of a batch, one after the other: what they share is computed once, failures are recorded, results gathered."""

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from psi_fast import store
from psi_fast.api import score
from psi_fast.errors import PsiFastError, StoreError
from psi_fast.jobs import NamedJob, name_jobs, varied_values
from psi_fast.locks import locked
from psi_fast.progress import Progress

RECORDS, RESULTS = "records", "results.parquet"
State = Literal["waiting", "running", "cut short", "finished", "failed"]


@dataclass(frozen=True)
class Record:
    """What is known of a job.

    values : what it was asked to do
    seconds : how long it took, nan before it ended
    error : of a failed job, one line
    """

    values: dict[str, Any]
    state: State = "waiting"
    seconds: float = float("nan")
    error: str = ""
    made: str = ""


class Batch:
    """Jobs and the folder that their runs lie in: a run folder each, `shared` between them, `records`, and the results.

    Attributes
    ----------
    folder : Path
    jobs : list[NamedJob]
    """

    def __init__(self, folder: str | Path, jobs: Sequence[NamedJob | Mapping[str, Any]]) -> None:
        self.folder = Path(folder)
        own = [{**job.values, "name": job.name} if isinstance(job, NamedJob) else job for job in jobs]
        self.jobs = name_jobs(own)
        if taken := [job.name for job in self.jobs if job.name in (RECORDS, RESULTS, store.SHARED)]:
            raise StoreError(
                f"a job cannot be called {taken[0]!r}, which the batch's folder has already; name it otherwise"
            )

    def record(self, job: NamedJob) -> Record:
        """What is known of a job; one that was asked for with other values has not been done."""
        try:
            found = Record(**json.loads(self._path(job).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Record(dict(job.values))
        if found.values != _plain(job.values):
            return Record(dict(job.values))
        if found.state == "finished" and not (self.folder / job.name / store.MANIFEST).exists():
            return Record(dict(job.values))
        if found.state == "running" and not locked(self.folder / job.name):
            return Record(found.values, "cut short")
        return found

    def table(self) -> pd.DataFrame:
        """A row a job: job, state, seconds, error, and the values that are not the same in all jobs."""
        records = [self.record(job) for job in self.jobs]
        return pd.DataFrame(
            {
                "job": [job.name for job in self.jobs],
                **{name: [getattr(own, name) for own in records] for name in ("state", "seconds", "error")},
                **varied_values(self.jobs),
            }
        )

    def todo(self, failed: bool = False) -> list[NamedJob]:
        """The jobs that are to be run: all that have not ended, or with `failed` those that have failed."""
        wanted = ("failed",) if failed else ("waiting", "cut short")
        return [job for job in self.jobs if self.record(job).state in wanted]

    def run(self, job: NamedJob, bars: Progress) -> Record:
        """Run one job and record how it ended; errors do not come through."""
        folder, begun = self.folder / job.name, time.perf_counter()
        first, others = job.arguments()
        self._write(job, Record(dict(job.values), "running", made=store.now()))
        state, error = "finished", ""
        try:
            score(*first, **others, out=folder, share=self.folder / store.SHARED, progress=bars)
        except PsiFastError as raised:
            state, error = "failed", str(raised)
        except Exception as raised:  # a job's fault, whatever it is, ends that job alone
            state, error = "failed", " ".join(traceback.format_exception_only(raised)).strip()
            (self.folder / RECORDS / f"{job.name}.traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        found = Record(dict(job.values), state, round(time.perf_counter() - begun, 3), error, store.now())
        self._write(job, found)
        return found

    def gather(self) -> pd.DataFrame:
        """The scores of all finished jobs, with the job and what varies in front; written to `results.parquet`."""
        varied, parts = varied_values(self.jobs), []
        for number, job in enumerate(self.jobs):
            if self.record(job).state == "finished":
                own = store.load(self.folder / job.name).table
                values = {name: held[number] for name, held in varied.items() if name not in own}
                front = {"job": job.name, **{name: _cell(value) for name, value in values.items()}}
                parts.append(pd.concat([pd.DataFrame([front] * len(own)), own.reset_index(drop=True)], axis=1))
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"job": []})
        try:
            store.write_whole(self.folder / RESULTS, lambda path: table.to_parquet(path, index=False))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot write {self.folder / RESULTS}: {error}") from error
        return table

    def _path(self, job: NamedJob) -> Path:
        return self.folder / RECORDS / f"{job.name}.json"

    def _write(self, job: NamedJob, record: Record) -> None:
        path = self._path(job)
        text = json.dumps(asdict(record) | {"values": _plain(record.values)}, indent=2, ensure_ascii=False) + "\n"
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
    progress: bool = True,
) -> pd.DataFrame:
    """Run jobs into one folder, and return a row for each: job, state, seconds, error and what varies.

    Patches that one job has mined serve all jobs of the same network, layers and images, and its embeddings those with the
    same encoder. A job that fails is recorded with its error, and the others go on. Finished jobs are not run again; one
    that was cut short goes on.

    Parameters
    ----------
    jobs : sequence of mappings
        Inputs and settings by name, as `psi-fast score --config` takes them; `name` is optional.
    out : path
        Folder of the batch. A run folder lies in it for each job, and `results.parquet`, the score tables of all.
    failed : bool
        Run those that have failed, instead of those that have not ended.
    progress : bool
        Show a live table on stderr, or a line a job where it is no terminal.

    Raises
    ------
    ConfigError
        A job lacks an input, has one that there is not, or two have one name.
    StoreError
        The folder cannot be written.
    """
    from psi_fast.batch_view import watching

    batch = Batch(out, jobs)
    todo = batch.todo(failed)
    with watching(batch, todo, progress) as view:
        for job in todo:
            view.begin(job)
            view.end(job, batch.run(job, view.bars))
    batch.gather()
    return batch.table()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back."""
    return json.loads(json.dumps(dict(values), default=str))


def _cell(value: Any) -> Any:
    """A value as a table takes it."""
    return json.dumps(value) if isinstance(value, (list, dict, tuple)) else value
