"""What `psi-fast plan` says before a run, held against the run: seconds, bytes, memory and crops, as actual over predicted.

    python benchmarks/plan.py --images tiny-imagenet-200-val.zip --sizes 1000 3000 10000 --patch image
    python benchmarks/plan.py --images tiny-imagenet-200-val.zip --sizes 1000 3000 --channels 0:64

A trial on some hundred images gives the rates; then each size runs for real. Trial and runs have a process each, so that the
peak of memory is their own. Seconds are told twice: on the wall, which other work on the machine stretches, and of the
process's cores, which it stretches less. Rows are added to plan-<device>.csv among the results.
"""

import argparse
import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import commit, default_path, device_name, say, versions

import psi_fast
from psi_fast.environment import keep_freed_memory, peak_bytes, pick_device
from psi_fast.images import open_images
from psi_fast.job import channel_slice
from psi_fast.planning.outlook import Terms, outlook
from psi_fast.planning.plan import Parts
from psi_fast.planning.rates import Rates
from psi_fast.planning.sampling import Stopwatch, TimedProgress
from psi_fast.planning.workload import Workload

TIMED = ("open images", "decoding", "mining", "embedding", "clusters", "nulls")
"""Stages that a run tells the time of, and that grow with the images or the channels."""
COLUMNS = (
    *("run", "commit", "device", "threads", "versions", "load_average", "network", "layer", "encoder", "patch"),
    *("channels", "draws", "trial_images", "images", "quantity", "unit", "predicted", "actual", "ratio"),
)


def settings(options: argparse.Namespace) -> psi_fast.PSIConfig:
    """Of the trial and the runs."""
    return psi_fast.PSIConfig(
        top_k=options.top_k, draws=options.draws, patch=options.patch, precision=options.precision
    )


def tried(options: argparse.Namespace) -> tuple[Workload, Rates, Rates]:
    """The sizes, and rates by the clock on the wall and by cores; in a process of its own."""
    keep_freed_memory()
    watch, bars = Stopwatch(), TimedProgress()
    device = pick_device(options.device)
    with watch.stage("load"):
        parts = Parts(
            *(options.network, options.layer, options.encoder, None, None),
            *(channel_slice(options.channels), settings(options), device),
        )
    with watch.stage("open images"):
        source = open_images(options.images)
    work = parts.workload(source, None, 0, None, None, False)
    trial = parts.trial(source, work, options.trial_images, False, None, watch, bars)
    return work, trial.rates(work), trial.rates(work, "core")


def ran(options: argparse.Namespace, count: int) -> dict[str, float]:
    """What a run of so many images took; in a process of its own."""
    keep_freed_memory()
    bars = TimedProgress()
    with TemporaryDirectory() as place:
        bank, out = Path(place) / "bank", Path(place) / "run"
        scores = psi_fast.score(
            options.network,
            options.layer,
            options.images,
            encoder=options.encoder,
            channels=channel_slice(options.channels),
            config=settings(options),
            device=options.device,
            max_images=count,
            bank=bank,
            out=out,
            progress=bars,
        )
        sizes = {name: _size(folder) for name, folder in (("squares", bank), ("results", out))}
    found = {f"{name} wall": bars.seconds[name] for name in TIMED} | {
        f"{name} core": bars.cores[name] for name in TIMED
    }
    return found | sizes | {"crops": scores.manifest["distinct_crops"], "memory": peak_bytes()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def foretold(work: Workload, rates: Rates, core: Rates, count: int) -> dict[str, float]:
    """The same by the plan."""
    found: dict[str, float] = {}
    for clock, own in (("wall", rates), ("core", core)):
        made = outlook(work, own, [count], [1], Terms(), [])
        stages = made.stages.set_index("stage")
        found |= {f"{name} {clock}": float(stages["seconds"][name]) for name in TIMED}
    total = made.totals.iloc[0]
    return found | {
        "squares": float(stages["disk_bytes"]["decoding"]),
        "results": float(stages["disk_bytes"]["writing"]),
        "crops": float(total["crops"]),
        "memory": float(total["host_memory_bytes"] + total["mapped_bytes"]),
    }


def with_sums(found: dict[str, float]) -> dict[str, float]:
    """The stages and their sum, by each clock."""
    sums = {f"all {clock}": sum(found[f"{name} {clock}"] for name in TIMED) for clock in ("wall", "core")}
    return {**found, **sums}


def alone(function: Any, *arguments: Any) -> Any:
    """The function's result, from a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(arguments: list[str] | None = None) -> None:
    """Try, plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="../shared/data/tiny-imagenet-200-val.zip")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--network", default="efficientnet-lite:lite0")
    parser.add_argument("--layer", default="_conv_head")
    parser.add_argument("--encoder", default="classifier:efficientnet-lite:lite2")
    parser.add_argument("--channels", help="first:stop; default: all")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--patch", default="effective")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--trial-images", type=int, default=512)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="CSV to add rows to; default: by the device's name among the results")
    options = parser.parse_args(arguments)
    device, threads = pick_device(options.device), torch.get_num_threads()
    place = default_path(device, threads)
    out = options.out or place.with_name(f"plan-{place.name}")
    work, *rates = alone(tried, options)
    about = {
        "run": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "device": device_name(device),
        "threads": threads,
        "versions": versions(),
        "network": options.network,
        "layer": options.layer,
        "encoder": options.encoder,
        "patch": options.patch,
        "channels": work.channels,
        "draws": options.draws,
        "trial_images": options.trial_images,
    }
    for count in options.sizes:
        predicted = with_sums(foretold(work, *rates, count))
        actual = with_sums(alone(ran, options, count))
        rows = [
            about
            | {
                "load_average": round(os.getloadavg()[1], 1),
                "images": count,
                "quantity": name,
                "unit": {"wall": "s", "core": "s", "crops": "crops"}.get(name.split()[-1], "bytes"),
                "predicted": f"{predicted[name]:.6g}",
                "actual": f"{actual[name]:.6g}",
                "ratio": f"{actual[name] / predicted[name]:.3f}" if predicted[name] else "",
            }
            for name in predicted
        ]
        new = not out.exists()
        with out.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerows(rows)
        for row in rows:
            say(
                f"{count:8} {row['quantity']:18} {row['predicted']:>12} {row['actual']:>12} {row['unit']:6} {row['ratio']}"
            )


if __name__ == "__main__":
    main()
