"""cluster on every backend: the clusterings of the reference, whatever the shape, the chunk and the threads."""

from typing import NamedTuple

import numpy as np
import pytest
import replicas
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no build for this platform")

import triton
import triton.language as tl

from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import tile_of
from psi_fast_kernels.cluster import Clustering, cluster, numba_impl, reference, silhouette, triton_impl
from psi_fast_kernels.cluster.triton_tile import _judge, _lloyd, split

SEED = 2**64 - 3
LAST_ID = 2**32 - 1


class Bound(NamedTuple):
    """Largest difference of a silhouette from that of torch on a CPU, and from that of its own labels in float64."""

    near: float
    replayed: float


BOUNDS = {
    ("numba", torch.float64): Bound(near=1e-12, replayed=1e-12),
    ("numba", torch.float32): Bound(near=1e-6, replayed=1e-6),
    ("triton", torch.float32): Bound(near=1e-6, replayed=1e-6),
}
BACKENDS = pytest.mark.parametrize(("backend", "dtype"), BOUNDS, ids=lambda x: str(x).removeprefix("torch."))
# samples K, k_max, n_init; 5 restarts are more than Triton starts at once, 16 clusters take it several passes
SHAPES = [
    (4, 2, 1), (4, 4, 2), (7, 3, 5), (12, 12, 1), (40, 6, 5), (40, 16, 1), (100, 6, 2), (128, 3, 1), (129, 3, 2), (300, 3, 1)
]  # fmt: skip
STALLED = 1e-5  # of a squared distance: a sample this much nearer to another centre should have moved


def rows(kind: str, samples: int, count: int) -> np.ndarray:
    """Unit rows [count, samples, d] of several problems."""
    rng = np.random.default_rng(samples)
    width = 24
    if kind == "clouds":
        return np.stack([replicas.gaussian_cloud(samples, width, rng) for _ in range(count)])
    if kind == "clusters":
        centres = [replicas.unit(rng.normal(size=(2 + i % 4, width))) for i in range(count)]
        return np.stack([replicas.planted_clusters(samples, own, rng, noise=1.0)[0] for own in centres])
    if kind == "lone sample":
        lone = np.eye(width)[1] + 0.05 * rng.normal(size=(count, samples, width))
        lone[:, samples // 2] = np.eye(width)[0]
        return replicas.unit(lone)
    distinct = {"equal rows": 1, "two points": 2, "duplicates": max(3, samples // 3)}[kind]
    which = rng.permuted(np.arange(samples) % distinct)
    return replicas.unit(rng.normal(size=(count, distinct, width)))[:, which]


def gram_of(kind: str, samples: int, count: int, dtype: torch.dtype) -> Tensor:
    x = torch.from_numpy(rows(kind, samples, count)).to(dtype)
    return x @ x.mT


def run(
    gram: Tensor, backend: str, device: torch.device, k_max: int, n_init: int, *, first: int = 0, seed: int = SEED
) -> Clustering:
    """Problems `first`.. of a batch: ids end at the largest there is."""
    device = device if backend == "triton" else torch.device("cpu")
    ids = torch.arange(first, first + len(gram), device=device)
    channel, draw = LAST_ID - ids, LAST_ID - 7 * ids
    found = cluster(
        gram.to(device), k_max=k_max, n_init=n_init, seed=seed, stream=Stream.NULL_STARTS, channel=channel, draw=draw,
        backend=backend,
    )  # fmt: skip
    assert found.silhouette.dtype == gram.dtype
    assert found.labels.dtype == found.k.dtype == torch.int64
    return Clustering(*(part.cpu() for part in found))


def together(labels: Tensor) -> Tensor:
    """Whether two samples share a cluster, [N, K, K]: the labelling without its numbers."""
    return labels[:, :, None] == labels[:, None, :]


def assert_valid(found: Clustering, gram: Tensor, bound: Bound) -> None:
    """The labels are k-means of k clusters, and the silhouette is theirs; one point has neither."""
    assert (found.k >= 1).all()
    assert (found.labels >= 0).all()
    assert (found.labels < found.k[:, None]).all()
    assert (found.silhouette[found.k == 1] == 0).all()
    several = found.k > 1
    if not several.any():
        return
    exact, labels, clusters = gram[several].double(), found.labels[several], int(found.k.max())
    replayed = silhouette(exact, labels, clusters)
    assert float((found.silhouette[several] - replayed).abs().max()) <= bound.replayed
    one_hot, product, sizes = (part[:, 0] for part in reference._sums(exact, labels[:, None], clusters))
    sizes = sizes[..., None]
    dist2 = (one_hot * product).sum(-1, keepdim=True) / sizes**2 - 2 / sizes * product
    dist2 = torch.where(sizes > 0, dist2, torch.inf)
    assert (dist2.gather(1, labels[:, None])[:, 0] <= dist2.amin(1) + STALLED).all()


def assert_alike(found: Clustering, expected: Clustering, gram: Tensor, bound: Bound) -> None:
    """The same silhouettes and partitions; restarts that end in one partition may number it differently."""
    assert_valid(found, gram, bound)
    torch.testing.assert_close(found.silhouette, expected.silhouette, rtol=0, atol=bound.near)
    assert torch.equal(found.k, expected.k)
    assert torch.equal(together(found.labels), together(expected.labels))


def compare(backend, dtype, device, kind, samples, k_max, n_init, count) -> None:
    gram = gram_of(kind, samples, count, dtype)
    found, expected = (run(gram, name, device, k_max, n_init) for name in (backend, "torch"))
    assert_alike(found, expected, gram, BOUNDS[backend, dtype])


@BACKENDS
@pytest.mark.parametrize("kind", ["clouds", "clusters"])
@pytest.mark.parametrize(("samples", "k_max", "n_init"), SHAPES)
def test_clusterings_equal_torch_at_awkward_sizes(backend, dtype, kind, samples, k_max, n_init, triton_device):
    interpreted = 3 if samples < 40 else 2 if samples <= 128 else 1  # a problem takes seconds
    count = 60 if backend == "numba" else interpreted
    compare(backend, dtype, triton_device, kind, samples, k_max, n_init, count)


@BACKENDS
def test_clusterings_equal_torch_at_the_largest_size(backend, dtype, triton_device):
    compare(backend, dtype, triton_device, "clusters", 512, 2, 1, 4 if backend == "numba" else 1)


@BACKENDS
@pytest.mark.parametrize("kind", ["lone sample", "two points", "duplicates", "equal rows"])
@pytest.mark.parametrize("samples", [5, 12, 40])
def test_clusterings_equal_torch_for_awkward_rows(backend, dtype, kind, samples, triton_device):
    """With two points the third to fifth cluster stay empty."""
    compare(backend, dtype, triton_device, kind, samples, 5, 2, 3)


@pytest.mark.parametrize("kind", ["two points", "equal rows"])
def test_blocks_equal_torch_for_awkward_rows(kind, triton_device):
    compare("triton", torch.float32, triton_device, kind, 129, 3, 1, 1)


@BACKENDS
def test_degenerate_problems_have_the_silhouettes_they_should(backend, dtype, triton_device):
    one = run(gram_of("equal rows", 7, 2, dtype), backend, triton_device, 3, 1)
    assert one.silhouette.tolist() == [0, 0]
    assert one.k.tolist() == [1, 1]
    assert (one.labels == 0).all()
    two = run(gram_of("two points", 7, 2, dtype), backend, triton_device, 3, 1)
    torch.testing.assert_close(two.silhouette, torch.ones(2, dtype=dtype), rtol=0, atol=1e-6)
    assert two.k.tolist() == [2, 2]


def test_triton_takes_float64(triton_device):
    gram = gram_of("clusters", 12, 3, torch.float64)
    found, expected = (run(gram, name, triton_device, 3, 2) for name in ("triton", "torch"))
    assert_alike(found, expected, gram, BOUNDS["triton", torch.float32])


@pytest.mark.parametrize("entries", ["one row", "all"])
def test_numba_survives_what_is_not_a_number(entries):
    gram = gram_of("clouds", 12, 2, torch.float32)
    gram[0, 3 if entries == "one row" else slice(None)] = torch.nan
    found = run(gram, "numba", torch.device("cpu"), 4, 2)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 4
    assert torch.equal(found.labels[1], run(gram[1:], "numba", torch.device("cpu"), 4, 2, first=1).labels[0])


# ---- clusters that lose their last sample


def emptied() -> tuple[Tensor, Tensor]:
    """Two distinct points, and labels of which one of three clusters has to give its sample up."""
    x = torch.eye(8)[:2].repeat_interleave(10, dim=0)
    return x @ x.mT, torch.tensor([0] * 10 + [1] * 9 + [2])


def test_numba_leaves_an_emptied_cluster_empty():
    gram, start = emptied()
    labels = start.int().numpy()
    sums, _, per_cluster, *_ = numba_impl.workspace(gram.numpy(), 3, 1)
    closest = np.empty(20, np.float32)
    assert numba_impl._lloyd(gram.numpy(), labels, 3, sums, closest, per_cluster) == pytest.approx(0, abs=1e-5)
    assert labels.tolist() == [0] * 10 + [labels[10]] * 10
    rows = np.empty((2, 20), np.float32)
    assert numba_impl._silhouette(gram.numpy(), labels, 3, sums, rows, per_cluster) == pytest.approx(1, abs=1e-6)


@triton.jit
def _settle(parts, labels, out, samples, k, T: tl.constexpr, P: tl.constexpr):
    sample = tl.arange(0, T)
    high = tl.load(parts + sample[:, None] * T + sample[None, :])
    low = tl.load(parts + T * T + sample[:, None] * T + sample[None, :])
    valid = sample < samples
    start = tl.load(labels + sample, mask=valid, other=0)[:, None]
    found = _lloyd(high, low, start, valid, k + tl.arange(0, 1), k, T, P, 1)
    tl.store(labels + sample[:, None], found, mask=valid[:, None])
    trace = tl.sum(valid.to(tl.float32), 0)
    inertia, value = _judge(high, low, trace, found, valid, samples, T, P, 1)
    tl.store(out + tl.arange(0, 1), inertia)
    tl.store(out + 1 + tl.arange(0, 1), value)


def test_triton_leaves_an_emptied_cluster_empty(triton_device):
    gram, start = (part.to(triton_device) for part in emptied())
    labels, out = start.int(), torch.empty(2, device=triton_device)
    _settle[(1,)](triton_impl.split_gram(gram[None], 32), labels, out, 20, 3, T=32, P=4)
    assert labels.tolist() == [0] * 10 + [int(labels[10])] * 10
    assert out.tolist() == pytest.approx([0, 1], abs=1e-5)


# ---- what no result depends on


@BACKENDS
def test_neither_company_nor_threads_change_a_bit(backend, dtype, triton_device, monkeypatch):
    gram = gram_of("clouds", 12, 8, dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    whole = run(gram, backend, triton_device, 4, 2)
    assert len(set(whole.silhouette.tolist())) == 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for part in (slice(0, 8), slice(3, 4), slice(5, 8)):
        again = run(gram[part], backend, triton_device, 4, 2, first=part.start)
        for ours, theirs in zip(again, whole, strict=True):
            assert torch.equal(ours, theirs[part])
    other = run(gram, backend, triton_device, 4, 2, seed=SEED + 1)
    assert not torch.equal(other.labels, whole.labels)


@pytest.mark.parametrize("samples", [7, 129])
def test_out_of_memory_gives_the_same_clusterings_in_smaller_chunks(samples, triton_device, monkeypatch):
    gram = gram_of("clouds", samples, 3, torch.float32)
    whole = run(gram, "triton", triton_device, 2, 1)
    split_gram = triton_impl.split_gram

    def split_of_one(gram: Tensor, tile: int) -> Tensor:
        if len(gram) > 1:
            raise torch.OutOfMemoryError
        return split_gram(gram, tile)

    monkeypatch.setattr(triton_impl, "split_gram", split_of_one)
    monkeypatch.setattr(triton_impl, "rows_per_chunk", lambda *_, **__: 2)
    with pytest.warns(UserWarning, match="out of memory with 2 problems at once; going on with 1"):
        chunked = run(gram, "triton", triton_device, 2, 1)
    for ours, theirs in zip(chunked, whole, strict=True):
        assert torch.equal(ours, theirs)


# ---- float16 parts


@triton.jit
def _split(values, high, low, T: tl.constexpr):
    place = tl.arange(0, T)
    first, second = split(tl.load(values + place))
    tl.store(high + place, first)
    tl.store(low + place, second)


def test_float16_parts_hold_a_number_to_23_bits(triton_device):
    """In the kernel and before it; a silhouette of 1000 random problems moves by next to nothing."""
    values = torch.linspace(-1, 1, 4096, device=triton_device)
    high, low = (torch.empty(4096, dtype=torch.float16, device=triton_device) for _ in range(2))
    _split[(1,)](values, high, low, T=4096)
    assert float((high.double() + low.double() - values.double()).abs().max()) <= 2**-23
    assert float((high.double() - values.double()).abs().max()) > 1e-4

    gram = gram_of("clouds", 40, 1000, torch.float32)
    parts = triton_impl.split_gram(gram, tile_of(40))
    assert parts.shape == (1000, 2, 64, 64)
    assert (parts[:, :, 40:] == 0).all()
    assert (parts[:, :, :, 40:] == 0).all()
    joined = parts.double().sum(1)[:, :40, :40]
    assert float((joined - gram.double()).abs().max()) <= 2**-23
    found = run(gram, "torch", triton_device, 4, 1)
    moved = silhouette(joined, found.labels, 4) - silhouette(gram.double(), found.labels, 4)
    assert float(moved.abs().max()) < 1e-6
