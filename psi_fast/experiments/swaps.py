"""Patches of other images put into host images, batched over channels and hosts through the network.

The swap happens in the network's input: a patch keeps the pixels that the network sees where it comes from, and the host's
other pixels stay as they are, bit for bit. In the decoded squares, resizing would smear both over the box's edge.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.errors import NotFiniteError
from psi_fast.experiments.study import Study
from psi_fast.forward import Pace, step_of
from psi_fast.shelf import content

CONDITIONS = ("aligned", "non-aligned", "random", "shuffled-position", "ablate-elsewhere")
"""The patch of the host's cluster, its four controls."""
PATCHES = 3
"""The first of the conditions, each of which has a patch of its own."""
PART = 512
"""Hosts of one file on the shelf: what is lost at most when a run is killed, some twenty seconds of two cores."""


@dataclass(frozen=True)
class Swaps:
    """n hosts and what is put into each. Places are (x, y) in whole px of the network's input.

    channels, images, positions : [n] int64, the channel that is read, the host, and the position that is read
    boxes : [n, 4] int64 (x0, y0, x1, y1) in the host, around the position
    donors : [n, 3] int64 images, a patch of each of which goes into the box
    corners : [n, 3, 2] int64, where in the donor the patch begins; it has the box's size
    elsewhere : [n, 2] int64, where in the host a box of that size begins that shares no pixel with the box
    """

    channels: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    boxes: np.ndarray
    donors: np.ndarray
    corners: np.ndarray
    elsewhere: np.ndarray

    def __len__(self) -> int:
        return len(self.channels)

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        return type(self)(**{name: own[rows] for name, own in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {own.name: getattr(self, own.name) for own in fields(self)}


class Places:
    """Where a layer's P positions lie in the network's input, and a square around each.

    Parameters
    ----------
    tap
        Of a layer with a grid.
    side
        Of the squares in px.

    Attributes
    ----------
    size : int
        Side of the network's input in px.
    centres : [P, 2] int64
        (x, y) of each position's cell; 0 for the tokens in front of the grid.
    boxes : [P, 4] int64
        (x0, y0, x1, y1) of the square around the centre, clipped to the input.
    on_grid : [P] bool
        False for the tokens in front of the grid, which lie nowhere.
    usable : [P] bool
        On the grid, and the box leaves room elsewhere in the input for another of its size.
    """

    def __init__(self, tap: ActivationTap, side: int) -> None:
        assert tap.grid is not None, "a layer with a grid"
        self.size = tap.network.preprocess.size
        at = np.arange(tap.positions) - tap.prefix
        self.on_grid = at >= 0
        cell = np.stack(np.divmod(np.maximum(at, 0), tap.grid[1])[::-1], 1)
        centres = np.rint((cell + 0.5) * self.size / np.array(tap.grid[::-1])).astype(np.int64)
        self.centres = np.where(self.on_grid[:, None], centres, 0)
        low = self.centres - side // 2
        self.boxes = np.clip(np.concatenate([low, low + side], 1), 0, self.size)
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        self.usable = self.on_grid & (np.maximum(low, self.size - high) >= high - low).any(1)

    def windows(self, host: int, donors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a patch as large as the box of position `host` begins in images that peak at the positions `donors` [m].

        The peak lies in the patch where the host's lies in its box, unless the image's border forbids it.

        Returns
        -------
        corners : [m, 2] int64 (x, y)
        shifts : [m] int64, how far in px the border moves each patch
        """
        low, high = self.boxes[host, :2], self.boxes[host, 2:]
        wanted = self.centres[donors] + low - self.centres[host]
        corners = np.clip(wanted, 0, self.size - (high - low))
        return corners, np.abs(corners - wanted).sum(1)

    def elsewhere(self, host: int, rng: np.random.Generator) -> np.ndarray:
        """A random corner (x, y) of a box as large as that of the usable position `host`, without a common pixel."""
        low, high = self.boxes[host, :2], self.boxes[host, 2:]
        x, y = (np.arange(self.size - length + 1) for length in high - low)
        free_x, free_y = (
            (axis + length <= start) | (axis >= stop)
            for axis, length, start, stop in zip((x, y), high - low, low, high, strict=True)
        )
        free = np.flatnonzero(free_x[None, :] | free_y[:, None])
        return np.array(np.divmod(rng.choice(free), len(x))[::-1])


def swapped(study: Study, layer: str, swaps: Swaps) -> np.ndarray:
    """Activations [n, 6] float32 of each swap's channel at its position: of the host as it is, then under each of CONDITIONS.

    All six of a host are computed in forward passes of the same shape and at the same place of their batch, so a swap that
    changes no pixel changes nothing. Parts stay on the study's shelf.

    Raises
    ------
    NotFiniteError
        The network returns a value that is not finite for a swap.
    """
    pace = study.survey(layer).pace  # what the images themselves went through
    about = {
        "network": study.subject.fingerprints["network"],
        "images": study.subject.fingerprints["images"],
        "side": study.squares.side,
        "layer": layer,
        "pace": str(pace),
        "device": study.subject.device.type,
    }
    found = []
    with study.bars.stage("swaps"), study.bars.bar("swapping", len(swaps), "host") as bar:
        for first in range(0, len(swaps), PART):
            part = swaps[first : first + PART]
            mark = content({name: torch.from_numpy(own) for name, own in part.arrays().items()})

            def make(part: Swaps = part) -> dict[str, torch.Tensor]:
                return {"activations": _activations(study, layer, pace, part)}

            found.append(study.shelf.tensors("swaps", about | {"swaps": mark}, make)["activations"])
            bar.update(len(part))
    return torch.cat(found).numpy()


def _activations(study: Study, layer: str, pace: Pace, swaps: Swaps) -> torch.Tensor:
    """As `swapped`, of one part."""
    joint = JointTap([study.tap(layer)], pace)
    step = step_of(joint.device, study.config.batch_size, pace.size)
    found = []
    with joint, torch.inference_mode():
        for first in range(0, len(swaps), step):
            part = swaps[first : first + step]
            places = (torch.arange(len(part)), torch.from_numpy(part.channels), torch.from_numpy(part.positions))
            read = [joint(batch)[0].cpu()[places] for batch in _batches(study, joint.device, part)]
            found.append(torch.stack(read, 1))
    activations = torch.cat(found)
    bad = torch.nonzero(~torch.isfinite(activations).all(1))
    if len(bad):
        row = int(bad[0])
        raise NotFiniteError(
            f"swapping: channel {swaps.channels[row]} of {layer} is not finite (nan or inf) with a patch in image "
            f"{study.subject.images.names[swaps.images[row]]!r}; try precision float32"
        )
    return activations


def _batches(study: Study, device: torch.device, swaps: Swaps) -> Iterator[torch.Tensor]:
    """The network's input [B, 3, S, S] for the hosts [B] as they are, then under each of CONDITIONS."""
    images = np.concatenate([swaps.images, swaps.donors.T.ravel()])
    inputs = study.subject.network.preprocess(study.squares.read(images, device))
    hosts, *donors = inputs.split(len(swaps))
    yield hosts
    own, elsewhere = swaps.boxes[:, :2], swaps.elsewhere
    sizes = swaps.boxes[:, 2:] - own
    for donor, corners in zip(donors, swaps.corners.transpose(1, 0, 2), strict=True):
        yield _put(hosts, own, _cut(donor, corners, sizes))
    yield _put(hosts, elsewhere, _cut(donors[0], swaps.corners[:, 0], sizes))
    yield _put(
        hosts,
        elsewhere,
        [host.mean((1, 2), keepdim=True).expand(-1, h, w) for host, (w, h) in zip(hosts, sizes.tolist(), strict=True)],
    )


def _cut(images: torch.Tensor, corners: np.ndarray, sizes: np.ndarray) -> list[torch.Tensor]:
    """From each image [B, 3, S, S] the box of that size (width, height) [B, 2] that begins at (x, y) [B, 2]."""
    boxes = np.concatenate([corners, corners + sizes], 1).tolist()
    return [image[:, y0:y1, x0:x1] for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True)]


def _put(images: torch.Tensor, corners: np.ndarray, patches: list[torch.Tensor]) -> torch.Tensor:
    """The images [B, 3, S, S] with a patch each, which begins at (x, y) [B, 2]."""
    result = images.clone()
    for image, (x, y), patch in zip(result, corners.tolist(), patches, strict=True):
        image[:, y : y + patch.shape[1], x : x + patch.shape[2]] = patch
    return result
