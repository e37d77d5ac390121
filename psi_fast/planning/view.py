"""A plan as tables on the terminal."""

import math
from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psi_fast.planning.outlook import Plan
from psi_fast.present import terminal

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
TITLES = {  # of the columns of both tables -> title and unit
    "crops": ("crops", ""),
    "read_bytes": ("read", "B"),
    "disk_bytes": ("on disk", "B"),
    "wire_bytes": ("between workers", "B"),
    "flops": ("operations", "FLOP"),
    "seconds": ("time", "s"),
    "cost": ("cost", "money"),
    "floor_seconds": ("floor", "s"),
    "floor_cost": ("floor's cost", "money"),
    "device_memory_bytes": ("GPU memory", "B"),
    "host_memory_bytes": ("host memory", "B"),
    "mapped_bytes": ("and squares", "B"),
}
WORK = ("crops", "read_bytes", "disk_bytes", "wire_bytes", "flops")
NEEDS = ("seconds", "cost", "floor_seconds", "floor_cost", "device_memory_bytes", "host_memory_bytes", "mapped_bytes")


def show_plan(plan: Plan, stages: bool = False) -> None:
    """Print a row for each number of images and of workers, with `stages` also each stage; and what is taken for granted."""
    console = terminal()
    work = plan.workload
    layers = ", ".join(own.name for own in work.layers)
    title = f"{work.network.name}  {layers}: {work.channels} channels, patches by {work.encoder.name}"
    _print(console, plan.totals, ["images", "workers"], WORK, title)
    _print(console, plan.totals, ["images", "workers"], NEEDS, "")
    if stages:
        for (images, workers), rows in plan.stages.groupby(["images", "workers"], sort=False):
            several = f"{workers} worker{'s' * (workers != 1)}"
            _print(console, rows, ["stage"], tuple(TITLES), f"{images:,} images on {several}")
    for line in plan.assumptions:
        console.print(escape(line), soft_wrap=True)


def _print(console: Console, rows: pd.DataFrame, keys: list[str], names: Sequence[str], title: str) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left")
    shown = [name for name in names if name in rows and not rows[name].isna().all()]
    for name in keys:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for name in shown:
        table.add_column(TITLES[name][0], justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        cells = [escape(own) if isinstance(own, str) else f"{own:,}" for own in (row[name] for name in keys)]
        table.add_row(*cells, *(_cell(row[name], TITLES[name][1]) for name in shown))
    console.print(table)


def _cell(value: float, unit: str) -> str:
    if math.isnan(value):
        return "?"
    if unit == "s":
        return duration(value)
    if unit == "money":
        return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
    return amount(value, unit) if unit else f"{value:,.0f}"


def amount(value: float, unit: str) -> str:
    """Such as 12.3 GB, three digits; 0 as -."""
    if not value:
        return "-"
    power = min(max(0, math.floor(math.log10(value) / 3)), len(PREFIXES) - 1)
    return f"{value / 1000**power:.3g} {PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """Such as 4.2 s, 3 min 20 s, 5 h 12 min or 14.3 days; 0 as -."""
    if not seconds:
        return "-"
    if float(f"{seconds:.3g}") < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86400:,.1f} days"
