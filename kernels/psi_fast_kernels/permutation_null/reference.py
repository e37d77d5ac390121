"""NMI and its permutation null in plain torch. C channels, B draws, K samples, k clusters, L classes."""

import torch
from torch import Tensor

from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.philox import permutation


def permutation_null(clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor) -> Tensor:
    """See `psi_fast_kernels.permutation_null.op.permutation_null`."""
    channels, samples = clusters.shape
    k, classes = int(clusters.max()) + 1, int(labels.max()) + 1
    normaliser = _mean_entropy(clusters, labels)
    result = torch.empty(channels, len(draws), dtype=torch.float64, device=clusters.device)
    pairs = torch.cartesian_prod(torch.arange(channels), torch.arange(len(draws))).to(clusters.device)
    for chunk in pairs.split(rows_per_chunk(8 * (12 * samples + 4 * k * classes), budget_bytes=32 * 2**20)):
        c, b = chunk[:, 0], chunk[:, 1]
        order = permutation(seed, Stream.LABEL_PERMUTATION, channel[c], b + draws.start, samples)
        # permuting the clusters against the labels is the same draw as the reverse
        information = _mutual_information(clusters[c].gather(1, order), labels[c], k, classes)
        result[c, b] = _ratio(information, normaliser[c])
    return result


def nmi(clusters: Tensor, labels: Tensor) -> Tensor:
    """Normalised mutual information (arithmetic mean of the entropies), float64 [C] in [0, 1], of two [C, K] int64 labellings.

    Two labellings that both have one group agree fully (1), as in scikit-learn.
    """
    k, classes = int(clusters.max()) + 1, int(labels.max()) + 1
    return _ratio(_mutual_information(clusters, labels, k, classes), _mean_entropy(clusters, labels))


def entropy(labels: Tensor) -> Tensor:
    """Entropy in nats of each row's labels [C, K] int64 >= 0, float64 [C]."""
    samples = labels.shape[1]
    return (_x_log_x(samples) - _x_log_x(_counts(labels, int(labels.max()) + 1)).sum(-1)) / samples


def dense_labels(labels: Tensor) -> Tensor:
    """Each row's integers [C, K] renumbered 0..L-1 in ascending order, int64."""
    ordered, order = labels.sort(dim=1)
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    return torch.empty_like(rank).scatter_(1, order, rank)


def _mutual_information(clusters: Tensor, labels: Tensor, k: int, classes: int) -> Tensor:
    """Mutual information in nats of each row, float64; sums of n log n, so no logarithm of zero appears."""
    samples = clusters.shape[1]
    joint = _x_log_x(_counts(clusters * classes + labels, k * classes)).sum(-1)
    parts = _x_log_x(_counts(clusters, k)).sum(-1) + _x_log_x(_counts(labels, classes)).sum(-1)
    return (joint - parts + _x_log_x(samples)) / samples


def _counts(cells: Tensor, size: int) -> Tensor:
    return torch.zeros(len(cells), size, dtype=torch.float64, device=cells.device).scatter_add_(
        1, cells, torch.ones(1, dtype=torch.float64, device=cells.device).expand_as(cells)
    )


def _x_log_x(x: Tensor | int) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float64)
    return torch.special.xlogy(x, x)


def _mean_entropy(clusters: Tensor, labels: Tensor) -> Tensor:
    return (entropy(clusters) + entropy(labels)) / 2


def _ratio(information: Tensor, normaliser: Tensor) -> Tensor:
    return torch.where(normaliser > 0, (information / normaliser).clamp(0, 1), 1.0)
