"""A report of as much as it must hold: 2048 channels with 100 patches each, hardly two of them alike.

    python benchmarks/report.py --run runs/worst    # makes the run (minutes) where there is none yet, then its report

The network's activations are noise that is as good as independent over channels, images and positions, so that every channel
has other patches; the encoder is a random projection of the crops' pixels. Scores are psi_fast's own, with few draws.
"""

import json
import resource
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from harness import say
from tiny_imagenet import arguments
from torch import nn
from torch.nn.functional import normalize

import psi_fast
from psi_fast import Network, Preprocess, PSIConfig, store
from psi_fast.progress import Progress
from psi_fast.report import folder as building
from psi_fast.vocabulary import Vocabulary

LAYER = "scatter"
INPUT = 64
"""Side in px of the network's input, and of Tiny-ImageNet's images."""
CROP = 16
"""Side in px that the encoder takes."""
WIDTH = 512


class Scatter(nn.Module):
    """A map [B, C, H, W] -> noise of an exponential distribution, which the bits of the map alone decide, [B, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int32)
        for factor in (-1640531535, 739982445):
            bits = (bits ^ ((bits >> 16) & 0xFFFF)) * factor  # wraps around
        return -torch.log(((bits >> 8) & 0xFFFFFF).float().add_(0.5).mul_(2.0**-24))


def scattered_network(channels: int) -> Network:
    """A network with a layer of `channels` of noise on 16 x 16 positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixed = nn.Conv2d(3, channels, 1)
    module = OrderedDict(pooled=nn.AvgPool2d(INPUT // 16), mixed=mixed, scatter=Scatter())
    return Network(nn.Sequential(module), Preprocess(size=INPUT, resize=INPUT), "scattered noise")


class Projection:
    """An encoder: the pixels of a crop through a fixed random matrix; concepts point anywhere."""

    name = "random projection"

    def __init__(self) -> None:
        self.preprocess = Preprocess(size=CROP, resize=CROP)
        self.warnings: list[str] = []
        self._weight = self._random(3 * CROP * CROP, 1)

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, WIDTH]."""
        return torch.tanh(batch.flatten(1) @ self._weight / CROP)

    def concepts(self, vocabulary: Vocabulary, progress: object = None) -> tuple[list[str], torch.Tensor]:
        """The vocabulary's names, and random directions."""
        return list(vocabulary.concepts), normalize(self._random(len(vocabulary.concepts), 2), dim=1)

    def fingerprint(self) -> str:
        """The matrix never changes."""
        return f"{self.name} {CROP} {WIDTH}"

    def to(self, device: torch.device) -> Self:
        """The same, on `device`."""
        self._weight = self._weight.to(device)
        return self

    @staticmethod
    def _random(rows: int, seed: int) -> torch.Tensor:
        return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def make_run(images: Path, folder: Path, channels: int, top_k: int, draws: int) -> psi_fast.Scores:
    """The run, scored into `folder`, or read where it is there."""
    return psi_fast.score(
        scattered_network(channels),
        LAYER,
        images,
        encoder=Projection(),
        vocabulary="imagenet",
        config=PSIConfig(top_k=top_k, draws=draws, n_init=1, patch=0.5, precision="float32"),
        device="cpu",
        out=folder,
    )


def build(run: Path, images: Path) -> dict[str, Any]:
    """Build the report of a run in its folder: seconds of it all, of its stages and of all cores, bytes by kind of file.

    `index` is its index.html, which what measures a browser opens.
    """
    bars = Progress()
    start, cores = time.perf_counter(), time.process_time()
    with patch.object(building, "Progress", lambda _shown: bars):
        index = building.build_report(run, images=images)
    seconds = {"all": time.perf_counter() - start, "all, of cores": time.process_time() - cores} | bars.seconds
    return {"index": str(index), "seconds": seconds, "bytes": sizes(index.parent)}


def sizes(report: Path) -> dict[str, int]:
    """Bytes of a report's files by kind: sheets and data by their names without numbers, the rest by its ending."""
    found: Counter[str] = Counter()
    for path in report.rglob("*"):
        if path.is_file():
            name = path.name.split("-")[0] + path.suffix if "-" in path.name else path.suffix or path.name
            found["all"] += path.stat().st_size
            found[name] += path.stat().st_size
    return dict(found.most_common())


def main(given: list[str] | None = None) -> None:
    """Make the run and its report, and print what they took."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder; made where there is none")
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args(given)
    if not (options.run / store.MANIFEST).exists():
        make_run(options.images, options.run, options.channels, options.top_k, options.draws)
    scores = store.load(options.run)
    found = {
        "channels": len(scores.table),
        "patches": len(scores.patches),
        "distinct": scores.manifest["distinct_crops"],
    }
    found |= build(options.run, options.images)
    # of this process, which has only read the run where that was there before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    found["peak_memory_mib"] = round(peak)
    text = json.dumps(found, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    say(text)


if __name__ == "__main__":
    main()
