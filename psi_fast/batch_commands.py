"""Batches as commands: run, status, retry."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from psi_fast.batch import RESULTS, Batch, run_jobs
from psi_fast.jobs import read_jobs
from psi_fast.present import show_jobs


def batch_commands() -> dict[str, Callable[..., None]]:
    """The commands behind `psi-fast jobs`."""
    return {"run": run, "status": status, "retry": retry}


def run(file: Annotated[Path, tyro.conf.Positional], *, progress: bool = True) -> None:
    """Run the jobs of a file that have not ended: those that never began, and those that were cut short.

    Args:
        file: TOML file with [defaults], [grid] and [[jobs]].
        progress: Show a live table on stderr, or a line a job where it is no terminal.
    """
    _run(file, failed=False, progress=progress)


def retry(file: Annotated[Path, tyro.conf.Positional], *, progress: bool = True) -> None:
    """Run the jobs of a file that have failed once more.

    Args:
        file: As for run.
        progress: As for run.
    """
    _run(file, failed=True, progress=progress)


def status(file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Show how far the jobs of a file are.

    Args:
        file: As for run.
    """
    folder, jobs = read_jobs(file)
    show_jobs(Batch(folder, jobs).table(), folder)


def _run(file: Path, failed: bool, progress: bool) -> None:
    folder, jobs = read_jobs(file)
    table = run_jobs(jobs, folder, failed=failed, progress=progress)
    show_jobs(table, folder / RESULTS)
    _end(table)


def _end(table: pd.DataFrame) -> None:
    """Exit code 1 where a job has failed."""
    if (table["state"] == "failed").any():
        raise SystemExit(1)
