"""A file of jobs: defaults, a grid of what varies, and single jobs -> the runs that they stand for, each with a name."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from psi_fast.config import PSIConfig, naming, read_toml
from psi_fast.errors import ConfigError, nearest
from psi_fast.job import Job, channel_slice, check_values
from psi_fast.networks import calls_code
from psi_fast.store import fingerprint

PARTS = ("out", "defaults", "grid", "jobs")
"""What a file of jobs may hold."""
OWN = ("out", "share", "progress")
"""Inputs that the batch gives each job."""
REQUIRED = ("network", "layer", "images", "encoder")
LONGEST = 100
"""Letters of a name."""
MOST = 100_000
"""Jobs of a grid."""


@dataclass(frozen=True)
class NamedJob:
    """One run of a batch.

    name : a folder's name, unique in its batch
    values : its inputs and settings, as a TOML file has them
    """

    name: str
    values: Mapping[str, Any]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of `psi_fast.score`, without `out` and `share`."""
        settings = PSIConfig().to_dict()
        given = {name: value for name, value in self.values.items() if name not in settings}
        config = PSIConfig.from_dict({name: value for name, value in self.values.items() if name in settings})
        layers = cast(list[Any], given["layer"]) if isinstance(given["layer"], list) else [given["layer"]]
        given["layer"] = [str(layer) for layer in layers]  # those of an nn.Sequential are numbers
        first = tuple(given.pop(name) for name in ("network", "layer", "images"))
        return first, given | {"config": config, "channels": channel_slice(given.get("channels"))}


def read_jobs(path: str | Path) -> tuple[Path, list[NamedJob]]:
    """The folder of a batch and its jobs, from a TOML file.

    `out` is the folder, by default the file's name without its ending, beside it. `[defaults]` holds what every job has; `[grid]`
    lists, each combination of whose values is a job; each `[[jobs]]` is one more, with a `name` where the file gives it.

    Raises
    ------
    ConfigError
        The file cannot be read, or says something that is no job.
    """
    values = read_toml(path)
    with naming(path):
        if unknown := [name for name in values if name not in PARTS]:
            raise ConfigError(
                f"unknown {unknown[0]!r}{nearest(unknown[0], PARTS)}; a file of jobs holds {', '.join(PARTS)}"
            )
        defaults, grid, listed = values.get("defaults", {}), values.get("grid", {}), values.get("jobs", [])
        for name, held in (("defaults", defaults), ("grid", grid)):
            if not isinstance(held, dict):
                raise ConfigError(f"[{name}] must be a table of names and values, got {held!r}")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in cast(list[Any], listed)):
            raise ConfigError(f"jobs must be tables, each under [[jobs]], got {listed!r}")
        out = values.get("out", str(Path(path).with_suffix("")))
        if not isinstance(out, str) or not out or "\0" in out:
            raise ConfigError(f"out must name a folder, got {out!r}")
        if Path(out) == Path(path):
            raise ConfigError("out is missing, and the file's name has no ending to leave out for a folder; give out")
        single = [{**defaults, **one} for one in cast(list[dict[str, Any]], listed)]
        return Path(out), name_jobs([*_grid(defaults, grid), *single])


def name_jobs(jobs: Sequence[Mapping[str, Any]]) -> list[NamedJob]:
    """The jobs, checked, each with a name: its own, or made of what it does not share with all others.

    Raises
    ------
    ConfigError
        There is none, one lacks an input, has one that jobs do not take or a value that does not fit, or two have one name.
    """
    if not jobs:
        raise ConfigError("there is no job: give a [grid] of lists, or a [[jobs]] for each")
    checked = [dict(job) for job in jobs]
    names = [job.pop("name", None) for job in checked]
    for number, job in enumerate(checked, 1):
        with naming(f"job {number}"):
            _check(job)
    varied = varied_values([NamedJob("", job) for job in checked])
    found = [_named(name, job, varied) for name, job in zip(names, checked, strict=True)]
    often = Counter(job.name for job in found)
    for number, (given, job) in enumerate(zip(names, found, strict=True)):
        if given is None and often[job.name] > 1:  # what tells them apart is no part of a name
            found[number] = NamedJob(f"{job.name}-{fingerprint(job.values)[:8]}", job.values)
    taken: dict[str, NamedJob] = {}
    for job in found:
        if (other := taken.setdefault(job.name, job)) is not job:
            same = "are the same; leave one out" if other.values == job.values else "differ; name one otherwise"
            raise ConfigError(f"two jobs called {job.name!r} {same}")
    return found


def _named(given: Any, job: Mapping[str, Any], varied: Collection[str]) -> NamedJob:
    """The job under the name that the file gives it, or under what it does not share with all others."""
    if given is None:
        return NamedJob(_slug("_".join(_said(key, job[key]) for key in varied if key in job)) or "job", job)
    if not isinstance(given, str) or not given or given != _slug(given):
        raise ConfigError(
            f"a job's name must be up to {LONGEST} letters, digits and any of ._-@ and neither begin nor end in . or -, "
            f"got {given!r}"
        )
    return NamedJob(given, job)


def require_trust(jobs: Sequence[NamedJob], allow_code: bool) -> None:
    """Refuse jobs that would run code of their own unless that is allowed; ConfigError names the first."""
    for job in () if allow_code else jobs:
        if (spec := code_in(job)) is not None:
            raise ConfigError(
                f"job {job.name!r} names {spec!r}, a function that would be called; give --allow-code (allow_code=True in "
                "Python) if you trust the jobs and that package"
            )
        if job.values.get("trust_checkpoint"):
            raise ConfigError(
                f"job {job.name!r} sets trust_checkpoint, which runs the code that a checkpoint holds; give --allow-code "
                "(allow_code=True in Python) if you trust the jobs and whoever made that file"
            )


def code_in(job: NamedJob) -> str | None:
    """The job's network or encoder where that is a function of a package, which is called; None where it calls none."""
    specs = [job.values["network"], job.values["encoder"].removeprefix("classifier:")]
    return next((spec for spec in specs if calls_code(spec)), None)


def varied_values(jobs: Sequence[NamedJob]) -> dict[str, list[Any]]:
    """Inputs and settings that are not the same in all jobs, by name a value for each job (None: its default).

    In the order of `psi-fast score --help`, so that names do not depend on that of the file.
    """
    names = [*Job.inputs(), *PSIConfig().to_dict()]
    found = {name: [job.values.get(name) for job in jobs] for name in names}
    return {name: values for name, values in found.items() if len({repr(value) for value in values}) > 1}


def _grid(defaults: Mapping[str, Any], grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A job for each combination of the grid's values, the last name varying fastest; none without a grid."""
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{name} in [grid] must be a list of values, got {values!r}")
    if not grid:
        return []
    if (count := math.prod(map(len, grid.values()))) > MOST:
        raise ConfigError(f"[grid] stands for {count:,} jobs, and a batch has {MOST:,} at most; give fewer values")
    return [{**defaults, **dict(zip(grid, chosen, strict=True))} for chosen in itertools.product(*grid.values())]


def _check(job: Mapping[str, Any]) -> None:
    if given := [name for name in OWN if name in job]:
        raise ConfigError(f"{given[0]} is the batch's, not a job's; leave it out")
    check_values(job)
    if missing := [name for name in REQUIRED if name not in job]:
        raise ConfigError(f"{missing[0]} is missing; a job needs {', '.join(REQUIRED)}")
    NamedJob("", job).arguments()


def _said(key: str, value: Any) -> str:
    """A value as a part of a name; numbers and switches say whose they are."""
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    said = "-".join(map(str, values))
    return said if all(isinstance(one, str) for one in values) else f"{key}-{said}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text, flags=re.ASCII)[:LONGEST].strip("-.")
