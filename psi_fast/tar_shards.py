"""WebDataset's tar shards as images: one pass over the headers, then each image is read where it lies."""

import importlib
import importlib.util
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from psi_fast.checkpoints import one_line
from psi_fast.errors import InputError, nearest
from psi_fast.image_files import open_image, require_size
from psi_fast.image_set import ImageSet
from psi_fast.image_trees import BROKEN, EXTENSIONS, reason
from psi_fast.prefetch import prefetch
from psi_fast.progress import Progress
from psi_fast.tar_headers import header_in
from psi_fast.vocabulary import numbered

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""File endings taken for shards; the compressed ones for the sake of their error message."""
CLASS_LISTS = ("classes.txt", "classnames.txt")
"""Files beside the shards that name the classes, a line each, in the order of their numbers."""
MAX_SHARDS = 1_000_000
DIGITS = 18
"""Of a number in a pattern at most."""
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:", re.IGNORECASE)
_COMPRESSIONS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_META = re.compile(r"__[^/]*__(/|$)")  # members that describe the shard, which WebDataset skips
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_LABEL_BYTES = 2**24
_DAMAGED = (*BROKEN, tarfile.TarError, IndexError, MemoryError, RecursionError)
"""What tarfile raises on headers that make no sense."""


def names_shards(source: str) -> bool:
    """Whether `source` is a tar file, a pattern of such, a folder that holds only shards, or an address of something remote."""
    if os.path.isdir(source):  # Path.is_dir raises on a pattern that is longer than a file's name can be
        return _only_shards(Path(source))
    return _REMOTE.match(source) is not None or source.lower().endswith(ENDINGS)


def open_shards(source: str, progress: Progress) -> ImageSet:
    """The images of WebDataset shards, in their order there.

    A sample is a run of members with the same name up to the first dot of its last part. It holds one image and maybe a
    label, as text in a member `.cls` or else as "label" or "cls" in a member `.json`. Nothing is unpacked; names are only
    names.

    Parameters
    ----------
    source
        What `names_shards` holds true for. Braces stand for several: "shard-{000000..000099}.tar", "{train,val}.tar".
    progress
        Shows how many shards are indexed.

    Raises
    ------
    InputError
        A shard is missing, remote, compressed, truncated or damaged, holds a link or a device, two images in one sample or no
        sample; or labels that cannot be read, that only some samples have, or that have no line in the list of classes.
    """
    paths = _paths(source)
    root = os.path.commonpath([path.absolute().parent for path in paths])
    titles = [path.absolute().relative_to(root).as_posix() for path in paths]
    # Threads wait for a mounted store's headers side by side; files on a local disk are parsed no faster by them.
    found = prefetch(_index, paths, ahead=16, workers=8)
    with closing(found), progress.bar("indexing", len(paths), "shard") as bar:
        shards = []
        for shard in found:
            shards.append(shard)
            bar.update()
    names = [f"{title}/{name}" for title, shard in zip(titles, shards, strict=True) for name in shard.names]
    skipped = [f"{title}/{key}" for title, shard in zip(titles, shards, strict=True) for key in shard.bare]
    if not names:
        held = f"{len(skipped)} samples without an image" if skipped else "no samples"
        raise InputError(f"no images in {source!r}: found {held}; expected members ending in {' '.join(EXTENSIONS)}")
    labels, class_names, class_keys = _classes(
        [label for shard in shards for label in shard.labels], names, paths[0].parent
    )
    more = f"sample{'s'[: len(skipped) > 1]} without an image"
    return ImageSet(
        names,
        _Reader(paths, shards, names).image,
        [f"{shard.stamp} {offset} {size}" for shard in shards for offset, size in shard.places],
        labels=labels,
        class_names=class_names,
        class_keys=class_keys,
        warnings=[f"skipped {len(skipped)} {more}, as {skipped[0]}"] if skipped else [],
    )


@dataclass
class _Shard:
    """What one pass over a shard finds: its size and time of change, and of each sample its image member, the place of
    its bytes (offset, count) and its label; `bare` are the keys of samples without an image."""

    stamp: str
    names: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)


class _Reader:
    """Images by name, each by a file handle of its own, so that threads do not meet."""

    def __init__(self, paths: list[Path], shards: list[_Shard], names: list[str]) -> None:
        self._paths = paths
        self._stamps = [shard.stamp for shard in shards]
        self._rows = {name: row for row, name in enumerate(names)}
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._places = np.array([place for shard in shards for place in shard.places], dtype=np.int64)

    def image(self, name: str) -> Image.Image:
        row = self._rows[name]
        shard = self._shard[row]
        offset, size = self._places[row].tolist()
        with self._paths[shard].open("rb", buffering=0) as file:
            if _stamp(file.fileno()) != self._stamps[shard]:
                raise InputError(f"shard {str(self._paths[shard])!r} has changed since it was indexed; start again")
            require_size(size)
            file.seek(offset)
            return open_image(file.read(size))


def _only_shards(folder: Path) -> bool:
    """Whether the folder holds shards and neither images nor folders; lists beside the shards do not count."""
    found = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                if not name.startswith(".") and (entry.is_dir() or name.endswith(EXTENSIONS)):
                    return False
                found |= not name.startswith(".") and name.endswith(ENDINGS)
    except OSError:  # said where folders of images are listed
        return False
    return found


def _paths(source: str) -> list[Path]:
    """The shards that `source` stands for; all are there."""
    if _REMOTE.match(source):
        raise InputError(
            f"{source!r} is remote, and images are read from local or mounted paths; download the shards or mount their store"
        )
    path = Path(source)
    if os.path.isdir(source):
        held = sorted(path.iterdir())
        paths = [shard for shard in held if shard.name.lower().endswith(ENDINGS) and not shard.name.startswith(".")]
    elif "{" not in source or os.path.exists(source):
        paths = [path]
    else:
        paths = [Path(name) for name in _expanded(source)]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing and len(paths) == 1:
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise InputError(f"no shard at {str(missing[0])!r}{nearest(missing[0].name, siblings)}; check the path")
    if missing:
        count = "none" if len(missing) == len(paths) else len(paths) - len(missing)
        raise InputError(
            f"of the {len(paths)} shards of {source!r}, {count} are there; the first one missing is {str(missing[0])!r}; check "
            "the range and the folder"
        )
    if len(set(paths)) < len(paths):
        raise InputError(f"{source!r} names a shard twice; change the pattern")
    return paths


def _expanded(pattern: str) -> list[str]:
    if importlib.util.find_spec("braceexpand") is None:
        raise InputError(
            f'the pattern {pattern!r} needs the package braceexpand (pip install "psi-fast[webdataset]"); '
            "a folder of shards does without"
        )
    package = importlib.import_module("braceexpand")
    try:
        count = _count(package, pattern)
        if count <= MAX_SHARDS:
            return list(package.braceexpand(pattern, escape=False))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{pattern!r:.200} is no pattern of shards ({one_line(error)}); expected shard-{{000..099}}.tar"
        ) from error
    raise InputError(f"{pattern!r:.200} stands for more than {MAX_SHARDS:,} shards; check what is in its braces")


def _count(package: ModuleType, pattern: str) -> int:
    """How many names a pattern stands for, at most; to expand one of ten braces more takes a thousand times as long."""
    levels, begun = (
        [[0, 1]],
        [],
    )  # names of the alternatives before and of the one at hand, for each brace not closed yet
    for at, letter in enumerate(pattern):
        if letter == "{":
            levels.append([0, 1])
            begun.append(at + 1)
        elif letter == "," and begun:
            levels[-1] = [sum(levels[-1]), 1]
        elif letter == "}" and begun:
            inside, names = pattern[begun.pop() : at], sum(levels.pop())
            if found := package.int_range_re.match(inside):
                if max(map(len, found.groups(""))) > DIGITS:
                    raise ValueError(f"a number of more than {DIGITS} digits")
                first, last, step = found.groups("1")
                names = abs(int(last) - int(first)) // max(1, int(step)) + 1
            elif found := package.char_range_re.match(inside):
                first, last = (package.alphabet.index(found[own]) for own in (1, 2))
                names = abs(last - first) // max(1, int(found[3] or 1)) + 1
            levels[-1][1] *= names
    return math.prod(map(sum, levels))


def _index(path: Path) -> _Shard:
    """One pass over the headers of the shard."""
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            shard = _Shard(_stamp(file.fileno()))
            for key, members in groupby(_members(path, file), key=lambda found: found[0]):
                held: dict[str, tarfile.TarInfo] = {}
                for _, ending, member in members:
                    if ending in held:
                        raise _refused(
                            path, f"sample {key!r} has two members .{ending}", "pack it with one image a sample"
                        )
                    held[ending] = member
                if key in seen:
                    raise _refused(path, f"the members of sample {key!r} lie apart", "pack it sorted by name")
                seen.add(key)
                image = _image_of(path, key, held)
                if image is None:
                    shard.bare.append(key)
                    continue
                shard.names.append(image.name)
                shard.places.append((image.offset_data, image.size))
                shard.labels.append(_label(path, file, key, held))
            return shard
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"shard {str(path)!r} cannot be read as a tar ({reason(error)}); copy or pack it again"
        ) from error


def _members(path: Path, file: BufferedReader) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The files in a tar as (key of the sample, ending in lower case, member)."""
    size, start = os.fstat(file.fileno()).st_size, file.read(6)
    for magic, tool in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise _refused(path, "it is compressed", f"decompress it first ({tool}), as images are read where they lie")
    file.seek(0)
    before = -1
    # names that are no unicode would fail when results are written
    with tarfile.open(
        fileobj=file, mode="r:", tarinfo=header_in(file), encoding="utf-8", errors="backslashreplace"
    ) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps every header
            if member.size < 0 or member.offset <= before:
                raise tarfile.ReadError(f"damaged header at byte {member.offset}")
            before = member.offset
            if member.offset_data + member.size > size:
                raise _refused(path, f"it is truncated within {member.name!r}", "copy it again")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                kind = (
                    "a link"
                    if member.islnk() or member.issym()
                    else "a sparse file"
                    if member.issparse()
                    else "a device"
                )
                raise _refused(path, f"member {member.name!r} is {kind}", "pack the files themselves")
            folder, slash, base = member.name.rpartition("/")
            stem, dot, ending = base.partition(".")
            if stem and dot and not _META.match(member.name):
                yield folder + slash + stem, ending.lower(), member
        end = tar.offset
    # tarfile takes a damaged header for the end
    file.seek(end)
    if len(mark := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise _refused(path, "it is truncated (there is no end mark)", "copy it again")
    if mark.strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {end}")
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise _refused(path, "more lies behind its end", "give tars that were joined as files of their own")


def _image_of(path: Path, key: str, held: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The image of a sample: the member named just by an image's ending, or else the one with more before that."""
    plain = [ending for ending in held if f".{ending}" in EXTENSIONS]
    images = plain or [ending for ending in held if ending.endswith(EXTENSIONS)]
    if len(images) > 1:
        raise _refused(
            path,
            f"sample {key!r} has two images, .{images[0]} and .{images[1]}",
            "pack it with one image a sample (a sample's members share their name up to the first dot)",
        )
    return held[images[0]] if images else None


def _label(path: Path, file: BufferedReader, key: str, held: dict[str, tarfile.TarInfo]) -> str | None:
    """The label of a sample, whole numbers in their shortest form."""
    member = held.get("cls") or held.get("json")
    if member is None:
        return None
    if member.size > _LABEL_BYTES:
        raise _refused(path, f"member {member.name!r} is too large for a label ({member.size} bytes)", "pack it anew")
    file.seek(member.offset_data)
    try:
        text = value = file.read(member.size).decode("utf-8")
        if "cls" not in held:
            fields = json.loads(text)
            fields = fields if isinstance(fields, dict) else {}
            value = fields.get("label", fields.get("cls"))
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"member {member.name!r} cannot be read ({reason(error)})", "pack it anew") from error
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _refused(path, f"the label of {key!r} is a {type(value).__name__}", "give a whole number or a name")
    # a lone surrogate in JSON would fail when results are written
    label = str(value).strip().encode("utf-8", "backslashreplace").decode("utf-8")
    if len(label.splitlines()) != 1:
        raise _refused(path, f"the label of {key!r} is {label!r:.60}", "give a whole number or a name")
    return str(int(label)) if _NUMBER.fullmatch(label) else label


def _classes(
    labels: list[str | None], names: list[str], folder: Path
) -> tuple[np.ndarray | None, list[str] | None, list[str] | None]:
    """Classes [N] int64 of the images, the names and the keys of the classes; None without labels."""
    known = [label for label in labels if label is not None]
    if not known:
        return None, None, None
    if len(known) < len(labels):
        bare, labelled = (
            names[labels.index(None)],
            names[next(i for i, label in enumerate(labels) if label is not None)],
        )
        raise InputError(f"{labelled!r} has a label and {bare!r} has none; give all samples one, or none")
    numbers = all(_NUMBER.fullmatch(label) for label in known)
    listing = next((folder / name for name in CLASS_LISTS if (folder / name).is_file()), None)
    if listing is None:
        keys = sorted(set(known), key=int if numbers else str)
        index = {key: i for i, key in enumerate(keys)}
        return np.array([index[label] for label in known]), [numbered(key) for key in keys] if numbers else keys, keys
    try:
        listed = [line.strip() for line in listing.read_text(encoding="utf-8").rstrip().splitlines()]
    except BROKEN as error:
        raise InputError(f"cannot read {str(listing)!r}: {reason(error)}; replace the file") from error
    keys = [str(i) for i in range(len(listed))]
    index = {key: i for i, key in enumerate(keys if numbers else listed)}
    for label, name in zip(known, names, strict=True):
        if label not in index:
            raise InputError(
                f"the label {label!r} of {name!r} is not among the {len(listed)} classes of {str(listing)!r}, which are "
                f"{'counted from 0' if numbers else 'taken by name'}; correct that list or remove it"
            )
    return np.array([index[label] for label in known]), listed, keys


def _stamp(file: int) -> str:
    status = os.fstat(file)
    return f"{status.st_size} {status.st_mtime_ns}"


def _refused(path: Path, what: str, remedy: str) -> InputError:
    return InputError(f"shard {str(path)!r} is refused: {what}; {remedy}")
