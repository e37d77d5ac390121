"""plan(): what a run takes for numbers of images and workers, from the formulas of `costs` and measured rates."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from psi_fast.errors import ConfigError, StoreError
from psi_fast.planning.costs import IMAGE_PARTS, STAGES, Cost, Sizes, costs, disk_bytes
from psi_fast.planning.distinct import distinct_crops_of
from psi_fast.planning.memory import device_bytes, host_bytes, mapped_bytes
from psi_fast.planning.rates import LARGEST, Peak, Rates, floor_seconds
from psi_fast.planning.workload import Workload

BITS = 1e9 / 8
"""Bytes a second of a gigabit a second."""
TOTALS = ("read_bytes", "wire_bytes", "flops", "seconds", "cost", "floor_seconds", "floor_cost")
"""Columns of the stages that add up."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a plan is made for beside the work.

    price : of a worker for an hour, None: no cost is told
    wire, storage : bytes a second between workers, and from storage to each; None: they are never what a worker waits for
    peak : of the GPU whose floors are told
    """

    price: float | None = None
    wire: float | None = None
    storage: float | None = None
    peak: Peak | None = None


@dataclass(frozen=True)
class Plan:
    """What runs take.

    stages : DataFrame, a row for each of `images`, `workers` and `stage`: read_bytes, disk_bytes, wire_bytes (int64) and flops
        (float64) of all workers together; seconds until the last worker is done, nan where no rate is known; cost; with a
        peak floor_seconds and floor_cost
    totals : DataFrame, a row for each of `images` and `workers`: the sums of these, crops (distinct ones, int64) and
        crops_at_most, disk_bytes (all that lies on disks at the end), device_memory_bytes (of one GPU, nan without one),
        host_memory_bytes (of one worker; nan without rates of a process) and mapped_bytes (squares beside it, which the
        system can take back)
    rates : what the seconds come from; None: there are floors alone
    workload : the sizes all follows from
    assumptions : sentences that a reader must know
    """

    stages: pd.DataFrame
    totals: pd.DataFrame
    rates: Rates | None
    workload: Workload
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; nan as None. `psi-fast plan --rates` reads the rates again."""
        return {
            "totals": _rows(self.totals),
            "stages": _rows(self.stages),
            "rates": None if self.rates is None else self.rates.to_dict(),
            "workload": dataclasses.asdict(self.workload),
            "assumptions": list(self.assumptions),
        }

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` to a file; StoreError where that cannot be written."""
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another file (--json)") from error


def outlook(
    work: Workload,
    rates: Rates | None,
    images: Sequence[int],
    workers: Sequence[int],
    terms: Terms,
    said: Sequence[str],
) -> Plan:
    """The plan for each of `images` on each of `workers`; `said` are assumptions of whoever made work and rates."""
    stages, totals = [], []
    for count in images:
        for several in workers:
            rows, total = _planned(work, rates, count, several, terms)
            stages += rows
            totals.append(total)
    table = pd.DataFrame(stages)
    assumptions = (*said, *_assumed(work, rates, terms, table))
    return Plan(table, pd.DataFrame(totals), rates, work, assumptions)


def _planned(
    work: Workload, rates: Rates | None, images: int, workers: int, terms: Terms
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each stage, and one for all."""
    work = work.on(workers)
    most, on_gpu = work.most_crops(images), rates is None or rates.device["type"] == "cuda"
    crops, kept = crops_of(work, rates, images)
    sizes = Sizes(images=images, workers=workers, crops=crops, kept=kept, products=on_gpu)
    made = costs(work, sizes)
    on_peak = costs(work, replace(sizes, products=True))
    key = {"images": images, "workers": workers}
    rows = []
    for name in STAGES:
        floor = math.nan if terms.peak is None else floor_seconds(on_peak[name], workers, terms.peak)
        rows.append(key | {"stage": name} | _stage(name, made[name], rates, workers, terms, floor))
    host = math.nan if rates is None or not rates.host_bytes else rates.host_bytes + host_bytes(work, sizes)
    total: dict[str, Any] = key | {"crops": sizes.crops, "crops_at_most": most}
    for name in TOTALS:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        total[name] = sum(values) if values else math.nan
    return rows, total | {
        "disk_bytes": disk_bytes(work, sizes, made),
        "device_memory_bytes": device_bytes(work, sizes) if on_gpu or terms.peak else math.nan,
        "host_memory_bytes": host,
        "mapped_bytes": mapped_bytes(work, sizes),
    }


def crops_of(work: Workload, rates: Rates | None, images: int) -> tuple[int, int]:
    """Distinct crops, and those of them that are a channel's: as the rates' curve tells, or as many as there can be."""
    most, random = work.most_crops(images), work.random_crops(images)
    if rates is None or not rates.distinct:
        return most, min(most, work.places)
    found = min(distinct_crops_of(rates.distinct, work.config.top_k, images), work.places, most)
    positions = 1 if work.config.patch == "image" else sum(own.positions for own in work.layers)
    taken = min(1.0, found / (images * positions))  # random patches that are some channel's as well
    return min(most, found + round(random * (1 - taken))), found


def _stage(name: str, cost: Cost, rates: Rates | None, workers: int, terms: Terms, floor: float) -> dict[str, Any]:
    seconds = math.nan if rates is None else rates.of(name, cost)
    if seconds is None:
        seconds = math.nan
    if terms.storage:
        readers = workers if name in ("mining", "embedding") else 1
        seconds = max(seconds, cost.read / readers / terms.storage)
    if terms.wire:
        seconds += cost.wire / terms.wire
    hourly = math.nan if terms.price is None else terms.price * workers / 3600
    return {
        "read_bytes": cost.read,
        "disk_bytes": cost.disk,
        "wire_bytes": cost.wire,
        "flops": float(cost.flops),  # at 10^9 images beyond int64
        "seconds": seconds,
        "cost": seconds * hourly,
        "floor_seconds": floor,
        "floor_cost": floor * hourly,
    }


def _assumed(work: Workload, rates: Rates | None, terms: Terms, table: pd.DataFrame) -> list[str]:
    """What the plan takes for granted."""
    said = []
    if rates is not None:
        device = ", ".join(f"{name} {value}" for name, value in rates.device.items())
        said.append(f"seconds: by {rates.source} ({device}); each worker is such a machine to itself")
        missing = [name for name in STAGES if table.loc[table["stage"] == name, "seconds"].isna().any()]
        if missing:
            said.append(f"seconds and cost are without {', '.join(missing)}, which the rates do not tell")
        said.append("seconds are without Python's start and the trial of precisions, once a network and machine")
    if terms.peak is not None:
        peak = terms.peak
        said.append(
            f"floor: {peak.flops / 1e12:g} TFLOP/s and {peak.bytes / 1e12:g} TB/s of a {peak.name} ({peak.said_in}), which no "
            "program reaches: a bound from below and no estimate; decoding, files and all else on a CPU come on top"
        )
    if rates is None or not rates.distinct:
        said.append("crops: as many distinct ones as there can be, as no trial or run tells how often patches meet")
    else:
        said.append("crops: as often as patches of the sample meet, at the same share of its images")
    if (table["workers"] > 1).any():
        said.append(
            f"workers share mining by images ({IMAGE_PARTS} parts, so no more than {IMAGE_PARTS} of them mine), embedding by "
            "crops, null draws of S and Q by channels; all else one does alone"
        )
    if (table["workers"] > 1).any() and work.bank_side and not work.bank_named:
        said.append(
            "several workers keep no squares, but decode images when they need them (--bank FOLDER: one decodes them all)"
        )
    if not terms.wire and (table["workers"] > 1).any():
        said.append("bytes between workers take no time (--wire-gbit says how fast they go)")
    if not terms.storage:
        said.append("images are read as fast as where the rates were measured (--storage-mb: as fast as that)")
    if work.bank_side:
        said.append(f"images are decoded once and kept as squares of {work.bank_side} px (--bank stream keeps none)")
    said.append("memory: of one worker, at most; every worker lists all images")
    if terms.price is None:
        said.append("no cost: --price-per-hour is not given")
    else:
        said.append(f"cost: {terms.price:g} an hour for each worker, from the first second to the last")
    return said


def whole(name: str, values: Any, low: int, why: str = "") -> list[int]:
    """The values, one or several, as whole numbers from `low` to LARGEST; 1e6 is one."""
    given = list(values) if isinstance(values, (list, tuple)) else [values]
    if not given:
        raise ConfigError(f"{name} must be one or more whole numbers, got none")
    for value in given:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value != int(value) or value < low:
            raise ConfigError(
                f"{name} must be a whole number of at least {low}{why}, got {value:g}"
                if number
                else f"{name} must be a whole number of at least {low}{why}, got {value!r}"
            )
        if value > LARGEST:
            raise ConfigError(f"{name} must be a whole number of at most {LARGEST:g}, got {value:g}")
    return [int(value) for value in given]


def positive(name: str, value: Any, unit: float = 1.0) -> float | None:
    """A number above 0, within what can be reckoned with, times its unit; or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name} must be a number above 0, got {value!r}")
    if not 1 / LARGEST <= value <= LARGEST:
        raise ConfigError(f"{name} must be a number from {1 / LARGEST:g} to {LARGEST:g}, got {value!r}")
    return value * unit


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if isinstance(own, float) and math.isnan(own) else own for name, own in row.items()}
        for row in table.to_dict("records")
    ]
