"""Images in a fixed order, decoded when asked for: from a folder, a zip, tar shards or a Dataset."""

import copy
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psi_fast.errors import ConfigError, InputError
from psi_fast.image_trees import BROKEN, ImageTree, open_tree, reason
from psi_fast.progress import Progress


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
        name = self.names[index]
        try:
            return self.decode(name)
        except InputError:
            raise
        except BROKEN as error:
            raise InputError(
                f"cannot decode image {name!r}: {reason(error)}; replace it or pass skip_unreadable=True (--skip-unreadable)"
            ) from error

    def decode(self, name: str) -> Image.Image:
        """The image called `name` in mode RGB; PIL's and the file system's errors come through as they are."""
        return _to_rgb(self._read(name))

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


def open_images(
    source: Any,
    *,
    max_images: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> ImageSet:
    """The images of `source`, in a fixed order, as an ImageSet.

    Parameters
    ----------
    source : str, Path, map-style Dataset or ImageSet
        A folder or a zip (never extracted) with Tiny-ImageNet's official tree (train first, then val; the tree may lie
        one folder down), with one sub-folder a class (order as torchvision's ImageFolder), or with images only
        (no labels). In a zip, a single folder around everything is looked through. Names that start with a dot are
        ignored. Or a Hugging Face dataset: a hub id ("owner/name" or "owner/name@split"), a .parquet or .arrow file or a
        pattern such as "data/*.parquet", a folder of parquet files or one made by save_to_disk ("folder@split" where it has
        several), or the object. Or WebDataset shards, read where they lie: a .tar, a pattern such as
        "shard-{000000..000099}.tar", or a folder that holds only shards. Or any object with a length whose items are
        (image, int label) or an image alone: PIL, uint8 array [H, W] or [H, W, 3], uint8 tensor [3, H, W], or float
        tensor [3, H, W] within 0..1. Its items are read under a lock, because its code may not be made for threads.
    max_images : int, optional
        Keep this many images, spread evenly over the set and balanced over its classes, in the original order.
    seed : int
        Chooses which images `max_images` keeps.
    skip_unreadable : bool
        Decode every image now, leave out those that fail, and say so in `warnings`.
    progress : Progress, optional
        Shows how far that is.

    Raises
    ------
    InputError
        The source cannot be read as images; the message says what was found and what to do.
    ConfigError
        `max_images` or `seed` is out of range.
    """
    progress = progress or Progress(shown=False)
    for name, value, low in (("max_images", max_images, 1), ("seed", seed, 0)):
        if (value is not None or name == "seed") and (type(value) is not int or value < low):
            raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}")
    from psi_fast import hf_datasets, map_datasets, tar_shards  # which make ImageSets

    if isinstance(source, (str, os.PathLike)) and tar_shards.names_shards(os.fspath(source)):
        images = tar_shards.open_shards(os.fspath(source), progress)
    elif hf_datasets.is_dataset(source) or (
        isinstance(source, (str, os.PathLike)) and hf_datasets.names_dataset(source)
    ):
        images = hf_datasets.open_dataset(source)
    elif isinstance(source, (str, os.PathLike)):
        images = _from_tree(open_tree(Path(source)))
    elif isinstance(source, ImageSet):
        images = source
    else:
        return _subset(map_datasets.open_items(source, skip_unreadable, progress), max_images, seed)
    return _subset(readable(images, progress) if skip_unreadable else images, max_images, seed)


def _subset(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """`count` images, as equal in number over the classes as their sizes allow, spread evenly within each class."""
    if count is None or count >= len(images):
        return images
    rng = np.random.default_rng(seed)
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels
    sizes = np.bincount(labels)
    shares = np.zeros_like(sizes)
    left = count
    while left:
        # Every class with images left gets the same again; the last few go to classes drawn by lot.
        open_classes = np.flatnonzero(shares < sizes)
        if left < len(open_classes):
            shares[rng.permutation(open_classes)[:left]] += 1
            break
        shares[open_classes] += np.minimum(left // len(open_classes), (sizes - shares)[open_classes])
        left = count - int(shares.sum())
    rows = []
    for label in np.flatnonzero(shares):
        members = np.flatnonzero(labels == label)
        edges = np.arange(shares[label] + 1) * len(members) // shares[label]
        rows.append(members[rng.integers(edges[:-1], edges[1:])])  # one of each of `share` equal stretches
    return images.take(np.sort(np.concatenate(rows)).tolist())


def readable(images: ImageSet, progress: Progress) -> ImageSet:
    """`images` without those that cannot be decoded."""

    def problem(name: str) -> str | None:
        try:
            images.decode(name)
        except InputError:
            raise
        except BROKEN as error:
            return reason(error)
        return None

    with ThreadPoolExecutor(max_workers=4) as pool, progress.bar("checking", len(images), "img") as bar:
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # PIL would clip 16-bit grey at 255; PNG and PPM never hold more than 16 bits.
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range (save it with 8 or 16 bits a channel)")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_tree(tree: ImageTree) -> ImageSet:
    return ImageSet(
        tree.names,
        lambda name: Image.open(io.BytesIO(tree.read(name))),
        tree.stamps,
        labels=tree.labels,
        class_names=tree.class_names,
        class_keys=tree.class_keys,
        warnings=tree.warnings,
    )
