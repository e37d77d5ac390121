"""Images of Hugging Face datasets: from the hub, from parquet or arrow files, from a saved folder, or as an object."""

import importlib
import importlib.util
import os
import re
import threading
from glob import glob
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from psi_fast.checkpoints import hub_in_reach, one_line
from psi_fast.environment import outdated
from psi_fast.errors import InputError, nearest
from psi_fast.image_files import open_image, read_file, require_size
from psi_fast.image_set import ImageSet
from psi_fast.image_trees import EXTENSIONS, file_stamp
from psi_fast.vocabulary import numbered

FILES = (".parquet", ".arrow")
SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files that a folder made by `save_to_disk` holds, of one split or of several."""
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@\w+)?")
LABELS = ("label", "labels", "fine_label", "class")
"""What rows call their class."""
_SPLITS = ("validation", "valid", "val", "test", "train")
"""Splits in the order they are taken in when none is named: images that networks were not trained on come first."""


def names_dataset(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is a dataset's file, pattern of files or folder, or an id such as "owner/name" or "owner/name@split"."""
    place, _ = _with_split(os.fspath(source))
    path = Path(place)
    if path.is_dir():
        return _is_saved(path) or _holds_parquet(path)
    if path.suffix in FILES:
        return path.exists() or _is_pattern(place)
    return isinstance(source, str) and path.suffix not in (".zip", ".tar") and _HUB_ID.fullmatch(source) is not None


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
        The package is missing, the dataset cannot be reached or read, lacks the split that is named, has several of which
        none is usual, has no column of images, or has labels in some rows only.
    """
    package = _package(source)
    data = source if is_dataset(source) else _loaded(package, source)
    if isinstance(data, dict):
        data = _usual_split(data, str(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__)
    if not isinstance(data, package.Dataset):
        raise InputError(
            f"images must have a length and be read by number, got a {type(data).__name__}; do not stream the dataset"
        )
    if not len(data):
        raise InputError("the dataset holds no rows; choose another split or another file")
    column = _image_column(package, data)
    _require_sound(data, column)
    labels, classes, warnings = _labels(package, data, column)
    # bytes, so that threads decode; of other columns nothing is read
    data = data.cast_column(column, package.Image(decode=False)).select_columns([column])
    lock = threading.Lock()

    def read(name: str) -> Image.Image:
        with lock:
            held = data[int(name)][column]
        if held is None or (held["bytes"] is None and held["path"] is None):
            raise ValueError("the row holds no image")
        if held["bytes"] is None:
            return open_image(read_file(held["path"]))
        require_size(len(held["bytes"]))
        return open_image(held["bytes"])

    names = [str(i) for i in range(len(data))]
    return ImageSet(names, read, _stamps(data, column), labels=labels, class_names=classes, warnings=warnings)


def _package(source: Any) -> ModuleType:
    if importlib.util.find_spec("datasets") is None:
        install = 'the package datasets (pip install "psi-fast[datasets]")'
        if isinstance(source, str) and not lies_here(source):
            raise InputError(f"{_not_here(source)}; as a dataset of the hub it needs {install}")
        raise InputError(f"Hugging Face datasets need {install}; images may also be a folder or a zip")
    if said := outdated("datasets"):  # which could run a dataset's own script
        raise InputError(f'Hugging Face datasets need {said}: pip install --upgrade "psi-fast[datasets]"')
    return importlib.import_module("datasets")


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def _is_pattern(place: str) -> bool:
    return any(sign in place for sign in "*?[")


def _holds_parquet(folder: Path) -> bool:
    """Whether parquet files lie in the folder or below it, and no images."""
    found = False
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name.lower().endswith(EXTENSIONS) for name in files):
            return False
        found |= any(name.endswith(".parquet") for name in files)
    return found


def _with_split(source: str) -> tuple[str, str | None]:
    """A path or id, and the split that is named behind it."""
    place, _, split = source.rpartition("@")
    return (place, split) if place and re.fullmatch(r"\w+", split) and not os.path.exists(source) else (source, None)


def _loaded(package: ModuleType, source: str | os.PathLike[str]) -> Any:
    """The dataset, or the dict of its splits where there are several and none is named."""
    text = os.fspath(source)
    place, split = _with_split(text)
    path = Path(place)
    local = lies_here(text)
    if local and not path.exists() and not glob(place, recursive=True):
        raise InputError(f"no file matches {place!r}; check the pattern and its folder")
    if not local and not _is_cached(package, place) and not hub_in_reach():  # whose client would try for half a minute
        raise InputError(
            f"{_not_here(text)}, and as a dataset of the hub it {_UNFETCHED.format('the hub cannot be reached')}"
        )
    try:
        data = _read(package, place, split)
    except (
        OSError,
        ValueError,
        RuntimeError,
        package.exceptions.DatasetsError,
    ) as error:  # of the hub's client or arrow
        if local:
            raise InputError(f"dataset {text!r} cannot be read ({one_line(error)})") from error
        raise InputError(
            f"{_not_here(text)}, and as a dataset of the hub it {_UNFETCHED.format(one_line(error))}"
        ) from error
    if split is None:
        return data
    if isinstance(data, dict):
        if split not in data:
            raise InputError(f"dataset {place!r} has no split {split!r}; it has {', '.join(data)}")
        return data[split]
    if local and str(data.split) != split:
        raise InputError(f"dataset {place!r} is one split alone, not {split!r} of several; leave out @{split}")
    return data


_UNFETCHED = (
    "cannot be fetched ({}); check the path, or where there is no network give the dataset's parquet files or a folder made "
    "by save_to_disk"
)


def lies_here(text: str) -> bool:
    """Whether it names files of this machine, there or not, and no dataset of the hub."""
    path = Path(_with_split(text)[0])
    return path.exists() or path.suffix in FILES


def _not_here(text: str) -> str:
    """That no file or folder of this name exists, and where one like it may lie."""
    path = Path(_with_split(text)[0])
    while not path.parent.is_dir():
        path = path.parent
    beside = nearest(path.name, sorted(own.name for own in path.parent.iterdir()))
    return (
        f"there is no file or folder {text!r} in {Path.cwd()}{beside.replace('; nearest:', ', where the nearest is')}"
    )


def _is_cached(package: ModuleType, name: str) -> bool:
    """Whether an earlier run left the hub's dataset, or its files, in the package's or the hub's cache."""
    import huggingface_hub

    def bare(folder: str) -> str:
        return folder.replace("_", "").lower()  # the package splits CamelCase by underscores

    caches = Path(package.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)
    kept = {bare(own.name) for cache in caches if cache.is_dir() for own in cache.iterdir()}
    return bool(kept & {bare(name.replace("/", "___")), bare(f"datasets--{name.replace('/', '--')}")})


def _read(package: ModuleType, place: str, split: str | None) -> Any:
    path = Path(place)
    if path.is_dir() and _is_saved(path):
        return package.load_from_disk(place)
    if path.suffix not in FILES or path.is_dir():
        return package.load_dataset(place, split=split)
    files = [place] if path.exists() else sorted(glob(place, recursive=True))
    if path.suffix == ".parquet":
        return package.Dataset.from_parquet(files)
    return package.concatenate_datasets([package.Dataset.from_file(file) for file in files])


def _usual_split(data: Any, source: str) -> Any:
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


def _stamps(data: Any, column: str) -> list[str]:
    """What tells each row's image: the package's own fingerprint, over the files and every change made since.

    That is blind to what the files hold that rows only point to, so the state of these files comes with it.
    """
    own = str(data._fingerprint)
    if all(chunk.field("bytes").null_count == 0 for chunk in data.data.column(column).chunks):
        return [own] * len(data)
    stamps = []
    for table in data.select_columns([column]).with_format("arrow").iter(1000):
        for chunk in table.column(column).chunks:
            held, paths = chunk.field("bytes").is_valid().to_pylist(), chunk.field("path").to_pylist()
            for inside, path in zip(held, paths, strict=True):
                stamps.append(own if inside or path is None else f"{own} {file_stamp(Path(path))}")
    return stamps


def _require_sound(data: Any, column: str) -> None:
    """See that the places of a column's values lie within its file, which nobody looks at again when they are read.

    Raises
    ------
    InputError
        They do not, or a text is no unicode.
    """
    try:
        for chunk in data.data.column(column).chunks:
            chunk.validate(full=True)
    except ValueError as error:  # ArrowInvalid
        raise InputError(
            f"column {column!r} of the dataset is damaged ({one_line(error)}); fetch or write its files again"
        ) from error


def _labels(package: ModuleType, data: Any, image: str) -> tuple[np.ndarray | None, list[str] | None, list[str]]:
    """Classes [N] int64 and their names, None where there are none; and what a reader of the results must know."""
    classes = {name: own for name, own in data.features.items() if isinstance(own, package.ClassLabel)}
    columns = [*classes, *(name for name in LABELS if name in data.column_names and name != image)]
    if not columns:
        return None, None, []
    column = columns[0]
    _require_sound(data, column)
    values = list(data.with_format(None)[column][:])
    kinds = {type(value) for value in values} - {type(None)}
    if kinds not in ({int}, {str}, set()):
        raise InputError(
            f"column {column!r} of the dataset must hold a class a row, as a number or a name, got "
            f"{' and '.join(sorted(kind.__name__ for kind in kinds))}"
        )
    # the hub's convention for splits whose labels are kept secret
    bare = [value is None or value == -1 for value in values]
    if all(bare):
        return None, None, [f"column {column!r} holds no labels (all are -1 or empty), so that Q is left out"]
    if any(bare):
        row = bare.index(True)
        raise InputError(
            f"row {row} of the dataset has no label ({values[row]} in column {column!r}), others have one; leave such rows out, "
            "remove the column, or choose another split"
        )
    if column in classes:
        names = list(classes[column].names)
        if not 0 <= min(values) <= max(values) < len(names):
            wrong = next(value for value in values if not 0 <= value < len(names))
            raise InputError(
                f"column {column!r} of the dataset numbers {len(names)} classes from 0, got {wrong}; correct it or its names"
            )
        return np.asarray(values, dtype=np.int64), names, []
    keys, labels = np.unique(values, return_inverse=True)
    return labels, [str(key) if kinds == {str} else numbered(key) for key in keys], []
