"""NMI and its permutation null in plain torch. C channels, B draws, K samples, k clusters, L classes.

With H an entropy, U the clusters and V the classes: NMI = 2 (H(U) + H(V) - H(U, V)) / (H(U) + H(V)).
"""

import math

import numpy as np
import torch
from torch import Tensor

from psi_fast_kernels._batched import ordered_sum
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.permutation_null.exact import mutual_information_moments
from psi_fast_kernels.philox.reference import permutation

SINGLE = 1e-12  # nats; entropies below are those of a single group


def permutation_null(clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor) -> Tensor:
    """See `psi_fast_kernels.permutation_null.op.permutation_null`."""
    channels, samples = clusters.shape
    classes = int(labels.max()) + 1
    cells = (int(clusters.max()) + 1) * classes
    apart = entropy(clusters) + entropy(labels)  # a permutation changes neither
    result = torch.empty(channels, len(draws), dtype=torch.float64, device=clusters.device)
    pairs = torch.cartesian_prod(torch.arange(channels), torch.arange(len(draws))).to(clusters.device)
    for chunk in pairs.split(rows_per_chunk(8 * (12 * samples + 2 * cells), budget_bytes=32 * 2**20)):
        c, b = chunk[:, 0], chunk[:, 1]
        order = permutation(seed, Stream.LABEL_PERMUTATION, channel[c], b + draws.start, samples)
        # permuting the clusters against the labels is the same draw as the reverse
        together = entropy(clusters[c].gather(1, order) * classes + labels[c])
        result[c, b] = _nmi(apart[c], together)
    return result


def information_moments(cluster_sizes: np.ndarray, class_sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of the mutual information of permuted labels, in nats and nats^2, each [C].

    Parameters
    ----------
    cluster_sizes : [C, k] int64, >= 0
    class_sizes : [C, L] int64, >= 0
        Every row of either sums to the same K > 0.
    """
    moments = [mutual_information_moments(a, b) for a, b in zip(cluster_sizes, class_sizes, strict=True)]
    mean, variance = np.array(moments).T
    return mean, variance


def nmi(clusters: Tensor, labels: Tensor) -> Tensor:
    """Normalised mutual information (arithmetic mean of the entropies), float64 [C] in [0, 1], of two [C, K] int64 labellings.

    Two labellings that both have one group agree fully (1), as in scikit-learn.
    """
    classes = int(labels.max()) + 1
    return _nmi(entropy(clusters) + entropy(labels), entropy(clusters * classes + labels))


def entropy(labels: Tensor) -> Tensor:
    """Entropy in nats of each row's labels [C, K] int64 >= 0, float64 [C]."""
    samples = labels.shape[1]
    counts, logarithms = group_sizes(labels), log_table(samples, labels.device)
    # sum over groups of n log n = sum over samples of the log of their group's size
    return math.log(samples) - ordered_sum(logarithms[counts.gather(1, labels)], 1) / samples


def group_sizes(labels: Tensor) -> Tensor:
    """How many of each row's labels [C, K] int64 >= 0 are 0, 1, ..: int64 [C, largest label + 1]."""
    counts = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))


def log_table(samples: int, device: torch.device | None = None) -> Tensor:
    """log n for n = 0..samples, float64; -inf for 0."""
    return torch.arange(samples + 1, dtype=torch.float64, device=device).log()


def dense_labels(labels: Tensor) -> Tensor:
    """Each row's integers [C, K] renumbered 0..L-1 in ascending order, int64."""
    ordered, order = labels.sort(dim=1)
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    return torch.empty_like(rank).scatter_(1, order, rank)


def _nmi(apart: Tensor, together: Tensor) -> Tensor:
    """NMI from H(U) + H(V) and H(U, V)."""
    single = apart < SINGLE
    return torch.where(single, 1.0, (2 * (apart - together) / torch.where(single, 1.0, apart)).clamp(0, 1))
