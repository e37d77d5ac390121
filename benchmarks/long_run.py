"""Many small jobs one after the other in one process: memory, file handles, threads, hooks and temporary files."""

import argparse
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import say
from PIL import Image
from torch import nn

import psi_fast
from psi_fast import Network, Preprocess, store
from psi_fast.batch import Batch
from psi_fast.progress import Progress

WARM_UP = 50
"""Jobs until caches and memory pools have their size: they are left out of the slope."""
IMAGES = 24
SETTINGS = {
    "top_k": 12, "k_max": 3, "n_init": 1, "draws": 9, "patch": 0.5, "batch_size": 8, "precision": "float32",
}  # fmt: skip
PREPROCESS = Preprocess(size=32, resize=32, interpolation="bilinear")


@dataclass(frozen=True)
class Found:
    """What was seen.

    rss_mb : of the process after each job, in MB, behind a collection of garbage
    slope_mb : growth a job by a straight line through those behind the warm-up
    handles, threads : how many more there are at the end than after the warm-up
    hooks : on the network that was given as an object
    temporary : names of temporary files that were left
    states : of the jobs
    """

    rss_mb: list[float]
    slope_mb: float
    handles: int
    threads: int
    hooks: int
    temporary: list[str]
    states: list[str]


def module(outputs: int = 6) -> nn.Module:
    """A network whose layer "2" is scored; with `outputs` as a classifier its head is a linear layer."""
    torch.manual_seed(outputs)
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, outputs)),
    )


def network() -> Network:
    """For the spec long_run:network."""
    return Network(module(), PREPROCESS, "long-run")


def classifier() -> Network:
    """For the spec classifier:long_run:classifier."""
    return Network(module(7), PREPROCESS, "long-run-classifier")


def job(number: int, images: Path, bank: Path) -> dict[str, Any]:
    """Jobs of all kinds in turn: with own mining, with mining that another has done, without a bank, and one that fails."""
    kinds = ({"band": [0.1, 0.9]}, {}, {"bank": "stream"}, {"layer": "none such"})
    return {
        "network": "long_run:network", "layer": "2", "encoder": "classifier:long_run:classifier", "images": str(images),
        "bank": str(bank), "device": "cpu", "seed": number, "name": f"job-{number}", **SETTINGS, **kinds[number % 4],
    }  # fmt: skip


def run(count: int, folder: Path) -> Found:
    """Every second job through a batch, the others as calls with one network as an object."""
    images, temporary, bank = folder / "images", folder / "temporary", folder / "banks"
    for place in (images, temporary):
        place.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(images / f"{number:02}.png")
    own, config = network(), psi_fast.PSIConfig(**SETTINGS)
    batch = Batch(folder / "jobs", [job(number, images, bank) for number in range(count)])
    rss, counts = [], []
    with store.reserved(batch.folder):
        for number, one in enumerate(batch.begin()):
            if number % 8 < 4:  # all kinds both ways
                batch.run(one, Progress(False))
            else:
                layer = "2" if number % 4 < 3 else "none such"
                try:
                    psi_fast.score(
                        own, layer, str(images), encoder="classifier:long_run:classifier", config=config, bank=bank,
                        device="cpu", out=folder / f"run-{number}", progress=False,
                    )  # fmt: skip
                except psi_fast.PsiFastError:
                    if layer == "2":
                        raise
            gc.collect()
            rss.append(resident_mb())
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
        batch.gather()
    warm = min(WARM_UP, count // 3)
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in own.module.modules())
    left = [*temporary.iterdir(), *folder.rglob(store.TEMPORARY + "*"), *folder.rglob("*.unfinished")]
    return Found(
        rss,
        float(np.polyfit(np.arange(count - warm), rss[warm:], 1)[0]),
        counts[-1][0] - counts[warm][0],
        counts[-1][1] - counts[warm][1],
        hooks,
        [path.name for path in left],
        batch.table()["state"].tolist(),
    )


def resident_mb() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    count = parser.parse_args(argv).jobs
    sys.path.insert(0, str(Path(__file__).parent))  # of the specs
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PSI_FAST_CACHE"] = str(Path(folder) / "cache")
        found = run(count, Path(folder))
    say(
        f"{count} jobs: {found.rss_mb[0]:.0f} MB after the first, {found.rss_mb[-1]:.0f} MB after the last, growth "
        f"{found.slope_mb:.3f} MB a job over the last {count - min(WARM_UP, count // 3)}; {found.handles} file handles and "
        f"{found.threads} threads more, {found.hooks} hooks, {len(found.temporary)} temporary files"
    )


if __name__ == "__main__":
    main()
