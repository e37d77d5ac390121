"""Experiments as commands: the flags of `psi-fast score` and each one's own options."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from psi_fast.experiments import EXPERIMENTS, Outcome, Study
from psi_fast.job import Job
from psi_fast.present import show_outcome


def experiment_commands() -> dict[str, Callable[..., None]]:
    """A command for each experiment, by its name."""
    return {name: _command(run) for name, run in EXPERIMENTS.items()}


def _command(run: Callable[..., Outcome]) -> Callable[..., None]:
    """`run` as a function of a job in place of a study."""

    def command(**given: Any) -> None:
        job: Job = given.pop("job")
        first, others = job.arguments()
        show_outcome(run(Study(*first, **others), **given))

    own = list(inspect.signature(run).parameters.values())[1:]
    job = inspect.Parameter("job", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Job, tyro.conf.arg(name="")])
    command.__signature__ = inspect.Signature([*own, job])  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {one.name: one.annotation for one in (*own, job)}
    command.__doc__ = _unwrapped(inspect.getdoc(run) or "")
    command.__name__ = run.__name__
    return command


def _unwrapped(doc: str) -> str:
    """The docstring with each option's description on one line, which the help text breaks where it must."""
    lines: list[str] = []
    for line in doc.splitlines():
        if line.startswith("    ") and lines[-1].startswith("    "):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)
