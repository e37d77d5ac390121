"""Batches as commands: run, status, retry."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from psi_fast.batch import RESULTS, Batch, run_jobs
from psi_fast.crew import Crew
from psi_fast.jobs import read_jobs
from psi_fast.present import show_jobs

Who = Annotated[Crew, tyro.conf.arg(name="")]
NOBODY = Crew()


def batch_commands() -> dict[str, Callable[..., None]]:
    """The commands behind `psi-fast jobs`."""
    return {"run": run, "status": status, "retry": retry}


def run(
    file: Annotated[Path, tyro.conf.Positional], crew: Who = NOBODY, *, allow_code: bool = False, progress: bool = True
) -> None:
    """Run the jobs of a file that have not ended: those that never began, and those that were cut short.

    Args:
        file: TOML file with [defaults], [grid] and [[jobs]].
        allow_code: Let the file name networks as package.module:function, which are imported and called, and set
            trust_checkpoint, which runs code that checkpoints hold.
        progress: Show a live table on stderr, or a line a job where it is no terminal.
    """
    _run(file, crew, failed=False, allow_code=allow_code, progress=progress)


def retry(
    file: Annotated[Path, tyro.conf.Positional], crew: Who = NOBODY, *, allow_code: bool = False, progress: bool = True
) -> None:
    """Run the jobs of a file that have failed once more.

    Args:
        file: As for run.
        allow_code: As for run.
        progress: As for run.
    """
    _run(file, crew, failed=True, allow_code=allow_code, progress=progress)


def status(file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Show how far the jobs of a file are.

    Args:
        file: As for run.
    """
    folder, jobs = read_jobs(file)
    show_jobs(Batch(folder, jobs).table(), folder)


def _run(file: Path, crew: Crew, **options: bool) -> None:
    """Exit code 1 where a job has failed, now or before."""
    folder, jobs = read_jobs(file)
    devices = {str(job.values.get("device", "auto")) for job in jobs}
    with crew.workers(devices.pop() if len(devices) == 1 else "auto") as workers:
        table = run_jobs(jobs, folder, workers=workers, **options)
    show_jobs(table, folder / RESULTS)
    if (table["state"] == "failed").any():
        raise SystemExit(1)
