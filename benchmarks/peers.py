"""Other k-means libraries on the same problems, and the null draws of S, Q and D without psi_fast.

Every peer clusters unit rows [N, K, d] for k = 2..k_max with n_init restarts, each restart from starts of its own library:

| peer | starts | problems | precision |
|---|---|---|---|
| scikit-learn | greedy k-means++ | one by one, in a process per core | float64 |
| naive torch | k-means++ | one by one | float32 |
| flash-kmeans | random samples, which is less work | all at once, stopping when the last has settled | float16 |
| fastkmeans | random samples, likewise | one by one | its default: float16, on the GPU |
| cuML | its scalable k-means++ | one by one | float32 |

The silhouettes that choose k are psi_fast's own for the peers that have none. Compared is the way from
embeddings to that choice.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import repeat

import numpy as np
import torch
from torch import Tensor
from workloads import grams

from psi_fast_kernels.cluster.reference import inertia, lloyd, plus_plus, silhouette
from psi_fast_kernels.philox import uniform

MAX_STEPS = 50
REFERENCE_RESTARTS = 16
Fit = Callable[[Tensor, int, int], Tensor]
"""x [N, K, d], k, n_init -> labels [N, R, K] int64 on x's device, of n_init restarts or of the best one."""


# ---- one peer each


def scikit_learn(pool: ProcessPoolExecutor, x: Tensor, k: int, n_init: int) -> Tensor:
    """One problem a task, one thread a process."""
    rows = pool.map(_scikit_learn, x.double().cpu().numpy(), repeat(k), repeat(n_init))
    return torch.tensor(list(rows), device=x.device)[:, None]


def _scikit_learn(x: np.ndarray, k: int, n_init: int) -> list[int]:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=n_init, max_iter=MAX_STEPS, random_state=0).fit(x).labels_.tolist()


def naive_torch(x: Tensor, k: int, n_init: int) -> Tensor:
    """One problem and one restart at a time, in coordinates."""
    return torch.stack([torch.stack([_naive(own, k) for _ in range(n_init)]) for own in x])


def _naive(x: Tensor, k: int) -> Tensor:
    centres = x[torch.randint(len(x), (1,), device=x.device)]
    for _ in range(k - 1):
        nearest = torch.cdist(x, centres).amin(1).square()
        chosen = torch.multinomial(nearest, 1) if nearest.sum() > 0 else torch.randint(len(x), (1,), device=x.device)
        centres = torch.cat((centres, x[chosen]))
    labels = torch.full((len(x),), -1, device=x.device)
    for _ in range(MAX_STEPS):
        moved = torch.cdist(x, centres).argmin(1)
        if torch.equal(moved, labels):
            break
        labels = moved
        centres = torch.stack([x[labels == j].mean(0) if (labels == j).any() else centres[j] for j in range(k)])
    return labels


def flash_kmeans(x: Tensor, k: int, n_init: int) -> Tensor:
    """All problems at once, a call a restart."""
    from flash_kmeans import batch_kmeans_Euclid

    half = x.half()
    fits = [batch_kmeans_Euclid(half, k, max_iters=MAX_STEPS, tol=1e-4)[0] for _ in range(n_init)]
    return torch.stack(fits, dim=1).long()


def fastkmeans(x: Tensor, k: int, n_init: int) -> Tensor:
    """One problem and one restart at a time, from arrays on the host, as its interface takes them."""
    from fastkmeans import FastKMeans

    host = x.cpu().numpy()
    fits = [
        [FastKMeans(x.shape[2], k, niter=MAX_STEPS, tol=1e-4, seed=seed).fit_predict(own) for seed in range(n_init)]
        for own in host
    ]
    return torch.from_numpy(np.array(fits)).to(x.device)


def cuml(x: Tensor, k: int, n_init: int) -> Tensor:
    """One problem at a time, arrays on the GPU."""
    import cupy
    from cuml.cluster import KMeans

    fits = [
        KMeans(n_clusters=k, n_init=n_init, max_iter=MAX_STEPS, random_state=0, output_type="cupy").fit(
            cupy.asarray(own)
        )
        for own in x
    ]
    return torch.stack([torch.as_tensor(fit.labels_, device=x.device).long() for fit in fits])[:, None]


GPU_PEERS: dict[str, tuple[tuple[str, ...], Fit]] = {
    "flash-kmeans": (("flash_kmeans",), flash_kmeans),
    "fastkmeans": (("fastkmeans",), fastkmeans),
    "cuML": (("cuml", "cupy"), cuml),
}


def absent(modules: tuple[str, ...]) -> list[str]:
    """Which of the modules are not installed."""
    return [name for name in modules if find_spec(name) is None]


# ---- from a peer's labels to the choice of k, and its quality


def cluster_with(fit: Fit, x: Tensor, k_max: int, n_init: int) -> tuple[Tensor, Tensor, Tensor]:
    """Silhouette [N], labels [N, K] and k [N] of the best k of a peer's clusterings of x [N, K, d]."""
    gram = grams(x)
    best = torch.full(gram.shape[:1], -torch.inf, device=x.device)
    labels = torch.zeros(gram.shape[:2], dtype=torch.int64, device=x.device)
    ks = torch.ones_like(best, dtype=torch.int64)
    rows = torch.arange(len(gram), device=x.device)
    for k in range(2, k_max + 1):
        fits = fit(x, k, n_init)
        chosen = fits[rows, inertia(gram, fits, k).argmin(1)] if fits.shape[1] > 1 else fits[:, 0]
        value = silhouette(gram, chosen, k)
        better = value > best
        best, ks = torch.where(better, value, best), torch.where(better, k, ks)
        labels = torch.where(better[:, None], chosen, labels)
    return best, labels, ks


def inertia_ratio(x: Tensor, labels: Tensor, ks: Tensor, lowest: Tensor) -> float:
    """Mean inertia of the labels [N, K] over the lowest known for their k, `lowest` [N, k_max - 1]; below 1 is better."""
    gram = grams(x.double())
    found = inertia(gram, labels[:, None], lowest.shape[1] + 1)[:, 0]
    return float((found / lowest.gather(1, (ks - 2)[:, None])[:, 0]).mean())


def lowest_inertia(x: Tensor, k_max: int) -> Tensor:
    """Lowest inertia that 16 restarts of the float64 reference find, [N, k_max - 1]."""
    gram = grams(x.double())
    ids = torch.arange(len(gram), device=x.device)
    numbers = uniform(99, 1, ids, ids, REFERENCE_RESTARTS * k_max * 3, backend="torch")
    starts = plus_plus(gram, numbers.unflatten(-1, (REFERENCE_RESTARTS, k_max, 3)))
    parts = []
    for k in range(2, k_max + 1):
        labels = lloyd(gram, starts[:, :, :k].max(dim=2).indices, k)
        parts.append(inertia(gram, labels, k).amin(1))
    return torch.stack(parts, dim=1)


# ---- null draws without psi_fast


def null_loop(cluster: Callable[[Tensor], float], x: Tensor, text: Tensor, draws: int, k_max: int) -> list[float]:
    """S of `draws` rotated draws, clustered by `cluster`, each with a permuted NMI and a shuffled gap, for a channel [K, d].

    The rotation is `tangent`. The channel's own clustering and its tangent space are left out of this count, and so is the null
    on the sphere that psi_fast reports beside the default.
    """
    from sklearn.metrics import normalized_mutual_info_score

    generator = torch.Generator(x.device).manual_seed(0)
    mean, tangent = _log_map(x)
    samples, like = len(x), {"dtype": x.dtype, "device": x.device}
    frame = torch.cat((torch.ones(samples, 1, **like), torch.eye(samples, **like)[:, 1:]), dim=1)
    basis = torch.linalg.qr(frame).Q[:, 1:]
    clusters = torch.arange(samples, device=x.device) % k_max
    classes = torch.randint(20, (samples,), generator=generator, device=x.device)
    prototypes = torch.nn.functional.normalize(torch.stack([x[clusters == j].mean(0) for j in range(k_max)]), dim=-1)
    values = []
    for _ in range(draws):
        q, r = torch.linalg.qr(torch.randn(samples - 1, samples - 1, generator=generator, **like))
        moved = basis @ ((q * r.diagonal().sign()) @ (basis.T @ tangent))
        length = moved.norm(dim=1, keepdim=True).clamp(min=1e-12)
        drawn = torch.cos(length) * mean + torch.sin(length) / length * moved
        values.append(cluster(drawn))
        order = torch.randperm(samples, generator=generator, device=x.device)
        normalized_mutual_info_score(classes[order].cpu().numpy(), clusters.cpu().numpy())
        chosen = text[torch.randint(len(text), (k_max,), generator=generator, device=x.device)]
        similarity = prototypes @ chosen.T
        _ = similarity.trace() / k_max - (similarity.sum() - similarity.trace()) / (k_max * (k_max - 1))
    return values


def _log_map(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean direction [d] and tangent vectors [K, d] of unit rows."""
    mean = torch.nn.functional.normalize(x.mean(0), dim=0)
    for _ in range(8):
        cosine = (x @ mean).clamp(-1, 1)
        angle = torch.arccos(cosine)
        tangent = (x - cosine[:, None] * mean) * (angle / torch.sin(angle).clamp(min=1e-12))[:, None]
        step = tangent.mean(0)
        size = step.norm().clamp(min=1e-12)
        mean = torch.nn.functional.normalize(torch.cos(size) * mean + torch.sin(size) / size * step, dim=0)
    return mean, tangent


def naive_loop(x: Tensor, text: Tensor, draws: int, k_max: int, n_init: int) -> None:
    """`null_loop` in torch for the channels x [C, K, d], one at a time."""
    for own in x:
        null_loop(
            lambda drawn: float(cluster_with(naive_torch, drawn[None], k_max, n_init)[0]), own, text, draws, k_max
        )


def scikit_learn_loop(pool: ProcessPoolExecutor, x: Tensor, text: Tensor, draws: int, k_max: int, n_init: int) -> None:
    """`null_loop` with scikit-learn for the channels x [C, K, d], a channel a task."""
    shared = (repeat(value) for value in (text.double().cpu().numpy(), draws, k_max, n_init))
    list(pool.map(_scikit_learn_draws, x.double().cpu().numpy(), *shared))


def _scikit_learn_draws(x: np.ndarray, text: np.ndarray, draws: int, k_max: int, n_init: int) -> list[float]:
    given = (torch.from_numpy(x), torch.from_numpy(text), draws, k_max)
    return null_loop(lambda drawn: scikit_learn_silhouette(drawn, k_max, n_init), *given)


def scikit_learn_silhouette(x: Tensor, k_max: int, n_init: int) -> float:
    """Largest mean silhouette over k = 2..k_max of x [K, d], both by scikit-learn."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    rows = x.numpy()
    fits = (KMeans(k, n_init=n_init, max_iter=MAX_STEPS, random_state=0).fit(rows) for k in range(2, k_max + 1))
    return max(float(silhouette_score(rows, fit.labels_, metric="cosine")) for fit in fits)


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes with one thread each, their libraries loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))  # read when a process loads its libraries
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_warm_up) as pool:
            list(pool.map(time.sleep, [0.5] * count))  # long enough that every process is started
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _warm_up() -> None:
    torch.set_num_threads(1)
    _scikit_learn_draws(np.eye(16), np.eye(16), 1, 3, 1)
