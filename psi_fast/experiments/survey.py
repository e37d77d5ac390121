"""Images + network -> each channel's largest activation in every image, from which any top K or band follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, NotFiniteError
from psi_fast.forward import Pace, name_of
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.mining import activations
from psi_fast.progress import Progress
from psi_fast.ranking import check_finite, rank_maxima
from psi_fast.results import TopPatches
from psi_fast.shelf import Shelf
from psi_fast.subject import Subject
from psi_fast_kernels._backend import offered
from psi_fast_kernels.topk_merge import empty_top_k, topk_merge

PART = 1024
"""Images between two files on the shelf: what is lost at most when a run is killed."""


@dataclass(frozen=True)
class Survey:
    """Largest activations of one layer's C channels in N images.

    maxima : [N, C] float32, over the positions
    positions : [N, C] int64, where in the map
    lowest : [C] float32, over images and positions
    names : of the images
    pace : how the forward passes ran
    labels : [N] int64, classes of the images; None without
    """

    maxima: torch.Tensor
    positions: torch.Tensor
    lowest: torch.Tensor
    names: list[str]
    pace: Pace
    labels: np.ndarray | None = None

    def top(self, channels: np.ndarray, config: PSIConfig, columns: np.ndarray | None = None) -> TopPatches:
        """The top patches of the channels (ids [C]), which are `columns` [C] of these, or those of `config.band`."""
        if config.per_image != 1:
            raise ConfigError(f"experiments take one patch an image, got per_image {config.per_image}; set it to 1")
        own = slice(None) if columns is None else columns
        return rank_maxima(
            self.maxima[:, own], self.positions[:, own], self.lowest[own], channels, self.names, config, self.labels
        )


def survey(
    subject: Subject, bank: ImageBank | ImageStream, shelf: Shelf, progress: Progress, said: list[str]
) -> dict[str, Survey]:
    """A Survey of each of the subject's layers, from one pass over the images in parts that stay on the shelf.

    A network that leaves the range of a half precision runs again in float32, which is added to `said`.
    """
    try:
        return _survey(subject, bank, shelf, progress, subject.pace)
    except NotFiniteError as error:
        if subject.pace.dtype == torch.float32:
            raise
        said.append(f"the network ran again in float32, because in {name_of(subject.pace.dtype)}: {error}")
    return _survey(subject, bank, shelf, progress, replace(subject.pace, dtype=torch.float32))


def _survey(
    subject: Subject, bank: ImageBank | ImageStream, shelf: Shelf, progress: Progress, pace: Pace
) -> dict[str, Survey]:
    # by name, so that the order in which layers are asked for makes no other files
    taps, channels = zip(
        *sorted(zip(subject.taps, subject.channels, strict=True), key=lambda own: own[0].layer), strict=True
    )
    layers = [tap.layer for tap in taps]
    parts = []
    with progress.bar("mining", len(bank), "img") as bar:
        for first in range(0, len(bank), PART):
            images = range(first, min(first + PART, len(bank)))
            about = {
                "network": subject.fingerprints["network"],
                "images": subject.fingerprints["images"],
                "side": bank.side,
                "layers": layers,
                "channels": [ids.tolist() for ids in channels],
                "pace": str(pace),
                "device": subject.device.type,
                "part": [images.start, images.stop],
            }
            parts.append(
                shelf.tensors("maxima", about, lambda images=images: _part(subject, taps, channels, bank, images, pace))
            )
            bar.update(len(images))
    joined = {
        name: [part[name] for part in parts]
        for name in (f"{kind} {row}" for row in range(len(layers)) for kind in ("maxima", "positions", "lowest"))
    }
    return {
        layer: Survey(
            torch.cat(joined[f"maxima {row}"]),
            torch.cat(joined[f"positions {row}"]).long(),
            torch.stack(joined[f"lowest {row}"]).amin(0),
            subject.images.names,
            pace,
            subject.images.labels,
        )
        for row, layer in enumerate(layers)
    }


def _part(
    subject: Subject,
    taps: Sequence[ActivationTap],
    channels: Sequence[np.ndarray],
    bank: ImageBank | ImageStream,
    images: range,
    pace: Pace,
) -> dict[str, torch.Tensor]:
    """Maxima, positions and lowest values of the images, by layer."""
    config = subject.config
    none = [empty_top_k(tap.channels, 0, tap.device) for tap in taps]
    backend = offered("topk_merge", config.backend)
    found: dict[str, list[torch.Tensor]] = {}
    for first, layers in activations(taps, subject.network, bank, images, config.batch_size, pace):
        for row, (own, ids) in enumerate(zip(layers, channels, strict=True)):
            _, extremes = topk_merge(none[row], own, first, backend=backend)
            asked = torch.from_numpy(ids).to(own.device)
            extremes = type(extremes)(*(part[:, asked].cpu() for part in extremes))
            check_finite(extremes, subject.images.names, first, ids)
            found.setdefault(f"maxima {row}", []).append(extremes.maxima)
            found.setdefault(f"positions {row}", []).append(extremes.positions.int())
            found.setdefault(f"lowest {row}", []).append(extremes.minima.amin(0)[None])
    return {
        name: torch.cat(own).amin(0) if name.startswith("lowest") else torch.cat(own) for name, own in found.items()
    }
