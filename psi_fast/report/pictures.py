"""The images that a run's patches lie in, found by name and decoded: what a report shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from psi_fast.cache import cache_folder
from psi_fast.crops import whole_pixels
from psi_fast.disk_room import require_free
from psi_fast.errors import InputError, PsiFastError
from psi_fast.hf_datasets import lies_here, names_dataset
from psi_fast.image_bank import ImageBank, held_bank, open_bank, to_square
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images
from psi_fast.paths import path_errors
from psi_fast.progress import Progress
from psi_fast.scores import Scores, printable

BESIDE = 128
"""Grey value beside a patch that is no square."""
CPU = torch.device("cpu")


class Pictures:
    """Images as squares, each with a row.

    Attributes
    ----------
    names : list[str]
        Of each row, as in the column `image` of patches.parquet; in the order of the run's images.
    side : int
        Side of the squares in px.
    warnings : list[str]
        What a reader must know of them.
    """

    def __init__(self, names: Sequence[str], bank: ImageBank, places: np.ndarray, warnings: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.side = bank.side
        self.warnings = list(warnings)
        self._bank, self._places = bank, places
        self._rows = pd.Index(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, names: Sequence[str] | pd.Series) -> np.ndarray:
        """Rows of the images called `names` [n], int64; -1 for one that is not here."""
        return self._rows.get_indexer(pd.Index(names)).astype(np.int64)

    def on_square(self, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] (x0, y0, x1, y1) in px of the originals `rows` [...], as parts of their squares: float64 in 0..1."""
        return np.clip(to_square(boxes, 1, self._bank.sizes[self._places[rows]]), 0, 1)

    def tiles(self, rows: np.ndarray, boxes: np.ndarray | None, side: int) -> Iterator[np.ndarray]:
        """Patches as tiles of `side` px, in order: the pixels that the encoder was given, resized.

        Parameters
        ----------
        rows : [n] int64, of the patches' images; neighbours in one image are quickest
        boxes : [n, 4] float (x0, y0, x1, y1) in px of the originals; None for whole squares

        Yields
        ------
        np.ndarray
            [side, side, 3] uint8 RGB; a patch that is no square keeps its shape, between grey.
        """
        if boxes is None:
            placed = np.broadcast_to([0, 0, self.side, self.side], (len(rows), 4))
        else:
            placed = to_square(boxes, self.side, self._bank.sizes[self._places[rows]])
            # the table has float32: a hair above a whole pixel would be widened to the next; and an image may have changed
            placed = whole_pixels(np.clip(placed.round(3), 0, self.side), self.side)
        held, square = -1, None
        for row, (x0, y0, x1, y1) in zip(rows.tolist(), placed.tolist(), strict=True):
            if square is None or row != held:
                place = int(self._places[row])
                held, square = row, self._bank.read(slice(place, place + 1), CPU)[0].numpy()
            yield _fitted(square[y0:y1, x0:x1], side)


def open_pictures(manifest: dict[str, Any], patches: pd.DataFrame, images: Any = None, *, bars: Progress) -> Pictures:
    """The images that a finished run's patches lie in, opened again.

    The squares that the run decoded are read where they are still kept; otherwise those images alone are decoded, to a file
    that goes when the pictures do.

    Parameters
    ----------
    manifest, patches
        Of the run.
    images : as `psi_fast.score` takes them, optional
        Where the images are now; None is where the run found them, unless it is the hub.

    Raises
    ------
    InputError
        The images are not where they were, or some that patches lie in are not among them.
    StoreError
        The disk has no room for the decoded images.
    """
    source = manifest["source"] if images is None else images
    with path_errors("where the run's images are", InputError):
        if images is None and isinstance(source, str) and names_dataset(source) and not lies_here(source):
            raise InputError(
                f"the images of the run are the hub's dataset {source!r}, which no run folder may have fetched by itself; "
                f"give --images {source} for it, or --no-pictures"
            )
    config = manifest["config"]
    try:
        found = open_images(
            source,
            max_images=manifest["max_images"],
            seed=config["seed"],
            skip_unreadable=manifest["skip_unreadable"],
            progress=bars,
        )
    except PsiFastError as error:
        if images is not None:
            raise
        raise InputError(
            f"the images of the run cannot be opened again; tell where they are by --images ({error})"
        ) from error
    warnings = []
    if not found.lasting:
        warnings.append("the images come from a dataset, and were not compared with those that were scored")
    elif found.fingerprint != manifest["fingerprints"]["images"]:
        warnings.append(
            "the images are not quite those that were scored (some were changed, copied, added or taken away): patches may "
            "show something else than what was scored"
        )
    side = manifest["bank"]["side_px"]
    # where no bank was kept, the folder is words, and nothing lies there
    places = (Path(manifest["bank"]["folder"]).parent, None)
    banks = (held_bank(found, folder=folder, side=side) for folder in places)
    bank = next(filter(None, banks), None)
    used = _used(found, patches)
    names = [printable(found.names[i]) for i in used]
    if bank is not None:
        return Pictures(names, bank, used, warnings)
    taken = found.take(used.tolist())
    taken.lasting = False  # whoever wants squares kept has them in a bank of all images
    require_free(
        cache_folder(),
        len(taken) * side * side * 3,
        "the images that patches lie in, decoded, need",
        "name another folder by PSI_FAST_CACHE",
    )
    with bars.stage("decoding"):
        bank = open_bank(taken, side, side=side, progress=bars)
    return Pictures(names, bank, np.arange(len(used)), warnings)


def locate(scores: Scores, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Where the run's patches lie.

    Returns
    -------
    rows : [C, K] int64
        Pictures' rows, of each row of the table and each rank; -1 where there is no patch.
    boxes : [C, K, 4] float64
        (x0, y0, x1, y1) in px of the originals; 0 where there is no patch.
    """
    patches, keys = scores.patches, ["layer", "channel"]
    assert patches is not None, "a run folder has patches"
    row = pd.MultiIndex.from_frame(scores.table[keys]).get_indexer(pd.MultiIndex.from_frame(patches[keys]))
    rank = patches["rank"].to_numpy()
    rows = np.full(scores.labels.shape, -1, dtype=np.int64)
    boxes = np.zeros((*rows.shape, 4))
    rows[row, rank] = pictures.rows(patches["image"])
    boxes[row, rank] = np.stack(patches["box"].to_list())
    return rows, boxes


def _used(images: ImageSet, patches: pd.DataFrame) -> np.ndarray:
    """Rows of `images` that patches lie in, ascending, int64."""
    wanted = patches["image"].unique()
    row = {printable(name): i for i, name in enumerate(images.names)}
    missing = [name for name in wanted if name not in row]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(wanted)} images that patches lie in are not among the {len(images)} given, such as "
            f"{missing[0]!r}; tell by --images where those are that were scored"
        )
    return np.array(sorted(row[name] for name in wanted), dtype=np.int64)


def _fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels [height, width, 3] resized to [side, side, 3] uint8; what is no square keeps its shape."""
    height, width = pixels.shape[:2]
    if abs(width - height) <= 1:  # a px more in one direction comes of whole pixels, and is no shape
        width = height = 1
    longest = max(width, height)
    size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
    part = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if size == (side, side):
        return part
    tile = np.full((side, side, 3), BESIDE, dtype=np.uint8)
    x, y = (side - size[0]) // 2, (side - size[1]) // 2
    tile[y : y + size[1], x : x + size[0]] = part
    return tile
