"""cluster: the best-silhouette k-means of each problem."""

from torch import Tensor

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.cluster.reference import Clustering

OFFERS = ("triton", "numba", "torch", "cuml")


def cluster(
    gram: Tensor,
    *,
    k_max: int,
    n_init: int,
    seed: int,
    stream: int,
    channel: Tensor,
    draw: Tensor,
    backend: str = "auto",
) -> Clustering:
    """k-means for k = 2..k_max and the silhouette of each; per problem the k with the largest mean silhouette.

    Parameters
    ----------
    gram : [N, K, K] float32 or float64
        Gram matrices of unit rows: symmetric, ones on the diagonal, K >= 2.
    k_max : int, 2..K
    n_init : int >= 1
        k-means++ starts per k; the lowest inertia is kept.
    seed, stream : int
        Key of the random starts.
    channel, draw : [N] int64
        What the starts of each problem depend on, besides the key.
    backend : {"auto", "triton", "numba", "torch", "cuml"}

    Returns
    -------
    Clustering
        silhouette [N] in [-1, 1], labels [N, K] int64 in 0..k-1, k [N] int64.
    """
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2]:
        raise ValueError(f"gram must be [N, K, K], got {tuple(gram.shape)}")
    if not 2 <= k_max <= gram.shape[1]:
        raise ValueError(f"k_max must lie in 2..K = {gram.shape[1]}, got {k_max}")
    if n_init < 1:
        raise ValueError(f"n_init must be at least 1, got {n_init}")
    if channel.shape != gram.shape[:1] or draw.shape != gram.shape[:1]:
        raise ValueError(
            f"channel and draw must be [{gram.shape[0]}], got {tuple(channel.shape)} and {tuple(draw.shape)}"
        )
    module = implementation(__name__, backend, gram.device, offers=OFFERS)
    return module.cluster(gram, k_max=k_max, n_init=n_init, seed=seed, stream=stream, channel=channel, draw=draw)
