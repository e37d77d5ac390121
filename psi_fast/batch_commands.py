"""Batches as commands: run, status, retry."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from psi_fast.batch import RESULTS, Batch, run_jobs
from psi_fast.jobs import read_jobs
from psi_fast.present import show_jobs


def batch_commands() -> dict[str, Callable[..., None]]:
    """The commands behind `psi-fast jobs`."""
    return {"run": run, "status": status, "retry": retry}


def run(file: Annotated[Path, tyro.conf.Positional], *, allow_code: bool = False, progress: bool = True) -> None:
    """Run the jobs of a file that have not ended: those that never began, and those that were cut short.

    Args:
        file: TOML file with [defaults], [grid] and [[jobs]].
        allow_code: Let the file name networks as package.module:function, which are imported and called, and set
            trust_checkpoint, which runs code that checkpoints hold.
        progress: Show a live table on stderr, or a line a job where it is no terminal.
    """
    _run(file, failed=False, allow_code=allow_code, progress=progress)


def retry(file: Annotated[Path, tyro.conf.Positional], *, allow_code: bool = False, progress: bool = True) -> None:
    """Run the jobs of a file that have failed once more.

    Args:
        file: As for run.
        allow_code: As for run.
        progress: As for run.
    """
    _run(file, failed=True, allow_code=allow_code, progress=progress)


def status(file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Show how far the jobs of a file are.

    Args:
        file: As for run.
    """
    folder, jobs = read_jobs(file)
    show_jobs(Batch(folder, jobs).table(), folder)


def _run(file: Path, **options: bool) -> None:
    """Exit code 1 where a job has failed, now or before."""
    folder, jobs = read_jobs(file)
    table = run_jobs(jobs, folder, **options)
    show_jobs(table, folder / RESULTS)
    if (table["state"] == "failed").any():
        raise SystemExit(1)
