"""k-means and silhouette in plain torch. N problems, K samples, R restarts, k clusters.

Every quantity comes from the Gram matrix G [K, K] of unit rows, so the width of the embeddings never appears:

    dist2(i, c) = G_ii - 2 (G Z)_ic / n_c + (Z^T G Z)_cc / n_c^2        Z the one-hot assignment, n_c cluster sizes
    cosine distance(i, j) = 1 - G_ij
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from psi_fast_kernels._tiling import ROWS, padded
from psi_fast_kernels.philox import uniform

MAX_STEPS = 50
SAME = 16  # samples whose cosines all lie this many roundings below 1, or closer, are one point
CANDIDATES = 3  # 2 + log k, rounded down, for k = 3..7
ALIKE = 1e-5  # relative; candidates whose sums lie this close are equal: two that cover each other leave the same sum


class Clustering(NamedTuple):
    """Per problem: mean silhouette [N], labels [N, K] int64, number of clusters k [N] int64.

    A problem with fewer than two distinct samples has silhouette 0, one label and k = 1.
    """

    silhouette: Tensor
    labels: Tensor
    k: Tensor


class Sums(NamedTuple):
    """Cluster sums of a labelling [N, R, K]: one-hot [N, R, k, K], G Z [N, R, k, K], sizes [N, R, k]."""

    one_hot: Tensor
    product: Tensor
    sizes: Tensor


def cluster(
    gram: Tensor, *, k_max: int, n_init: int, seed: int, stream: int, channel: Tensor, draw: Tensor
) -> Clustering:
    """See `psi_fast_kernels.cluster.op.cluster`."""
    numbers = uniform(seed, stream, channel, draw, n_init * k_max * CANDIDATES, backend="torch")
    numbers = numbers.unflatten(-1, (n_init, k_max, CANDIDATES))
    starts = plus_plus(gram, numbers.to(gram.dtype))
    distinct = 1 - gram.amin((1, 2)) > SAME * torch.finfo(gram.dtype).eps
    best = Clustering(
        torch.full(gram.shape[:1], -torch.inf, dtype=gram.dtype, device=gram.device),
        torch.zeros(gram.shape[:2], dtype=torch.int64, device=gram.device),
        torch.ones(gram.shape[:1], dtype=torch.int64, device=gram.device),
    )
    wide = _padded_gram(gram)
    for k in range(2, k_max + 1):
        # the first k centres of one k-means++ sequence are themselves k-means++ starts for k
        labels = lloyd(wide, starts[:, :, :k].max(dim=2).indices, k)
        labels = _lowest_inertia(wide, labels, k)
        value = silhouette(wide, labels, k)
        better = distinct & (value > best.silhouette)  # strict: ties take the smaller k
        best = Clustering(
            torch.where(better, value, best.silhouette),
            torch.where(better[:, None], labels, best.labels),
            torch.where(better, k, best.k),
        )
    return best._replace(silhouette=torch.where(best.k == 1, 0, best.silhouette))


def plus_plus(gram: Tensor, numbers: Tensor) -> Tensor:
    """Similarity of every sample to each greedy k-means++ start, [N, R, k, K].

    Each start after the first is the best of CANDIDATES samples drawn by their squared distance to the starts so far:
    the one that leaves the smallest sum of squared distances, of nearly equal ones the first.

    Parameters
    ----------
    gram : [N, K, K]
    numbers : [N, R, k, CANDIDATES] uniform in (0, 1)
        Where each candidate falls in the cumulated squared distances.

    References
    ----------
    Arthur, Vassilvitskii: k-means++, the advantages of careful seeding. SODA 2007.
    """
    problems, restarts, steps, candidates = numbers.shape
    samples = gram.shape[1]
    rows = torch.arange(problems, device=gram.device)[:, None]
    diagonal = gram.diagonal(dim1=1, dim2=2)
    first = (numbers[..., 0, 0] * samples).long().clamp_(max=samples - 1)
    similarity = [gram[rows, first]]
    dist2 = _dist2_to(diagonal, diagonal.gather(1, first), similarity[0])
    for step in range(1, steps):
        cumulated = dist2.cumsum(-1)
        target = numbers[:, :, step] * cumulated[..., -1:]
        # all samples covered (total 0): any start does
        drawn = torch.searchsorted(cumulated, target, right=True).clamp_(max=samples - 1).flatten(1)
        column = gram[rows, drawn]
        left = _dist2_to(diagonal, diagonal.gather(1, drawn), column).unflatten(1, (restarts, candidates))
        left = torch.minimum(left, dist2[:, :, None])
        remaining = left.sum(-1)
        first = (remaining <= (1 + ALIKE) * remaining.amin(-1, keepdim=True)).int().argmax(-1)
        best = first[..., None, None].expand(-1, -1, 1, samples)
        similarity.append(column.unflatten(1, (restarts, candidates)).gather(2, best)[:, :, 0])
        dist2 = left.gather(2, best)[:, :, 0]
    return torch.stack(similarity, dim=2)


def _dist2_to(diagonal: Tensor, chosen: Tensor, similarity: Tensor) -> Tensor:
    """Squared distances [N, M, K] to chosen samples: G_ii [N, K], G_cc [N, M], G_ic [N, M, K]."""
    return (diagonal[:, None] + chosen[..., None] - 2 * similarity).clamp_(min=0)


def lloyd(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Labels [N, R, K] moved to the nearest centre until none changes, at most MAX_STEPS times.

    A cluster that loses its last sample stays empty.
    """
    labels = labels.clone()
    active = torch.arange(gram.shape[0], device=gram.device)
    part_gram, part = gram, labels
    for _ in range(MAX_STEPS):
        new = _nearest_centre(_sums(part_gram, part, k))
        moving = (new != part).flatten(1).any(1)
        labels[active] = part = new
        count = int(moving.sum())
        if count == 0:
            break
        if 2 * count <= len(active):  # settled problems leave, so late steps cost little
            active, part_gram, part = active[moving], part_gram[moving], part[moving]
    return labels


def inertia(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Sum of squared Euclidean distances to the centres, [N, R] for labels [N, R, K] int64 in 0..k-1."""
    sums = _sums(gram, labels, k)
    within = (sums.one_hot * sums.product).sum(-1)
    return gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None] - (within / sums.sizes.clamp(min=1)).sum(-1)


def silhouette(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mean silhouette with cosine distance, [N] for labels [N, K] int64 in 0..k-1; -inf with fewer than two clusters in use."""
    sums = _sums(gram, labels[:, None], k)
    return torch.where((sums.sizes[:, 0] > 0).sum(-1) >= 2, _silhouettes(sums, labels).mean(-1), -torch.inf)


def silhouettes(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Silhouette of each sample with cosine distance, [N, K] for labels [N, K] int64 in 0..k-1; 0 with fewer than two clusters
    in use."""
    sums = _sums(gram, labels[:, None], k)
    return torch.where((sums.sizes[:, 0] > 0).sum(-1, keepdim=True) >= 2, _silhouettes(sums, labels), 0)


def _silhouettes(sums: Sums, labels: Tensor) -> Tensor:
    """Silhouettes [N, K], nan with one cluster; a sample alone in its cluster counts 0, as in scikit-learn."""
    sizes = sums.sizes[:, 0, :, None]  # [N, k, 1]
    mean = (1 - sums.product[:, 0] / sizes).clamp(min=0)  # mean distance to each cluster; nan where empty
    own = labels[:, None]
    own_size = sizes.expand_as(mean).gather(1, own)[:, 0]
    # the sample's distance to itself is 0, so its own cluster's sum is shared by the others
    inside = mean.gather(1, own)[:, 0] * own_size / (own_size - 1).clamp(min=1)
    mean = torch.where(sizes > 0, mean, torch.inf).scatter(1, own, torch.inf)
    outside = mean.amin(1)
    value = (outside - inside) / torch.maximum(outside, inside).clamp(min=torch.finfo(sums.product.dtype).tiny)
    return torch.where(own_size > 1, value, 0)


def _sums(gram: Tensor, labels: Tensor, k: int) -> Sums:
    problems, restarts, samples = labels.shape
    gram = _padded_gram(gram)
    rows = restarts * k
    left = torch.zeros(problems, padded(rows, ROWS), gram.shape[1], dtype=gram.dtype, device=gram.device)
    one_hot = left[:, :rows].unflatten(1, (restarts, k))[..., :samples]
    clusters = torch.arange(k, device=gram.device)[:, None]
    torch.eq(labels[:, :, None], clusters, out=one_hot)  # straight into floats: several times faster than a cast
    product = torch.bmm(left, gram)[:, :rows].unflatten(1, (restarts, k))[..., :samples]
    return Sums(one_hot, product, one_hot.sum(-1))


def _padded_gram(gram: Tensor) -> Tensor:
    """The Gram matrices with rows and columns of zeros up to whole cache lines; see `padded`."""
    more = padded(gram.shape[1]) - gram.shape[1]
    return pad(gram, (0, more, 0, more)) if more else gram


def _nearest_centre(sums: Sums) -> Tensor:
    """Labels [N, R, K] of the nearest centre; G_ii is the same for every centre and left out."""
    sizes = sums.sizes[..., None]
    spread = (sums.one_hot * sums.product).sum(-1, keepdim=True) / sizes.square()
    dist2 = spread - 2 / sizes * sums.product
    return torch.where(sizes > 0, dist2, torch.inf).min(dim=2).indices


def _lowest_inertia(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Of the restarts [N, R, K] the one with the lowest inertia, [N, K]."""
    best = inertia(gram, labels, k).argmin(dim=1)
    return labels[torch.arange(len(best), device=best.device), best]
