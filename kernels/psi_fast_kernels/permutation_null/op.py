"""permutation_null: NMI of permuted labels, for every channel and draw; permutation_moments: their exact mean and spread."""

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.permutation_null.reference import SINGLE, entropy, group_sizes

OFFERS = ("triton", "numba", "torch")


def permutation_null(
    clusters: Tensor, labels: Tensor, *, draws: range, seed: int, channel: Tensor, backend: str = "auto"
) -> Tensor:
    """Normalised mutual information of each channel's clusters with permuted class labels, float64 [C, B] in [0, 1].

    Parameters
    ----------
    clusters, labels : [C, K] int64, >= 0
        Cluster and class of each sample; `dense_labels` brings any integers into 0..L-1.
    draws : range
        Indices of the draws, one by one, each below 2**32; each draw permutes by its own index.
    seed : int in [0, 2**64)
    channel : [C] int64 in [0, 2**32)
        Channel ids; every channel permutes on its own.
    backend : {"auto", "triton", "numba", "torch"}
        numba gives the bits of torch on a CPU, triton the same permutations and values within 1e-12.
    """
    _check(clusters, labels)
    if channel.shape != clusters.shape[:1]:
        raise ValueError(f"channel must be [{clusters.shape[0]}], got {tuple(channel.shape)}")
    if draws.step != 1:
        raise ValueError(f"draws must count up by 1, got {draws}")
    module = implementation(__name__, backend, clusters.device, offers=OFFERS)
    return module.permutation_null(clusters, labels, draws=draws, seed=seed, channel=channel)


def permutation_moments(clusters: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the NMI of permuted labels, each float64 [C] on the labels' device.

    What `permutation_null` converges to; computed on the CPU, within rounding 1e-10.

    Parameters
    ----------
    clusters, labels : [C, K] int64, >= 0
        Cluster and class of each sample; `dense_labels` brings any integers into 0..L-1.
    """
    _check(clusters, labels)
    module = implementation(__name__, "auto", torch.device("cpu"), offers=("numba", "torch"))
    sizes = (group_sizes(x).cpu().numpy() for x in (clusters, labels))
    mean, variance = (torch.as_tensor(x, device=clusters.device) for x in module.information_moments(*sizes))
    scale = (entropy(clusters) + entropy(labels)) / 2
    single = 2 * scale < SINGLE  # one cluster and one class always agree
    scale = torch.where(single, 1.0, scale)
    return torch.where(single, 1.0, mean / scale), torch.where(single, 0.0, variance.sqrt() / scale)


def _check(clusters: Tensor, labels: Tensor) -> None:
    if clusters.ndim != 2 or clusters.shape != labels.shape:
        raise ValueError(
            f"clusters and labels must both be [C, K], got {tuple(clusters.shape)} and {tuple(labels.shape)}"
        )
    if clusters.dtype != torch.int64 or labels.dtype != torch.int64:
        raise ValueError(f"clusters and labels must be int64, got {clusters.dtype} and {labels.dtype}")
