"""What mining and encoding look with: a network and its layers, decoded images, an encoder; and how they reach a worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.crops import embed
from psi_fast.encoders import Encoder
from psi_fast.forward import Pace
from psi_fast.image_bank import ImageBank, same_bank
from psi_fast.image_set import ImageSet
from psi_fast.image_stream import ImageStream
from psi_fast.mining import Miner
from psi_fast.networks import Network
from psi_fast.progress import Progress
from psi_fast.shelf import Shelf
from psi_fast.subject import Subject


@dataclass(frozen=True)
class Sight:
    """Inputs of `mined_part` and `encoded_part`. Another process that it is sent to opens its own hooks and images.

    shelf : where a part of mining that was cut short is found again
    """

    network: Network
    taps: Sequence[ActivationTap]
    channels: Sequence[np.ndarray]
    images: ImageSet
    bank: ImageBank | ImageStream
    encoder: Encoder
    config: PSIConfig
    device: torch.device
    shelf: Shelf | None

    def miner(self, pace: Pace) -> Miner:
        """A pass over the images that has read none of them."""
        return Miner(
            *(self.taps, self.network, self.bank, self.images.names, self.channels, self.config, pace),
            labels=self.images.labels,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, to which nothing that is open can be sent."""
        held = (self.bank.folder, self.bank.content) if isinstance(self.bank, ImageBank) else None
        layers = [tap.layer for tap in self.taps]
        shelf = None if self.shelf is None else Shelf(self.shelf.folder.absolute())
        own = (self.network, self.channels, self.images, self.encoder, self.config, self.device, shelf)
        return _reopened, (own, layers, held, self.bank.side)


def look(subject: Subject, bank: ImageBank | ImageStream, shelf: Shelf | None, encoder: Encoder | None = None) -> Sight:
    """What the subject looks with, or with another encoder."""
    return Sight(
        *(subject.network, subject.taps, subject.channels, subject.images, bank, encoder or subject.encoder),
        *(subject.config, subject.device, shelf),
    )


def _reopened(own: tuple[Any, ...], layers: list[str], held: tuple[Path, str] | None, side: int) -> Sight:
    """A Sight in another process: with the same decoded images where their folder is there, else with a stream."""
    network, channels, images, encoder, config, device, shelf = own
    bank = None if held is None else same_bank(*held, len(images), side)
    return Sight(
        network,
        [ActivationTap(network, layer, device) for layer in layers],
        channels,
        images,
        ImageStream(images, side) if bank is None else bank.to(device),
        encoder,
        config,
        device,
        shelf if shelf is not None and shelf.folder.is_dir() else None,
    )


def mined_part(sight: Sight, pace: Pace, about: Any, number: int) -> dict[str, torch.Tensor]:
    """What the part `number` of the images adds to the top patches; one that was cut short goes on."""
    miner = sight.miner(pace)
    unfinished = None if sight.shelf is None else sight.shelf.unfinished("part", [about, number])
    found = miner.part(miner.parts[number], unfinished)
    return {name: own.cpu() for name, own in found.items()}


def encoded_part(
    sight: Sight, crops: np.ndarray, kind: str, about: Any, progress: Progress | None = None
) -> torch.Tensor:
    """Unit embeddings [U, d] float32 of crops [U, 5], as of `embed`; a part that was cut short goes on."""
    unfinished = None if sight.shelf is None else sight.shelf.unfinished(kind, about)
    bars = Progress(False) if progress is None else progress
    own = (sight.images.names, sight.encoder, sight.device, sight.config)
    return embed(crops, sight.bank, *own, bars, unfinished)
