"""TopPatches + bank -> embeddings: each distinct crop cut, prepared and encoded once, in batches on the device."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from torch.nn.functional import normalize

from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder
from psi_fast.errors import InputError
from psi_fast.forward import step_of
from psi_fast.image_bank import ImageBank, Squares
from psi_fast.image_stream import ImageStream
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress


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
) -> torch.Tensor:
    """Unit embeddings [U, d] float32, on the CPU, of crops [U, 5] (image, x0, y0, x1, y1) in the bank's px.

    `names` are the images', for messages.

    Raises
    ------
    InputError
        An embedding is not finite or zero.
    """
    encoder = encoder.to(device)
    batch_size = step_of(device, config.batch_size)
    images, boxes = crops[:, 0].astype(np.int64), whole_pixels(crops[:, 1:], bank.side)
    parts: list[torch.Tensor] = []
    starts = range(0, len(crops), batch_size)
    with (
        torch.inference_mode(),
        closing(bank.walk([images[start : start + batch_size] for start in starts])) as walk,
        progress.bar("embedding", len(crops), "crop") as bar,
    ):
        for start, (squares, rows) in zip(starts, walk, strict=True):
            batch = prepare(squares, rows, boxes[start : start + batch_size], encoder.preprocess, device)
            part = encoder.encode(batch).float().cpu()
            bad = torch.nonzero(~torch.isfinite(part).all(1) | (part == 0).all(1))
            if len(bad):
                raise InputError(
                    f"embedding: {encoder.name} returns a vector that is zero or not finite for a crop of image "
                    f"{names[images[start + int(bad[0])]]!r}; check the encoder's weights and precision"
                )
            parts.append(normalize(part.double(), dim=1, eps=0).float())
            bar.update(len(part))
    return torch.cat(parts)


def prepare(
    squares: Squares, images: np.ndarray, boxes: np.ndarray, preprocess: Preprocess, device: torch.device
) -> torch.Tensor:
    """A network's input for one crop each of the images [B]: boxes [B, 4] int64 in the squares' px -> float32 [B, 3, S, S].

    Crops of one size go together; each is cut, resized and normalised as it would be alone.
    """
    sizes, group = np.unique(boxes[:, 2:] - boxes[:, :2], axis=0, return_inverse=True)
    group = group.reshape(-1)
    result = None
    for number, size in enumerate(sizes.tolist()):
        rows = np.flatnonzero(group == number)
        part = preprocess(squares.cut(images[rows], boxes[rows, :2], tuple(size), device))
        if len(sizes) == 1:
            return part
        if result is None:
            result = part.new_empty(len(images), *part.shape[1:])
        result[torch.from_numpy(rows).to(device)] = part
    return result


def whole_pixels(boxes: np.ndarray, side: int) -> np.ndarray:
    """Boxes [..., 4] (x0, y0, x1, y1) widened to whole pixels, at least one, inside 0..side; int64."""
    low = np.minimum(np.floor(boxes[..., :2]), side - 1)
    high = np.minimum(np.maximum(np.ceil(boxes[..., 2:]), low + 1), side)
    return np.concatenate((low, high), axis=-1).astype(np.int64)
