"""An ordered set of images, decoded when asked for: what every source of images becomes."""

import copy
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from psi_fast.errors import InputError
from psi_fast.image_trees import reason
from psi_fast.progress import Progress

CHECKING = "checking"
"""Title of the bar while images that cannot be decoded are looked for."""
PASSED_ON = (InputError, MemoryError)
"""Errors of reading an image that come through as they are; with any other one, as PIL raises of every kind, it is broken."""


class ImageSet:
    """An ordered set of images with optional labels.

    Parameters
    ----------
    names : sequence of str
        One distinct name an image; `read` finds the image by it.
    read : callable
        Name -> PIL image of any mode; must be usable from several threads.
    stamps : sequence of str
        One an image; differs when the image's content does.
    labels : array of int, shape [N], optional
        Class of each image, 0..len(class_names)-1.
    class_names, class_keys : sequence of str, optional
        Readable names and stable keys of the classes; the keys default to the names.
    warnings : iterable of str
        What a report should say about the source.
    lasting : bool
        The stamps tell all of the content, so that what was made of the images can be found again by the fingerprint. Of a
        Dataset only its decoded images do: see `Subject`.

    Attributes
    ----------
    fingerprint : str
        SHA-256 (hex) over names, stamps, labels and classes, in order.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], Image.Image],
        stamps: Sequence[str],
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        class_keys: Sequence[str] | None = None,
        warnings: Iterable[str] = (),
        lasting: bool = True,
    ) -> None:
        self.lasting = lasting
        self.names = list(names)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.class_names = None if class_names is None else list(class_names)
        self.class_keys = self.class_names if class_keys is None else list(class_keys)
        self.warnings = list(warnings)
        self._read = read
        self._stamps = list(stamps)
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The image at `index` in mode RGB, as stored (no EXIF rotation); safe to call from several threads.

        Raises
        ------
        InputError
            The image cannot be decoded, or exceeds PIL's limit against decompression bombs.
        """
        with _named(self.names[index]):
            return self.decode(self.names[index])

    def decode(self, name: str) -> Image.Image:
        """The image called `name` in mode RGB; PIL's and the file system's errors come through as they are."""
        return to_rgb(self._read(name))

    def stored_bytes(self, index: int) -> int | None:
        """Bytes that the image at `index` has as a file or as a member of one; None where it was not read from bytes.

        Raises
        ------
        InputError
            The image cannot be read.
        """
        with _named(self.names[index]):
            file = getattr(self._read(self.names[index]), "fp", None)
            return None if file is None else file.seek(0, os.SEEK_END)

    def entry_bytes(self, index: int) -> int:
        """Bytes of memory that the name and the stamp of the image at `index` take."""
        return sys.getsizeof(self.names[index]) + sys.getsizeof(self._stamps[index])

    def take(self, rows: Iterable[int], warnings: Iterable[str] = ()) -> "ImageSet":
        """The images at `rows` (in that order) with the same classes, and `warnings` added."""
        rows = list(rows)
        return ImageSet(
            [self.names[i] for i in rows],
            self._read,
            [self._stamps[i] for i in rows],
            labels=None if self.labels is None else self.labels[rows],
            class_names=self.class_names,
            class_keys=self.class_keys,
            warnings=[*self.warnings, *warnings],
            lasting=self.lasting,
        )

    def stamped(self, stamps: Sequence[str]) -> "ImageSet":
        """The same images with other `stamps`."""
        again = copy.copy(self)
        again._stamps = list(stamps)
        again.fingerprint = again._digest()
        return again

    def _digest(self) -> str:
        digest = hashlib.sha256()
        labels: Iterable[Any] = [""] * len(self) if self.labels is None else self.labels
        rows = zip(self.names, self._stamps, labels, strict=True)
        classes = zip(self.class_keys or (), self.class_names or (), strict=True)
        for row in (*rows, *classes):
            # File names that are not valid unicode arrive with surrogates.
            digest.update("\0".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Within, whatever is wrong with an image is one line with its name."""
    try:
        yield
    except PASSED_ON:
        raise
    except Exception as error:
        raise InputError(
            f"cannot decode image {name!r}: {reason(error)}; replace it or pass skip_unreadable=True (--skip-unreadable)"
        ) from error


def readable(images: ImageSet, progress: Progress) -> ImageSet:
    """`images` without those that cannot be decoded."""

    def problem(name: str) -> str | None:
        try:
            images.decode(name)
        except PASSED_ON:
            raise
        except Exception as error:
            return reason(error)
        return None

    with ThreadPoolExecutor(max_workers=4) as pool, progress.bar(CHECKING, len(images), "img") as bar:
        problems = []
        for found in pool.map(problem, images.names):
            problems.append(found)
            bar.update()
    bad = [name for name, found in zip(images.names, problems, strict=True) if found]
    if not bad:
        return images
    if len(bad) == len(images):
        raise InputError(f"none of the {len(bad)} images can be decoded; the first is {bad[0]!r}: {problems[0]}")
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    warning = f"skipped {len(bad)} unreadable image{'s'[: len(bad) > 1]}: {', '.join(bad[:5])}{more}"
    return images.take((i for i, found in enumerate(problems) if not found), [warning])


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in mode RGB; 16-bit grey keeps its upper 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # PIL would clip 16-bit grey at 255; PNG and PPM never hold more than 16 bits.
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range (save it with 8 or 16 bits a channel)")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
