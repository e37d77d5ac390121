"""Embedded concepts, kept in the cache folder: a text tower is slow, and the same words have the same vectors."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from psi_fast.cache import cache_folder
from psi_fast.encoders import AnyPrecision, Encoder, TextTower
from psi_fast.encoders.text_head import TextHead
from psi_fast.environment import device_info, versions
from psi_fast.errors import NotFiniteError
from psi_fast.forward import name_of
from psi_fast.progress import Progress
from psi_fast.store import fingerprint, write_shared
from psi_fast.vocabulary import Vocabulary

FORMAT = 1
"""Changes when a file's content or the way a bank is made does."""
FOLDER = "text"
TENSOR = "text"
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "sentence-transformers")
"""What else than weights and words decides a vector's last bits."""


def concept_bank(
    encoder: Encoder, vocabulary: Vocabulary | None, mark: str, device: torch.device, progress: Progress
) -> tuple[list[str], torch.Tensor, list[str]]:
    """Names [P] and float32 [P, d] on the CPU of an encoder's concepts, and what a reader of the results must know.

    `mark` is the encoder's fingerprint, which takes a while to compute. A text tower's bank is read from the cache folder
    when an earlier run left it there, with the same bits. An encoder that embeds a concept as nan or zero in a half precision
    runs in float32 from then on.

    Raises
    ------
    NotFiniteError
        A concept's embedding is not finite or zero.
    """
    if not isinstance(encoder, TextTower):
        names, rows = encoder.concepts(vocabulary, progress)
        _require_vectors(encoder.name, names, rows)
        return names, rows, []
    names, templates = encoder.prompts(vocabulary)

    def kept() -> tuple[torch.Tensor, list[str]]:
        return _kept(encoder, mark, names, templates, device, lambda: encoder.concepts(vocabulary, progress)[1])

    try:
        return names, *kept()
    except NotFiniteError as error:
        if not isinstance(encoder, AnyPrecision) or encoder.precision == name_of(torch.float32):
            raise
        said = f"the encoder runs in float32, because in {encoder.precision}: {error}"
        encoder.at_precision(torch.float32)
    rows, warnings = kept()
    return names, rows, [said, *warnings]


def head_bank(
    head: TextHead, names: Sequence[str], mark: str, device: torch.device, progress: Progress
) -> tuple[torch.Tensor, list[str]]:
    """Float32 [P, e] on the CPU of a text head's concepts, and what a reader must know; as `concept_bank`."""
    return _kept(head, mark, names, ["{}"], device, lambda: head.embed(names, progress))


def _kept(
    tower: TextTower | TextHead,
    mark: str,
    names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
    embed: Callable[[], torch.Tensor],
) -> tuple[torch.Tensor, list[str]]:
    """The bank in the cache folder, or that of `embed`, which then lies there for later runs unless it is broken."""
    found = versions()
    about = {
        "format": FORMAT,
        "tower": mark,
        "precision": tower.precision,
        "device": device_info(device),
        "versions": {name: found[name] for name in PACKAGES if name in found},
        "templates": list(templates),
        "concepts": list(names),
    }
    path = cache_folder() / FOLDER / f"{fingerprint(about)}.safetensors"
    rows = _read(path, about)
    if rows is not None:
        return rows, []
    rows = embed().contiguous()
    _require_vectors(tower.name, names, rows)
    metadata = {"about": json.dumps(about, sort_keys=True), "sha256": _checksum(rows)}
    try:
        write_shared(path, lambda place: place.write_bytes(serialised({TENSOR: rows}, metadata)))
    except OSError as error:
        return rows, [
            f"the embedded concepts cannot be kept in {path.parent} ({error.strerror or error}), so each run embeds them "
            "anew; let PSI_FAST_CACHE name a folder that can be written"
        ]
    return rows, []


def _read(path: Path, about: Mapping[str, Any]) -> torch.Tensor | None:
    """The bank in `path`; None when there is none, or one that is broken or of anything else than `about`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, rows = file.metadata() or {}, file.get_tensor(TENSOR)
    except (OSError, SafetensorError):
        return None
    whole = rows.dtype == torch.float32 and rows.ndim == 2 and len(rows) == len(about["concepts"])
    if not whole or _broken(rows) is not None or metadata.get("about") != json.dumps(about, sort_keys=True):
        return None
    # a copy: the tensor is a map of a file that may change
    return rows.clone() if metadata.get("sha256") == _checksum(rows) else None


def _require_vectors(name: str, concepts: Sequence[str], rows: torch.Tensor) -> None:
    """Raises a NotFiniteError that names the first concept without a direction."""
    row = _broken(rows)
    if row is not None:
        raise NotFiniteError(
            f"concepts: {name} returns a vector that is zero or not finite for the concept {concepts[row]!r}; check the "
            "encoder's weights, or leave the concept out"
        )


def _broken(rows: torch.Tensor) -> int | None:
    """The first of the rows that is zero or not finite."""
    bad = torch.nonzero(~torch.isfinite(rows).all(1) | (rows == 0).all(1))
    return int(bad[0]) if len(bad) else None


def _checksum(rows: torch.Tensor) -> str:
    """SHA-256 (hex) over the shape and the bytes."""
    return hashlib.sha256(f"{tuple(rows.shape)}\n".encode() + rows.numpy().tobytes()).hexdigest()
