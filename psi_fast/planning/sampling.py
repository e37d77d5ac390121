"""A short trial on real images: every stage on a few of them, timed, and how the top patches of channels meet."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from psi_fast.crops import distinct_crops, embed
from psi_fast.environment import device_info, peak_bytes
from psi_fast.errors import InputError
from psi_fast.evaluation import RANDOM_CHANNELS, Background, evaluate
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.mining import activations, mine
from psi_fast.pipeline import measured_fields, patch_boxes
from psi_fast.planning.costs import STAGES, Sizes, costs, draw_operations, text_operations
from psi_fast.planning.distinct import Curve, distinct_curve
from psi_fast.planning.memory import host_bytes
from psi_fast.planning.rates import Rates, about
from psi_fast.planning.workload import LayerSize, Workload
from psi_fast.progress import Bar, Progress
from psi_fast.results import Bank, PatchEmbeddings, TopPatches
from psi_fast.store import write_whole
from psi_fast.subject import Subject

CROPS = 384
"""Crops embedded at least, where there are so many: whole channels' ones, spread over the layers."""
DRAWS = 256
"""Null draws at most; more take so much longer."""
WARM_UP = 32
"""Images and crops that go through before anything is timed: the first ones wait for libraries to set up."""
WRITTEN = 2**25
"""Bytes written to learn how fast a disk takes them."""


class Stopwatch:
    """Seconds on the wall and of the process's cores, by stage."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.core: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the block takes to `name`."""
        wall, core = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - wall, time.process_time() - core)

    def add(self, name: str, wall: float, core: float) -> None:
        self.wall[name] = self.wall.get(name, 0.0) + wall
        self.core[name] = self.core.get(name, 0.0) + core


class TimedProgress(Progress):
    """Progress that also counts the seconds of cores of each stage, and knows when bars began.

    cores : by stage, as `seconds`
    begun : by title of a bar, on the clocks of the wall and of the process's cores
    """

    def __init__(self, shown: bool = True) -> None:
        super().__init__(shown)
        self.cores: dict[str, float] = {}
        self.begun: dict[str, tuple[float, float]] = {}

    def bar(self, title: str, total: int, unit: str, done: int = 0) -> Bar:
        """As of any Progress."""
        self.begun[title] = (time.perf_counter(), time.process_time())
        return super().bar(title, total, unit, done)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        with super().stage(name):
            yield
        self.cores[name] = self.cores.get(name, 0.0) + time.process_time() - begun


@dataclass(frozen=True)
class Trial:
    """What a trial found, before it becomes rates.

    wall, core : seconds by stage; count : of what, as `Cost.share` counts it; pool : as `Rates.pool_seconds`, by clock
    """

    wall: Mapping[str, float]
    core: Mapping[str, float]
    count: Mapping[str, int]
    pool: Mapping[str, float]
    images: int
    distinct: Curve
    host_bytes: float
    device: Mapping[str, object]

    def rates(self, work: Workload, clock: str = "wall") -> Rates:
        """Rates by the clock on the wall, or by the seconds that cores were at work ("core")."""
        taken = self.wall if clock == "wall" else self.core
        return Rates(
            source=f"a trial of {self.images} images on this machine",
            device=self.device,
            about=about(work),
            seconds={name: taken[name] / self.count[name] for name in STAGES if self.count.get(name)},
            pool_seconds=self.pool[clock],
            distinct=self.distinct,
            host_bytes=self.host_bytes,
        )


def try_stages(subject: Subject, work: Workload, listed: int, watch: Stopwatch, bars: TimedProgress) -> Trial:
    """Each stage on the subject's images, a sample of some hundred of `listed` ones.

    `watch` has what it took to open the images ("open images") and to load network and encoder ("load"). The subject's bank, if
    there is one, lies in a folder without one, so that decoding is tried.
    """
    device = subject.device
    count = {"open images": listed}
    with TemporaryDirectory(prefix="psi-fast-plan-") as place, bars.stage("trial"):
        with watch.stage("concepts"):
            text, _ = subject.concepts(bars)
        with watch.stage("decoding"):
            squares = subject.squares(bars)
        if isinstance(squares, ImageBank):
            count["decoding"] = len(subject.images)
            watch.add("decoding", bars.seconds.get("decoding", 0), bars.cores.get("decoding", 0))  # of a Dataset
        with watch.stage("load"):
            fields = measured_fields(subject, squares)
        tops = _mined(subject, squares, watch, bars)
        count |= {"concepts": 1, "load": 1, "mining": len(subject.images)}
        boxes = [
            patch_boxes(tap, own, top.positions, squares.side)
            for tap, own, top in zip(subject.taps, fields, tops, strict=True)
        ]
        curve = _curve(tops, boxes, len(subject.images))
        crops, index, images = _chosen(tops, boxes)
        rest = (squares, subject.images.names, subject.encoder, device, subject.config, bars)
        embed(crops[:WARM_UP], *rest)
        with watch.stage("embedding"):
            rows = embed(crops, *rest)
        count["embedding"] = len(crops)
        patches = PatchEmbeddings(rows, torch.from_numpy(index), torch.arange(len(index)))
        pool = _score(subject, work, patches, images, text, watch, count)
        if not subject.config.band:  # which keeps every image's maximum until the end
            _merge(tops, watch, count)
        _write(Path(place), watch, count)
    sizes = Sizes(
        images=len(subject.images), workers=1, crops=len(crops), kept=len(crops), products=device.type == "cuda"
    )
    base = max(0.0, peak_bytes() - host_bytes(work, sizes))
    return Trial(watch.wall, watch.core, count, pool, len(subject.images), curve, base, device_info(device))


def _mined(subject: Subject, squares: ImageBank | ImageStream, watch: Stopwatch, bars: Progress) -> list[TopPatches]:
    taps, network, config, names = subject.taps, subject.network, subject.config, subject.images.names
    for _ in activations(taps, network, squares, range(WARM_UP), config.batch_size, subject.pace):
        pass
    with watch.stage("mining"):
        return mine(
            taps, network, squares, names, subject.channels, config, bars, subject.pace, subject.images.labels
        )  # its results are on the CPU: a GPU has done its part


def _curve(tops: Sequence[TopPatches], boxes: Sequence[np.ndarray], images: int) -> Curve:
    """Of the patches of all layers' channels together."""
    held = [own.valid & ~own.dead[:, None] for own in tops]
    pairs = list(zip(tops, held, strict=True))
    return distinct_curve(
        np.concatenate([own.images[there] for own, there in pairs]),
        np.concatenate([box[there] for box, there in zip(boxes, held, strict=True)]),
        np.concatenate([np.broadcast_to(np.arange(there.shape[1]), there.shape)[there] for there in held]),
        images,
    )


def _chosen(tops: Sequence[TopPatches], boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct crops [U, 5] of some channels, spread over all: at least CROPS or those of all; where the channels' patches
    [c, K] find theirs, and their images."""
    images = np.concatenate([np.where(own.dead[:, None], -1, own.images) for own in tops])
    places = np.concatenate(boxes)
    living = np.flatnonzero((images >= 0).all(1))
    if not len(living):
        raise InputError("no channel varies over the sample's images, so nothing can be tried; give other images")
    count = 1
    while True:
        rows = living[np.linspace(0, len(living) - 1, count, dtype=int)]
        crops, index = distinct_crops(images[rows], places[rows])
        if len(crops) >= CROPS or count == len(living):
            return crops, index, images[rows]
        count += 1


def _score(
    subject: Subject,
    work: Workload,
    patches: PatchEmbeddings,
    images: np.ndarray,
    text: Bank,
    watch: Stopwatch,
    count: dict[str, int],
) -> dict[str, float]:
    """Clusters and null draws of a few channels, alone and with the random-patch ones; seconds of what they share, by clock."""
    config = replace(subject.config, draws=min(subject.config.draws, DRAWS))
    labels = subject.images.labels
    classes = None if labels is None else torch.from_numpy(labels[images])
    rows = len(patches.unique)
    of_rows = None if labels is None else torch.zeros(rows, dtype=torch.int64)
    channels = len(patches.index)
    unknown, none = np.full(channels, np.nan, dtype=np.float32), np.zeros(channels, dtype=bool)

    def timed(background: Background | None, draws: int) -> TimedProgress:
        bars = TimedProgress(shown=False)
        settings = replace(config, draws=draws)
        evaluate(
            *(patches, classes, text, background, settings, subject.device, bars),
            dead=none,
            max_activation=unknown,
            selectivity=unknown,
            unselective=none,
        )
        return bars

    random = Background(patches.unique, of_rows)
    timed(random, 2)  # loops are compiled
    alone, both = timed(None, config.draws), timed(random, config.draws)
    sizes = Sizes(images=len(subject.images), workers=1, crops=rows, kept=rows, products=subject.device.type == "cuda")
    few = replace(
        work, config=config, layers=(LayerSize(name="tried", channels=channels, width=channels, positions=1),)
    )
    made = costs(few, sizes)
    one = draw_operations(few, sizes.products) + text_operations(few)
    pool: dict[str, float] = {}
    for clock, small, large in (("wall", alone.seconds, both.seconds), ("core", alone.cores, both.cores)):
        a_channel = max(0.0, large["nulls"] - small["nulls"]) / RANDOM_CHANNELS
        pool[clock] = max(0.0, small["nulls"] - channels * a_channel) / made["nulls"].pool
        getattr(watch, clock)["nulls"] = a_channel
        getattr(watch, clock)["clusters"] = large["clusters"]
    count |= {"nulls": one, "clusters": made["clusters"].share}
    return pool


def _merge(tops: Sequence[TopPatches], watch: Stopwatch, count: dict[str, int]) -> None:
    """One worker's top patches put in order with another's."""
    for top in tops:
        values = torch.from_numpy(top.values)
        others = [torch.from_numpy(own) for own in (top.images, top.positions)]
        with watch.stage("merge"):
            order = torch.cat((values, values), 1).argsort(dim=1, descending=True, stable=True)[:, : values.shape[1]]
            for own in (values, *others):
                torch.cat((own, own), 1).gather(1, order)
        count["merge"] = count.get("merge", 0) + values.numel()


def _write(place: Path, watch: Stopwatch, count: dict[str, int]) -> None:
    held = torch.randint(256, (WRITTEN,), dtype=torch.uint8).numpy().tobytes()
    with watch.stage("writing"):
        write_whole(place / "written", lambda path: path.write_bytes(held))
    count["writing"] = WRITTEN
