"""Tiles of one size packed into sheets: WebP files of which a page shows parts.

Why WebP with effort 2: of 1024 random patches of Tiny-ImageNet's val images, 12 to 64 px wide, bytes a tile, PSNR of their
brightness in dB, and microseconds of a core to encode one (on a machine with other work; what matters is their ratio).

| side | kept as           | bytes | PSNR | us  |
|------|-------------------|-------|------|-----|
| 48   | JPEG 60           | 467   | 31.1 | 9   |
| 48   | WebP 60, effort 0 | 517   |      | 91  |
| 48   | WebP 60, effort 2 | 470   | 33.4 | 128 |
| 48   | WebP 60, effort 4 | 453   | 33.6 | 384 |
| 56   | JPEG 40           | 467   | 30.0 | 14  |
| 56   | WebP 40, effort 0 | 527   |      | 142 |
| 56   | WebP 40, effort 2 | 474   | 31.7 | 186 |
| 56   | WebP 40, effort 4 | 451   | 31.7 | 418 |
| 64   | JPEG 40           | 567   | 30.9 | 16  |
| 64   | WebP 40, effort 2 | 558   | 32.1 | 193 |
| 72   | WebP 40, effort 2 | 648   |      | 313 |

Whole images, with more detail a px, take 28 % more at 56 px and 59 % more at their own 64 px (WebP 40, effort 2).
"""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from psi_fast.crops import distinct_crops
from psi_fast.errors import InputError
from psi_fast.prefetch import prefetch
from psi_fast.progress import Progress
from psi_fast.report.pictures import BESIDE, Pictures

SHEET = 4096
"""Width of a sheet in px, and its height unless one channel alone needs more."""
TALLEST = 16383
"""Height in px that WebP ends at."""
METHOD = 2
"""WebP's effort."""
SAMPLE = 512
"""Tiles that are encoded to tell how many bytes all will take."""
PLAIN = 64
"""Side in px that tiles may have where patches have fewer; larger ones are blown up, and show nothing more."""
WORKERS = 4
"""Sheets that are made at once, at most: each takes some 200 MB meanwhile."""


@dataclass(frozen=True)
class Tiles:
    """How tiles are kept: their side in px and WebP's quality, 0 to 100."""

    side: int
    quality: int

    @property
    def columns(self) -> int:
        """Tiles in a row of a sheet: tile i lies in column i % columns of row i // columns."""
        return SHEET // self.side

    @property
    def capacity(self) -> int:
        """Tiles in a sheet as high as wide."""
        return self.columns**2


STEPS = tuple(
    Tiles(side, quality)
    for side, quality in (
        *((256, 75), (192, 75), (160, 75), (128, 75), (112, 75), (96, 75), (80, 70), (72, 65)),
        *((64, 75), (64, 60), (64, 50), (56, 50), (56, 40), (48, 40), (40, 40)),
    )
)
"""What is tried, best first."""
LARGEST_PATCH = 128
"""Side in px of tiles of patches, at most."""
STRIP = Tiles(40, 60)
"""Thumbnails of a table's rows."""
STRIP_CHANNELS, IMAGES = 256, 256
"""Channels whose thumbnails, and whole images, in a sheet at most."""


@dataclass(frozen=True)
class Plan:
    """What lies where in sheets.

    tiles : of all the sheets
    firsts : first channel (row of `numbers`) of each sheet
    numbers : [C, K] int64, number of each place's tile in the sheet of its channel, -1 where there is none
    rows : of each sheet its tiles' pictures, [n] int64
    boxes : of each sheet its tiles' boxes, [n, 4] float64 (x0, y0, x1, y1) in px of the originals; None for whole images
    """

    tiles: Tiles
    firsts: list[int]
    numbers: np.ndarray
    rows: list[np.ndarray]
    boxes: list[np.ndarray] | None


def plan_patches(pictures: Pictures, rows: np.ndarray, boxes: np.ndarray, budget: int) -> Plan:
    """Sheets of a layer's patches: all of a channel's in one, and each distinct patch once in a sheet.

    Tiles are as large and good as `budget` bytes allow, by a sample of them, and no larger than nearly all patches are; where
    one sheet can hold all distinct patches, of `PLAIN` px at least, it does.

    Parameters
    ----------
    rows, boxes : [C, K] int64 and [C, K, 4] float64, as `locate` gives them

    Raises
    ------
    InputError
        A channel has more patches than a sheet holds.
    """
    crops, index = distinct_crops(rows, boxes)
    where, box = crops[:, 0].astype(np.int64), crops[:, 1:]
    placed = pictures.on_square(where, box) * pictures.side
    sides = (placed[:, 2:] - placed[:, :2]).max(1)
    steps = _up_to(min(LARGEST_PATCH, float(np.quantile(sides, 0.9)) if len(sides) else 0))
    if any(tiles.capacity >= len(crops) for tiles in steps if tiles.side >= PLAIN):
        steps = [tiles for tiles in steps if tiles.capacity >= len(crops)]

    def count(tiles: Tiles) -> int:
        firsts = split_channels(index, tiles.capacity, len(index))
        return sum(len(np.unique(own[own >= 0])) for own in np.split(index, firsts[1:]))

    tiles = _chosen(pictures, where, box, steps, count, budget) if len(crops) else steps[-1]
    return _plan(crops, index, tiles, len(index))


def plan_strips(rows: np.ndarray, boxes: np.ndarray) -> Plan:
    """Sheets of a layer's small thumbnails, a few a channel: `rows` and `boxes` as for `plan_patches`."""
    return _plan(*distinct_crops(rows, boxes), STRIP, STRIP_CHANNELS)


def plan_images(pictures: Pictures, budget: int) -> Plan:
    """Sheets of all the pictures whole; `numbers` is [pictures, 1]. Tiles are no larger than pictures are."""
    where = np.arange(len(pictures))
    steps = _up_to(pictures.side)
    tiles = _chosen(pictures, where, None, steps, lambda _: len(where), budget)
    firsts = list(range(0, len(where), IMAGES))
    return Plan(tiles, firsts, where[:, None] % IMAGES, np.split(where, firsts[1:]), None)


def split_channels(index: np.ndarray, capacity: int, most: int) -> list[int]:
    """First channel of each sheet, at most `most` in one: as many as have `capacity` distinct tiles together, or one.

    Parameters
    ----------
    index : [C, K] int64, the distinct tile of each place, -1 where there is none
    """
    firsts: list[int] = []
    held: set[int] = set()
    for channel, places in enumerate(index):
        own = set(places[places >= 0].tolist())
        held = held | own
        if not firsts or channel - firsts[-1] == most or len(held) > capacity:
            firsts.append(channel)
            held = own
    return firsts


def write_sheets(plan: Plan, paths: Sequence[Path], pictures: Pictures, bars: Progress) -> None:
    """Cut, pack and write the sheets of a plan, each to its path, in threads."""

    def work(sheet: int) -> None:
        boxes = None if plan.boxes is None else plan.boxes[sheet]
        paths[sheet].write_bytes(_encoded(_painted(pictures, plan.rows[sheet], boxes, plan.tiles), plan.tiles))

    done = prefetch(work, range(len(paths)), ahead=WORKERS, workers=min(WORKERS, os.cpu_count() or 1))
    with closing(done), bars.bar("pictures", len(paths), "sheet") as bar:
        for _ in done:
            bar.update()


def _plan(crops: np.ndarray, index: np.ndarray, tiles: Tiles, channels: int) -> Plan:
    """Where the distinct patches `crops` [U, 5] of the places `index` [C, K] lie."""
    firsts = split_channels(index, tiles.capacity, channels)
    numbers, parts = np.full(index.shape, -1, dtype=np.int64), []
    for first, own in zip(firsts, np.split(index, firsts[1:]), strict=True):
        used, inverse = np.unique(own[own >= 0], return_inverse=True)
        numbers[first : first + len(own)][own >= 0] = inverse
        parts.append(crops[used])
    most = TALLEST // tiles.side * tiles.columns
    if (largest := max(map(len, parts), default=0)) > most:
        raise InputError(
            f"a channel has {largest} patches, and a sheet of pictures holds {most}; score it with a smaller top_k"
        )
    return Plan(tiles, firsts, numbers, [p[:, 0].astype(np.int64) for p in parts], [p[:, 1:] for p in parts])


def _up_to(side: float) -> list[Tiles]:
    """The steps without those larger than `side`, or than `PLAIN` where that is smaller."""
    return [tiles for tiles in STEPS if tiles.side <= max(side, PLAIN)]


def _chosen(
    pictures: Pictures,
    rows: np.ndarray,
    boxes: np.ndarray | None,
    steps: Sequence[Tiles],
    count: Callable[[Tiles], int],
    budget: int,
) -> Tiles:
    """The first of `steps` that keeps as many tiles as `count` tells below the budget, by a sample of them, or the last."""
    some = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows)), dtype=int))
    sample = rows[some], None if boxes is None else boxes[some]
    for tiles in steps:
        if len(_encoded(_painted(pictures, *sample, tiles), tiles)) / len(some) * count(tiles) <= budget:
            return tiles
    return steps[-1]


def _painted(pictures: Pictures, rows: np.ndarray, boxes: np.ndarray | None, tiles: Tiles) -> np.ndarray:
    """A sheet, uint8 [height, width, 3]."""
    side, columns = tiles.side, tiles.columns
    lines = max(1, -(-len(rows) // columns))  # one of grey where no channel of the sheet has a patch
    sheet = np.full((lines * side, columns * side, 3), BESIDE, dtype=np.uint8)
    cells = sheet.reshape(-1, side, columns, side, 3)
    for i, tile in enumerate(pictures.tiles(rows, boxes, side)):
        cells[i // columns, :, i % columns] = tile
    return sheet


def _encoded(sheet: np.ndarray, tiles: Tiles) -> bytes:
    held = io.BytesIO()
    Image.fromarray(sheet).save(held, "WEBP", quality=tiles.quality, method=METHOD)
    return held.getvalue()
