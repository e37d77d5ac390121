"""Map-style Datasets as images: any object with a length whose items are an image, with a label or without."""

import operator
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from psi_fast.errors import InputError
from psi_fast.hf_datasets import LABELS
from psi_fast.image_set import ImageSet, readable
from psi_fast.image_trees import reason
from psi_fast.progress import Progress
from psi_fast.vocabulary import numbered

SAMPLED = 64
"""Items that are read at once: a Dataset that cannot be used is told early, and one whose items differ from its `targets`."""

IMAGES = ("image", "img")
"""What items that are mappings call their image."""


def open_items(dataset: Any, skip_unreadable: bool, progress: Progress) -> ImageSet:
    """The items of a Dataset, in its order; its fingerprint tells names and labels, not pixels.

    Labels come from `targets` where the items agree with it, also through a `Subset` or `ConcatDataset`; else every item is read
    for its own. Names of classes come from `classes`, unless the items number them in another way.

    Parameters
    ----------
    dataset
        As `open_images` takes one. Its items are read under a lock, because its code may not be made for threads.
    skip_unreadable
        Read every item now, and leave out those that raise.
    progress
        Shows how far that is.

    Raises
    ------
    InputError
        It is no map-style Dataset, is empty, or an item is not what `open_images` takes.
    """
    names = [str(i) for i in range(_length(dataset))]
    items = _Items(dataset)
    images = ImageSet(names, items.image, [""] * len(names), lasting=False)
    if skip_unreadable:
        images = readable(images, progress)
    count = min(len(images), SAMPLED)
    for i in range(count):
        images.load(i * len(images) // count)
    targets = _targets(dataset)
    labels = _labels(images, items, targets, progress)
    if labels is None:
        return images
    names = [] if _renumbered(dataset, items, targets) else _classes(dataset)
    values, labels = np.unique(labels, return_inverse=True)
    known = values.min() >= 0 and values.max() < len(names)
    return ImageSet(
        images.names,
        items.image,
        [""] * len(images),
        labels=labels,
        class_names=[names[value] if known else numbered(value) for value in values],
        class_keys=[str(value) for value in values],
        warnings=images.warnings,
        lasting=False,
    )


class _Items:
    """A user's Dataset, read under a lock.

    labels : of the items read so far, by name
    """

    def __init__(self, dataset: Any) -> None:
        self.labels: dict[str, int | None] = {}
        self._dataset = dataset
        self._lock = threading.Lock()

    def image(self, name: str) -> Image.Image:
        """The image of an item; ValueError for one that raises, InputError for one of another kind."""
        with self._lock:
            try:
                image, label = _parts(self._dataset[int(name)], name)
                image = _to_pil(image, name)
                image.load()
            except InputError:
                raise
            except Exception as error:  # a Dataset is a user's code, and raises what it likes
                what = ": ".join(dict.fromkeys((type(error).__name__, reason(error))))
                raise ValueError(f"item {name} of {type(self._dataset).__name__} raised {what}") from error
            self.labels[name] = _label(label, name)
            return image


def _length(dataset: Any) -> int:
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise InputError(
            f"images must be a folder, a zip or a map-style Dataset (with len() and [i]), got a {kind}, which gives batches "
            "in an order of its own; pass its .dataset"
        )
    if isinstance(dataset, IterableDataset):
        raise InputError(
            f"{kind} is an IterableDataset, whose items have no numbers; pass a map-style Dataset (with len() and [i]), such as "
            "a list of its items"
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InputError(f"images must be a folder, a zip or a map-style Dataset (with len() and [i]), got {kind}")
    try:
        count = len(dataset)
    except Exception as error:  # as for its items
        raise InputError(f"{kind} has no length ({reason(error)}); pass a map-style Dataset") from error
    if not count:
        raise InputError(f"{kind} holds no images; pass a Dataset with at least one item")
    return count


def _labels(images: ImageSet, items: _Items, targets: np.ndarray | None, progress: Progress) -> np.ndarray | None:
    """int64 [N], or None when the items are images alone."""
    seen = dict(items.labels)
    if None in seen.values():
        if set(seen.values()) != {None}:
            raise InputError("some items have a label and some have none; give all of them one, or none")
        return None
    if targets is not None and _agree(items, targets):
        return targets[[int(name) for name in images.names]]
    rest = [i for i, name in enumerate(images.names) if name not in seen]
    with progress.bar("reading labels", len(rest), "img") as bar:
        for i in rest:
            images.load(i)
            bar.update()
    values = [items.labels[name] for name in images.names]
    if None in values:
        raise InputError(f"item {images.names[values.index(None)]} has no label, others have one; give all of them one")
    return np.asarray(values, dtype=np.int64)


def _targets(dataset: Any) -> np.ndarray | None:
    """The labels that a Dataset lists beside its items, int64 [N], also through a Subset; None where it lists none."""
    try:
        if isinstance(dataset, Subset):
            held = _targets(dataset.dataset)
            return None if held is None else held[np.asarray(dataset.indices, dtype=np.int64)]
        if isinstance(dataset, ConcatDataset):
            parts = [held for part in dataset.datasets if (held := _targets(part)) is not None]
            return np.concatenate(parts) if len(parts) == len(dataset.datasets) else None
        values = np.asarray(getattr(dataset, "targets", None))
    except (TypeError, ValueError, IndexError):  # lists of another kind, which the items then decide over
        return None
    whole = values.dtype.kind in "iu" and values.shape == (len(dataset),)
    return values.astype(np.int64) if whole else None


def _agree(items: _Items, targets: np.ndarray) -> bool:
    """Whether the items read so far have the labels of `targets`; a target_transform makes them differ, and items count."""
    return all(targets[int(name)] == label for name, label in items.labels.items())


def _renumbered(dataset: Any, items: _Items, targets: np.ndarray | None) -> bool:
    """Whether the items' labels need not be places in the Dataset's list of classes."""
    if targets is not None:
        return not _agree(items, targets)
    return any(getattr(part, "target_transform", None) is not None for part in _held(dataset))


def _held(dataset: Any) -> Iterator[Any]:
    """The Datasets that this one is made of."""
    if isinstance(dataset, Subset):
        yield from _held(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _held(part)
    else:
        yield dataset


def _classes(dataset: Any) -> list[str]:
    """Names of the classes by number, synonyms joined; none where the Dataset lists none, or its parts differ."""
    lists = [getattr(part, "classes", None) for part in _held(dataset)]
    first = lists[0]
    if not isinstance(first, (list, tuple)) or any(own != first for own in lists):
        return []
    names = [", ".join(name) if isinstance(name, (list, tuple)) else name for name in first]
    return names if all(isinstance(name, str) for name in names) else []


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """(image, label or None) of a Dataset's item."""
    if isinstance(item, Mapping):
        image, label = ([key for key in keys if key in item] for keys in (IMAGES, LABELS))
        if len(image) != 1 or len(label) > 1:
            held = ", ".join(map(repr, item)) or "nothing"
            raise InputError(
                f"item {name} is a {type(item).__name__} of {held}; pass one with {' or '.join(map(repr, IMAGES))}, and with "
                f"at most one of {', '.join(map(repr, LABELS))}; or (image, label)"
            )
        return item[image[0]], item[label[0]] if label else None
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) not in (1, 2):
        raise InputError(
            f"item {name} is a {type(item).__name__} of {len(item)}; pass (image, label) or an image alone"
        )
    return item[0], item[1] if len(item) == 2 else None


def _label(value: Any, name: str) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) is torch.bool:
            raise TypeError("true and false are no class indices")
        return operator.index(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"label of item {name} must be a whole number, got {_describe(value)}") from error


def _to_pil(value: Any, name: str) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, torch.Tensor) and value.ndim == 3 and value.shape[0] == 3 and value.numel():
        if value.is_floating_point() and value.min() >= 0 and value.max() <= 1:  # false for NaN
            value = (value * 255).round().to(torch.uint8)
        if value.dtype == torch.uint8:
            return Image.fromarray(value.permute(1, 2, 0).contiguous().cpu().numpy())
    grey_or_rgb = isinstance(value, np.ndarray) and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3))
    if grey_or_rgb and value.dtype == np.uint8 and value.size:
        return Image.fromarray(np.ascontiguousarray(value))
    raise InputError(
        f"image of item {name} is {_describe(value)}; pass PIL images, uint8 arrays [H, W] or [H, W, 3], uint8 tensors "
        "[3, H, W], or float tensors [3, H, W] within 0..1 (leave Normalize out of the transform)"
    )


def _describe(value: Any) -> str:
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} {value!r:.40}" if isinstance(value, (int, float, str)) else type(value).__name__
    kind = "tensor" if isinstance(value, torch.Tensor) else "array"
    numbers = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    span = f" within {numbers.min():.3g}..{numbers.max():.3g}" if numbers.size and numbers.dtype.kind in "fiu" else ""
    return f"a {numbers.dtype} {kind} {list(numbers.shape)}{span}"
