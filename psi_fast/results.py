"""The records that the stages pass on. C channels, K patches each, U unique patches of width d, P concepts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

COMPONENTS = ("S", "Q", "D")

KEPT_DRAWS, KEPT_IMAGES = 1000, 1000
"""What a run folder keeps of each channel at most: its first null draws, and its maxima in images spread evenly over the set."""


@dataclass(frozen=True)
class TopPatches:
    """Where each channel is most active.

    channels : [C] int64, ids of the channels in their layer
    values : [C, K] float32 activations, descending; -inf where invalid
    images, positions : [C, K] int64 image index and flat position in the map; -1 where invalid
    highest : [C] float32 largest activation over all images
    dead : [C] bool, channels whose activation never varies over images and positions
    selectivity : [C] float32, how far the mean of `values` lies above the mean of all images' maxima, in standard deviations
        of these; nan where they do not vary
    unselective : [C] bool, channels whose selectivity is not above what as many random images reach (upper 5 % point)
    weights : [C, K] float32 in [0, 1], `values` on a scale from the smallest to the largest of all images' maxima; nan where
        these do not vary, and where invalid
    class_selectivity : [C] float32 in [0, 1], class selectivity index of the images' maxima, negative ones taken for 0; nan
        without labels, and for a channel that is never positive
    image_maxima : [C, n] float32, largest activation in each of n = min(N, KEPT_IMAGES) of the N images, spread evenly over
        them and in their order
    """

    channels: np.ndarray
    values: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    highest: np.ndarray
    dead: np.ndarray
    selectivity: np.ndarray
    unselective: np.ndarray
    weights: np.ndarray
    class_selectivity: np.ndarray
    image_maxima: torch.Tensor

    @property
    def valid(self) -> np.ndarray:
        """[C, K] bool: places that hold a patch."""
        return self.images >= 0


class Group(NamedTuple):
    """Channels with the same number of valid patches n: rows [c] into the channels, columns [c, n] into their K places."""

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class PatchEmbeddings:
    """Embeddings of the patches, each distinct patch once.

    unique : [U, d] float32, unit rows
    index : [C, K] int64 into unique, -1 where a channel has no patch
    channel : [C] int64, the id that the channel's random draws depend on
    random : how many of the channels, the last ones, are random-patch channels
    """

    unique: Tensor
    index: Tensor
    channel: Tensor
    random: int = 0

    @property
    def real(self) -> int:
        """How many channels are the layer's own."""
        return len(self.index) - self.random

    def groups(self, at_least: int) -> Iterator[Group]:
        """The channels with at least `at_least` valid patches, by that number, so that a group has no gaps."""
        counts = (self.index >= 0).sum(1)
        for n in torch.unique(counts[counts >= at_least]).tolist():
            rows = torch.nonzero(counts == n)[:, 0]
            columns = torch.argsort((self.index[rows] < 0).long(), dim=1, stable=True)[:, :n]
            yield Group(rows, columns)

    def take(self, rows: np.ndarray) -> "PatchEmbeddings":
        """The patches of the channels `rows` [c] int64 alone, none of them random-patch channels any more; on the CPU."""
        index = self.index[torch.from_numpy(rows).to(self.index.device)].cpu()
        used, inverse = torch.unique(index[index >= 0], return_inverse=True)
        index[index >= 0] = inverse
        channel = self.channel.cpu()[rows]
        return PatchEmbeddings(self.unique[used.to(self.unique.device)].cpu(), index, channel)

    def to(self, device: torch.device) -> "PatchEmbeddings":
        """The same embeddings on `device`."""
        return replace(
            self, unique=self.unique.to(device), index=self.index.to(device), channel=self.channel.to(device)
        )


@dataclass(frozen=True)
class Bank:
    """Concepts and their embeddings.

    names : [P]
    embeddings : [P, d] float32 unit rows, in the space of the patch embeddings
    head : [P, e] float32 unit rows of a text-only head, which pairwise distances are taken from; None: from `embeddings`
    """

    names: tuple[str, ...]
    embeddings: Tensor
    head: Tensor | None = None

    def to(self, device: torch.device) -> "Bank":
        """The same concepts on `device`."""
        return replace(
            self,
            embeddings=self.embeddings.to(device),
            head=None if self.head is None else self.head.to(device),
        )


@dataclass(frozen=True)
class Clusters:
    """The clustering with the largest mean silhouette of each channel.

    labels : [C, K] int64 in 0..k-1, larger clusters first; -1 where invalid
    k : [C] int64, 0 for a channel that was not clustered
    silhouette : [C] float32 in [-1, 1], nan for a channel that was not clustered
    prototypes : [C, k_max, d] float32 unit mean of each cluster, 0 from k on
    """

    labels: Tensor
    k: Tensor
    silhouette: Tensor
    prototypes: Tensor


@dataclass(frozen=True)
class Components:
    """S, Q and D of each channel, each [C] float64 (nan: not scored), None for a component without labels or text.

    concepts : [C, k_max] int64 concept of each cluster, -1 where there is none
    """

    S: Tensor
    Q: Tensor | None
    D: Tensor | None
    concepts: Tensor

    def present(self) -> dict[str, Tensor]:
        """The components there are, by name."""
        return {name: getattr(self, name) for name in COMPONENTS if getattr(self, name) is not None}


@dataclass(frozen=True)
class PeerScores:
    """What others would score each channel, each [C] float32; the first three are nan for a channel with fewer than two patches.

    clarity : mean cosine of pairs of patches, in [-1 / (K - 1), 1]
    polysemanticity : 1 - cosine of the centres of the two clusters that 2-means finds, in [0, 2]
    monosemanticity : mean cosine of pairs of patches, weighted by their activations, in [-1, 1]; nan where these are unknown
    class_selectivity : as of TopPatches; nan where it is unknown
    """

    clarity: Tensor
    polysemanticity: Tensor
    monosemanticity: Tensor
    class_selectivity: Tensor


@dataclass(frozen=True)
class NullMoments:
    """A component's null for each channel: mean [C], sd [C] and p [C] = (1 + draws not below the observed) / (B + 1), float64.

    draws : [C, b] float32 on the CPU, the first b draws where some were kept, nan for a channel that has none; of D, 0 where
        there is one cluster, whose null does not vary
    """

    mean: Tensor
    sd: Tensor
    p: Tensor
    draws: Tensor | None = None
