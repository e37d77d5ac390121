"""Image files below a folder or inside a zip, in order, with the classes their place gives them."""

import lzma
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from psi_fast.errors import InputError, nearest
from psi_fast.image_files import read_file, require_size

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File endings read as images, in any case."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    NotImplementedError,
    Image.DecompressionBombError,
    struct.error,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What PIL, zipfile and the file system raise on files that are missing, damaged or of an unknown kind."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Ways to pack a member that zipfile unpacks with a bound."""

_HIDDEN = (".", "__MACOSX")
"""How names of files and folders begin that are left out."""

_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class ImageTree:
    """Where the images of a folder or zip are, and what they show.

    `names` (paths below the root, or members) and `stamps` (change with the content) have one entry an image; `read`
    gives the bytes of a name; `labels` index `class_names` (readable) and `class_keys` (stable), None without classes.
    """

    names: list[str]
    stamps: list[str]
    read: Callable[[str], bytes]
    labels: list[int] | None
    class_names: list[str] | None
    class_keys: list[str] | None
    warnings: list[str]


def reason(error: BaseException) -> str:
    """Why reading failed, on one line and without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image format known here"
    return " ".join(str(error).split()) or type(error).__name__


class _Folder:
    """Files below a folder: `stamps` maps relative posix path -> size and time of change."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.stamps: dict[str, str] = {}
        places = {root: root.resolve()}  # of each folder, without links
        known = dict.fromkeys((places[root], *places[root].parents), root)  # what holds such a place holds its images
        for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
            here = Path(folder)
            subfolders[:] = [sub for sub in subfolders if not sub.startswith(_HIDDEN)]
            for path in (here / sub for sub in subfolders):
                linked = path.is_symlink()
                place = path.resolve() if linked else places[here] / path.name
                if place in known:  # followed, links of links would never end, or end as more than there are files
                    raise InputError(
                        f"folder {str(path)!r} holds by a link what {str(known[place])!r} holds as well, so images would "
                        "count twice; remove the link"
                    )
                places[path] = place
                for own in (place, *place.parents) if linked else (place,):
                    known.setdefault(own, path)
            for file in files:
                self.stamps[(here / file).relative_to(root).as_posix()] = file_stamp(here / file)

    def read(self, name: str) -> bytes:
        held = read_file(self._root / name)
        if file_stamp(self._root / name) != self.stamps[name]:  # results would be found again as those of the old one
            raise InputError(f"image {name!r} has changed since it was listed; start again")
        return held


class _Zip:
    """Members of a zip: `stamps` maps name -> CRC and size. Members are read one at a time, under a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except BROKEN as error:
            raise InputError(f"zip {str(path)!r} is damaged ({reason(error)}); download or pack it again") from error
        self._lock = threading.Lock()
        self.stamps: dict[str, str] = {}
        for info in self._zip.infolist():
            parts = info.filename.replace("\\", "/").split("/")
            unsafe = {
                "has an absolute path": parts[0] == "" or re.match("[A-Za-z]:", parts[0]) is not None,
                "climbs out of the zip by '..'": ".." in parts,
                "is a link": stat.S_ISLNK(info.external_attr >> 16),
                "is encrypted": bool(info.flag_bits & 1),
                "is packed otherwise than by deflate": info.compress_type not in _METHODS,
            }
            for what, found in unsafe.items():
                if found:
                    raise InputError(f"zip {str(path)!r} is refused: member {info.filename!r} {what}; pack it again")
            if not info.is_dir():
                self.stamps[info.filename] = f"{info.CRC:08x} {info.file_size}"

    def read(self, name: str) -> bytes:
        size = self._zip.getinfo(name).file_size
        require_size(size)
        with self._lock, self._zip.open(name) as member:
            return member.read(size)  # read() would unpack whatever there is, and only then look at the size

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which opens the zip itself."""
        return _same_zip, (self._path, self.stamps)


def _same_zip(path: Path, stamps: dict[str, str]) -> _Zip:
    """The zip again, where its members are those of the process that sent it here."""
    found = _Zip(path)
    if found.stamps != stamps:
        raise InputError(f"zip {str(path)!r} is not the same for all workers; give each the same file")
    return found


def file_stamp(path: Path) -> str:
    """A file's size and time of change."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: named when the image is loaded
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot list folder {error.filename!r}: {error.strerror}; make it readable") from error


def open_tree(path: Path) -> ImageTree:
    """The images of a folder or zip, in order, with the classes their folders or annotations give.

    Raises
    ------
    InputError
        Nothing there, nothing readable, an unsafe zip, or a layout that leaves the classes in doubt.
    """
    if not path.exists():
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise InputError(f"no folder or zip at {str(path)!r}{nearest(path.name, siblings)}; check the path")
    if path.is_dir():
        tree = _Folder(path)
    elif path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        tree = _Zip(path)
    else:
        raise InputError(f"{str(path)!r} is neither a folder nor a zip; pass a folder or a zip of images")
    files = [n for n in tree.stamps if not any(p.startswith(_HIDDEN) for p in n.split("/"))]
    images = [n for n in files if PurePosixPath(n).suffix.lower() in EXTENSIONS]
    if not images:
        raise InputError(f"no images in {str(path)!r}: expected files ending in {' '.join(EXTENSIONS)}")

    tops = {n.split("/")[0] + "/" for n in files if "/" in n}
    for prefix in ("", *(tops if len(tops) == 1 else ())):
        if f"{prefix}wnids.txt" in tree.stamps or f"{prefix}val/val_annotations.txt" in tree.stamps:
            return _tiny_imagenet(tree, images, prefix)
    if "val_annotations.txt" in tree.stamps:
        raise InputError(f"{str(path)!r} is the val folder of a Tiny-ImageNet tree; pass the folder above it")
    wrapped = isinstance(tree, _Zip) and len(tops) == 1 and all("/" in n for n in images)
    return _class_folders(tree, images, tops.pop() if wrapped else "", path)


def _class_folders(tree: _Folder | _Zip, images: list[str], prefix: str, path: Path) -> ImageTree:
    inside = {n: n.removeprefix(prefix) for n in images}
    nested = [n for n in images if "/" in inside[n]]
    if not nested:
        return _tree(tree, sorted(images))
    classes = {n: inside[n].split("/")[0] for n in nested}
    keys = sorted(set(classes.values()))
    if _SPLITS.issuperset(keys):
        raise InputError(f"{str(path)!r} holds splits ({', '.join(keys)}), not classes; pass one of these folders")
    # By class, then folder, then file: the order of torchvision's ImageFolder.
    names = sorted(nested, key=lambda n: (classes[n], *n.rpartition("/")))
    index = {key: i for i, key in enumerate(keys)}
    loose = len(images) - len(nested)
    warnings = [f"ignored {loose} image{'s'[: loose > 1]} beside the class folders"] if loose else []
    return _tree(tree, names, [index[classes[n]] for n in names], keys, keys, warnings)


def _tiny_imagenet(tree: _Folder | _Zip, images: list[str], prefix: str) -> ImageTree:
    train = {n: n.removeprefix(prefix).split("/")[1] for n in images if n.startswith(f"{prefix}train/")}
    val = [n for n in images if n.startswith(f"{prefix}val/")]
    listing = f"{prefix}val/val_annotations.txt"
    if val and listing not in tree.stamps:
        raise InputError(f"{listing!r} is missing, so the val images have no labels; add it or remove val/")
    annotated: dict[str, str] = {}
    if listing in tree.stamps:
        for number, fields in enumerate(_table(tree, listing), start=1):
            if len(fields) < 2:
                raise InputError(f"{listing!r} line {number}: expected an image and a WordNet id, tab-separated")
            annotated[f"{prefix}val/images/{fields[0]}"] = fields[1]
    for wrong, complaint in (
        (sorted(annotated.keys() - set(val)), "names {!r}, which is not there; add the image or remove the line"),
        (sorted(set(val) - annotated.keys()), "has no line for {!r}; add the line or remove the image"),
    ):
        if wrong:
            raise InputError(f"{listing!r} " + complaint.format(wrong[0]))
    if not train and not val:
        raise InputError(f"no images under {prefix}train/ or {prefix}val/ of this Tiny-ImageNet tree; unpack it again")
    wnids = {**train, **annotated}
    keys = sorted(set(wnids.values()))
    if f"{prefix}wnids.txt" in tree.stamps:
        listed = {fields[0] for fields in _table(tree, f"{prefix}wnids.txt")}
        for name, wnid in wnids.items():
            if wnid not in listed:
                raise InputError(f"class {wnid!r} of {name!r} is not in {prefix}wnids.txt; add it there")
        keys = sorted(listed)
    words: dict[str, str] = {}
    if f"{prefix}words.txt" in tree.stamps:
        words = {f[0]: f[1].split(",")[0].strip() for f in _table(tree, f"{prefix}words.txt") if len(f) > 1}
    names = [*sorted(train, key=_natural), *sorted(val, key=_natural)]
    index = {key: i for i, key in enumerate(keys)}
    return _tree(tree, names, [index[wnids[n]] for n in names], [words.get(k, k) for k in keys], keys)


def _tree(
    tree: _Folder | _Zip,
    names: list[str],
    labels: list[int] | None = None,
    class_names: list[str] | None = None,
    class_keys: list[str] | None = None,
    warnings: list[str] | None = None,
) -> ImageTree:
    stamps = [tree.stamps[n] for n in names]
    return ImageTree(names, stamps, tree.read, labels, class_names, class_keys, warnings or [])


def _table(tree: _Folder | _Zip, name: str) -> list[list[str]]:
    """Tab-separated fields of the text file's lines, blank ones left out."""
    try:
        text = tree.read(name).decode("utf-8")
    except BROKEN as error:
        raise InputError(f"cannot read {name!r}: {reason(error)}; replace the file") from error
    return [[field.strip() for field in line.split("\t")] for line in text.splitlines() if line.strip()]


def _natural(name: str) -> list[int | str]:
    """Sort key that puts val_10 after val_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
