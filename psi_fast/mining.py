"""Images + network -> TopPatches: each channel's largest activations, one pass over the images."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.config import PSIConfig
from psi_fast.errors import DeviceMemoryError
from psi_fast.forward import Pace, step_of
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.networks import Network
from psi_fast.progress import Progress
from psi_fast.ranking import Ranking, asked
from psi_fast.results import TopPatches
from psi_fast.shelf import Unfinished
from psi_fast.stopping import postponed
from psi_fast.trial_forward import halved, memory_told
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import uint32

PARTS = 64
"""Runs of consecutive images, at most, whose sums are added one after the other, so that workers can each mine some of them."""


def image_parts(count: int, step: int) -> list[range]:
    """At most PARTS runs of consecutive images, each of whole batches of `step` but for the last."""
    each = math.ceil(math.ceil(count / step) / PARTS) * step
    return [range(first, min(first + each, count)) for first in range(0, count, each)]


def step_for(device: torch.device, config: PSIConfig, pace: Pace | None) -> int:
    """Images of a batch, which parts of the images are made of."""
    return step_of(device, config.batch_size, (pace or Pace()).size)


class Miner:
    """A pass over images that ranks what layers do, in parts or as a whole: both give the same bits.

    Values are compared in float32 and ordered by value descending, image ascending, position ascending, so neither the
    batch size nor the device decides a tie.

    Parameters
    ----------
    taps, channels
        The layers, and of each the ids [C] int64 of its channels; all are read in one forward pass.
    names, labels
        Of all images: names for messages, and classes [N] int64, which `class_selectivity` is told from.
    config
        `top_k` patches a channel, per image the `per_image` largest positions. With `band`, images drawn from that quantile
        range of the channel's own per-image maxima take the place of the very top.
    """

    def __init__(
        self,
        taps: Sequence[ActivationTap],
        network: Network,
        bank: ImageBank | ImageStream,
        names: Sequence[str],
        channels: Sequence[np.ndarray],
        config: PSIConfig,
        pace: Pace | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self._taps, self._network, self._bank, self._config, self._pace = taps, network, bank, config, pace
        self._step = step_for(taps[0].device, config, pace)
        self.parts = image_parts(len(bank), self._step)
        self._rankings = [
            Ranking(ids, names, config, tap.positions, tap.device, asked(tap, ids), labels)
            for tap, ids in zip(taps, channels, strict=True)
        ]

    def whole(self, progress: Progress, unfinished: Unfinished | None = None) -> list[TopPatches]:
        """The top patches of each layer from all images. A pass that left its state in `unfinished` goes on from there.

        Raises
        ------
        NotFiniteError
            The network returns a value that is not finite.
        ModelError
            The network raises, or a layer's output changes its shape.
        DeviceMemoryError
            Not even one image at a time fits into the device's memory; until then the batch is halved.
        """
        self._rank(range(len(self._bank)), progress, unfinished)
        return self.result()

    def part(self, part: range, unfinished: Unfinished | None = None) -> dict[str, torch.Tensor]:
        """What one of `parts` adds, for the `add` of another miner; as `whole`."""
        self._rank(part, Progress(False), unfinished)
        return {
            f"{row} {name}": own
            for row, ranking in enumerate(self._rankings)
            for name, own in ranking.part(part).items()
        }

    def add(self, part: range, found: Mapping[str, torch.Tensor]) -> None:
        """Add what another miner found in `part`; parts come in order."""
        for ranking, held in zip(self._rankings, _by_row(found, len(self._rankings)), strict=True):
            ranking.join(part, held)

    def result(self) -> list[TopPatches]:
        """The top patches of each layer, once all images are ranked."""
        return [ranking.result() for ranking in self._rankings]

    def _rank(self, images: range, progress: Progress, unfinished: Unfinished | None) -> None:
        done, held = unfinished.read() if unfinished else (0, {})
        if done:
            for ranking, own in zip(self._rankings, _by_row(held, len(self._rankings)), strict=True):
                ranking.go_on(done - images.start, own)
        done, batch_size = done or images.start, self._config.batch_size
        ends = [part.stop for part in self.parts]
        with (
            postponed() if unfinished else nullcontext(),
            progress.bar("mining", len(images), "img", done - images.start) as bar,
        ):
            while done < images.stop:
                # other batches than those that parts are made of would reach into the next one
                whole = batch_size == self._config.batch_size and (done - images.start) % self._step == 0
                to = images.stop if whole else next(end for end in ends if end > done)
                left = range(done, min(to, images.stop))
                try:
                    for first, layers in activations(
                        self._taps, self._network, self._bank, left, batch_size, self._pace
                    ):
                        done = first + len(layers[0])
                        for ranking, own in zip(self._rankings, layers, strict=True):
                            ranking.add(own, first)
                            if done in ends:
                                ranking.end_part()
                        bar.update(len(layers[0]))
                        if unfinished:
                            unfinished.write(done, self._state)
                except DeviceMemoryError as error:  # of a forward pass: nothing of its batch has been ranked
                    batch_size = halved(batch_size, lambda size: step_of(self._taps[0].device, size), error)

    def _state(self) -> dict[str, torch.Tensor]:
        return {
            f"{row} {name}": own for row, ranking in enumerate(self._rankings) for name, own in ranking.state().items()
        }


def mine(
    taps: Sequence[ActivationTap],
    network: Network,
    bank: ImageBank | ImageStream,
    names: Sequence[str],
    channels: Sequence[np.ndarray],
    config: PSIConfig,
    progress: Progress,
    pace: Pace | None = None,
    labels: np.ndarray | None = None,
) -> list[TopPatches]:
    """The top patches of each layer, as of `Miner`."""
    return Miner(taps, network, bank, names, channels, config, pace, labels).whole(progress)


def _by_row(held: Mapping[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """Tensors named "ROW NAME" as those of each row, by NAME."""
    found: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for name, own in held.items():
        row, _, name = name.partition(" ")
        found[int(row)][name] = own
    return found


def activations(
    taps: Sequence[ActivationTap],
    network: Network,
    bank: ImageBank | ImageStream,
    images: range,
    batch_size: int,
    pace: Pace | None,
) -> Generator[tuple[int, list[torch.Tensor]], None, None]:
    """Batch by batch the index of its first image and each layer's activations [B, all channels, P] float32, in one pass."""
    joint = JointTap(taps, pace)
    step = step_of(joint.device, batch_size, joint.pace.size)
    size = network.preprocess.size
    with memory_told(f"{network.name} on {step} images"):
        space = torch.empty(step, size, size, 3, device=joint.device)
    parts = [slice(first, min(first + step, images.stop)) for first in range(images.start, images.stop, step)]
    with joint, torch.inference_mode(), closing(bank.walk(parts)) as walk:
        for part, (squares, rows) in zip(parts, walk, strict=True):
            with memory_told(f"{network.name} on {step} images"):
                pixels = squares.read(rows, joint.device)
                found = joint(network.preprocess(pixels, space[: len(pixels)]))
            yield part.start, found


def random_patches(count: int, places: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` distinct random images (all of them when there are fewer) and a random position in each, int64."""
    nothing = torch.zeros(1, dtype=torch.int64)
    order = uint32(seed, Stream.RANDOM_PATCHES, nothing, nothing, images)[0].argsort(stable=True)[:count]
    position = (uint32(seed, Stream.RANDOM_PATCHES, nothing + 1, nothing, len(order))[0] * places) >> 32
    return order.numpy(), position.numpy()
