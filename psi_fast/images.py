"""Any source of images as an ImageSet: a folder, a zip, tar shards, a Hugging Face dataset or a Dataset."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from psi_fast import hf_datasets, map_datasets, tar_shards
from psi_fast.demo import DEMO_IMAGES, demo_tiles
from psi_fast.errors import ConfigError, InputError
from psi_fast.image_files import open_image
from psi_fast.image_set import ImageSet, readable
from psi_fast.image_trees import ImageTree, open_tree
from psi_fast.paths import path_errors
from psi_fast.progress import Progress


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
        (image, int label), {"image": image, "label": int label} or an image alone: PIL, uint8 array [H, W] or [H, W, 3],
        uint8 tensor [3, H, W], or float tensor [3, H, W] within 0..1. Its items are read under a lock, because its code may
        not be made for threads. Or "scikit-image:tiles", the tiles of `demo_tiles`.
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
    ModelError
        The tiles are asked for, and scikit-image is not installed.
    ConfigError
        `max_images` or `seed` is out of range.
    """
    progress = progress or Progress(shown=False)
    for name, value, low in (("max_images", max_images, 1), ("seed", seed, 0)):
        if (value is not None or name == "seed") and (type(value) is not int or value < low):
            raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}")
    if isinstance(source, str) and source.startswith("scikit-image:"):
        if source != DEMO_IMAGES:
            raise InputError(f"of scikit-image's photographs there are {DEMO_IMAGES} alone, got {source!r}")
        images = demo_tiles()
    elif isinstance(source, (str, os.PathLike)):
        with path_errors(f"images {os.fspath(source)!r}", InputError):
            images = _from_path(source, progress)
    elif hf_datasets.is_dataset(source):
        images = hf_datasets.open_dataset(source)
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


def _from_path(source: str | os.PathLike[str], progress: Progress) -> ImageSet:
    if tar_shards.names_shards(os.fspath(source)):
        return tar_shards.open_shards(os.fspath(source), progress)
    if hf_datasets.names_dataset(source):
        return hf_datasets.open_dataset(source)
    return _from_tree(open_tree(Path(source)))


def _from_tree(tree: ImageTree) -> ImageSet:
    return ImageSet(
        tree.names,
        lambda name: open_image(tree.read(name)),
        tree.stamps,
        labels=tree.labels,
        class_names=tree.class_names,
        class_keys=tree.class_keys,
        warnings=tree.warnings,
    )
