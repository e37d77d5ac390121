"""CLIP models of the open_clip package."""

import copy
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from psi_fast.checkpoints import (
    checkpoint_errors,
    holds_code,
    hub_error,
    one_line,
    refused,
    require_hub_file,
    state_fingerprint,
)
from psi_fast.errors import ModelError, nearest
from psi_fast.forward import autocast, channels_last, fast_precision, in_slices, name_of
from psi_fast.networks import require
from psi_fast.networks.network import triple
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.vocabulary import TEMPLATES, Vocabulary, load_vocabulary

_PROMPTS = 64
"""Prompts per pass through the text tower; always as many, so that the bank does not depend on its length."""
_HUB, _FOLDER = "hf-hub:", "local-dir:"
"""open_clip's own prefixes of a model that brings its configuration along."""
_CONFIG, _WEIGHTS = "open_clip_config.json", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
_TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
_SMALL = (".json", ".txt", ".model")
"""Files of a model's folder that decide what the weights compute: its configuration and its tokenizer."""


class OpenClipEncoder:
    """The image and text towers of an open_clip model, fed by the model's own preprocessing.

    A concept's vector is the mean over prompt templates of the normalised prompt vectors, normalised: open_clip's
    templates for the vocabulary `imagenet`, `psi_fast.vocabulary.TEMPLATES` for any other.

    Parameters
    ----------
    spec
        ARCH/TAG, ARCH/PATH, hf-hub:ORG/NAME, or local-dir:FOLDER with what such a repository holds. A local checkpoint is
        fed as the architecture's published weights are, and gets the activation of the architecture's name.
    trust_checkpoint
        Read a local checkpoint, or that of a FOLDER, also where it is a pickle.

    Attributes
    ----------
    activation : {"QuickGELU", "GELU"}
        Which of the two the model runs with.
    precision : str
        The dtype of the forward pass on the present device: float16, bfloat16 or float32.
    """

    def __init__(self, spec: str, trust_checkpoint: bool = False) -> None:
        self.name, self._trusted = f"open_clip:{spec}", trust_checkpoint
        self._package = require("open_clip", '"psi-fast[open-clip]"', self.name)
        self.warnings: list[str] = []
        if spec.startswith((_HUB, _FOLDER)):
            self._arch = spec
            self._model = self._from_folder() if spec.startswith(_FOLDER) else self._from_repository()
        else:
            self._arch, _, source = spec.partition("/")
            self._check(source)
            self._model = self._load(source)
        self._model.eval().requires_grad_(False)
        quick = any(type(module).__name__ == "QuickGELU" for module in self._model.modules())
        self.activation = "QuickGELU" if quick else "GELU"
        self.preprocess = self._fed_by(self._model.visual.preprocess_cfg)
        self._tokenizer: Any = None
        self._asked: torch.dtype | None = None
        self.to(torch.device("cpu"))

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Image embeddings float32 [B, d] of preprocessed crops [B, 3, size, size]; not normalised."""
        model = self._fast_model()
        batch = batch.to(self._device, self._dtype)
        with torch.inference_mode():
            if self._device.type == "cpu":
                slices = in_slices(lambda rows: [model.encode_image(rows)], batch, memory_format=self._memory_format)
                return slices[0].float()
            return model.encode_image(batch.contiguous(memory_format=self._memory_format)).float()

    def encode_smooth(self, batch: torch.Tensor) -> torch.Tensor:
        """As `encode`, in float32 and with gradients to the crops."""
        return self._model.encode_image(batch.to(self._device).contiguous(memory_format=self._memory_format)).float()

    def concepts(
        self, vocabulary: Vocabulary | None, progress: Progress | None = None
    ) -> tuple[list[str], torch.Tensor]:
        """Names [P] and unit vectors float32 [P, d] on the CPU of a vocabulary's concepts; None means open-1602."""
        names, templates = self.prompts(vocabulary)
        prompts = [template.replace("{}", name) for name in names for template in templates]
        tokenize = self._load_tokenizer()
        vectors = []
        with (progress or Progress(False)).bar("concepts", len(prompts), "prompt") as bar:
            for start in range(0, len(prompts), _PROMPTS):
                tokens = tokenize(prompts[start : start + _PROMPTS]).to(self._device)
                with torch.inference_mode(), autocast(self._device, self._dtype):
                    vectors += in_slices(lambda rows: [self._model.encode_text(rows).float().cpu()], tokens, _PROMPTS)
                bar.update(len(tokens))
        unit = torch.nn.functional.normalize(torch.cat(vectors), dim=1)
        mean = unit.reshape(len(names), len(templates), -1).mean(1)
        return names, torch.nn.functional.normalize(mean, dim=1)

    def prompts(self, vocabulary: Vocabulary | None) -> tuple[list[str], list[str]]:
        """The concepts of a vocabulary, and the templates they are put into; None means open-1602."""
        vocabulary = vocabulary or load_vocabulary("open-1602")
        if vocabulary.name == "imagenet":
            templates: list[str] = [template("{}") for template in self._package.OPENAI_IMAGENET_TEMPLATES]
        else:
            templates = list(TEMPLATES)
        return list(vocabulary.concepts), templates

    def fingerprint(self) -> str:
        """sha256 (hex) over the model's weights, its architecture and its image transform."""
        return state_fingerprint(self._model, *self._architecture(), repr(self._model.visual.preprocess_cfg))

    def at_precision(self, dtype: torch.dtype) -> Self:
        """The encoder itself, its forward passes now in `dtype` on any device."""
        self._asked = dtype
        return self.to(self._device)

    def to(self, device: torch.device) -> Self:
        """The encoder itself, its towers now on `device`."""
        self._device = torch.device(device)
        self._dtype = self._asked or fast_precision(self._device)
        self.precision = name_of(self._dtype)
        self._memory_format = channels_last(self._model.visual)
        self._model.to(self._device)
        self._model.visual.to(memory_format=self._memory_format)
        self._fast: Any = None
        return self

    def _fast_model(self) -> Any:
        """The model, its image tower a copy in the precision of the present device.

        Autocast would convert the weights of attention, which come expanded, anew for every image of a batch: on a CPU that
        takes more time than float32 does.
        """
        if self._dtype == torch.float32:
            return self._model
        if self._fast is None:
            self._fast = copy.copy(self._model)
            tower = copy.deepcopy(self._model.visual).to(self._dtype)
            self._fast._modules = {**self._model._modules, "visual": tower}
        return self._fast

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
            triple([part] * 3 if isinstance(part, float) else part) for part in (settings["mean"], settings["std"])
        )
        return Preprocess(side, side, mean, std, interpolation, squash=mode == "squash")

    def _architecture(self) -> list[str]:
        """What tells the model from others of the same weights: a name, or the configuration that came along."""
        if self._arch.startswith(_FOLDER):
            files = sorted(path for path in self._folder().iterdir() if path.suffix in _SMALL)
            return [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        if self._arch.startswith(_HUB):
            return [json.dumps(self._package.get_model_config(self._arch), sort_keys=True)]
        return [self._arch]

    def _folder(self) -> Path:
        return Path(self._arch.removeprefix(_FOLDER))

    def _load_tokenizer(self) -> Any:
        """The architecture's tokenizer; some are fetched from the hub, which an image-only user need not reach."""
        if self._tokenizer is None:
            text = (self._package.get_model_config(self._arch) or {}).get("text_cfg", {})
            repository = text.get("hf_tokenizer_name")
            if repository and not self._arch.startswith(_FOLDER):
                try:
                    require_hub_file(repository, _TOKENIZER, self.name, "")
                except ModelError as error:
                    raise self._tokenizer_error(repository, "the hub cannot be reached") from error
            self._refuse_code(text)
            try:
                self._tokenizer = self._package.get_tokenizer(self._arch)
            except ImportError as error:
                raise ModelError(f"the tokenizer of {self.name} needs another package: {one_line(error)}") from error
            except (OSError, ValueError) as error:
                raise self._tokenizer_error(repository, one_line(error)) from error
        return self._tokenizer

    def _refuse_code(self, text: Mapping[str, Any]) -> None:
        """Raises a ModelError where a model's configuration asks that its tokenizer's own code be run."""
        if (text.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
            raise ModelError(
                f"the {_CONFIG} of {self.name} asks for trust_remote_code, which would run code that came with the model; "
                "remove it from tokenizer_kwargs, or choose another encoder"
            )

    def _tokenizer_error(self, repository: str | None, reason: str) -> ModelError:
        files = " and ".join(_TOKENIZER)
        if self._arch.startswith(_FOLDER):
            return ModelError(
                f"the tokenizer in {self._folder()} cannot be read ({reason}); put {files} of {repository} there"
            )
        return ModelError(
            f"the tokenizer of {self.name} is not on this machine and cannot be fetched ({reason}): fetch {files} of "
            f"{repository} on another machine, put them beside the weights and an {_CONFIG} in one folder and name it as "
            f"open_clip:{_FOLDER}/path; or choose an architecture with open_clip's own tokenizer, such as ViT-B-32"
        )

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
        close = nearest(source, tags)
        held = f"{len(tags)} published ones{close}" if close else ", ".join(tags) or "no published ones"
        raise ModelError(
            f"unknown weights in {self.name!r}: {self._arch} has {held}; or give a checkpoint's path as "
            f"open_clip:{self._arch}/PATH"
        )

    def _from_folder(self) -> Any:
        folder = self._folder()
        if not (folder / _CONFIG).is_file():
            raise ModelError(f"{str(folder)!r} is no folder with an {_CONFIG}, as {self.name!r} asks for")
        if not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
            raise ModelError(f"{folder} holds no weights; put {' or '.join(_WEIGHTS)} there")
        with checkpoint_errors(folder, self._trusted):
            return self._package.create_model_from_pretrained(
                self._arch, weights_only=not self._trusted, return_transform=False
            )

    def _from_repository(self) -> Any:
        repository = self._arch.removeprefix(_HUB)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ModelError(f"{self.name!r} names no repository of the model hub; expected open_clip:{_HUB}ORG/NAME")
        files, instead = [_CONFIG, " or ".join(_WEIGHTS)], f"open_clip:{_FOLDER}/path/to/the/folder"
        require_hub_file(repository, [_CONFIG], self.name, instead, fetch=" and ".join(files))
        try:
            return self._package.create_model_from_pretrained(self._arch, weights_only=True, return_transform=False)
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            if isinstance(error, OSError) or "HF Hub" in str(error) or "could not be loaded" in str(error):
                raise hub_error(repository, [" and ".join(files)], self.name, instead, one_line(error)) from error
            if holds_code(error):
                raise refused(self.name, instead) from error
            raise ModelError(f"{self.name} cannot be loaded ({one_line(error)})") from error

    def _load(self, source: str) -> Any:
        published = source in self._package.list_pretrained_tags_by_model(self._arch)
        settings = self._published_settings(source if published else None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if published:
                loaded = self._from_hub(source, settings)
            else:
                with checkpoint_errors(source, self._trusted):
                    loaded, _ = self._package.create_model_from_pretrained(
                        self._arch,
                        source,
                        weights_only=not self._trusted,
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
        files = [filename] if filename else _WEIGHTS
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
            if holds_code(error):
                raise refused(self.name, instead) from error
            raise ModelError(f"the weights of {self.name} in the cache cannot be loaded ({one_line(error)})") from error
