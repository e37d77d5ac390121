"""The images of a run, decoded: as a bank or as a stream, and what tells a Dataset's from others."""

import hashlib
from contextlib import closing
from pathlib import Path

import torch

from psi_fast.image_bank import ImageBank, open_bank, require_room
from psi_fast.image_set import ImageSet
from psi_fast.image_stream import STREAM, ImageStream, open_stream
from psi_fast.progress import Progress

STEP = 64
"""Images that are hashed at once."""


def open_squares(images: ImageSet, bank: str | Path | None, side: int, bars: Progress) -> ImageBank | ImageStream:
    """The images as squares of `side`, which `side_for` gave; `bank` as `psi_fast.score` takes it."""
    if bank == STREAM:
        return open_stream(images, side, side=side)
    return open_bank(images, side, folder=None if bank is None else Path(bank), side=side, progress=bars)


def require_squares(images: ImageSet, bank: str | Path | None, side: int) -> None:
    """See that `open_squares` will find room; StoreError where not."""
    if bank != STREAM:
        require_room(images, folder=None if bank is None else Path(bank), side=side)


def with_content(images: ImageSet, squares: ImageBank | ImageStream, bars: Progress) -> ImageSet:
    """The images with stamps that tell all of their squares' pixels and the originals' sizes.

    A stream decodes each image for that.
    """
    parts = [slice(first, min(first + STEP, len(images))) for first in range(0, len(images), STEP)]
    stamps = []
    with closing(squares.walk(parts)) as walk, bars.bar("fingerprint", len(images), "img") as bar:
        for part, (held, rows) in zip(parts, walk, strict=True):
            pixels = held.read(rows, torch.device("cpu")).numpy()
            sizes = squares.sizes[part].tolist()
            stamps += [f"{size} {hashlib.sha256(own).hexdigest()}" for own, size in zip(pixels, sizes, strict=True)]
            bar.update(len(pixels))
    return images.stamped(stamps)
