"""Named results on disk, found again by what they were made from: what runs and experiments share, and go on from."""

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from psi_fast.errors import StoreError
from psi_fast.stopping import asked, stop_if_asked
from psi_fast.store import fingerprint, write_shared

EVERY = 15.0
"""Seconds of work on an unfinished result that a run which is killed may lose, beside its last batch."""
SHARE = 0.05
"""Of the time, what writing unfinished results may take: where they are so big that this is less often, more may be lost."""
FORMAT = 2
"""Changes when a file's content or the way one of its values is made does."""


class Shelf:
    """Results in a folder, one file each, under a hash of what they were made from.

    A file that is broken, cut short or of something else is made again, so a run that was killed goes on from its last
    whole file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensors(self, kind: str, about: Any, make: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The tensors that `make` returns, on the CPU; read where an earlier run left them for the same `about`.

        Parameters
        ----------
        kind : str
            First part of the file's name.
        about : JSON-ready
            Everything that decides the values.

        Raises
        ------
        StoreError
            The folder cannot be written.
        """
        found = self.find(kind, about)
        return self.keep(kind, about, make()) if found is None else found

    def find(self, kind: str, about: Any) -> dict[str, torch.Tensor] | None:
        """What lies there for `about`; None where nothing whole does."""
        return _read(*self._place(kind, about))

    def keep(self, kind: str, about: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write what is to be found for `about`, and return it, on the CPU; StoreError as of `tensors`."""
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path, mark = self._place(kind, about)
        held = serialised(found, {"identity": mark, "sha256": content(found)})
        self._write(path, lambda place: place.write_bytes(held))
        return found

    def _place(self, kind: str, about: Any) -> tuple[Path, str]:
        """A file and the mark in it."""
        mark = fingerprint([FORMAT, kind, about])
        return self.folder / f"{kind}-{mark[:20]}.safetensors", mark

    def make(self) -> None:
        """Make the folder, so that others who work on this see it; StoreError as of `tensors`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {self.folder}: {error.strerror or error}; choose another folder") from error

    def bytes(self) -> int:
        """Size of all that lies there."""
        return sum(path.stat().st_size for path in self.folder.glob("*")) if self.folder.is_dir() else 0

    def all_tensors(self, kind: str, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of every whole file of that kind that holds those names, all its tensors with as many rows."""
        for path in sorted(self.folder.glob(f"{kind}-*.safetensors")):
            found = _read(path)
            if found is None or not set(names) <= set(found):
                continue
            if all(own.ndim for own in found.values()) and len({len(own) for own in found.values()}) == 1:
                yield found

    def table(self, kind: str, about: Any, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table that `make` returns, without its index; as `tensors`, in a file of the same kind."""

        def packed() -> dict[str, torch.Tensor]:
            file = io.BytesIO()
            make().to_parquet(file, index=False)
            return {"parquet": torch.frombuffer(file.getbuffer(), dtype=torch.uint8)}

        held = self.tensors(kind, about, packed)["parquet"]
        return pd.read_parquet(io.BytesIO(held.numpy().tobytes()))  # lists as arrays, whether or not it was there

    def unfinished(self, kind: str, about: Any) -> "Unfinished":
        """What there is of a result that takes long, for whoever goes on with it; `about` as in `tensors`."""
        mark = fingerprint([FORMAT, kind, about])
        return Unfinished(self, self.folder / f"{kind}-{mark[:20]}.unfinished", mark)

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        try:
            write_shared(path, write)
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.folder}: {error.strerror or error}; free some room or choose another folder"
            ) from error


class Unfinished:
    """How far a long result has come: tensors and a count, written every EVERY seconds, in a file that goes when all is done.

    On SIGTERM it is written as well.
    """

    def __init__(self, shelf: Shelf, path: Path, mark: str) -> None:
        self._shelf, self._path, self._mark = shelf, path, mark
        self._last = time.monotonic()
        self._next = self._last + EVERY

    def read(self) -> tuple[int, dict[str, torch.Tensor]]:
        """How many were done and the tensors they left; 0 and none where nothing whole lies there."""
        found = _read(self._path, self._mark)
        return (0, {}) if found is None else (int(found.pop("done")), found)

    def write(self, done: int, make: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Keep what `make` returns of the first `done`, if EVERY seconds have passed since the last time or SIGTERM came."""
        begun = time.monotonic()
        if self._last <= begun < self._next and not asked():  # a clock that goes back puts nothing off
            return
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()} | {
            "done": torch.tensor(done)
        }
        held = serialised(found, {"identity": self._mark, "sha256": content(found)})
        self._shelf._write(self._path, lambda place: place.write_bytes(held))
        ended = time.monotonic()
        self._last, self._next = ended, ended + max(EVERY, (ended - begun) / SHARE)
        stop_if_asked(kept=True)

    def remove(self) -> None:
        """Take the file away: the whole result lies elsewhere now."""
        with contextlib.suppress(OSError):  # a shelf that is only read
            self._path.unlink(missing_ok=True)


def _read(path: Path, mark: str | None = None) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, None where it is broken or not the one that `mark` stands for."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
    except (OSError, SafetensorError):
        return None
    whole = mark in (None, metadata.get("identity")) and metadata.get("sha256") == content(found)
    return found if whole else None


def content(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
