"""CLIP models of the open_clip package."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from psi_fast.checkpoints import checkpoint_errors, hub_error, one_line, require_hub_file, state_fingerprint
from psi_fast.errors import ModelError, nearest
from psi_fast.forward import autocast, channels_last, fast_precision, in_slices
from psi_fast.networks import require
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.vocabulary import TEMPLATES, Vocabulary, load_vocabulary

_PROMPTS = 64
"""Prompts per pass through the text tower; always as many, so that the bank does not depend on its length."""


class OpenClipEncoder:
    """The image and text towers of an open_clip model, fed by the model's own preprocessing.

    A concept's vector is the mean over prompt templates of the normalised prompt vectors, normalised: open_clip's
    templates for the vocabulary `imagenet`, `psi_fast.vocabulary.TEMPLATES` for any other.

    Parameters
    ----------
    spec
        ARCH/TAG or ARCH/PATH. A local checkpoint is fed as the architecture's published weights are, and gets the
        activation of the architecture's name.

    Attributes
    ----------
    precision : str
        The dtype of the forward pass on the present device: float16, bfloat16 or float32.
    """

    def __init__(self, spec: str) -> None:
        self.name = f"open_clip:{spec}"
        self._package = require("open_clip", '"psi-fast[open-clip]"', self.name)
        self._arch, _, source = spec.partition("/")
        self._check(source)
        self.warnings: list[str] = []
        self._model = self._load(source)
        self._model.eval().requires_grad_(False)
        self.preprocess = self._fed_by(self._model.visual.preprocess_cfg)
        self._tokenizer: Any = None
        self.to(torch.device("cpu"))

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Image embeddings float32 [B, d] of preprocessed crops [B, 3, size, size]; not normalised."""
        batch = batch.to(self._device)
        with torch.inference_mode(), autocast(self._device, self._dtype):
            if self._device.type == "cpu":
                return in_slices(lambda rows: [self._see(rows)], batch)[0].float()
            return self._see(batch).float()

    def concepts(
        self, vocabulary: Vocabulary | None, progress: Progress | None = None
    ) -> tuple[list[str], torch.Tensor]:
        """Names [P] and unit vectors float32 [P, d] on the CPU of a vocabulary's concepts; None means open-1602."""
        vocabulary = vocabulary or load_vocabulary("open-1602")
        templates = self._templates(vocabulary)
        prompts = [template(concept) for concept in vocabulary.concepts for template in templates]
        tokenize = self._load_tokenizer()
        vectors = []
        with (progress or Progress(False)).bar("concepts", len(prompts), "prompt") as bar:
            for start in range(0, len(prompts), _PROMPTS):
                tokens = tokenize(prompts[start : start + _PROMPTS]).to(self._device)
                with torch.inference_mode(), autocast(self._device, self._dtype):
                    vectors += in_slices(lambda rows: [self._model.encode_text(rows).float().cpu()], tokens, _PROMPTS)
                bar.update(len(tokens))
        unit = torch.nn.functional.normalize(torch.cat(vectors), dim=1)
        mean = unit.reshape(len(vocabulary.concepts), len(templates), -1).mean(1)
        return list(vocabulary.concepts), torch.nn.functional.normalize(mean, dim=1)

    def fingerprint(self) -> str:
        """sha256 (hex) over the model's weights, its architecture name and its image transform."""
        return state_fingerprint(self._model, self._arch, repr(self._model.visual.preprocess_cfg))

    def to(self, device: torch.device) -> Self:
        """The encoder itself, its towers now on `device`."""
        self._device = torch.device(device)
        self._dtype = fast_precision(self._device)
        self.precision = str(self._dtype).removeprefix("torch.")
        self._memory_format = channels_last(self._model.visual)
        self._model.to(self._device)
        self._model.visual.to(memory_format=self._memory_format)
        return self

    def _fed_by(self, settings: Mapping[str, Any]) -> Preprocess:
        """The Preprocess that does what open_clip's own transform of these settings does."""
        size = settings["size"]
        sides = set(size) if isinstance(size, (tuple, list)) else {size}
        mode, interpolation = settings.get("resize_mode", "shortest"), settings.get("interpolation", "bicubic")
        if len(sides) > 1 or mode not in ("shortest", "squash") or interpolation not in ("bilinear", "bicubic"):
            raise ModelError(
                f"{self.name} is fed {size} px, resize mode {mode!r}, interpolation {interpolation!r}; psi_fast feeds squares, "
                "by mode shortest or squash, bilinear or bicubic: choose another encoder"
            )
        (side,) = sides
        mean, std = (
            (part,) * 3 if isinstance(part, float) else tuple(part) for part in (settings["mean"], settings["std"])
        )
        return Preprocess(side, side, mean, std, interpolation, squash=mode == "squash")

    def _see(self, batch: torch.Tensor) -> torch.Tensor:
        return self._model.encode_image(batch.contiguous(memory_format=self._memory_format))

    def _templates(self, vocabulary: Vocabulary) -> list[Callable[[str], str]]:
        if vocabulary.name == "imagenet":
            return list(self._package.OPENAI_IMAGENET_TEMPLATES)
        return [template.format for template in TEMPLATES]

    def _load_tokenizer(self) -> Any:
        """The architecture's tokenizer; some are fetched from the hub, which an image-only user need not reach."""
        if self._tokenizer is None:
            try:
                self._tokenizer = self._package.get_tokenizer(self._arch)
            except ImportError as error:
                raise ModelError(f"the tokenizer of {self.name} needs another package: {one_line(error)}") from error
            except OSError as error:
                raise ModelError(
                    f"the tokenizer of {self.name} is not on this machine and cannot be fetched ({one_line(error)}); "
                    "choose an architecture with open_clip's own tokenizer, such as ViT-B-32"
                ) from error
        return self._tokenizer

    def _check(self, source: str) -> None:
        """Raises a ModelError unless the architecture is known and `source` is one of its tags or a file."""
        archs = self._package.list_models()
        if self._arch not in archs:
            raise ModelError(
                f"unknown encoder {self.name!r}: open_clip has no architecture {self._arch!r}{nearest(self._arch, archs)}"
            )
        tags = self._package.list_pretrained_tags_by_model(self._arch)
        if source in tags or (source and Path(source).is_file()):
            return
        if "/" in source or Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors"):
            raise ModelError(f"no checkpoint file {source!r} for {self.name!r}")
        raise ModelError(
            f"unknown weights in {self.name!r}: {self._arch} has {', '.join(tags) or 'no published ones'}"
            f"{nearest(source, tags)}; or give a checkpoint's path as open_clip:{self._arch}/PATH"
        )

    def _load(self, source: str) -> Any:
        published = source in self._package.list_pretrained_tags_by_model(self._arch)
        settings = self._published_settings(source if published else None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if published:
                loaded = self._from_hub(source, settings)
            else:
                with checkpoint_errors(source):
                    loaded, _ = self._package.create_model_from_pretrained(
                        self._arch,
                        source,
                        weights_only=True,
                        image_mean=settings.get("mean"),
                        image_std=settings.get("std"),
                        image_interpolation=settings.get("interpolation"),
                        image_resize_mode=settings.get("resize_mode"),
                    )
        quick = bool((self._package.get_model_config(self._arch) or {}).get("quick_gelu", False))
        activation = "QuickGELU" if quick else "GELU"
        if not published:
            self.warnings.append(
                f"{self.name}: {activation} activation, by the architecture's name; a checkpoint trained with the other one "
                "(OpenAI's weights: QuickGELU) gives wrong embeddings without an error"
            )
        elif bool(settings.get("quick_gelu", False)) != quick:
            other = self._arch.removesuffix("-quickgelu") if quick else f"{self._arch}-quickgelu"
            self.warnings.append(
                f"{self.name}: {activation} activation in use, but these weights were trained with the other one; "
                f"use open_clip:{other}/{source}"
            )
        self.warnings.extend(
            f"{self.name}: {' '.join(str(warning.message).split())}"
            for warning in caught
            if issubclass(warning.category, UserWarning)
        )
        return loaded

    def _published_settings(self, tag: str | None) -> dict[str, Any]:
        """How open_clip feeds the weights `tag`, or those the architecture is first published with; may be empty."""
        tags = [tag] if tag else self._package.list_pretrained_tags_by_model(self._arch)
        return dict(self._package.get_pretrained_cfg(self._arch, tags[0]) or {}) if tags else {}

    def _from_hub(self, tag: str, settings: dict[str, Any]) -> Any:
        repository, _, filename = settings.get("hf_hub", "").rpartition("/")
        files = [filename] if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        instead = f"open_clip:{self._arch}//path/{files[0]}"
        if repository:
            require_hub_file(repository, files, self.name, instead)
        try:
            return self._package.create_model_from_pretrained(self._arch, tag, weights_only=True)[0]
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            where = repository or str(settings.get("url", ""))
            # open_clip wraps the hub client's errors in a RuntimeError; other ones come from the file itself.
            if isinstance(error, OSError) or "download" in str(error):
                raise hub_error(where, files, self.name, instead, one_line(error)) from error
            raise ModelError(f"the weights of {self.name} in the cache cannot be loaded ({one_line(error)})") from error
