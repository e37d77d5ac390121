"""What a run works on, opened and checked before anything takes long: a network's layers, images, an encoder, concepts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from psi_fast import store
from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.encoders.text_head import TextHead, load_text_head
from psi_fast.environment import pick_backend, pick_device
from psi_fast.errors import InputError
from psi_fast.forward import Pace
from psi_fast.image_bank import ImageBank, held_bank, side_for
from psi_fast.image_set import ImageSet
from psi_fast.image_stream import STREAM, ImageStream
from psi_fast.images import open_images
from psi_fast.networks import Network, load_network
from psi_fast.progress import Progress
from psi_fast.results import Bank
from psi_fast.squares import open_squares, require_squares, with_content
from psi_fast.text_banks import concept_bank, head_bank
from psi_fast.trial import choose_pace
from psi_fast.validation import read_channels, read_layers, require_pairwise
from psi_fast.vocabulary import Vocabulary, is_numbered, load_vocabulary

SETTINGS_WITHOUT_EFFECT = ("batch_size", "backend")
"""Fields of PSIConfig that change speed and memory alone."""


@dataclass(frozen=True)
class Subject:
    """Tapped layers with the channels [C] int64 of each, images, encoder and settings, all of them loaded and checked.

    bank, side : where the images' squares are kept, as `score` takes `bank`, and their side in px
    decoded : these squares, of images whose content only they tell (a Dataset's)
    fingerprints : what tells this subject's results from another's, by name
    """

    network: Network
    taps: Sequence[ActivationTap]
    channels: Sequence[np.ndarray]
    images: ImageSet
    bank: str | Path | None
    side: int
    decoded: ImageBank | ImageStream | None
    encoder: Encoder
    words: Vocabulary | None
    head: TextHead | None
    pace: Pace
    config: PSIConfig
    device: torch.device
    fingerprints: dict[str, Any]

    def about(self, source: Any, max_images: int | None, skip_unreadable: bool) -> dict[str, Any]:
        """The head of a manifest; the images were opened by these arguments. The identity is blind to the layers' order."""
        decides = {name: value for name, value in self.config.to_dict().items() if name not in SETTINGS_WITHOUT_EFFECT}
        chosen = sorted((tap.layer, ids.tolist()) for tap, ids in zip(self.taps, self.channels, strict=True))
        return {
            "identity": store.fingerprint([self.fingerprints, chosen, decides]),
            "network": self.network.name,
            "layers": [tap.layer for tap in self.taps],
            "encoder": self.encoder.name,
            "vocabulary": self.words.name if self.words else "the encoder's own",
            "text_head": self.head.name if self.head else None,
            "source": str(source) if isinstance(source, (str, Path)) else type(source).__name__,
            "max_images": max_images,
            "skip_unreadable": skip_unreadable,
            "config": self.config.to_dict(),
            "fingerprints": self.fingerprints,
        }

    def squares(self, bars: Progress) -> ImageBank | ImageStream:
        """The images decoded, in a GPU's memory if they fit well."""
        held = self.decoded
        if held is None:
            held = open_squares(self.images, self.bank, self.side, bars)
        return held.to(self.device) if isinstance(held, ImageBank) else held

    def concepts(self, bars: Progress) -> tuple[Bank, list[str]]:
        """The concepts as the encoder and the head, if there is one, embed them, and what a reader of the results must know."""
        encoder, head = self.encoder, self.head
        names, text, said = concept_bank(encoder, self.words, self.fingerprints["encoder"], self.device, bars)
        bank = Bank(tuple(names), normalize(text.float().cpu(), dim=1))
        if head is None:
            return bank, said
        rows, more = head_bank(head, names, self.fingerprints["text head"], self.device, bars)
        said = [*said, *head.warnings, *more]
        if all(map(is_numbered, names)):
            said.append(
                f"{encoder.name} does not know its classes' names, and {head.name} was given 'class 0', 'class 1', ...: D "
                "says nothing about them; use an encoder that names its concepts"
            )
        return replace(bank, head=normalize(rows, dim=1)), said


def open_subject(
    model: str | nn.Module | Network,
    layer: str | Sequence[str],
    images: Any,
    *,
    encoder: str | Encoder,
    vocabulary: str | None,
    text_head: str | TextHead | None,
    config: PSIConfig | None,
    channels: slice | Sequence[int] | None,
    device: str,
    max_images: int | None,
    skip_unreadable: bool,
    bank: str | Path | None,
    bank_side: int | None,
    trust_checkpoint: bool,
    bars: Progress,
    streamed: bool = False,
) -> Subject:
    """The subject that the arguments of `score` name; with `streamed` no bank is made that is neither named nor there.

    Raises
    ------
    PsiFastError
        As `score`.
    """
    config = config or PSIConfig()
    if text_head is not None:
        require_pairwise(config)
    where = pick_device(device)
    backend = pick_backend(config.backend, where)
    names = read_layers(layer)
    network = load_network(model, trust_checkpoint)
    taps = [ActivationTap(network, name, where) for name in names]
    chosen = [read_channels(channels, tap.layer, tap.channels) for tap in taps]
    with bars.stage("open images"):
        source = open_images(
            images, max_images=max_images, seed=config.seed, skip_unreadable=skip_unreadable, progress=bars
        )
    if len(source) < config.top_k:
        raise InputError(
            f"top_k is {config.top_k}, but there are only {len(source)} images; give more images or lower top_k"
        )
    with bars.stage("load encoder"):
        encoder = load_encoder(encoder, trust_checkpoint).to(where)
        head = None if text_head is None else load_text_head(text_head).to(where)
        words = None if vocabulary is None else load_vocabulary(vocabulary)
        if words is not None and isinstance(encoder, ClassifierEncoder):
            encoder.require_own(words)  # here, since a Dataset is decoded before the concepts are
    side = side_for(source, max(network.preprocess.resize, encoder.preprocess.resize), bank_side)
    if streamed and bank is None and held_bank(source, folder=None, side=side) is None:
        bank = STREAM
    require_squares(source, bank, side)
    decoded = None
    if not source.lasting:
        with bars.stage("decoding"):
            decoded = open_squares(source, bank, side, bars)
            source = with_content(source, decoded, bars)
    mark = network.fingerprint()
    with bars.stage("trial of precisions"):
        pace = choose_pace(taps, config.precision, mark)
    fingerprints = {
        "network": mark,
        "forward passes": str(pace),
        "images": source.fingerprint,
        "encoder": encoder.fingerprint(),
        "vocabulary": f"{words.name} {words.fingerprint}" if words else "the encoder's own",
        "text head": head.fingerprint() if head else "none",
        "bank side": bank_side or "auto",
        "code": store.code_fingerprint(),
        "torch": torch.__version__,
        "device": where.type,
        "backend": backend,
    }
    return Subject(
        *(network, taps, chosen, source, bank, side, decoded, encoder, words, head, pace, config, where),
        fingerprints=fingerprints,
    )
