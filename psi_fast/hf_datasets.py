"""Images of Hugging Face datasets: from the hub, from parquet or arrow files, from a saved folder, or as an object."""

import importlib
import importlib.util
import io
import re
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from psi_fast.checkpoints import one_line
from psi_fast.errors import InputError
from psi_fast.images import ImageSet

FILES = (".parquet", ".arrow")
SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files that a folder made by `save_to_disk` holds, of one split or of several."""
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@\w+)?")
_LABELS = ("label", "labels", "fine_label", "class")
_SPLITS = ("validation", "valid", "val", "test", "train")
"""Splits in the order they are taken in when none is named: images that networks were not trained on come first."""


def names_dataset(source: str) -> bool:
    """Whether `source` is a file or folder of a dataset, or an id such as "zh-plus/tiny-imagenet" or "owner/name@split"."""
    path = Path(source)
    if path.exists():
        return path.suffix in FILES or any((path / name).is_file() for name in SAVED)
    return path.suffix not in (*FILES, ".zip", ".tar") and _HUB_ID.fullmatch(source) is not None


def is_dataset(source: Any) -> bool:
    """Whether `source` is an object of the datasets package, told without importing it."""
    return type(source).__module__.partition(".")[0] == "datasets"


def open_dataset(source: Any) -> ImageSet:
    """The images of a dataset, decoded when asked for; labels from its class column.

    Parameters
    ----------
    source
        What `names_dataset` or `is_dataset` holds true for.

    Raises
    ------
    InputError
        The package is missing, the dataset cannot be reached or read, has several splits of which none is usual, or has no
        column of images.
    """
    package = _package()
    data = source if is_dataset(source) else _loaded(package, str(source))
    if isinstance(data, dict):
        data = _split(data, str(source) if isinstance(source, (str, Path)) else type(source).__name__)
    if not isinstance(data, package.Dataset):
        raise InputError(
            f"images must have a length and be read by number, got a {type(data).__name__}; do not stream the dataset"
        )
    column = _image_column(package, data)
    labels, names = _labels(package, data, column)
    data = data.cast_column(column, package.Image(decode=False))  # bytes, so that threads decode
    lock = threading.Lock()

    def read(name: str) -> Image.Image:
        with lock:
            held = data[int(name)][column]
        if held is None:
            raise ValueError("the row holds no image")
        return Image.open(io.BytesIO(held["bytes"]) if held["bytes"] is not None else held["path"])

    count = len(data)
    stamps = [str(data._fingerprint)] * count  # the package's own, over the files and every change made since
    return ImageSet([str(i) for i in range(count)], read, stamps, labels=labels, class_names=names)


def _package() -> ModuleType:
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            'Hugging Face datasets need the package datasets (pip install "psi-fast[datasets]"); '
            "images may also be a folder or a zip"
        )
    return importlib.import_module("datasets")


def _loaded(package: ModuleType, source: str) -> Any:
    path, (name, _, split) = Path(source), source.partition("@")
    try:
        if path.suffix == ".parquet":
            return package.Dataset.from_parquet(source)
        if path.suffix == ".arrow":
            return package.Dataset.from_file(source)
        if path.exists():
            return package.load_from_disk(source)
        return package.load_dataset(name, split=split or None)
    except (OSError, ValueError, RuntimeError) as error:  # of the hub's client, of arrow, of the package
        if path.exists():
            raise InputError(f"dataset {source!r} cannot be read ({one_line(error)})") from error
        raise InputError(
            f"there is no file or folder {source!r}, and as a dataset of the hub it cannot be fetched ({one_line(error)}); "
            "where there is no network, give its parquet files or a folder made by save_to_disk"
        ) from error


def _split(data: Any, source: str) -> Any:
    """The split of several that is taken."""
    for name in _SPLITS:
        if name in data:
            return data[name]
    raise InputError(
        f"dataset {source!r} has the splits {', '.join(data)}; name one, as in {source}@{next(iter(data))}"
    )


def _image_column(package: ModuleType, data: Any) -> str:
    for name, feature in data.features.items():
        if isinstance(feature, package.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
            return name
    raise InputError(f"the dataset has no column of images; its columns are {', '.join(data.column_names)}")


def _labels(package: ModuleType, data: Any, image: str) -> tuple[np.ndarray | None, list[str] | None]:
    """Classes [N] int64 and their names; None where there is no column of them."""
    for name, feature in data.features.items():
        if isinstance(feature, package.ClassLabel):
            return np.asarray(data[name][:], dtype=np.int64), list(feature.names)
    found = [name for name in _LABELS if name in data.column_names and name != image]
    if not found:
        return None, None
    values = np.asarray(data[found[0]][:])
    if values.dtype.kind not in "iuUO" or values.ndim != 1:
        raise InputError(
            f"column {found[0]!r} of the dataset must hold a class a row, as a number or a name, got {values.dtype}"
        )
    keys, labels = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    return labels, [str(key) for key in keys]
