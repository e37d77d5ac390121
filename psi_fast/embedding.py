"""Crops -> embeddings: by themselves, or in parts on a shelf, where each crop is encoded once, whoever asks for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from psi_fast.crops import embed
from psi_fast.encoders import AnyPrecision, Encoder
from psi_fast.errors import NotFiniteError
from psi_fast.forward import name_of
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.progress import Progress
from psi_fast.shelf import Shelf
from psi_fast.sight import Sight, encoded_part, look
from psi_fast.store import fingerprint
from psi_fast.subject import Subject
from psi_fast.workers import EMBEDDING, Workers, part_size, require_all

PART = 2048
"""Crops of one file on the shelf."""
FEWEST = 64
"""Crops of a part for one of several workers, at least."""


def embedded_crops(
    crops: np.ndarray,
    bank: ImageBank | ImageStream,
    subject: Subject,
    encoder: Encoder,
    bars: Progress,
    retried: list[str],
) -> torch.Tensor:
    """Embeddings [U, d] as of `embed`; an encoder that leaves the range of a half precision runs again in float32.

    What a reader must know of that is added to `retried`.
    """
    arguments = (crops, bank, subject.images.names, encoder, subject.device, subject.config, bars)
    try:
        return embed(*arguments)
    except NotFiniteError as error:
        _widen(encoder, error, retried)
    return embed(*arguments)


def _widen(encoder: Encoder, error: NotFiniteError, retried: list[str]) -> None:
    """Have an encoder that left the range of a half precision go on in float32; raises the error where it was in that."""
    if not isinstance(encoder, AnyPrecision) or encoder.precision == name_of(torch.float32):
        raise error
    retried.append(f"the encoder ran again in float32, because in {encoder.precision}: {error}")
    encoder.at_precision(torch.float32)


def shelved_crops(
    crops: np.ndarray,
    bank: ImageBank | ImageStream,
    subject: Subject,
    encoder: Encoder,
    mark: str,
    shelf: Shelf | None,
    progress: Progress,
    said: list[str],
    workers: Workers | None = None,
) -> torch.Tensor:
    """Unit embeddings [U, d] float32 of the distinct crops [U, 5], in parts that stay on the shelf.

    Whatever an earlier request left there is not encoded again; what is missing goes there in parts of at most PART crops,
    sorted by image, that `workers` encode, or this process. `mark` is the encoder's fingerprint.

    Raises
    ------
    OthersMissing
        Some parts are other workers' than those of this process.
    """
    about = {
        "encoder": mark,
        "precision": getattr(encoder, "precision", "not stated"),
        "images": subject.fingerprints["images"],
        "code": subject.fingerprints["code"],
        "torch": subject.fingerprints["torch"],
        "side": bank.side,
        "device": subject.device.type,
    }
    kind = f"crops-{fingerprint(about)[:12]}"
    held: dict[bytes, torch.Tensor] = {}
    for found in shelf.all_tensors(kind, ("crops", "rows")) if shelf else ():
        held |= zip(map(bytes, _keys(found["crops"].numpy())), found["rows"], strict=True)
    wanted = [bytes(key) for key in _keys(crops)]
    missing = np.array([key not in held for key in wanted])
    size = PART if workers is None else part_size(len(crops), workers, FEWEST, PART)
    parts = {
        number: crops[start : start + size][missing[start : start + size]]
        for number, start in enumerate(range(0, len(crops), size))
        if (workers is None or workers.own(EMBEDDING, number)) and missing[start : start + size].any()
    }
    marks = {number: [about, fingerprint(part.tolist())] for number, part in parts.items()}
    sight = look(subject, bank, shelf, encoder)
    tasks = {number: (part, kind, marks[number]) for number, part in parts.items()}
    try:
        for number, rows in _encoded(sight, tasks, progress, workers):
            if shelf:
                shelf.keep(kind, marks[number], {"crops": torch.from_numpy(parts[number]), "rows": rows})
                shelf.unfinished(kind, marks[number]).remove()
            held |= zip(map(bytes, _keys(parts[number])), rows, strict=True)
    except NotFiniteError as error:
        if shelf:
            for own in marks.values():
                shelf.unfinished(kind, own).remove()
        _widen(encoder, error, said)
        # all of them, not the rest
        return shelved_crops(*(crops, bank, subject, encoder), mark, shelf, progress, said, workers)
    require_all({number: key for number, key in enumerate(wanted) if key in held}, len(wanted), EMBEDDING)
    return torch.stack([held[key] for key in wanted])


def _encoded(
    sight: Sight, tasks: Mapping[int, tuple[np.ndarray, str, Any]], progress: Progress, workers: Workers | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """The embeddings [u, d] of each task's crops, as they are done."""
    if workers is None:
        for number, task in tasks.items():
            yield number, encoded_part(sight, *task, progress)
        return
    with progress.bar("embedding", sum(len(task[0]) for task in tasks.values()), "crop") as bar:
        for number, rows in workers.results(encoded_part, tasks, sight):
            yield number, rows
            bar.update(len(rows))


def _keys(crops: np.ndarray) -> np.ndarray:
    """One value a crop [U, 5] float64 that tells it from others."""
    return np.ascontiguousarray(crops).view(f"V{crops.shape[1] * crops.itemsize}")[:, 0]
