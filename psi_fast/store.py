"""The run folder: five files, each written whole or not at all, the manifest last."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from psi_fast.errors import StoreError
from psi_fast.locks import alone
from psi_fast.paths import require_path
from psi_fast.scores import Scores

SCORES, PATCHES, MANIFEST = "scores.parquet", "patches.parquet", "manifest.json"
EMBEDDINGS, DISTRIBUTIONS = "embeddings.safetensors", "distributions.safetensors"
TEMPORARY = ".psi-fast-"
FORGOTTEN = 86400.0
"""Seconds after which nobody is writing a temporary file any more."""
SHARED, EXPERIMENTS, REPORT, UNFINISHED = "shared", "experiments", "report", "unfinished"
"""Folders beside a run's files: what experiments share, their results, pages to look at, and what a run goes on from."""
FILES = (SCORES, PATCHES, EMBEDDINGS, DISTRIBUTIONS)
"""Of a run, beside the manifest, which has their checksums."""
OWN = (*FILES, SHARED, EXPERIMENTS, REPORT, UNFINISHED)
CHECKSUMS = "checksums"
PRESENTATION = ("report", "figures", "planning")
"""Packages of psi_fast that show results, or tell what they would take, and decide none."""


def finished(folder: Path, about: dict[str, Any]) -> bool:
    """Whether `folder` already holds the finished run that `about`, the head of a manifest, describes.

    Raises
    ------
    StoreError
        The folder holds another run, or files that are no run of psi_fast.
    """
    require_own(folder)
    if not (folder / MANIFEST).exists():
        return False
    held = _read_manifest(folder)
    if held.get("identity") == about["identity"]:
        return True
    raise StoreError(
        f"{folder} holds another run (with other {_differences(held, about)}); choose another folder or remove this one"
    )


def require_own(folder: Path) -> None:
    """See that `folder` can become a run's, as far as that is known before the run is: it is none yet, empty or of psi_fast.

    Raises
    ------
    StoreError
        It is a file, or holds files that are no run of psi_fast.
    """
    require_path("the folder", folder)
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    if not folder.is_dir():
        raise StoreError(f"--out must name a folder, but {folder} is a file")
    foreign = [p.name for p in folder.iterdir() if p.name not in OWN and not p.name.startswith(TEMPORARY)]
    if foreign:
        raise StoreError(f"{folder} holds files that are no run of psi_fast ({foreign[0]}, ...); choose another folder")


@contextlib.contextmanager
def reserved(folder: Path, *, among: bool = False) -> Generator[None]:
    """Make the folder, lock it and see that it can be written, before hours of work; when the work fails, take an empty one away.

    With `among` other processes may work in it the same way.

    Raises
    ------
    StoreError
        It cannot be written, or another process is at work in it.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        with contextlib.ExitStack() as held:
            with _writing(folder):
                held.enter_context(alone(folder, among=among))
                if not among:
                    sweep(folder)
                write_whole(folder / f"{TEMPORARY}probe", lambda path: path.write_bytes(b""))
                (folder / f"{TEMPORARY}probe").unlink(missing_ok=True)
            yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError), alone(folder):  # another process may be at work in it by now
                if (folder / UNFINISHED).is_dir():
                    (folder / UNFINISHED).rmdir()  # which refuses a folder that holds something
                for path in made:
                    path.rmdir()
        raise


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[None]:
    """A StoreError where the folder cannot be written."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


def sweep(folder: Path) -> None:
    """Take away the temporary files of a run, a batch or a report that was killed; for whoever is alone in the folder."""
    for left in folder.glob(TEMPORARY + "*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def sweep_shared(folder: Path) -> None:
    """Take away the temporary files of processes that were killed long ago, from a folder that others may write to now."""
    for left in folder.glob(TEMPORARY + "*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                left.unlink()


def clear_finished(folder: Path) -> None:
    """Take away what a finished run went on from, as its process would have if it had not been killed."""
    if (folder / UNFINISHED).exists():
        with contextlib.suppress(StoreError), alone(folder):  # whoever is at work there does it by itself
            if (folder / MANIFEST).exists():
                shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def save(
    folder: Path,
    scores: Scores,
    tensors: dict[str, torch.Tensor],
    concepts: tuple[str, ...],
    distributions: dict[str, torch.Tensor],
) -> None:
    """Write a run; `tensors` are the embeddings. The manifest comes last, so a folder with one is complete.

    The files' checksums are put into the scores' manifest.
    """
    if scores.patches is None:
        raise StoreError("a run without patches cannot be saved; use Scores.to_parquet for the table alone")
    table, patches = scores.table, scores.patches
    try:
        write_whole(folder / SCORES, lambda path: table.to_parquet(path, index=False))
        write_whole(folder / PATCHES, lambda path: patches.to_parquet(path, index=False))
        _write_tensors(folder / EMBEDDINGS, tensors, {"concepts": json.dumps(concepts)})
        _write_tensors(folder / DISTRIBUTIONS, distributions)
        scores.manifest[CHECKSUMS] = {name: _checksum(folder / name) for name in FILES}
        scores.manifest[CHECKSUMS][MANIFEST] = _seal(scores.manifest)
        text = json.dumps(scores.manifest, indent=2, ensure_ascii=False) + "\n"
        write_whole(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot write to {folder}: {reason}; nothing half-written was left") from error


def load(folder: str | Path) -> Scores:
    """The scores of a finished run folder.

    Raises
    ------
    StoreError
        There is no finished run, or a file of it cannot be read or is not what was written.
    """
    folder = Path(folder)
    _require_finished(folder)
    manifest = _read_manifest(folder)
    for name in (SCORES, PATCHES):
        _require_same(folder, manifest, name)
    try:
        table = _with_lists(pd.read_parquet(folder / SCORES))
        patches = pd.read_parquet(folder / PATCHES)
        labels = np.full((len(table), manifest["config"]["top_k"]), -1, dtype=np.int64)
        row = pd.MultiIndex.from_frame(table[["layer", "channel"]]).get_indexer(
            pd.MultiIndex.from_frame(patches[["layer", "channel"]])
        )
        labels[row, patches["rank"].to_numpy()] = patches["cluster"].to_numpy()
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise StoreError(f"cannot read the run in {folder}: {error}; remove it and score again") from error
    return Scores(table, labels, manifest, patches)


def load_embeddings(folder: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a finished run folder's `embeddings.safetensors`, and the names of its concepts.

    Raises
    ------
    StoreError
        There is no finished run, or the file cannot be read or is not what was written.
    """
    folder = Path(folder)
    _require_finished(folder)
    tensors, about = _read_tensors(folder, EMBEDDINGS)
    return tensors, json.loads(about["concepts"])


def load_distributions(folder: str | Path) -> dict[str, torch.Tensor]:
    """What the scores of a finished run folder were held against: the tensors of `distributions.safetensors`.

    Returns
    -------
    dict of Tensor
        C rows are those of the run's table, L layers those of its manifest. S_null, Q_null, D_null [C, min(B, 1000)] float32:
        the first of B null draws of each component there is; nan for a channel without score, and 0 for D with one cluster.
        image_maxima [C, min(N, 1000)] float32: largest activation in each of so many of the N images, spread evenly over the
        set and in its order. random_log_psi [L, 100] float64, at most 0: of the layer's random-patch channels.

    Raises
    ------
    StoreError
        There is no finished run, it was made before runs had this file, or the file cannot be read or is not what was written.
    """
    folder = Path(folder)
    _require_finished(folder)
    path = folder / DISTRIBUTIONS
    if not path.exists():
        raise StoreError(
            f"the run in {folder} has no {DISTRIBUTIONS}, as one of an older psi_fast; remove {folder / MANIFEST} and score "
            "it again"
        )
    return _read_tensors(folder, DISTRIBUTIONS)[0]


def now() -> str:
    """Date, time and offset from UTC, for a manifest's `made`."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def reused(folder: Path, manifest: dict[str, Any]) -> str:
    """What to say of finished results in `folder` that are read: since when they lie there, and how to make them anew."""
    return (
        f"{folder} holds this very run, made {manifest['made']}; it is read, not computed again: remove {folder / MANIFEST} "
        "to make it anew"
    )


def fingerprint(values: Any) -> str:
    """SHA-256 of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def code_fingerprint(experiments: bool = False) -> str:
    """SHA-256 over the sources that decide scores: psi_fast and psi_fast_kernels, with `experiments` those on top of them.

    What shows results has no part in it.
    """
    import psi_fast_kernels

    digest = hashlib.sha256()
    left_out = PRESENTATION if experiments else (*PRESENTATION, EXPERIMENTS)
    for root in (Path(__file__).parent, Path(psi_fast_kernels.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if name.parts[0] not in left_out:
                digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` to a temporary file beside `path`, then rename it: the final name appears whole or not at all."""
    # processes on other machines may have the same number
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shared(path: Path, write: Callable[[Path], Any]) -> None:
    """As `write_whole`, to a folder that many processes write to: made where needed, rid of what killed ones left long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_shared(path.parent)
    write_whole(path, write)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    # as bytes: safetensors' own writer leaves temporary files of its own when it is killed
    held = serialised({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    write_whole(path, lambda path: path.write_bytes(held))


def _require_finished(folder: Path) -> None:
    require_path("the folder", folder)
    if not (folder / MANIFEST).exists():
        raise StoreError(
            f"{folder} holds no finished run (no {MANIFEST}); make one with `psi-fast score --out {folder}`"
        )


def _read_tensors(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of a finished run."""
    _require_same(folder, _read_manifest(folder), name)
    try:
        opened: Any = safe_open(folder / name, framework="pt")
        with opened as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # no dict
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read {folder / name}: {error}; remove {folder / MANIFEST} and score again") from error


def _checksum(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of a manifest but for this checksum of its own."""
    others = {name: own for name, own in _part(manifest, CHECKSUMS).items() if name != MANIFEST}
    return fingerprint(manifest | {CHECKSUMS: others})


def _require_same(folder: Path, manifest: dict[str, Any], name: str) -> None:
    """See that a file is the one that was written; of a run of an older psi_fast, without checksums, nobody can tell."""
    if CHECKSUMS not in manifest:
        return
    try:
        same = manifest[CHECKSUMS].get(name) == _checksum(folder / name)
    except OSError as error:
        raise StoreError(
            f"cannot read {folder / name}: {error.strerror or error}; remove {folder / MANIFEST} and score again"
        ) from error
    if not same:
        raise StoreError(
            f"cannot read {folder / name}: it is not what was written (its checksum differs); remove {folder / MANIFEST} and "
            "score again"
        )


def _differences(held: dict[str, Any], about: dict[str, Any]) -> str:
    """What two runs differ in, as words for an error message: settings by name, inputs by their fingerprints."""
    names = [
        name
        for part in ("config", "fingerprints")
        for name in about[part]
        if _part(held, part).get(name) != about[part][name]
    ]
    layers = held.get("layers")
    same = isinstance(layers, list) and set(cast(list[str], layers)) == set(about["layers"])  # in any order
    return ", ".join(names + ["layers"] * (not same)) or "channels"


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    part = manifest.get(name)
    return cast(dict[str, Any], part) if isinstance(part, dict) else {}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {folder / MANIFEST}: {error}; remove it and score again") from error
    if not isinstance(manifest, dict):
        raise StoreError(f"{folder / MANIFEST} is no manifest of psi_fast; choose another folder")
    if CHECKSUMS in manifest and not _sealed(cast(dict[str, Any], manifest)):
        raise StoreError(
            f"cannot read {folder / MANIFEST}: it is not what was written (its checksum differs); remove it and score again"
        )
    return cast(dict[str, Any], manifest)


def _sealed(manifest: dict[str, Any]) -> bool:
    return _part(manifest, CHECKSUMS).get(MANIFEST) == _seal(manifest)


def _with_lists(table: pd.DataFrame) -> pd.DataFrame:
    """The table with lists in its list columns, as it was written; parquet gives arrays back."""
    lists: dict[str, Any] = {
        name: [list(row) for row in table[name]] for name in ("cluster_sizes", "concepts", "flags")
    }
    return table.assign(**lists)
