"""PatchEmbeddings -> Clusters: k-means in the Gram matrix, k by the largest silhouette."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from psi_fast.config import PSIConfig
from psi_fast.progress import Progress
from psi_fast.results import Clusters, Group, PatchEmbeddings
from psi_fast_kernels._batched import products
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import draws_per_chunk
from psi_fast_kernels.cluster import cluster


def cluster_patches(patches: PatchEmbeddings, config: PSIConfig, progress: Progress) -> Clusters:
    """Each channel's clusters; a channel with fewer than 2 * k_max valid patches is left unclustered (k = 0)."""
    channels, places = patches.index.shape
    device = patches.unique.device
    labels = torch.full((channels, places), -1, dtype=torch.int64, device=device)
    k = torch.zeros(channels, dtype=torch.int64, device=device)
    silhouette = torch.full((channels,), torch.nan, device=device)
    prototypes = torch.zeros(channels, config.k_max, patches.unique.shape[1], device=device)
    groups = list(patches.groups(2 * config.k_max))
    with progress.bar("clustering", sum(len(group.rows) for group in groups), "channel") as bar:
        for group in groups:
            samples = group.columns.shape[1]

            def work(part: slice, group: Group = group) -> None:
                rows, columns = group.rows[part], group.columns[part]
                x = patches.unique[patches.index[rows[:, None], columns]]
                found = cluster(
                    unit_gram(x),
                    k_max=config.k_max,
                    n_init=config.n_init,
                    seed=config.seed,
                    stream=Stream.OBSERVED_STARTS,
                    channel=patches.channel[rows],
                    draw=torch.zeros_like(rows),
                    backend=config.backend,
                )
                ordered = _larger_first(found.labels, config.k_max)
                labels[rows[:, None], columns] = ordered
                k[rows], silhouette[rows] = found.k, found.silhouette
                members = one_hot(ordered, config.k_max).to(x.dtype)
                prototypes[rows] = normalize(products(members.mT, x), dim=-1)
                bar.update(len(rows))

            per_chunk = draws_per_chunk(
                samples + patches.unique.shape[1],
                config.n_init * config.k_max,
                itemsize=patches.unique.element_size(),
            )
            in_chunks(work, len(group.rows), per_chunk, "channels")
    return Clusters(labels, k, silhouette, prototypes)


def unit_gram(x: Tensor) -> Tensor:
    """Gram matrices [c, n, n] of unit rows [c, n, d]."""
    return products(x, x.mT)


def _larger_first(labels: Tensor, k_max: int) -> Tensor:
    """Labels [c, n] renumbered by descending cluster size, ties by the first member."""
    sizes = one_hot(labels, k_max).sum(1)
    samples = labels.shape[1]
    place = torch.arange(samples, device=labels.device)
    first = torch.where(labels[:, None] == torch.arange(k_max, device=labels.device)[:, None], place, samples).amin(-1)
    order = (sizes * (samples + 1) - first).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).gather(1, labels)
