"""Crops -> embeddings: by themselves, or in parts on a shelf, where each crop is encoded once, whoever asks for it."""

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
from psi_fast.store import fingerprint
from psi_fast.subject import Subject

PART = 2048
"""Crops of one file on the shelf."""


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
    shelf: Shelf,
    progress: Progress,
    said: list[str],
) -> torch.Tensor:
    """Unit embeddings [U, d] float32 of the distinct crops [U, 5], in parts that stay on the shelf.

    Whatever an earlier request left there is not encoded again; what is missing goes there in parts of PART crops, sorted by
    image. `mark` is the encoder's fingerprint.
    """
    about = {
        "encoder": mark,
        "precision": getattr(encoder, "precision", "not stated"),
        "images": subject.fingerprints["images"],
        "code": subject.fingerprints["code"],
        "side": bank.side,
        "device": subject.device.type,
    }
    kind = f"crops-{fingerprint(about)[:12]}"
    held: dict[bytes, torch.Tensor] = {}
    for found in shelf.all_tensors(kind):
        held |= zip(map(bytes, _keys(found["crops"].numpy())), found["rows"], strict=True)
    wanted = [bytes(key) for key in _keys(crops)]
    missing = np.flatnonzero([key not in held for key in wanted])
    for start in range(0, len(missing), PART):
        part = crops[missing[start : start + PART]]
        of = [about, fingerprint(part.tolist())]
        unfinished = shelf.unfinished(kind, of)
        arguments = (part, bank, subject.images.names, encoder, subject.device, subject.config, progress, unfinished)

        def make(arguments: tuple[Any, ...] = arguments) -> dict[str, torch.Tensor]:
            return {"crops": torch.from_numpy(arguments[0]), "rows": embed(*arguments)}

        try:
            found = shelf.tensors(kind, of, make)
            unfinished.remove()
        except NotFiniteError as error:
            unfinished.remove()
            _widen(encoder, error, said)
            return shelved_crops(
                crops, bank, subject, encoder, mark, shelf, progress, said
            )  # all of them, not the rest
        held |= zip(map(bytes, _keys(found["crops"].numpy())), found["rows"], strict=True)
    return torch.stack([held[key] for key in wanted])


def _keys(crops: np.ndarray) -> np.ndarray:
    """One value a crop [U, 5] float64 that tells it from others."""
    return np.ascontiguousarray(crops).view(f"V{crops.shape[1] * crops.itemsize}")[:, 0]
