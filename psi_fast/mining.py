"""Images + network -> TopPatches: each channel's largest activations, one pass over the images."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.config import PSIConfig
from psi_fast.errors import DeviceMemoryError, NotFiniteError
from psi_fast.forward import Pace, step_of
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.networks import Network
from psi_fast.peer_scores import scaled, selectivity_index
from psi_fast.progress import Progress
from psi_fast.results import KEPT_IMAGES, TopPatches
from psi_fast.shelf import Unfinished
from psi_fast.stopping import postponed
from psi_fast.trial_forward import halved, memory_told
from psi_fast_kernels._backend import offered
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import uint32
from psi_fast_kernels.topk_merge import Extremes, TopK, empty_top_k, topk_merge


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
    unfinished: Unfinished | None = None,
) -> list[TopPatches]:
    """The top_k patches of each layer's channels (ids [C] int64), per image the `per_image` largest positions.

    All layers are read in one forward pass. `names` are the images', for messages, and `labels` [N] int64 their classes,
    which `class_selectivity` is told from. Values are compared in float32 and
    ordered by value descending, image ascending, position ascending, so neither the batch size nor the device decides a
    tie. With `band`, images drawn from that quantile range of the channel's own per-image maxima take the place of the
    very top. A pass that left its state in `unfinished` goes on from there, to the same bits.

    Raises
    ------
    NotFiniteError
        The network returns a value that is not finite.
    ModelError
        The network raises, or a layer's output changes its shape.
    DeviceMemoryError
        Not even one image at a time fits into the device's memory; until then the batch is halved.
    """
    rankings = [
        _Ranking(ids, names, config, tap.positions, tap.device, _asked(tap, ids), labels)
        for tap, ids in zip(taps, channels, strict=True)
    ]
    done, held = unfinished.read() if unfinished else (0, {})
    if done:
        for row, ranking in enumerate(rankings):
            ranking.go_on(
                done, {name.partition(" ")[2]: own for name, own in held.items() if name.startswith(f"{row} ")}
            )

    def state() -> dict[str, torch.Tensor]:
        return {f"{row} {name}": own for row, ranking in enumerate(rankings) for name, own in ranking.state().items()}

    batch_size = config.batch_size
    with postponed() if unfinished else nullcontext(), progress.bar("mining", len(bank), "img", done) as bar:
        while done < len(bank):
            try:
                for first, layers in activations(taps, network, bank, range(done, len(bank)), batch_size, pace):
                    for ranking, own in zip(rankings, layers, strict=True):
                        ranking.add(own, first)
                    done = first + len(layers[0])
                    bar.update(len(layers[0]))
                    if unfinished:
                        unfinished.write(done, state)
            except DeviceMemoryError as error:  # of a forward pass: nothing of its batch has been ranked
                batch_size = halved(batch_size, lambda size: step_of(taps[0].device, size), error)
    return [ranking.result() for ranking in rankings]


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


def rank_maxima(
    maxima: torch.Tensor,
    positions: torch.Tensor,
    lowest: torch.Tensor,
    channels: np.ndarray,
    names: Sequence[str],
    config: PSIConfig,
    labels: np.ndarray | None = None,
) -> TopPatches:
    """What `mine` finds with `per_image` 1, from each channel's maximum in every image.

    Parameters
    ----------
    maxima, positions : [N, C] float32 and int64
        Of each image and channel, in the order of the images.
    lowest : [C] float32
        Smallest activation over all images and positions.
    channels : [C] int64
    """
    ranking = _Ranking(channels, names, replace(config, per_image=1), 1, maxima.device, labels=labels)
    ranking.add(maxima[:, :, None], 0, lowest)
    top = ranking.result()
    places = positions.cpu().numpy()[top.images, np.arange(len(channels))[:, None]]
    return replace(top, positions=np.where(top.valid, places, -1))


def _asked(tap: ActivationTap, channels: np.ndarray) -> torch.Tensor | None:
    """The channels as an index into all of the layer's; None for all."""
    if np.array_equal(channels, np.arange(tap.channels)):
        return None
    return torch.as_tensor(channels, device=tap.device)


STATE = ("low", "high", "least", "sums", "sample")
"""What a ranking holds beside its top patches."""
UPPER_5_PERCENT = 1.6449  # of a normal distribution
SAME = 1e-7  # relative deviation below which maxima are equal but for rounding


class _Ranking:
    """The largest activations of one layer's channels so far."""

    def __init__(
        self,
        channels: np.ndarray,
        names: Sequence[str],
        config: PSIConfig,
        positions: int,
        device: torch.device,
        asked: torch.Tensor | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        """channels : [C] ids, at the rows `asked` of the activations to come; positions : P of these; labels : [N] int64."""
        self._channels, self._names, self._config, self._asked = channels, names, config, asked
        self._per_image = 1 if config.band else min(config.per_image, positions)
        self._top = empty_top_k(len(channels), 0 if config.band else config.top_k, device)
        self._held: list[Extremes] = []
        self._low = torch.full((len(channels),), torch.inf, device=device)
        self._high = -self._low
        self._least = self._low.clone()  # of the maxima
        self._count = 0
        # of maxima, of their squares
        self._sums = torch.zeros(2, len(channels), dtype=torch.float64, device=device)
        self._by_class = None if labels is None else _ByClass(labels, self._sums)
        self._sampled = spread_images(len(names))
        self._sample = torch.empty(len(channels), len(self._sampled), device=device)

    def add(self, activations: torch.Tensor, first: int, lowest: torch.Tensor | None = None) -> None:
        """Rank the activations [B, all channels, P] of the images from `first` on; `lowest` [C] where they hold only maxima."""
        if self._asked is not None:
            activations = activations[:, self._asked]
        self._top, extremes = topk_merge(
            self._top,
            activations,
            first,
            per_image=self._per_image,
            backend=offered("topk_merge", self._config.backend),
        )
        check_finite(extremes, self._names, first, self._channels)
        if self._config.band:  # all maxima are ranked at the end
            self._held.append(extremes)
        self._low = torch.minimum(self._low, extremes.minima.amin(0) if lowest is None else lowest)
        self._high = torch.maximum(self._high, extremes.maxima.amax(0))
        self._least = torch.minimum(self._least, extremes.maxima.amin(0))
        maxima = extremes.maxima.double()
        self._sums += torch.stack((maxima.sum(0), maxima.square().sum(0)))
        self._count += len(maxima)
        if self._by_class is not None:
            self._by_class.add(maxima, first)
        start, stop = np.searchsorted(self._sampled, (first, first + len(maxima)))
        rows = torch.from_numpy(self._sampled[start:stop] - first).to(maxima.device)
        self._sample[:, start:stop] = extremes.maxima[rows].T

    def state(self) -> dict[str, torch.Tensor]:
        """All that is held of the images so far, for `go_on`."""
        found = {name: getattr(self, f"_{name}") for name in STATE}
        found |= {f"top {name}": own for name, own in self._top._asdict().items()}
        if self._by_class is not None:
            found["by class"] = self._by_class.sums
        if self._held:
            found |= {
                f"held {name}": torch.cat([getattr(own, name) for own in self._held]) for name in Extremes._fields
            }
        return found

    def go_on(self, count: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the `state` of another ranking after its first `count` images."""
        held = {name: own.to(self._low.device) for name, own in state.items()}
        self._count = count
        for name in STATE:
            setattr(self, f"_{name}", held[name])
        self._top = TopK(*(held[f"top {name}"] for name in TopK._fields))
        if self._by_class is not None:
            self._by_class.sums = held["by class"]
        if self._config.band:
            self._held = [Extremes(*(held[f"held {name}"] for name in Extremes._fields))]

    def result(self) -> TopPatches:
        top = _draw_band(self._held, self._channels, self._config) if self._config.band else self._top
        values, found, positions = (part.cpu().numpy() for part in top)
        high, dead = self._high.cpu().numpy(), (self._low == self._high).cpu().numpy()
        held = found >= 0
        selectivity, unselective = self._selectivity(values, held)
        weights = scaled(np.where(held, values, np.nan), self._least.cpu().numpy(), high)
        by_class = np.full_like(high, np.nan) if self._by_class is None else self._by_class.index()
        return TopPatches(
            *(self._channels, values, found, positions, high, dead, selectivity, unselective, weights, by_class),
            image_maxima=self._sample.cpu(),
        )

    def _selectivity(self, values: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`TopPatches.selectivity` and `unselective` of the activations [C, K] at the places `held`."""
        mean, square = (self._sums / self._count).cpu().numpy()
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        spread[spread <= SAME * np.sqrt(square)] = 0
        kept = held.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            selectivity = (np.where(held, values.astype(np.float64), 0).sum(1) / kept - mean) / spread
            # the mean of `kept` of the images without replacement
            random = UPPER_5_PERCENT * np.sqrt((self._count - kept) / (kept * (self._count - 1)))
        selectivity[spread == 0] = np.nan
        # sums over batches round by batch: float32 keeps what does not depend on that
        return selectivity.astype(np.float32), selectivity <= random


def spread_images(count: int) -> np.ndarray:
    """Which of `count` images `TopPatches.image_maxima` is of: all, or KEPT_IMAGES spread evenly, ascending int64."""
    return np.linspace(0, count - 1, min(count, KEPT_IMAGES), dtype=np.int64)


class _ByClass:
    """Sums of the images' maxima, negative ones as 0, for each class."""

    def __init__(self, labels: np.ndarray, like: torch.Tensor) -> None:
        """labels : [N] int64 of all images to come; like : [..., C] of the sums' type, on their device."""
        classes, labels = np.unique(labels, return_inverse=True)
        self._labels = torch.from_numpy(labels).to(like.device)
        self.sums = like.new_zeros(len(classes), like.shape[-1])

    def add(self, maxima: torch.Tensor, first: int) -> None:
        """The maxima [B, C] of the images from `first` on."""
        self.sums.index_add_(0, self._labels[first : first + len(maxima)], maxima.clamp(min=0))

    def index(self) -> np.ndarray:
        """Class selectivity [C] float32."""
        return selectivity_index(self.sums, self._labels.bincount())


def check_finite(extremes: Extremes, names: Sequence[str], first: int, channels: np.ndarray) -> None:
    """Raises a NotFiniteError that names the image and the channel of the first value that is not."""
    # a maximum hides no inf and no nan, a minimum hides no -inf
    bad = torch.nonzero(~(torch.isfinite(extremes.maxima) & torch.isfinite(extremes.minima)))
    if len(bad):
        image, channel = bad[0].tolist()
        raise NotFiniteError(
            f"mining: channel {channels[channel]} is not finite (nan or inf) for image {names[first + image]!r}; "
            "check the network's weights and precision, or leave the image out"
        )


def _draw_band(held: list[Extremes], channels: np.ndarray, config: PSIConfig) -> TopK:
    """Of all images, ranked by maximum, `top_k` from the band's quantile range, still ranked; fewer when it holds fewer."""
    low, high = config.band or (0.0, 1.0)
    maxima, places = (torch.cat([getattr(batch, name) for batch in held]).T for name in ("maxima", "positions"))
    total = maxima.shape[1]
    # quantile q of the ascending order lies at descending rank (1 - q) * total
    inside = slice(math.floor(round((1 - high) * total, 6)), math.ceil(round((1 - low) * total, 6)))
    found = maxima.argsort(dim=1, descending=True, stable=True)[:, inside]
    band = TopK(maxima.gather(1, found), found, places.gather(1, found))
    ids = torch.as_tensor(channels, device=maxima.device)
    keys = uint32(config.seed, Stream.BAND, ids, torch.zeros_like(ids), band.values.shape[1])
    chosen = keys.argsort(dim=1, stable=True)[:, : config.top_k].sort(dim=1).values
    drawn = TopK(*(part.gather(1, chosen) for part in band))
    missing = config.top_k - chosen.shape[1]
    if missing <= 0:
        return drawn
    return TopK(
        *(torch.cat(pair, 1) for pair in zip(drawn, empty_top_k(len(channels), missing, ids.device), strict=True))
    )


def random_patches(count: int, places: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` distinct random images (all of them when there are fewer) and a random position in each, int64."""
    nothing = torch.zeros(1, dtype=torch.int64)
    order = uint32(seed, Stream.RANDOM_PATCHES, nothing, nothing, images)[0].argsort(stable=True)[:count]
    position = (uint32(seed, Stream.RANDOM_PATCHES, nothing + 1, nothing, len(order))[0] * places) >> 32
    return order.numpy(), position.numpy()
