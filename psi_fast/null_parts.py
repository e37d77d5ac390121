"""Null draws of S and Q in parts of the channels, which workers do, and which a run that was killed finds again."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_fast.channel_parts import FEWEST, MOST
from psi_fast.config import PSIConfig
from psi_fast.nulls import draw_nulls
from psi_fast.progress import Progress
from psi_fast.results import NullMoments, PatchEmbeddings
from psi_fast.shelf import Shelf, content
from psi_fast.store import fingerprint
from psi_fast.workers import DRAWS, Here, Workers, part_size, require_all

SECONDS = 10.0
"""What a part is to take in one process: what is lost at most when a run is killed, more or less."""
FIRST = {"cpu": 32}
"""Channels of the first part in one process; on a GPU all."""


@dataclass(frozen=True)
class Spread:
    """Where parts are done and kept.

    workers : None for this process
    shelf : None to keep nothing
    about : JSON-ready, what decides the draws beside patches and settings
    """

    workers: Workers | None
    shelf: Shelf | None
    about: Any

    @property
    def others(self) -> Workers | None:
        """Who shares what is not kept; None where every process does all of that itself, as the tasks of an array do."""
        return None if isinstance(self.workers, Here) else self.workers


def spread_nulls(
    patches: PatchEmbeddings,
    clusters: Tensor,
    observed: Mapping[str, Tensor],
    labels: Tensor | None,
    config: PSIConfig,
    progress: Progress,
    keep: int,
    spread: Spread,
) -> dict[str, NullMoments]:
    """As `draw_nulls`, to the same bits; `patches` and the rest on the device that draws.

    Raises
    ------
    OthersMissing
        Some parts are other workers' than those of this process.
    """
    device, shelf, workers = patches.unique.device, spread.shelf, spread.workers
    arrays = {"clusters": clusters, "labels": labels, **observed}
    arrays = {name: own.cpu() for name, own in arrays.items() if own is not None}
    about = [spread.about, config.to_dict(), keep]
    kind = "nulls"
    if shelf is not None:
        own = {"unique": patches.unique, "index": patches.index, "channel": patches.channel}
        digest = content({name: tensor.cpu() for name, tensor in own.items()} | arrays)
        kind = f"nulls-{fingerprint([about, digest])[:12]}"
    count = len(patches.index)
    result: dict[str, Tensor] = {}
    done = np.zeros(count, dtype=bool)

    def put(found: Mapping[str, Tensor]) -> None:
        rows = found["rows"].numpy()
        for name, own in found.items():
            if name != "rows":
                result.setdefault(name, own.new_empty(count, *own.shape[1:]))[rows] = own
        done[rows] = True

    names = ("rows", *(f"{name} {part}" for name in observed for part in ("mean", "sd", "p")))
    for found in shelf.all_tensors(kind, names) if shelf else ():
        put(found)
    task = _Task(patches, arrays, config, keep, device)
    with progress.bar(DRAWS, count * config.draws, "draw", int(done.sum()) * config.draws) as bar:
        parts = _in_turn(task, done) if workers is None else _by_workers(task, done, workers)
        for found in parts:
            put(shelf.keep(kind, found["rows"].tolist(), found) if shelf else found)
            bar.update(len(found["rows"]) * config.draws)
    require_all(dict(enumerate(np.flatnonzero(done))), count, DRAWS)
    return {
        name: NullMoments(
            *(result[f"{name} {part}"].to(device) for part in ("mean", "sd", "p")), draws=result.get(f"{name} draws")
        )
        for name in ("S_independent", "S", "Q")
        if f"{name} mean" in result
    }


@dataclass(frozen=True)
class _Task:
    """What all parts are of."""

    patches: PatchEmbeddings
    arrays: dict[str, Tensor]
    config: PSIConfig
    keep: int
    device: torch.device

    def of(self, rows: np.ndarray) -> tuple[Any, ...]:
        """Arguments of `null_part` for the channels `rows`."""
        arrays = {name: own[rows] for name, own in self.arrays.items()}
        return rows, self.patches.take(rows), arrays, self.config, self.keep, self.device


def null_part(
    rows: np.ndarray,
    patches: PatchEmbeddings,
    arrays: Mapping[str, Tensor],
    config: PSIConfig,
    keep: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The nulls of some channels as tensors on the CPU, under "NAME PART", and which `rows` they are."""
    held = {name: own.to(device) for name, own in arrays.items()}
    clusters, labels = held.pop("clusters"), held.pop("labels", None)
    nulls = draw_nulls(patches.to(device), clusters, held, labels, config, Progress(False), keep)
    found = {"rows": torch.from_numpy(rows)}
    for name, own in nulls.items():
        # copies: with independent rotation S has the very tensors of S_independent, and a file holds each of its own
        found |= {f"{name} {part}": tensor.cpu().clone() for part, tensor in vars(own).items() if tensor is not None}
    return found


def _in_turn(task: _Task, done: np.ndarray) -> Iterator[dict[str, Tensor]]:
    """The parts that are missing, one after the other, each of as many channels as take about SECONDS."""
    left = np.flatnonzero(~done)
    size = FIRST.get(task.device.type, len(left))
    while len(left):
        begun = time.perf_counter()
        yield null_part(*task.of(left[:size]))
        left = left[size:]
        size = max(1, int(size * min(4.0, SECONDS / max(time.perf_counter() - begun, 1e-3))))


def _by_workers(task: _Task, done: np.ndarray, workers: Workers) -> Iterator[dict[str, Tensor]]:
    """Those of the parts that are missing which are for these workers, as they are done."""
    size = part_size(len(done), workers, FEWEST, MOST)
    parts = {
        number: np.arange(start, min(start + size, len(done))) for number, start in enumerate(range(0, len(done), size))
    }
    missing = {number: rows[~done[rows]] for number, rows in parts.items() if workers.own(DRAWS, number)}
    tasks = {number: task.of(rows) for number, rows in missing.items() if len(rows)}
    for _, found in workers.results(null_part, tasks):
        yield found
