"""k-means and silhouette by cuML, one problem at a time; tensors and CuPy arrays share memory through DLPack.

cuML starts from points and draws its own k-means++ starts, so its clusterings are others than the reference's, and as good.
"""

import cupy  # pyright: ignore[reportMissingImports]  # of the extra rapids, which installs beside a GPU only
import torch
from cuml.cluster import KMeans  # pyright: ignore[reportMissingImports]
from cuml.metrics.cluster import silhouette_score  # pyright: ignore[reportMissingImports]
from torch import Tensor

from psi_fast_kernels.cluster.reference import MAX_STEPS, SAME, Clustering
from psi_fast_kernels.philox import uint32

SETTLED = 1e-10  # squared shift of the centres; a sample that moves shifts them by more, rounding by less


def cluster(
    gram: Tensor, *, k_max: int, n_init: int, seed: int, stream: int, channel: Tensor, draw: Tensor
) -> Clustering:
    """See `psi_fast_kernels.cluster.op.cluster`; computed in float32."""
    states = uint32(seed, stream, channel, draw, 1)[:, 0].tolist()
    distinct = distinct_samples(gram).tolist()
    result = Clustering(
        gram.new_zeros(len(gram)),
        torch.zeros(gram.shape[:2], dtype=torch.int64, device=gram.device),
        torch.ones(len(gram), dtype=torch.int64, device=gram.device),
    )
    with torch.cuda.device_of(gram):  # CuPy and cuML work on the current device
        for i, own in enumerate(points(gram)):
            # more clusters than distinct samples stay empty, and ties take the smaller k
            found = _best_clustering(own, min(k_max, distinct[i]), n_init, states[i])
            for whole, part in zip(result, found, strict=True):
                whole[i] = part
    return result


def points(gram: Tensor) -> Tensor:
    """Points [N, K, K] float32 whose Gram matrices are `gram` [N, K, K]: eigenvectors times roots of eigenvalues."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=0).sqrt()[:, None]).float()


def distinct_samples(gram: Tensor) -> Tensor:
    """How many samples of each problem differ from all before them, by more than float32 rounds [N] int64."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    dist2 = diagonal[:, :, None] + diagonal[:, None] - 2 * gram
    same = dist2 <= 2 * SAME * torch.finfo(torch.float32).eps
    return (~same.tril(-1).any(-1)).sum(-1)


def _best_clustering(own: Tensor, k_max: int, n_init: int, state: int) -> tuple[float, Tensor | int, int]:
    """Silhouette, labels and k of one problem's points [K, r]; 0, 0 and 1 when there are no two clusters."""
    array = cupy.from_dlpack(own.contiguous())
    best, labels, best_k = -torch.inf, 0, 1
    for k in range(2, k_max + 1):
        means = KMeans(
            n_clusters=k, init="k-means++", n_init=n_init, max_iter=MAX_STEPS, tol=SETTLED, random_state=state,
            output_type="cupy",
        )  # fmt: skip
        found = means.fit(array).labels_
        own_labels = torch.from_dlpack(found).long()
        used = len(own_labels.unique())
        if used < 2:
            continue
        # cuML leaves samples that are all alone undefined; each counts 0
        value = float(silhouette_score(array, found, metric="cosine")) if used < len(own) else 0.0
        if value > best:  # strict: ties take the smaller k
            best, labels, best_k = value, own_labels, k
    return (0.0, 0, 1) if best_k == 1 else (best, labels, best_k)
