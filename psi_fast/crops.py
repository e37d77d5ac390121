"""TopPatches + bank -> embeddings: each distinct crop cut, prepared and encoded once, in batches on the device."""

import math
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import normalize

from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder
from psi_fast.errors import DeviceMemoryError, NotFiniteError
from psi_fast.forward import one_thread, step_of
from psi_fast.image_bank import MAX_SIDE, ImageBank, Squares
from psi_fast.image_stream import ImageStream
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.shelf import Unfinished
from psi_fast.stopping import postponed
from psi_fast.trial_forward import halved, memory_told, told

WINDOW = 256
"""Crops that follow one another in the order of their images and are put in order of size: those of one size go together."""

NOTABLE = 1.3
"""How much larger a bank's side must be to be worth a warning."""

NEARLY = 1.5
"""How much larger originals may be than what is needed to be kept at their own size."""


def distinct_crops(images: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (image, box) pairs, sorted by image, and where each place finds its own.

    Parameters
    ----------
    images : [...] int64, -1 for a place without a patch
    boxes : [..., 4] float64 (x0, y0, x1, y1)

    Returns
    -------
    crops : [U, 5] float64 rows (image, x0, y0, x1, y1)
    index : [...] int64 into crops, -1 for a place without a patch
    """
    held = images >= 0
    rows = np.column_stack((images[held], boxes[held]))
    crops, inverse = np.unique(rows, axis=0, return_inverse=True)
    index = np.full(images.shape, -1, dtype=np.int64)
    index[held] = inverse.reshape(-1)
    return crops, index


def embed(
    crops: np.ndarray,
    bank: ImageBank | ImageStream,
    names: Sequence[str],
    encoder: Encoder,
    device: torch.device,
    config: PSIConfig,
    progress: Progress,
    unfinished: Unfinished | None = None,
) -> torch.Tensor:
    """Unit embeddings [U, d] float32, on the CPU, of crops [U, 5] (image, x0, y0, x1, y1) in the bank's px.

    `names` are the images', for messages. What an earlier call left in `unfinished` is not encoded again.

    Raises
    ------
    NotFiniteError
        An embedding is not finite or zero.
    ModelError
        The encoder raises.
    DeviceMemoryError
        Not even one crop at a time fits into the device's memory; until then the batch is halved.
    """
    encoder = encoder.to(device)
    done, held = unfinished.read() if unfinished else (0, {})
    result = held.get("rows")
    missing = held.get("missing", torch.ones(len(crops), dtype=torch.bool))
    batch_size = config.batch_size
    with postponed() if unfinished else nullcontext(), progress.bar("embedding", len(crops), "crop", done) as bar:
        while missing.any():
            wanted = torch.nonzero(missing)[:, 0]
            try:
                batches = _encoded(crops[wanted.numpy()], bank, names, encoder, device, batch_size)
                for places, part in batches:
                    if result is None:
                        result = torch.zeros(len(crops), part.shape[1])
                    rows = wanted[torch.from_numpy(places)]
                    result[rows], missing[rows] = part, False
                    bar.update(len(part))
                    if unfinished:
                        found = {"rows": result, "missing": missing}
                        unfinished.write(len(crops) - int(missing.sum()), lambda found=found: found)
            except DeviceMemoryError as error:
                batch_size = halved(batch_size, lambda size: step_of(device, size), error)
    assert result is not None, "a run has a crop"
    return result


def _encoded(
    crops: np.ndarray,
    bank: ImageBank | ImageStream,
    names: Sequence[str],
    encoder: Encoder,
    device: torch.device,
    batch_size: int,
) -> Generator[tuple[np.ndarray, torch.Tensor], None, None]:
    """In batches, which of the crops they are [B], and what `embed` gives for them."""
    images, boxes = crops[:, 0].astype(np.int64), whole_pixels(crops[:, 1:], bank.side)
    batches = prepared(bank, images, boxes, encoder.preprocess, device, step_of(device, batch_size))
    with torch.inference_mode(), closing(batches):
        while True:
            with memory_told(f"embedding by {encoder.name}"):
                batch = next(batches, None)
            if batch is None:
                return
            rows, pixels = batch
            first = names[int(images[rows[0]])]
            where = f" on a batch of crops, the first of them of image {first!r}"
            with told(f"embedding: {encoder.name}", lambda _error, where=where: where):
                part = encoder.encode(pixels).float().cpu()
            bad = torch.nonzero(~torch.isfinite(part).all(1) | (part == 0).all(1))
            if len(bad):
                raise NotFiniteError(
                    f"embedding: {encoder.name} returns a vector that is zero or not finite for a crop of image "
                    f"{names[int(images[rows[int(bad[0])]])]!r}; check the encoder's weights and precision"
                )
            yield rows, normalize(part.double(), dim=1, eps=0).float()


def prepared(
    bank: ImageBank | ImageStream,
    images: np.ndarray,
    boxes: np.ndarray,
    preprocess: Preprocess,
    device: torch.device,
    batch_size: int,
) -> Generator[tuple[np.ndarray, torch.Tensor], None, None]:
    """Crops in batches: which they are [B], and a network's input [B, 3, S, S], overwritten by the next batch.

    Parameters
    ----------
    images, boxes : [U] int64 and [U, 4] int64
        Images in ascending order, and boxes in the bank's px.
    """
    space = torch.empty(batch_size, preprocess.size, preprocess.size, 3, device=device)
    windows = [slice(start, start + WINDOW) for start in range(0, len(images), WINDOW)]
    with closing(bank.walk([images[window] for window in windows])) as walk:
        for window, (squares, places) in zip(windows, walk, strict=True):
            order = np.lexsort((boxes[window, 2:] - boxes[window, :2]).T)
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                rows = window.start + batch
                yield rows, prepare(squares, places[batch], boxes[rows], preprocess, device, space)


def prepare(
    squares: Squares,
    images: np.ndarray,
    boxes: np.ndarray,
    preprocess: Preprocess,
    device: torch.device,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A network's input for one crop each of the images [B]: boxes [B, 4] int64 in the squares' px -> float32 [B, 3, S, S].

    Neighbours of one size go together; each is cut, resized and normalised as it would be alone. With `out`, float32
    [B or more, S, S, 3], the result lies in its first B rows.
    """
    if out is None:
        out = torch.empty(len(boxes), preprocess.size, preprocess.size, 3, device=device)
    sizes = boxes[:, 2:] - boxes[:, :2]
    changes = np.flatnonzero((sizes[1:] != sizes[:-1]).any(1)) + 1
    with one_thread() if device.type == "cpu" else nullcontext():
        for start, stop in pairwise([0, *changes.tolist(), len(boxes)]):
            cut = squares.cut(images[start:stop], boxes[start:stop, :2], tuple(sizes[start].tolist()), device)
            preprocess(cut, out[start:stop])
    return out[: len(boxes)].permute(0, 3, 1, 2)


def lost_detail(boxes: np.ndarray, images: np.ndarray, bank: ImageBank | ImageStream, encoder: Encoder) -> str | None:
    """A warning when photographs hold more of their patches than a bank of small squares does, and the encoder takes more.

    Parameters
    ----------
    boxes : [N, 4] float64 (x0, y0, x1, y1) in the bank's px
    images : [N] int64, their images
    """
    taken, side = encoder.preprocess.resize, bank.side
    width = float(np.median((boxes[:, 2:] - boxes[:, :2]).min(1)))
    short = bank.sizes[images].min(1)
    fitting, most = math.ceil(side * taken / width - 1e-6) if width else side, int(short.max())
    # the originals as they are, where the bank would hardly be smaller: to resize them twice would blur
    fitting = min(most if fitting > most / NEARLY else fitting, MAX_SIDE)
    if fitting < NOTABLE * side:
        return None
    return (
        f"patches are {width:.0f} px wide in images of {side} px, of which {encoder.name} could take in {taken} px and "
        f"{(short > side).mean():.0%} of the originals hold more; --bank-side {fitting} keeps it"
    )


def whole_pixels(boxes: np.ndarray, side: int) -> np.ndarray:
    """Boxes [..., 4] (x0, y0, x1, y1) widened to whole pixels, at least one, inside 0..side; int64."""
    low = np.minimum(np.floor(boxes[..., :2]), side - 1)
    high = np.minimum(np.maximum(np.ceil(boxes[..., 2:]), low + 1), side)
    return np.concatenate((low, high), axis=-1).astype(np.int64)
