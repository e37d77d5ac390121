"""What is measured: one case of an op at one size, its data, its work by cost.py, and how it runs.

Data are synthetic: a spectrum of 1/i around channels of one to four clusters, less their mean, as embeddings are after
centring. Timings of clusterings depend on the data through the number of Lloyd steps only.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from harness import Measured, Work, measured
from torch import Tensor
from torch.nn.functional import normalize

FIRST = 8  # channels whose mean S is reported, so that a peer measured on few channels can be compared
POOL_DRAWS = 64  # rotations held at once
CHANNELS = {"cpu": 64, "cuda": 256}  # channels of one call of rotation_null
CLASSES = 20
OPS = ("score_embeddings", "rotation_null", "permutation_null", "text_null", "cluster")
ROTATED = ("score_embeddings", "rotation_null")  # ops that a rotation belongs to


@dataclass(frozen=True, kw_only=True)
class Case:
    """An op and its sizes. For `cluster` there are channels * draws problems."""

    op: str
    channels: int = 64
    draws: int = 100
    samples: int = 100
    width: int = 512
    k_max: int = 6
    n_init: int = 4
    concepts: int = 1000
    rotation: str = "marginal"
    backend: str = "auto"
    seed: int = 0

    @property
    def pairs(self) -> int:
        """Channels times draws."""
        return self.channels * self.draws


def embeddings(channels: int, samples: int, width: int, *, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Unit rows [C, K, d] float32; the first channels are the same for any number of channels."""
    scale = (1.0 + torch.arange(width, device=device)) ** -0.5
    parts = []
    for start in range(0, channels, 256):
        generator = torch.Generator(device).manual_seed(seed + start)
        count = 256  # always whole blocks, so that a channel does not depend on how many there are
        centres = torch.randn(count, 4, width, generator=generator, device=device) * scale * 0.7
        clusters = 1 + torch.arange(count, device=device) % 4
        which = (torch.rand(count, samples, generator=generator, device=device) * clusters[:, None]).long()
        x = torch.randn(count, samples, width, generator=generator, device=device) * scale
        x += centres.gather(1, which[..., None].expand(-1, -1, width))
        parts.append(normalize(x, dim=-1)[: channels - start].clone())
    return torch.cat(parts)


def concepts(count: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Unit rows [P, d] float32."""
    generator = torch.Generator(device).manual_seed(1)
    scale = (1.0 + torch.arange(width, device=device)) ** -0.5
    return normalize(torch.randn(count, width, generator=generator, device=device) * scale, dim=-1)


def labels(case: Case, high: int, device: torch.device | str) -> Tensor:
    """Random labels [C, K] int64 in 0..high-1."""
    generator = torch.Generator(device).manual_seed(high)
    return torch.randint(high, (case.channels, case.samples), generator=generator, device=device)


def grams(x: Tensor) -> Tensor:
    """Gram matrices [N, K, K] of rows [N, K, d]."""
    return torch.cat([part @ part.mT for part in x.split(256)])


def runner(case: Case, device: torch.device) -> Callable[[], float]:
    """The case with its data in place: calling it does the work and returns the mean S of the first channels, or nan."""
    return {
        "score_embeddings": _score_embeddings,
        "rotation_null": _rotation_null,
        "permutation_null": _permutation_null,
        "text_null": _text_null,
        "cluster": _cluster,
    }[case.op](case, device)


def _score_embeddings(case: Case, device: torch.device) -> Callable[[], float]:
    from psi_fast import PSIConfig, score_embeddings

    x = embeddings(case.channels, case.samples, case.width, seed=case.seed, device=device).cpu()
    given = {"labels": labels(case, CLASSES, "cpu"), "text": concepts(case.concepts, case.width)}
    config = PSIConfig(
        top_k=case.samples, draws=case.draws, k_max=case.k_max, n_init=case.n_init, backend=case.backend, center=False,
        rotation=case.rotation,
    )  # fmt: skip

    def run() -> float:
        scores = score_embeddings(x, **given, config=config, device=device.type)
        return float(scores.table["S"][:FIRST].mean())

    return run


def _rotation_null(case: Case, device: torch.device) -> Callable[[], float]:
    from psi_fast_kernels.rotation_null import Tangent, rotation_null, rotation_pool, tangent_space

    x = embeddings(case.channels, case.samples, case.width, seed=case.seed, device=device)
    parts = [tangent_space(part @ part.mT, case.width, rotation=case.rotation) for part in x.split(256)]
    tangent = Tangent(*(torch.cat(part) for part in zip(*parts, strict=True)))
    channel = torch.arange(case.channels, device=device)
    del x, parts

    def run() -> float:
        total = 0.0
        for draws in blocks(case.draws, POOL_DRAWS):
            pool = rotation_pool(case.samples, case.width, rotation=case.rotation, draws=draws, seed=0, device=device)
            for rows in blocks(case.channels, CHANNELS[device.type]):
                part = slice(rows.start, rows.stop)
                drawn = rotation_null(
                    tangent.rows(part), pool, rotation=case.rotation, k_max=case.k_max, n_init=case.n_init, seed=0,
                    channel=channel[part], backend=case.backend,
                )  # fmt: skip
                if rows.start == 0:
                    total += float(drawn[:FIRST].mean()) * len(draws)
        return total / case.draws

    return run


def _permutation_null(case: Case, device: torch.device) -> Callable[[], float]:
    from psi_fast_kernels.permutation_null import permutation_null

    clusters, classes = labels(case, case.k_max, device), labels(case, CLASSES, device)
    channel = torch.arange(case.channels, device=device)

    def run() -> float:
        for draws in blocks(case.draws, 1000):
            permutation_null(clusters, classes, draws=draws, seed=0, channel=channel, backend=case.backend)
        return float("nan")

    return run


def _text_null(case: Case, device: torch.device) -> Callable[[], float]:
    from psi_fast_kernels.text_null import text_shuffle_null

    prototypes = embeddings(case.channels, case.k_max, case.width, seed=case.seed, device=device)
    text = concepts(case.concepts, case.width, device=device)
    channel = torch.arange(case.channels, device=device)
    k = torch.full_like(channel, case.k_max)

    def run() -> float:
        for draws in blocks(case.draws, 1000):
            text_shuffle_null(
                prototypes, k, text, kind="gap", pool=None, draws=draws, seed=0, channel=channel, backend=case.backend
            )
        return float("nan")

    return run


def _cluster(case: Case, device: torch.device) -> Callable[[], float]:
    from psi_fast_kernels.cluster import cluster

    gram = grams(embeddings(case.pairs, case.samples, case.width, seed=case.seed, device=device))
    ids = torch.arange(case.pairs, device=device)

    def run() -> float:
        found = cluster(
            gram, k_max=case.k_max, n_init=case.n_init, seed=0, stream=1, channel=ids, draw=torch.zeros_like(ids),
            backend=case.backend,
        )  # fmt: skip
        return float(found.silhouette[:FIRST].mean())

    return run


def blocks(total: int, size: int) -> Iterator[range]:
    """Ranges of `size` that cover 0..total."""
    return (range(start, min(start + size, total)) for start in range(0, total, size))


# ---- work


def work(case: Case, device: torch.device) -> Work:
    """Work of the case: products of matrices on a GPU, which has units for them; on a CPU the form with fewer operations."""
    return {
        "score_embeddings": _all_work,
        "rotation_null": _rotation_work,
        "permutation_null": _permutation_work,
        "text_null": _text_work,
        "cluster": _cluster_work,
        "kmeans": _kmeans_work,
    }[case.op](case, device.type == "cuda")


def _cluster_work(case: Case, products: bool) -> Work:
    from psi_fast_kernels.cluster import cost

    given = (case.pairs, case.samples, case.k_max, case.n_init)
    moved = cost.bytes_moved(case.pairs, case.samples)
    return Work(cost.product_flops(*given), 0, moved) if products else Work(0, cost.operations(*given), moved)


def _kmeans_work(case: Case, products: bool) -> Work:
    """Gram matrices from embeddings, and their clusterings."""
    inside, outside, moved = _cluster_work(case, products)
    gram = case.pairs * 2 * case.samples**2 * case.width
    moved += 4 * case.pairs * case.samples * case.width
    return Work(inside + gram, outside, moved) if products else Work(inside, outside + gram, moved)


def _rotation_work(case: Case, products: bool) -> Work:
    from psi_fast_kernels.rotation_null import cost

    given = (case.channels, case.draws, case.samples, case.k_max, case.n_init)
    pool, moved = cost.pool_operations(case.draws, case.samples), cost.bytes_moved(*given[:3])
    if products:
        return Work(cost.product_flops(*given), pool + cost.update_operations(*given[:3]), moved)
    return Work(0, pool + cost.operations(*given), moved)


def _permutation_work(case: Case, products: bool) -> Work:
    from psi_fast_kernels.permutation_null import cost
    from psi_fast_kernels.philox.cost import operations

    given = (case.channels, case.draws, case.samples)
    if products:  # thousands of threads compare all pairs, one sorts
        return Work(0, cost.operations(*given), cost.bytes_moved(*given))
    each = case.samples * (math.ceil(math.log2(case.samples)) + cost.PER_SAMPLE)
    return Work(0, case.pairs * each + operations("uint32", case.pairs, case.samples), cost.bytes_moved(*given))


def _text_work(case: Case, products: bool) -> Work:
    from psi_fast_kernels.text_null import cost

    given = (case.channels, case.draws, case.concepts, case.k_max, case.width, "gap")
    return Work(0, cost.shuffle_flops(*given), cost.shuffle_bytes(*given))


def _all_work(case: Case, products: bool) -> Work:
    """The three nulls, the sphere null that the paper's is reported by, and the channels' own clusterings."""
    from psi_fast_kernels.cluster import cost
    from psi_fast_kernels.philox.cost import operations

    own = case.channels + case.draws
    gram = 2 * own * case.samples**2 * case.width
    form = cost.product_flops if products else cost.operations
    clusterings = gram + form(own, case.samples, case.k_max, case.n_init)
    numbers = operations("normal", case.draws, case.samples * case.width)
    rest = Work(clusterings, numbers, 0) if products else Work(0, clusterings + numbers, 0)
    parts = [part(case, products) for part in (_rotation_work, _permutation_work, _text_work)]
    embedded = Work(0, 0, 4 * case.channels * case.samples * case.width)
    return Work(*(sum(column) for column in zip(*parts, rest, embedded, strict=True)))


# ---- measuring a case


def measure_case(case: Case, device_type: str, threads: int, repeats: int, seconds: float) -> Measured:
    """Warm up at the case's sizes with few channels and draws, then measure."""
    torch.set_num_threads(threads)
    device = torch.device(device_type)
    small = Case(**{**vars(case), "channels": min(case.channels, 4), "draws": min(case.draws, 8)})
    runner(small, device)()
    run = runner(case, device)
    quality = []
    found = measured(lambda: quality.append(run()), device, repeats=repeats, seconds=seconds)
    return found._replace(silhouette=quality[-1])


def measure(case: Case, device: torch.device, threads: int, *, repeats: int = 5, seconds: float = 10) -> Measured:
    """Measure the case; on a CPU in a process of its own, so that memory freed by earlier cases does not hide this one's."""
    given = (case, device.type, threads, repeats, seconds)
    if device.type == "cuda":
        return measure_case(*given)
    context = multiprocessing.get_context("forkserver")  # forks from a server that has only imported the libraries
    context.set_forkserver_preload(["workloads", "psi_fast", "psi_fast_kernels.cluster"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure_case, *given).result()
