"""Arrays from users -> PatchEmbeddings, labels and bank, or one line saying what is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, InputError
from psi_fast.results import Bank, PatchEmbeddings

ROWS_AT_ONCE = 4096


def read_embeddings(embeddings: Any, valid: Any) -> PatchEmbeddings:
    """Unit rows of embeddings [C, K, d], equal rows once, with index -1 where `valid` [C, K] is False."""
    x = _array("embeddings", embeddings, 3, "[C, K, d]")
    if 0 in x.shape:
        raise InputError(f"embeddings must hold at least one channel, patch and dimension, got shape {x.shape}")
    held = np.ones(x.shape[:2], dtype=bool) if valid is None else _array("valid", valid, 2, "[C, K]")
    if held.shape != x.shape[:2] or held.dtype != bool:
        raise InputError(
            f"valid must be bool {list(x.shape[:2])} (channels, patches), got {held.dtype} {list(held.shape)}"
        )
    rows = _unit_rows("embeddings", x[held], np.argwhere(held))
    unique, inverse = _distinct_rows(rows)
    index = np.full(held.shape, -1, dtype=np.int64)
    index[held] = inverse
    return PatchEmbeddings(torch.from_numpy(unique), torch.from_numpy(index), torch.arange(len(index)))


def read_labels(labels: Any, shape: tuple[int, ...], name: str = "labels") -> Tensor:
    """Integer labels of the given shape as int64."""
    y = _array(name, labels, len(shape), str(list(shape)))
    if y.shape != shape:
        raise InputError(f"{name} must have shape {list(shape)}, one class per patch, got {list(y.shape)}")
    if y.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got {y.dtype}; number the classes, for instance with numpy.unique")
    return torch.from_numpy(y.astype(np.int64))


def read_activations(activations: Any, held: np.ndarray) -> np.ndarray:
    """Activations [C, K] float32 at the places `held` [C, K], nan at the others; nan everywhere where there are none."""
    if activations is None:
        return np.full(held.shape, np.nan, dtype=np.float32)
    values = _array("activations", activations, 2, "[C, K]")
    if values.shape != held.shape:
        raise InputError(f"activations must be {list(held.shape)}, one per patch, got {list(values.shape)}")
    with np.errstate(over="ignore"):
        found = np.where(held, values, np.nan).astype(np.float32)
    if len(bad := np.argwhere(held & ~np.isfinite(found))):
        raise InputError(
            f"activations{bad[0].tolist()} is nan or inf, or too large for float32; leave it out with `valid`, or mend it"
        )
    return found


def read_rows(name: str, rows: Any, width: int) -> Tensor:
    """Unit rows [M, d] float32 of the width that the patch embeddings have."""
    x = _array(name, rows, 2, "[M, d]")
    if x.shape[1] != width or len(x) == 0:
        raise InputError(f"{name} must be [M, {width}] like the patch embeddings, with M >= 1, got {list(x.shape)}")
    return torch.from_numpy(_unit_rows(name, x, np.arange(len(x))[:, None]))


def read_bank(text: Any, names: Sequence[str] | None, width: int) -> Bank:
    """Concepts with embeddings [P, d]; without names they go by their numbers."""
    rows = read_rows("text", text, width)
    names = tuple(names) if names is not None else tuple(str(i) for i in range(len(rows)))
    if len(names) != len(rows):
        raise InputError(f"concept_names must name each of the {len(rows)} rows of text, got {len(names)} names")
    return Bank(names, rows)


def read_head(head: Any, concepts: int) -> Tensor:
    """Unit rows [P, e] float32 of a text head's embeddings of so many concepts."""
    x = _array("text_head", head, 2, "[P, e]")
    if len(x) != concepts or x.shape[1] == 0:
        raise InputError(f"text_head must embed each of the {concepts} rows of text, got {list(x.shape)}")
    return torch.from_numpy(_unit_rows("text_head", x, np.arange(len(x))[:, None]))


def require_pairwise(config: PSIConfig) -> None:
    """Raises a ConfigError unless the settings' D can be told from text alone."""
    if config.distinctness != "pairwise":
        raise ConfigError(
            f"a text head gives distances among concepts, but distinctness {config.distinctness!r} compares concepts with the "
            "image prototypes, which only the encoder's own text can; set distinctness to 'pairwise' or leave the head out"
        )


def _array(name: str, value: Any, ndim: int, expected: str) -> np.ndarray:
    try:
        array = value.detach().cpu().float().numpy() if _is_half(value) else np.asarray(_on_cpu(value))
    except (TypeError, ValueError, OverflowError) as error:  # rows of unequal length, a sparse tensor, no numbers
        said = " ".join(str(error).split())
        raise InputError(f"{name} must be {expected}, got what is no array ({said:.160})") from error
    if array.ndim != ndim:
        raise InputError(f"{name} must be {expected}, got {array.ndim} dimensions with shape {list(array.shape)}")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be numbers, got {array.dtype}")
    return array


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16  # numpy has no such type


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _unit_rows(name: str, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    result = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE].astype(np.float64)  # float32 overflows in the norm of long rows
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            norm = np.linalg.norm(part, axis=1)
        for problem, bad in (("nan or inf, or too large", ~np.isfinite(norm)), ("zero", norm == 0)):
            if bad.any():
                place = places[start + int(np.argmax(bad))].tolist()
                raise InputError(f"{name}{place} is {problem}; leave it out with `valid`, or mend it")
        result[start : start + ROWS_AT_ONCE] = part / norm[:, None]
    return result


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows [U, d] of float32 rows [M, d], and which of them each row is [M]; by bits, so that 0 and -0 differ."""
    words = np.ascontiguousarray(rows).view(np.uint32)
    factors = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * 2 + 1
    blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(rows), ROWS_AT_ONCE)]
    sums = np.concatenate([(words[part] * factors).sum(1) for part in blocks] or [np.empty(0, np.uint64)])
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows, np.arange(len(rows))
    if all((words[part] == words[first[inverse[part]]]).all() for part in blocks):
        return rows[first], inverse
    _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)  # two rows with one sum
    return rows[first], inverse.reshape(-1)


def read_layers(layer: str | Sequence[str]) -> list[str]:
    """Names of the layers asked for, at least one and each once."""
    names = [layer] if isinstance(layer, str) else list(layer) if isinstance(layer, Sequence) else []
    if isinstance(layer, (list, tuple)) and not layer:
        raise InputError(
            "no layer is named: give one or more with --layer, as `psi-fast layers --network ...` lists them"
        )
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"layer must be the name of a layer or a list of names, got {layer!r}")
    if len(set(names)) < len(names):
        raise InputError(f"each layer can be named once, got {', '.join(names)}")
    return names


def read_channels(channels: slice | Sequence[int] | None, layer: str, count: int) -> np.ndarray:
    """The channels asked for of a layer that has `count`, as ids [C] int64, each within the layer's and named once."""
    if channels is None:
        return np.arange(count)
    if isinstance(channels, slice):
        first, stop = channels.start or 0, count if channels.stop is None else channels.stop
        if not 0 <= first < stop <= count:
            raise InputError(f"channels {first}:{stop} are not a range within 0:{count} of layer {layer!r}")
        return np.arange(count)[channels]
    try:
        ids = np.asarray(channels)
    except ValueError:  # rows of unequal length
        ids = np.empty(0)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise InputError(
            f"channels must be a slice or a list of whole numbers within 0..{count - 1} of layer {layer!r}, got {channels!r}"
        )
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        raise InputError(f"channel {outside[0]} is outside 0..{count - 1} of layer {layer!r}")
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"each of the channels 0..{count - 1} of layer {layer!r} can be named once, got {channels!r}")
    return ids.astype(np.int64)
