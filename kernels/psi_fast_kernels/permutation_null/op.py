"""permutation_null: NMI of permuted labels, for every channel and draw."""

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation

OFFERS = ("torch",)


def permutation_null(
    clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor, backend: str = "auto"
) -> Tensor:
    """Normalised mutual information of each channel's clusters with permuted class labels, float64 [C, B] in [0, 1].

    Parameters
    ----------
    clusters, labels : [C, K] int64, >= 0
        Cluster and class of each sample; `dense_labels` brings any integers into 0..L-1.
    draws : range
        Indices of the draws; each draw permutes by its own index.
    seed : int
    channel : [C] int64
        Channel ids; every channel permutes on its own.
    backend : {"auto", "torch"}
    """
    if clusters.ndim != 2 or clusters.shape != labels.shape:
        raise ValueError(
            f"clusters and labels must both be [C, K], got {tuple(clusters.shape)} and {tuple(labels.shape)}"
        )
    if clusters.dtype != torch.int64 or labels.dtype != torch.int64:
        raise ValueError(f"clusters and labels must be int64, got {clusters.dtype} and {labels.dtype}")
    if channel.shape != clusters.shape[:1]:
        raise ValueError(f"channel must be [{clusters.shape[0]}], got {tuple(channel.shape)}")
    module = implementation(__package__, backend, clusters.device, offers=OFFERS)
    return module.permutation_null(clusters, labels, draws=draws, seed=seed, channel=channel)
