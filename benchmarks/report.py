"""A report of as much as it must hold: 2048 channels with 100 patches each, hardly two of them alike.

    python benchmarks/report.py --run runs/worst    # makes the run (minutes) where there is none yet, then its report

The network's activations are noise that is as good as independent over channels, images and positions, so that every channel
has other patches; the encoder is a random projection of the crops' pixels. Scores are psi_fast's own, with few draws.
"""

import json
import resource
import shutil
import statistics
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch
from urllib.parse import urlparse
from urllib.request import url2pathname

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


def visit(index: Path, channels: int, times: int = 3) -> dict[str, Any]:
    """What a reader waits for in a browser, each the median of `times` new tabs: seconds until there is something to read and
    the page answers (`opened`), and until all charts are drawn (`drawn`); and the bytes of what the first page loads.

    Empty where no browser is on the PATH.
    """
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return {}
    own = json.loads((index.parent / "data" / "index.js").read_text().partition(",")[2].rpartition(")")[0])["layers"][0]
    pages = {"overview": "#overview", "table": "#channels", "channel": f"#{own['key']}/{channels // 2}"}
    found: dict[str, Any] = {}
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser, args=options) as chromium:
        chromium.new_page().goto("about:blank")  # its own start is nobody's wait for a report
        for name, address in pages.items():
            taken = [_visited(chromium, index, address) for _ in range(times)]
            found |= {f"{name} {key}": statistics.median(one[key] for one in taken) for key in ("opened", "drawn")}
            found[f"{name} bytes"] = taken[0]["bytes"]
    return found


def _visited(chromium: Any, index: Path, address: str) -> dict[str, float]:
    """Seconds and bytes of one page in a tab of its own."""
    with chromium.new_context(viewport={"width": 1280, "height": 900}) as context:
        page, loaded = context.new_page(), set()
        page.on("request", lambda request: loaded.add(request.url.partition("#")[0]))
        start, found = time.perf_counter(), {}
        page.goto(f"{index.resolve().as_uri()}{address}")
        for key in ("opened", "ready"):
            page.wait_for_function(f"document.documentElement.dataset.{key} === {json.dumps(address)}", timeout=60_000)
            found["drawn" if key == "ready" else key] = round(time.perf_counter() - start, 3)
        files = [Path(url2pathname(urlparse(url).path)) for url in loaded if url.startswith("file:")]
        return found | {"bytes": sum(path.stat().st_size for path in files)}


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
    found["browser"] = visit(Path(found["index"]), options.channels)
    # of this process, which has only read the run where that was there before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    found["peak_memory_mib"] = round(peak)
    text = json.dumps(found, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    say(text)


if __name__ == "__main__":
    main()
