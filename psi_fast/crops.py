"""TopPatches + images -> embeddings: each distinct crop cut, prepared and encoded once."""

from contextlib import closing

import numpy as np
import torch
from torch.nn.functional import normalize

from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder
from psi_fast.errors import InputError
from psi_fast.forward import whole_slices
from psi_fast.images import ImageSet
from psi_fast.prefetch import batches, prefetch
from psi_fast.progress import Progress


def distinct_crops(images: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (image, box) pairs, sorted by image, and where each place finds its own.

    Parameters
    ----------
    images : [...] int64, -1 for a place without a patch
    boxes : [..., 4] float64 (x0, y0, x1, y1) in pixels of the image

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
    crops: np.ndarray, images: ImageSet, encoder: Encoder, device: torch.device, config: PSIConfig, progress: Progress
) -> torch.Tensor:
    """Unit embeddings [U, d] float32, on the CPU, of crops [U, 5] (image, x0, y0, x1, y1) sorted by image.

    Raises
    ------
    InputError
        An embedding is not finite or zero.
    """
    edges = np.flatnonzero(np.diff(crops[:, 0], prepend=-1))
    by_image = np.split(crops, edges[1:])

    def prepare(rows: np.ndarray) -> list[torch.Tensor]:
        image = images.load(int(rows[0, 0]))
        return [encoder.prepare(image.crop(_whole_pixels(box, image.size))) for box in rows[:, 1:]]

    encoder = encoder.to(device)
    batch_size = whole_slices(config.batch_size)
    parts: list[torch.Tensor] = []
    done = 0
    with (
        closing(prefetch(prepare, by_image, ahead=2 * batch_size)) as prepared,
        torch.inference_mode(),
        progress.bar("embedding", len(crops), "crop") as bar,
    ):
        each = (crop for group in prepared for crop in group)
        for batch in batches(each, batch_size):
            part = encoder.encode(torch.stack(batch).to(device)).float().cpu()
            bad = torch.nonzero(~torch.isfinite(part).all(1) | (part == 0).all(1))
            if len(bad):
                image = images.names[int(crops[done + int(bad[0]), 0])]
                raise InputError(
                    f"embedding: {encoder.name} returns a vector that is zero or not finite for a crop of image {image!r}; "
                    "check the encoder's weights and precision"
                )
            parts.append(normalize(part.double(), dim=1, eps=0).float())
            done += len(batch)
            bar.update(len(batch))
    return torch.cat(parts)


def _whole_pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box widened to whole pixels, at least one, inside the image."""
    x0, y0 = (min(int(np.floor(v)), side - 1) for v, side in zip(box[:2], size, strict=True))
    x1, y1 = (min(max(int(np.ceil(v)), low + 1), side) for v, low, side in zip(box[2:], (x0, y0), size, strict=True))
    return x0, y0, x1, y1
