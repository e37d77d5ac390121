"""Encoders: crop -> embedding and concept -> embedding, in one space."""

from typing import Protocol, Self, runtime_checkable

import torch

from psi_fast.errors import ModelError, nearest
from psi_fast.paths import path_errors
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.vocabulary import Vocabulary

__all__ = ["AnyPrecision", "Encoder", "SmoothEncoder", "TextTower", "load_encoder"]


@runtime_checkable
class Encoder(Protocol):
    """Embeds crops, and the names of concepts, in one space.

    Attributes
    ----------
    name : str
        The spec it was loaded from.
    preprocess : Preprocess
        How it is fed.
    warnings : list[str]
        What a reader of the results must know.
    """

    name: str
    preprocess: Preprocess
    warnings: list[str]

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [B, d] of preprocessed crops [B, 3, size, size]; not normalised."""
        ...

    def concepts(
        self, vocabulary: Vocabulary | None, progress: Progress | None = None
    ) -> tuple[list[str], torch.Tensor]:
        """Names [P] and float32 [P, d] on the CPU, not normalised; None asks for the encoder's own bank."""
        ...

    def fingerprint(self) -> str:
        """Changes when the weights or the way images are prepared do."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same encoder, now running on `device`."""
        ...


@runtime_checkable
class TextTower(Protocol):
    """An encoder whose concepts go through a network: their embeddings are worth keeping.

    Attributes
    ----------
    name : str
        The spec it was loaded from.
    precision : str
        The dtype of its forward pass.
    """

    name: str
    precision: str

    def prompts(self, vocabulary: Vocabulary | None) -> tuple[list[str], list[str]]:
        """The concepts [P] that `concepts` embeds, and the templates, with a place {} for one, that each is put into."""
        ...


@runtime_checkable
class AnyPrecision(Protocol):
    """An encoder that can run in another precision, where its own overflows.

    Attributes
    ----------
    precision : str
        The dtype of its forward pass.
    """

    precision: str

    def at_precision(self, dtype: torch.dtype) -> Self:
        """The encoder itself, its forward passes now in `dtype` on any device."""
        ...


@runtime_checkable
class SmoothEncoder(Protocol):
    """An encoder that gradients can be taken through."""

    def encode_smooth(self, batch: torch.Tensor) -> torch.Tensor:
        """As `encode`, in float32 whatever the encoder's precision is, with gradients to `batch`."""
        ...


def load_encoder(spec: str | Encoder, trust_checkpoint: bool = False) -> Encoder:
    """The encoder that `spec` names.

    Parameters
    ----------
    spec
        - `classifier:NETWORK`, NETWORK as `psi_fast.networks.load_network` takes it: penultimate features, and the
          classifier's rows as concepts.
        - `open_clip:ARCH/TAG`, or `open_clip:ARCH/PATH` for a local checkpoint (an absolute path follows the slash:
          `open_clip:ViT-B-32//weights/clip.pt`).
        - `open_clip:hf-hub:ORG/NAME`, a repository of the model hub, or `open_clip:local-dir:FOLDER`, a folder with what
          such a repository holds: open_clip_config.json, weights and, where the model has one of its own, the tokenizer.
        - an Encoder, returned as it is.
    trust_checkpoint
        Read a local checkpoint also where it is a pickle, and so run what code it holds.

    Raises
    ------
    ModelError
        For an unknown family, architecture, tag or network (with the nearest names), a missing package, a checkpoint
        that cannot be read or does not fit, or a hub that cannot be reached.
    """
    if not isinstance(spec, str):
        if isinstance(spec, Encoder):  # pyright: ignore[reportUnnecessaryIsInstance]  # of what callers gave
            return spec
        raise ModelError(
            f"an encoder is a spec or has name, preprocess, warnings, encode, concepts, fingerprint and to; "
            f"got {type(spec).__name__}"
        )
    family, _, rest = spec.partition(":")
    if family == "classifier" and rest:
        from psi_fast.encoders.classifier import ClassifierEncoder

        return ClassifierEncoder(rest, trust_checkpoint)
    if family == "open_clip" and rest:
        from psi_fast.encoders.open_clip import OpenClipEncoder

        with path_errors(f"encoder {spec!r}", ModelError):
            return OpenClipEncoder(rest, trust_checkpoint)
    raise ModelError(
        f"encoder {spec!r} is not understood; expected open_clip:ARCH/TAG, open_clip:hf-hub:ORG/NAME or classifier:NETWORK"
        f"{nearest(family, ('open_clip', 'classifier'))}"
    )
