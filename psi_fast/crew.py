"""Workers as the command line names them: those of Ray, and the tasks of an array with what merges them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psi_fast import store
from psi_fast.api import score
from psi_fast.config import naming
from psi_fast.environment import pick_device
from psi_fast.errors import ConfigError, StoreError
from psi_fast.job import Job, check_input
from psi_fast.jobs import name_jobs, require_trust
from psi_fast.locks import lock
from psi_fast.paths import require_path
from psi_fast.progress import tell
from psi_fast.scores import Scores
from psi_fast.workers import ArrayTask, Merging, OthersMissing, Workers

JOB = "job.json"
"""What the tasks of an array work on, for whoever merges."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who does the work beside this process."""

    ray: bool = False
    """Have the workers of a Ray cluster mine, encode and draw: of one that is started on this machine, or --ray-address."""
    ray_address: str | None = None
    """A running cluster, as ray.init takes it: HOST:PORT, or auto for the one that this machine is part of."""
    ray_workers: int | None = None
    """How many work at once; default: as many as the cluster has room for, each with as many CPUs as this process has
    threads, or a GPU."""

    @contextmanager
    def workers(self, device: str) -> Iterator[Workers | None]:
        """The workers, while they are needed; None for this process alone."""
        if not self.ray:
            if self.ray_address is not None or self.ray_workers is not None:
                raise ConfigError(
                    "--ray-address and --ray-workers say which workers of Ray to take; give --ray as well"
                )
            yield None
            return
        from psi_fast.ray_workers import RayWorkers

        with RayWorkers(self.ray_address, self.ray_workers, device) as found:
            tell(f"{found.count} workers of Ray at once, each {found.claim}")
            yield found


def run_task(job: Job, text: str) -> Scores:
    """Do the share "i/n" of a job and note the job in its folder for `merge`; the scores of a run that is finished already.

    Raises
    ------
    OthersMissing
        The share is done.
    ConfigError
        The text is not i/n, or each task would choose a precision of its own.
    StoreError
        The folder cannot be written, is no run's, or holds the work of another job.
    """
    task = ArrayTask.parse(text)
    if job.settings.precision == "auto" and pick_device(job.device).type == "cpu":
        raise ConfigError(
            "on a CPU each task of an array would choose a precision of its own; name one for all, such as --precision float32"
        )
    require_path("--out", job.out)
    path, values = job.out / store.UNFINISHED / JOB, _values(job)
    _require_same(path, values)
    first, others = job.arguments()
    try:
        return score(*first, **others, workers=task)
    except OthersMissing:  # so all inputs are sound
        _note(path, values)
        raise


def merge(folder: Path, *, complete: bool, allow_code: bool, progress: bool) -> Scores:
    """The run that the tasks of an array have worked on in `folder`: what they left undone behind mining is done here.

    Raises
    ------
    StoreError
        There is no such work, or without `complete` a part of the images was not mined.
    """
    require_path("the folder", folder)
    path = folder / store.UNFINISHED / JOB
    if (folder / store.MANIFEST).exists():
        held = store.load(folder)
        store.clear_finished(folder)
        return held
    if not path.exists():
        raise StoreError(f"{folder} holds no work of array tasks (no {path}); give their --out")
    values = _noted(path)
    share = values.pop("share", None)
    with naming(path):
        check_input("share", "" if share is None else share)
        (job,) = name_jobs([{**values, "name": "merge"}])
    require_trust([job], allow_code)
    first, others = job.arguments()
    try:
        return score(*first, **others, out=folder, share=share, progress=progress, workers=Merging(complete))
    except OthersMissing as error:
        raise StoreError(
            f"{error}; run the tasks that have not ended, or give --complete to mine the rest here"
        ) from error


def _values(job: Job) -> dict[str, Any]:
    """A job's inputs and settings, as a file of jobs has them, but for where it goes."""
    inputs = {name: getattr(job, name) for name in Job.inputs() if name not in ("out", "progress")}
    values = {name: value for name, value in inputs.items() if value is not None} | job.settings.to_dict()
    return json.loads(json.dumps(values))


def _require_same(path: Path, values: dict[str, Any]) -> None:
    if path.exists() and _noted(path) != values:
        raise StoreError(f"{path} is of another job; choose another folder (--out), or remove {path.parent}")


def _note(path: Path, values: dict[str, Any]) -> None:
    """Write down what the tasks work on, where no task of another job has done so meanwhile."""
    text = json.dumps(values, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock(path.parent, wait=True)
        try:
            _require_same(path, values)
            store.write_shared(path, lambda place: place.write_text(text, encoding="utf-8"))
        finally:
            if held is not None:
                os.close(held)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; free some room") from error


def _noted(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; remove it and run an array task again") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is no job; remove it and run an array task again")
    return found
