"""Images decoded into files, each of them told when it is done: whoever finds the files of a killed process decodes the rest."""

import hashlib
import os
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from psi_fast.image_set import ImageSet
from psi_fast.prefetch import prefetch
from psi_fast.progress import Progress

PIXELS, SIZES, CHECKS = "pixels.npy", "sizes.npy", "checks.npy"
AT_ONCE = 64
"""Images whose checksums one thread finds at a time."""


def decode(
    images: ImageSet, side: int, square: Callable[[Image.Image, int], np.ndarray], folder: Path, progress: Progress
) -> str:
    """Writes squares [N, side, side, 3] uint8, the originals' sizes [N, 2] int64 and checksums into `folder`; that of them all.

    What another process has left there of the same images is taken where its bits are sound.
    """
    pixels, sizes, checks = _files(folder, len(images), side)
    done = np.flatnonzero((sizes > 0).all(1))
    done = done[checksums(pixels, done) == checks[done]]
    left = np.setdiff1d(np.arange(len(images)), done)

    def work(index: int) -> None:
        image = images.load(index)
        own = np.ascontiguousarray(square(image, side))
        pixels[index], checks[index] = own, zlib.crc32(own.data)
        sizes[index] = image.size  # last, as it says that the others are there

    with (
        closing(prefetch(work, left.tolist(), ahead=64)) as parts,
        progress.bar("decoding", len(images), "img", len(done)) as bar,
    ):
        for _ in parts:
            bar.update()
    for own in (pixels, sizes):
        own.flush()
    return content(checks, sizes)


def checksums(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """CRC-32 uint32 of the images `rows` of `pixels`."""

    def work(first: int) -> list[int]:
        return [zlib.crc32(pixels[row].data) for row in rows[first : first + AT_ONCE]]

    with closing(prefetch(work, range(0, len(rows), AT_ONCE), ahead=64)) as parts:
        return np.array([own for part in parts for own in part], dtype=np.uint32)


def content(checks: np.ndarray, sizes: np.ndarray) -> str:
    """SHA-256 (hex) of the images' CRC-32 [N] uint32, which threads find side by side, and of their sizes."""
    return hashlib.sha256(checks.tobytes() + sizes.tobytes()).hexdigest()


def allocated(folder: Path) -> int:
    """Bytes of the disk that squares in `folder` have already."""
    try:
        return 512 * getattr((folder / PIXELS).stat(), "st_blocks", 0)
    except OSError:
        return 0


def _files(folder: Path, count: int, side: int) -> list[np.memmap[Any, Any]]:
    kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
        PIXELS: (np.uint8, (count, side, side, 3)),
        SIZES: (np.int64, (count, 2)),
        CHECKS: (np.uint32, (count,)),
    }
    try:
        return [_file(folder / name, "r+", *kind) for name, kind in kinds.items()]
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise
    except Exception:  # a header that is not whole makes NumPy raise whatever Python's own parser does
        pass
    return [_file(folder / name, "w+", *kind) for name, kind in kinds.items()]


def _file(path: Path, mode: Any, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    held = open_memmap(path, mode, dtype, shape)
    if (held.dtype, held.shape) != (dtype, shape):
        raise ValueError(f"{path} is of other images")
    if hasattr(os, "posix_fallocate"):  # a mapped file that finds the disk full ends the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
    return held
