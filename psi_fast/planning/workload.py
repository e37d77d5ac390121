"""The sizes that a run's costs follow from, whatever the number of images: counted on the network and the encoder themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder, TextTower
from psi_fast.encoders.text_head import TextHead
from psi_fast.evaluation import RANDOM_CHANNELS
from psi_fast.forward import Pace
from psi_fast.networks import Network
from psi_fast.pipeline import RANDOM_POOL
from psi_fast.planning.counting import Counted, counted
from psi_fast.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """A layer that is scored.

    channels : how many are asked for; width : how many it has; positions : places of its map
    """

    name: str
    channels: int
    width: int
    positions: int


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A network, as far as the layers asked for, or an encoder.

    side : of its input in px; flops : operations in products for one input; live_bytes : activations of one input at their
    most, in float32; weight_bytes : parameters and buffers as they are held
    """

    name: str
    side: int
    flops: int
    live_bytes: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is done to images, without their number.

    embedding_width : numbers of an embedding (d); head_width : of a text head (e), 0 without one
    text_flops : operations in products that embed all concepts; 0 where they come with the encoder's weights
    classes : of the images' labels, 0 without labels
    bank_side : px of the squares that images are kept at; 0: none are kept (`bank="stream"`)
    bank_named : whether their place is named; several workers decode for themselves what has none
    image_bytes : of an image's file, on average
    entry_bytes : of memory for an image's name and stamp
    """

    network: ModelSize
    encoder: ModelSize
    layers: tuple[LayerSize, ...]
    config: PSIConfig
    embedding_width: int
    concepts: int
    head_width: int
    text_flops: int
    classes: int
    bank_side: int
    bank_named: bool
    image_bytes: float
    entry_bytes: float
    skip_unreadable: bool = False

    @property
    def channels(self) -> int:
        """Channels scored, of all layers together."""
        return sum(own.channels for own in self.layers)

    @property
    def scored(self) -> int:
        """Channels that are clustered and get null draws: also the random-patch channels of each layer."""
        return self.channels + RANDOM_CHANNELS * len(self.layers)

    @property
    def places(self) -> int:
        """Top patches of all channels, whether or not they are the same ones."""
        return self.channels * self.config.top_k

    def on(self, workers: int) -> "Workload":
        """The same for so many workers: several keep no squares where no place for them is named."""
        return self if workers == 1 or self.bank_named else replace(self, bank_side=0)

    def random_crops(self, images: int) -> int:
        """Random patches that are embedded for the random-patch channels; whole images serve all layers."""
        return min(images, RANDOM_POOL) * (1 if self.config.patch == "image" else len(self.layers))

    def most_crops(self, images: int) -> int:
        """Distinct crops there can be at most: each place another one, or each position of each image."""
        if self.config.patch == "image":
            return min(images, self.places + self.random_crops(images))
        channels = sum(
            min(own.channels * self.config.top_k, images * own.positions) for own in self.layers
        )  # a layer's patches are its own
        return channels + self.random_crops(images)


def network_size(network: Network, taps: Sequence[ActivationTap]) -> ModelSize:
    """The network as far as the taps, from one forward pass of one blank image in float32."""
    side = network.preprocess.size
    with torch.inference_mode(), JointTap(taps, Pace(size=1)) as joint:
        blank = torch.zeros(1, 3, side, side, device=joint.device)
        found = counted(lambda: joint(blank))
    return _size(network.name, side, found, 1, _bytes([network.module]))


def encoder_size(encoder: Encoder, device: torch.device) -> tuple[ModelSize, int]:
    """The encoder, and the numbers of an embedding, from blank crops at its own precision."""
    side, several = encoder.preprocess.size, 8  # a CPU's encoder pads a batch to so many
    blank = torch.zeros(several, 3, side, side, device=device)
    widths: list[int] = []
    with torch.inference_mode():
        found = counted(lambda: widths.append(encoder.encode(blank).shape[1]))
    parts = [own.module if isinstance(own, Network) else own for own in vars(encoder).values()]
    weights = _bytes([own for own in parts if isinstance(own, nn.Module)])
    return _size(encoder.name, side, found, several, weights), widths[0]


def text_operations(encoder: Encoder, words: Vocabulary | None) -> tuple[int, int]:
    """How many concepts there are, and the operations in products that embed them: those of one, times all."""
    if not isinstance(encoder, TextTower):
        return len(encoder.concepts(words)[0]), 0
    names, _ = encoder.prompts(words)
    one = Vocabulary(words.name if words else "one", (names[0],))  # the name decides how many prompts a concept gets
    with torch.inference_mode():
        return len(names), len(names) * counted(lambda: encoder.concepts(one)).flops


def head_operations(head: TextHead, concepts: int) -> tuple[int, int]:
    """Operations in products that embed so many concepts, those of one times all; and the numbers of an embedding."""
    widths: list[int] = []
    with torch.inference_mode():
        one = counted(lambda: widths.append(head.embed(["one concept"]).shape[1])).flops
    return concepts * one, widths[0]


def _size(name: str, side: int, found: Counted, several: int, weights: int) -> ModelSize:
    return ModelSize(
        name=name,
        side=side,
        flops=math.ceil(found.flops / several),
        live_bytes=math.ceil(found.live_bytes / several),
        weight_bytes=weights,
    )


def _bytes(modules: Sequence[Any]) -> int:
    """Of parameters and buffers, each once."""
    tensors = {id(own): own for module in modules for own in (*module.parameters(), *module.buffers())}
    return sum(own.numel() * own.element_size() for own in tensors.values())
