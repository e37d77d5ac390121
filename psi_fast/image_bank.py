"""Images decoded once: a square of uint8 pixels each, in one file that is mapped into memory."""

import inspect
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from numpy.lib.format import open_memmap
from PIL import Image

from psi_fast.cache import cache_folder
from psi_fast.decoding import CHECKS, PIXELS, SIZES, allocated, checksums, content, decode
from psi_fast.disk_room import require_free
from psi_fast.errors import ConfigError, PsiFastError, StoreError
from psi_fast.image_set import ImageSet, to_rgb
from psi_fast.locks import lock
from psi_fast.progress import Progress
from psi_fast.store import fingerprint

FORMAT = 2
"""Changes when a bank's files do."""
ABOUT = "bank.json"
BUILDING = ".building-"
PROBED = 64
"""Images whose size is looked at before the side of the bank is chosen."""
MAX_SIDE = 4096
RESIDENT_SHARE = 0.5
"""Of a GPU's free memory, what a bank may take; a larger one is read from disk batch by batch."""

Rows = TypeVar("Rows", slice, np.ndarray)


class Squares:
    """Images [N, S, S, 3] uint8 RGB in one tensor.

    Attributes
    ----------
    side : int
        S in px.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.side = pixels.shape[1]
        self._pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, rows: slice | np.ndarray, device: torch.device) -> torch.Tensor:
        """The images `rows` on `device`, uint8 [B, S, S, 3]."""
        which = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self._pixels.device)
        return self._moved(self._pixels[which], device)

    def cut(self, rows: np.ndarray, corners: np.ndarray, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Boxes of one size from the images `rows`.

        Parameters
        ----------
        rows : [B] int64
        corners : [B, 2] int64
            (x, y) of each box's top left corner in the bank's px.
        size : (width, height) of the boxes in px

        Returns
        -------
        torch.Tensor
            [B, height, width, 3] uint8 on `device`.
        """
        where = self._pixels.device
        if where.type == "cpu":
            pixels, (width, height) = self._pixels.numpy(), size
            boxes = zip(rows.tolist(), corners.tolist(), strict=True)
            cut = np.stack([pixels[row, y : y + height, x : x + width] for row, (x, y) in boxes])
            return self._moved(torch.from_numpy(cut), device)
        row, corner = torch.from_numpy(rows).to(where), torch.from_numpy(corners).to(where)
        return self._moved(gathered(self._pixels, row, corner, size), device)

    @staticmethod
    def _moved(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        if pixels.device == device or device.type == "cpu":
            return pixels
        return pixels.pin_memory().to(device, non_blocking=True)


class ImageBank(Squares):
    """Decoded images: of each the centre square, its side resized to S.

    Attributes
    ----------
    sizes : [N, 2] int64
        Width and height of the originals in px.
    folder : Path
        Where the pixels lie.
    content : str
        Checksum of pixels and sizes as they were written.
    """

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, folder: Path, content: str) -> None:
        super().__init__(pixels)
        self.sizes = sizes
        self.folder = folder
        self.content = content

    def to(self, device: torch.device) -> "ImageBank":
        """The bank itself, its pixels now in a GPU's memory if they fit well."""
        if device.type == "cuda" and self._pixels.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._pixels = self._pixels.to(device)
        return self

    def walk(self, parts: Iterable[Rows]) -> Generator[tuple[Squares, Rows], None, None]:
        """For each part of the images, squares that hold it, and its rows in them."""
        for rows in parts:
            yield self, rows

    def to_image(self, boxes: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] (x0, y0, x1, y1) in the bank's px as boxes of the original images `of` [...], float64 in their px."""
        return from_square(boxes, self.side, self.sizes[of])


def open_bank(
    images: ImageSet, largest: int, *, folder: Path | None = None, side: int | None = None, progress: Progress
) -> ImageBank:
    """The bank of `images`: read when an earlier run left it there, else decoded now.

    Parameters
    ----------
    images
        What to decode. A set whose content cannot be told without decoding it (a Dataset) is decoded anew each time.
    largest
        Side in px that its users resize to: more would be thrown away.
    folder
        Folder of banks; the default is `banks` in the cache folder.
    side
        Side of the bank in px; the default is `largest`, or less where the first images are all smaller.

    Raises
    ------
    InputError
        An image cannot be decoded.
    ConfigError
        `side` is out of range.
    StoreError
        The folder cannot be written, or the disk has no room.
    """
    side = side_for(images, largest, side)
    root, identity = _place(images, folder, side)
    if (bank := held_bank(images, folder=folder, side=side)) is not None:
        return bank
    place = root / identity[:20]
    shutil.rmtree(place, ignore_errors=True)  # one that is not whole, has a wrong bit or is of another version
    _make_room(images, place, side)
    with _built(root, place, images.lasting) as (building, final, held):
        about = {"format": FORMAT, "identity": identity, "content": decode(images, side, squared, building, progress)}
        (building / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    (final / CHECKS).unlink(missing_ok=True)
    bank = _held(final, identity, len(images), side)
    if bank is not None and not _sound(bank):
        bank = None
    if bank is None:
        raise StoreError(f"the decoded images in {final} do not read back; is another program writing there?")
    if not images.lasting:
        weakref.finalize(bank, _discard, final, held)
    return bank


def require_room(images: ImageSet, *, folder: Path | None, side: int) -> None:
    """See that the disk has room for the bank of `images` with `side` in px, unless an earlier run left it.

    Folders that killed runs of other images left are taken away first. `folder` is as for `open_bank`.

    Raises
    ------
    StoreError
        The folder cannot be made, or the disk has no room: what `open_bank` would find only when it decodes.
    """
    root, identity = _place(images, folder, side)
    if not images.lasting or _held(root / identity[:20], identity, len(images), side) is None:
        _make_room(images, root / identity[:20], side)


def _make_room(images: ImageSet, place: Path, side: int) -> None:
    """As `require_room`, of a bank that is not in `place`."""
    root, begun = place.parent, _unfinished(place)
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root, begun if images.lasting else None)
        require_free(
            root,
            max(0, len(images) * side * side * 3 - allocated(begun)),
            "the decoded images need",
            "keep none (--bank stream), give another folder (--bank), a smaller side (--bank-side) or fewer images "
            "(--max-images)",
        )


def held_bank(images: ImageSet, *, folder: Path | None, side: int) -> ImageBank | None:
    """The bank of `images` with `side` in px that an earlier run left in `folder` (as for `open_bank`).

    None without one, or where a bit of it is not what was written: all of it is read for that.
    """
    root, identity = _place(images, folder, side)
    bank = _held(root / identity[:20], identity, len(images), side) if images.lasting else None
    return bank if bank is not None and _sound(bank) else None


def side_for(images: ImageSet, largest: int, side: int | None) -> int:
    """The side of the images' squares in px: `side`, or else `largest`, or less where the first images are all smaller."""
    if side is None:
        spread = np.unique(np.linspace(0, len(images) - 1, min(PROBED, len(images)), dtype=int))
        return min(largest, max(min(images.load(int(i)).size) for i in spread))
    if type(side) is not int or not 1 <= side <= MAX_SIDE:
        raise ConfigError(f"bank_side must be a whole number of px within 1..{MAX_SIDE}, got {side!r}")
    return side


def squared(image: Image.Image, side: int) -> np.ndarray:
    """The centre square of an RGB image with its side resized, uint8 [side, side, 3]; one that has that shape is unchanged."""
    short = min(image.size)
    x, y = ((length - short) // 2 for length in image.size)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + short, y + short))
    return np.asarray(image)


def gathered(pixels: torch.Tensor, rows: torch.Tensor, corners: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What `Squares.cut` cuts, all boxes at once on the device that holds `pixels` [N, S, S, 3], `rows` and `corners`."""
    x = corners[:, 0, None] + torch.arange(size[0], device=pixels.device)
    y = corners[:, 1, None] + torch.arange(size[1], device=pixels.device)
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]]


def from_square(boxes: np.ndarray, side: int, sizes: np.ndarray) -> np.ndarray:
    """Boxes [..., 4] in px of squares of `side` as boxes of the originals, which have the `sizes` [..., 2]; float64."""
    short, corner = _squared_part(sizes)
    points = np.asarray(boxes, dtype=np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)
    points = points * (short / side)[..., None] + corner[..., None, :]
    return points.reshape(*points.shape[:-2], 4)


def to_square(boxes: np.ndarray, side: int, sizes: np.ndarray) -> np.ndarray:
    """The inverse of `from_square`: boxes [..., 4] in px of originals of `sizes` [..., 2] in those of their squares."""
    short, corner = _squared_part(sizes)
    points = np.asarray(boxes, dtype=np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)
    points = (points - corner[..., None, :]) * (side / short)[..., None]
    return points.reshape(*points.shape[:-2], 4)


def _squared_part(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Side [..., 1] and upper left corner [..., 2] of the centre squares of originals of `sizes` [..., 2], in their px."""
    short = sizes.min(-1, keepdims=True)
    return short, (sizes - short) // 2


def _place(images: ImageSet, folder: Path | None, side: int) -> tuple[Path, str]:
    """The folder of banks, and what tells the one of `images` from others."""
    made_by = [FORMAT, PIL.__version__, *map(inspect.getsource, (squared, to_rgb))]
    return folder or cache_folder() / "banks", fingerprint([made_by, images.fingerprint, side])


def same_bank(folder: Path, content: str, count: int, side: int) -> ImageBank | None:
    """The bank in `folder` whose `content` is that, as another process has it; None where this one does not see it whole."""
    bank, _ = _mapped(folder, count, side)
    return bank if bank is not None and bank.content == content and _sound(bank) else None


def _held(place: Path, identity: str, count: int, side: int) -> ImageBank | None:
    """The bank in `place`; None when there is none, or one that is not whole or made otherwise."""
    bank, held = _mapped(place, count, side)
    return bank if held == identity else None


def _mapped(place: Path, count: int, side: int) -> tuple[ImageBank | None, str | None]:
    """The bank in `place` and its identity; None and None where none is whole."""
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        pixels = open_memmap(place / PIXELS, mode="c")  # never written to; a read-only map makes torch warn
        sizes = np.load(place / SIZES)
    except Exception:  # a header with a wrong bit makes NumPy raise whatever Python's own parser does
        return None, None
    shapes = (pixels.shape, pixels.dtype, sizes.shape, sizes.dtype)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return None, None
    if shapes != ((count, side, side, 3), np.uint8, (count, 2), np.int64):
        return None, None
    return ImageBank(pixels, sizes, place, str(about.get("content"))), about.get("identity")


def _sound(bank: ImageBank) -> bool:
    """Whether a bank holds what was written, down to each bit."""
    pixels = bank.read(slice(None), torch.device("cpu")).numpy()
    return bank.content == content(checksums(pixels, np.arange(len(pixels))), bank.sizes)


@contextmanager
def _built(root: Path, place: Path, lasting: bool) -> Iterator[tuple[Path, Path, int | None]]:
    """A folder to build in, and the one it becomes once the block ends well.

    After an error nothing is left; of a process that is told to stop, or killed, what the next one goes on from, if it lasts. The
    third is the lock on a folder that does not last, which `_discard` takes.
    """
    with _writing(root), _only_one(root):
        building, held = _begun(place) if lasting else (None, None)
        if building is None:
            building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=root))
            held = lock(building)
    final = place if lasting else building
    try:
        with _writing(root):
            yield building, final, held
            if lasting:
                shutil.rmtree(place, ignore_errors=True)  # one that another process has made meanwhile
                building.rename(place)
    except BaseException as error:
        if isinstance(error, Exception) or building != _unfinished(place):
            _discard(building, held)
        elif held is not None:
            os.close(held)
        raise
    if lasting and held is not None:
        os.close(held)


def _unfinished(place: Path) -> Path:
    """Where the bank of `place` is built, if nobody else builds it."""
    return place.with_name(f"{BUILDING}{place.name}")


def _begun(place: Path) -> tuple[Path | None, int | None]:
    """That folder and the lock on it; None and None where another process has it, or locks are not known."""
    building = _unfinished(place)
    there = building.exists()
    building.mkdir(exist_ok=True)
    held = lock(building)
    if held is None and not there:
        building.rmdir()
    return (None, None) if held is None else (building, held)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except PsiFastError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write decoded images to {root}: {error.strerror or error}; give another folder (--bank)"
        ) from error


def _sweep(root: Path, but: Path | None) -> None:
    """Take away the folders of killed runs, those that no process holds a lock on, `but` one, which goes on."""
    with _only_one(root) as alone:
        for left in root.glob(f"{BUILDING}*") if alone else ():
            if left != but and (held := lock(left)) is not None:
                _discard(left, held)


@contextmanager
def _only_one(root: Path) -> Iterator[bool]:
    """Only one process at a time is here, so that a new folder is not swept before it is locked; whether that is sure."""
    held = lock(root, wait=True)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def _discard(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
