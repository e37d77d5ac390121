"""Room on a disk: what a run writes at most, and a look at what is free before it starts."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from psi_fast.errors import StoreError
from psi_fast.evaluation import RANDOM_CHANNELS
from psi_fast.results import COMPONENTS, KEPT_DRAWS, KEPT_IMAGES

if TYPE_CHECKING:
    from psi_fast.results import Bank
    from psi_fast.subject import Subject

ROW_BYTES = 64
"""Of a patch beside its embedding: where it lies, in which cluster, which row it finds its embedding in."""

HEAD_BYTES = 40_000
"""Of a run's files without any patch: names of columns and settings."""


def require_free(folder: Path, needed: int, what: str, instead: str) -> None:
    """See that the disk of `folder`, which need not exist yet, has `needed` bytes free for `what`.

    Raises
    ------
    StoreError
        It has not; the message ends in what to do `instead` of freeing some.
    """
    there = next(own for own in (folder, *folder.absolute().parents) if own.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StoreError(
            f"{what} {_size(needed)}, but the disk of {folder} has {_size(free)} free; free some, or {instead}"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def run_bytes(subject: "Subject", text: "Bank") -> int:
    """What the files of a run take at most: mostly the embeddings, one for each distinct patch of the layers' channels.

    Next come the null draws and the images' maxima of each channel.
    """
    images, config = len(subject.images), subject.config
    patches = [len(ids) * config.top_k for ids in subject.channels]
    # a patch is one position of one image; where it is the whole image, layers share it too
    distinct = sum(min(own, images * tap.positions) for own, tap in zip(patches, subject.taps, strict=True))
    distinct = min(distinct, images) if config.patch == "image" else distinct
    heads = 0 if text.head is None else text.head.nbytes
    rows = distinct * text.embeddings.shape[1] * 4 + sum(patches) * ROW_BYTES
    draws, maxima = min(config.draws, KEPT_DRAWS), min(images, KEPT_IMAGES)
    distributions = sum(map(len, subject.channels)) * (len(COMPONENTS) * draws + maxima) * 4
    distributions += len(subject.taps) * RANDOM_CHANNELS * 8
    return rows + text.embeddings.nbytes + heads + distributions + HEAD_BYTES


def shelf_bytes(subject: "Subject", text: "Bank") -> int:
    """What experiments on all channels share at most: each channel's maximum in each image, embeddings and null draws."""
    channels = sum(map(len, subject.channels))
    maxima, draws = len(subject.images) * channels * 8, channels * subject.config.draws * 3 * 8
    return maxima + draws + run_bytes(subject, text)
