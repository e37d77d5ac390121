"""Run folders -> a report: a folder of static files that a browser opens from disk."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from psi_fast import store
from psi_fast.details import Details, open_details
from psi_fast.errors import ConfigError, InputError, StoreError
from psi_fast.neighbours import Neighbours
from psi_fast.paths import require_path
from psi_fast.progress import Progress
from psi_fast.report.channels import channel_data
from psi_fast.report.pictures import Pictures, locate, open_pictures
from psi_fast.report.scripts import write_script
from psi_fast.report.sheets import Plan, plan_images, plan_patches, plan_strips, write_sheets
from psi_fast.report.summary import Shown, first_of_clusters, index_data, keys_of, named_concepts, table_data

MARKER = "report.json"
"""Last file of a report; a folder that has one may be replaced by the next."""
PATCH_BYTES, IMAGE_BYTES = 100 * 10**6, 24 * 10**6
"""What all sheets of patches and all of whole images may take."""
LONGEST = 24 * 3600
"""Seconds after which a temporary folder is of no build that still runs."""
PER_FILE = 128
"""Channels whose data lie in one file, at most."""


@dataclass(frozen=True)
class _Run:
    """A run on its way into the report; `pictures` are None where it is to have none."""

    name: str
    details: Details
    pictures: Pictures | None

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where its patches lie in the pictures, as `locate` tells it."""
        assert self.pictures is not None, "places are asked for with pictures alone"
        return locate(self.details.scores, self.pictures)

    @cached_property
    def neighbours(self) -> list[Neighbours]:
        """Of each row of its table."""
        return self.details.neighbours()


def build_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    images: Any = None,
    pictures: bool = True,
    progress: bool = True,
) -> Path:
    """Write the report of one or more finished runs, and return the path of its index.html.

    Parameters
    ----------
    folders : path or sequence of paths
        Run folders, as `psi_fast.score(out=...)` writes them.
    out : path, optional
        Folder to write; None is `report` in the run folder, or of several in the folder that holds them all. A report that
        is there is replaced.
    images : as `psi_fast.score` takes them, optional
        Where the runs' images are now; None is where each run found them. A Dataset must be given again.
    pictures : bool
        Show the patches; False needs no images.
    progress : bool
        Show progress on stderr.

    Raises
    ------
    StoreError
        A folder holds no finished run, or `out` holds something else or cannot be written.
    InputError
        The images cannot be opened again.
    """
    require_packages()
    bars = Progress(progress)
    paths = [Path(one) for one in ([folders] if isinstance(folders, (str, Path)) else folders)]
    if not paths:
        raise InputError("a report needs at least one run folder, got none")
    for path in paths if out is None else (*paths, Path(out)):
        require_path("the folder", path)
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"each run folder may be given once, got {', '.join(map(str, paths))}")
    place = (_place(paths) if out is None else Path(out)).resolve()
    _require_own(place, paths)
    with bars.stage("runs"):
        details = [open_details(path) for path in paths]
    names, keys = keys_of(details)
    runs = [_open(name, own, images, pictures, bars) for name, own in zip(names, details, strict=True)]
    building = place.with_name(f"{store.TEMPORARY}{os.getpid()}-{place.name}")
    made = [path for path in place.parents if not path.exists()]
    try:
        building.mkdir(parents=True)
        _sweep(place.parent)
        _write(building, runs, keys, bars)
        _exchange(building, place)
    except OSError as error:
        raise StoreError(
            f"cannot write a report to {place}: {error.strerror or error}; choose another folder (--out)"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        with contextlib.suppress(OSError):  # rmdir refuses a folder that holds something, such as the report
            for path in made:
                path.rmdir()
    return place / "index.html"


def require_packages() -> None:
    """See that what reports alone need is installed; ConfigError where not."""
    missing = [name for name in ("jinja2", "markdown_it", "vl_convert") if find_spec(name) is None]
    if missing:
        raise ConfigError(f'a report needs the package {missing[0].replace("_", "-")}: pip install "psi-fast[report]"')


def _place(paths: Sequence[Path]) -> Path:
    if len(paths) == 1:
        return paths[0] / store.REPORT
    return Path(os.path.commonpath([path.resolve().parent for path in paths])) / store.REPORT


def _require_own(place: Path, runs: Sequence[Path]) -> None:
    """See that `place` is free for a report, or holds an earlier one, which may go; and none of the `runs`."""
    if not place.exists():
        return
    if not place.is_dir():
        raise StoreError(f"a report is a folder, but {place} is a file; choose another place (--out)")
    if (inside := [run for run in runs if run.resolve().is_relative_to(place)]) or (
        any(place.iterdir()) and not _is_report(place)
    ):
        held = f"the run {inside[0]}" if inside else "files that are no report of psi_fast"
        raise StoreError(f"{place} holds {held}; choose another folder (--out)")


def _is_report(place: Path) -> bool:
    try:
        about = json.loads((place / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and {"made", "runs"} <= about.keys()  # others have a file of this name too


def _sweep(parent: Path) -> None:
    """Take away what builds that were killed have left; a younger one may still be at work."""
    for left in parent.glob(f"{store.TEMPORARY}*"):
        if time.time() - left.stat().st_mtime > LONGEST:
            shutil.rmtree(left, ignore_errors=True)


def _exchange(building: Path, place: Path) -> None:
    """Put the new report where the old one was, which goes only once the new one is there."""
    old = building.with_name(f"{building.name}-old")
    if place.exists():
        place.rename(old)
    building.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _open(name: str, details: Details, images: Any, pictures: bool, bars: Progress) -> _Run:
    if not pictures:
        return _Run(name, details, None)
    patches = details.scores.patches
    assert patches is not None, "a run folder has patches"
    with bars.stage("images"):
        found = open_pictures(details.scores.manifest, patches, images, bars=bars)
    return _Run(name, details, found)


def _write(folder: Path, runs: Sequence[_Run], keys: Sequence[dict[str, str]], bars: Progress) -> None:
    """Write all files of the report into an empty folder."""
    from psi_fast.report.page import run_facts, write_page  # its packages are an extra's

    sizes = [len(run.details.index) for run in runs]
    layers: list[Shown] = []
    whole: list[Plan | None] = []
    for number, run in enumerate(runs):
        with bars.within(run.name if len(runs) > 1 else ""):
            whole.append(_whole_images(folder, number, run, IMAGE_BYTES // len(runs), bars))
            for layer, rows in run.details.layers.items():
                budget = PATCH_BYTES * len(rows) // sum(sizes)
                first = sum(sizes[:number]) + int(rows[0])
                layers.append(
                    _layer(folder, number, run, layer, keys[number][layer], rows, first, len(layers), budget, bars)
                )
    facts = [run_facts(run.name, run.details, run.pictures.warnings if run.pictures else []) for run in runs]
    concepts = named_concepts(layers)
    with bars.stage("tables"):
        write_script(folder, "index", index_data(layers, facts, whole, concepts))
        write_script(folder, "table", table_data(layers, concepts))
    with bars.stage("page"):
        experiments = [(run.name, own) for run in runs for own in run.details.experiments]
        write_page(folder, facts, layers, experiments)
    about = {"made": store.now(), "runs": [run.details.scores.manifest["identity"] for run in runs]}
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _whole_images(folder: Path, number: int, run: _Run, budget: int, bars: Progress) -> Plan | None:
    if run.pictures is None:
        return None
    with bars.stage("whole images"):
        plan = plan_images(run.pictures, budget)
        _draw(folder / "data" / f"r{number}", {"images": plan}, run.pictures, bars)
    return plan


def _layer(
    folder: Path,
    number: int,
    run: _Run,
    layer: str,
    key: str,
    rows: np.ndarray,
    first: int,
    place: int,
    budget: int,
    bars: Progress,
) -> Shown:
    """Write a layer's sheets and the data of its channels."""
    details, pictures = run.details, run.pictures
    own = folder / "data" / f"l{place}"
    patches = strip = places = parts = None
    firsts = list(range(0, len(rows), PER_FILE))
    with ThreadPoolExecutor(1) as beside:  # pictures are made while numbers are
        drawn = None
        if pictures is not None:
            with bars.stage("patches"):
                where, boxes = (found[rows] for found in run.places)
                patches = plan_patches(pictures, where, boxes, budget)
                ranks = first_of_clusters(details.scores.labels[rows], details.scores.manifest["config"]["k_max"])
                at = np.arange(len(rows))[:, None], np.maximum(ranks, 0)
                strip = plan_strips(np.where(ranks >= 0, where[at], -1), boxes[at])
                places, parts = where, pictures.on_square(np.maximum(where, 0), boxes)
            drawn = beside.submit(_draw, own, {"strip": strip, "patches": patches}, pictures, bars)
        shown = Shown(details, number, layer, key, f"l{place}", rows, first, firsts, places, parts, patches, strip)
        with bars.stage("channels"), bars.bar("channels", len(rows), "channel") as bar:
            for i, begin in enumerate(firsts):
                part = slice(begin, firsts[i + 1] if i + 1 < len(firsts) else len(rows))
                write_script(folder, f"l{place}/channels-{i:03d}", channel_data(shown, part, run.neighbours))
                bar.update(part.stop - part.start)
        if drawn is not None:
            with bars.stage("pictures"):
                drawn.result()
    return shown


def _draw(folder: Path, plans: Mapping[str, Plan], pictures: Pictures, bars: Progress) -> None:
    """Write the sheets of each plan under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plan in plans.items():
        write_sheets(plan, [folder / f"{name}-{i:03d}.webp" for i in range(len(plan.rows))], pictures, bars)
