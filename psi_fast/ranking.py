"""Activations -> TopPatches: the largest of each channel so far, what parts of the images add, and the patches in the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.errors import NotFiniteError
from psi_fast.peer_scores import scaled, selectivity_index
from psi_fast.results import KEPT_IMAGES, TopPatches
from psi_fast_kernels._backend import offered
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import uint32
from psi_fast_kernels.topk_merge import Extremes, TopK, empty_top_k, joined, topk_merge


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
    ranking = Ranking(channels, names, replace(config, per_image=1), 1, maxima.device, labels=labels)
    ranking.add(maxima[:, :, None], 0, lowest)
    ranking.end_part()
    top = ranking.result()
    places = positions.cpu().numpy()[top.images, np.arange(len(channels))[:, None]]
    return replace(top, positions=np.where(top.valid, places, -1))


def asked(tap: ActivationTap, channels: np.ndarray) -> torch.Tensor | None:
    """The channels as an index into all of the layer's; None for all."""
    if np.array_equal(channels, np.arange(tap.channels)):
        return None
    return torch.as_tensor(channels, device=tap.device)


STATE = ("low", "high", "least", "sums", "part_sums", "sample")
"""What a ranking holds beside its top patches and sums of classes."""
UPPER_5_PERCENT = 1.6449  # of a normal distribution
SAME = 1e-7  # relative deviation below which maxima are equal but for rounding


class Ranking:
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
        # of maxima, of their squares: of whole parts, and of the part that is being read
        self._sums = torch.zeros(2, len(channels), dtype=torch.float64, device=device)
        self._part_sums = torch.zeros_like(self._sums)
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
        self._part_sums += torch.stack((maxima.sum(0), maxima.square().sum(0)))
        self._count += len(maxima)
        if self._by_class is not None:
            self._by_class.add(maxima, first)
        start, stop = np.searchsorted(self._sampled, (first, first + len(maxima)))
        rows = torch.from_numpy(self._sampled[start:stop] - first).to(maxima.device)
        self._sample[:, start:stop] = extremes.maxima[rows].T

    def end_part(self) -> None:
        """The images so far end one of the parts that sums are made of."""
        self._sums += self._part_sums
        self._part_sums.zero_()
        if self._by_class is not None:
            self._by_class.end_part()

    def state(self) -> dict[str, torch.Tensor]:
        """All that is held of the images so far, for `go_on`."""
        found = {name: getattr(self, f"_{name}") for name in STATE} | self._ranked()
        if self._by_class is not None:
            found |= {"by class": self._by_class.sums, "part by class": self._by_class.part_sums}
        return found

    def go_on(self, count: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the `state` of another ranking after its first `count` images."""
        held = {name: own.to(self._low.device) for name, own in state.items()}
        self._count = count
        for name in STATE:
            setattr(self, f"_{name}", held[name])
        self._top = TopK(*(held[f"top {name}"] for name in TopK._fields))
        if self._by_class is not None:
            self._by_class.sums, self._by_class.part_sums = held["by class"], held["part by class"]
        if self._config.band:
            self._held = [Extremes(*(held[f"held {name}"] for name in Extremes._fields))]

    def part(self, images: range) -> dict[str, torch.Tensor]:
        """What a ranking of nothing but the part `images` found, for `join`."""
        start, stop = np.searchsorted(self._sampled, (images.start, images.stop))
        found = {name: getattr(self, f"_{name}") for name in ("low", "high", "least", "sums")} | self._ranked()
        found["sample"] = self._sample[:, start:stop]
        if self._by_class is not None:
            rows, sums = self._by_class.of(images)
            found |= {"classes": rows, "by class": sums}
        return found

    def join(self, images: range, part: Mapping[str, torch.Tensor]) -> None:
        """Add what another ranking found in the part `images`, which follows those that are there."""
        held = {name: own.to(self._low.device) for name, own in part.items()}
        self._top = joined(self._top, TopK(*(held[f"top {name}"] for name in TopK._fields)))
        if self._config.band:
            self._held.append(Extremes(*(held[f"held {name}"] for name in Extremes._fields)))
        self._low = torch.minimum(self._low, held["low"])
        self._high = torch.maximum(self._high, held["high"])
        self._least = torch.minimum(self._least, held["least"])
        self._sums += held["sums"]
        self._count += len(images)
        if self._by_class is not None:
            self._by_class.sums[held["classes"]] += held["by class"]
        start, stop = np.searchsorted(self._sampled, (images.start, images.stop))
        self._sample[:, start:stop] = held["sample"]

    def _ranked(self) -> dict[str, torch.Tensor]:
        """The top patches so far, or with a band all maxima."""
        found = {f"top {name}": own for name, own in self._top._asdict().items()}
        if self._held:
            found |= {
                f"held {name}": torch.cat([getattr(own, name) for own in self._held]) for name in Extremes._fields
            }
        return found

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
    """Sums of the images' maxima, negative ones as 0, for each class: of whole parts, and of the part that is being read."""

    def __init__(self, labels: np.ndarray, like: torch.Tensor) -> None:
        """labels : [N] int64 of all images; like : [..., C] of the sums' type, on their device."""
        classes, labels = np.unique(labels, return_inverse=True)
        self._labels = torch.from_numpy(labels).to(like.device)
        self.sums = like.new_zeros(len(classes), like.shape[-1])
        self.part_sums = torch.zeros_like(self.sums)

    def add(self, maxima: torch.Tensor, first: int) -> None:
        """The maxima [B, C] of the images from `first` on."""
        self.part_sums.index_add_(0, self._labels[first : first + len(maxima)], maxima.clamp(min=0))

    def end_part(self) -> None:
        """Add the part's sums."""
        self.sums += self.part_sums
        self.part_sums.zero_()

    def of(self, images: range) -> tuple[torch.Tensor, torch.Tensor]:
        """The classes of `images`, ascending int64, and their sums."""
        rows = self._labels[images.start : images.stop].unique()
        return rows, self.sums[rows]

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
