"""permutation_null on every backend: the reference's permutations, whatever the shape, the chunk and the threads."""

import numpy as np
import pytest
import torch

from psi_fast_kernels._streams import Stream
from psi_fast_kernels.permutation_null import cost, nmi, numba_impl, permutation_null
from psi_fast_kernels.philox import reference as philox
from psi_fast_kernels.philox.numba_impl import fill_words, philox4x32

SEED = 2**63 + 5
CHANNEL = torch.tensor([2**31 + 1, 7])
# backend: largest absolute difference from torch on a CPU; numba is to give the same bits
TOLERANCE = {"numba": 0.0, "triton": 1e-12}
BACKENDS = pytest.mark.parametrize("backend", TOLERANCE)


def labellings(samples: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters and labels of two channels [2, samples]."""
    rng = np.random.default_rng(samples)
    clusters, labels = rng.integers(5, size=(2, samples)), rng.integers(max(2, samples // 4), size=(2, samples))
    if kind == "one class":
        labels[:] = 0
    elif kind == "all distinct classes":
        labels[:] = rng.permuted(np.broadcast_to(np.arange(samples), labels.shape), axis=1)
    elif kind == "one cluster":
        clusters[:] = 0
    elif kind == "one cluster and one class":
        clusters[:], labels[:] = 0, 0
    elif kind == "empty cluster and class ids":
        clusters, labels = 3 * clusters + 1, 7 * labels + 2
    elif kind == "16 clusters":
        clusters = rng.integers(16, size=(2, samples))
    return torch.from_numpy(clusters), torch.from_numpy(labels)


def draw(backend: str, device: torch.device, clusters, labels, channel=CHANNEL, draws=range(3)) -> torch.Tensor:
    device = device if backend == "triton" else torch.device("cpu")
    arrays = {"clusters": clusters, "labels": labels, "channel": channel}
    arrays = {name: x.to(device) for name, x in arrays.items()}
    return permutation_null(**arrays, draws=draws, seed=SEED, backend=backend).cpu()


def assert_like_torch(backend: str, device: torch.device, clusters, labels, **more) -> torch.Tensor:
    drawn, expected = (draw(name, device, clusters, labels, **more) for name in (backend, "torch"))
    assert drawn.dtype == torch.float64
    torch.testing.assert_close(drawn, expected, rtol=0, atol=TOLERANCE[backend])
    return drawn


@BACKENDS
@pytest.mark.parametrize("samples", [4, 7, 40, 100, 128, 129, 300])
def test_values_equal_torch_at_awkward_sizes(backend, samples, triton_device):
    drawn = assert_like_torch(backend, triton_device, *labellings(samples, "random"))
    assert samples < 40 or drawn.std() > 1e-3


@BACKENDS
@pytest.mark.parametrize(
    "kind",
    [
        "one class",
        "all distinct classes",
        "one cluster",
        "empty cluster and class ids",
        "16 clusters",
    ],
)
def test_values_equal_torch_for_awkward_labels(backend, kind, triton_device):
    assert_like_torch(backend, triton_device, *labellings(40, kind))


@pytest.mark.parametrize("backend", ["torch", *TOLERANCE])
@pytest.mark.parametrize("samples", [4, 7, 40, 100])
def test_one_cluster_and_one_class_agree(backend, samples, triton_device):
    """Their entropies are 0 up to rounding, which goes either way."""
    drawn = draw(backend, triton_device, *labellings(samples, "one cluster and one class"))
    assert (drawn == 1).all()


@pytest.mark.parametrize("backend", ["torch", *TOLERANCE])
@pytest.mark.parametrize("number", [303286, 637366])
def test_equal_words_keep_their_order(backend, number, triton_device):
    """Two of the 300 words of these draws are equal."""
    channel = torch.tensor([0])
    words = philox.uint32(0, Stream.LABEL_PERMUTATION, channel, torch.tensor([number]), 300)[0]
    order = words.argsort(stable=True)
    rank = int((words[order].diff() == 0).nonzero())
    swapped = order.clone()
    swapped[[rank, rank + 1]] = order[[rank + 1, rank]]
    # the first of the two and the labels at their ranks tell which came first
    clusters, labels = (torch.zeros(1, 300, dtype=torch.int64) for _ in range(2))
    clusters[0, order[rank]], labels[0, rank] = 1, 1
    assert float(nmi(clusters[:, order], labels)) == pytest.approx(1, abs=1e-12)
    assert float(nmi(clusters[:, swapped], labels)) < 0.1
    device = triton_device if backend == "triton" else torch.device("cpu")
    arrays = {"clusters": clusters, "labels": labels, "channel": channel}
    arrays = {name: x.to(device) for name, x in arrays.items()}
    drawn = permutation_null(**arrays, draws=range(number, number + 1), seed=0, backend=backend)
    assert float(drawn) == pytest.approx(1, abs=1e-12)


@BACKENDS
def test_neither_chunks_nor_threads_nor_other_channels_change_a_bit(backend, triton_device, monkeypatch):
    clusters, labels = labellings(20, "random")
    whole = draw(backend, triton_device, clusters, labels, draws=range(20))
    assert len(set(whole.flatten().tolist())) > 10
    later = draw(backend, triton_device, clusters, labels, draws=range(17, 20))
    assert torch.equal(later, whole[:, 17:])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = draw(backend, triton_device, clusters[1:], labels[1:], channel=CHANNEL[1:], draws=range(5, 6))
    assert torch.equal(alone, whole[1:, 5:6])
    assert torch.equal(draw(backend, triton_device, clusters, labels, draws=range(20)), whole)


@BACKENDS
def test_views_are_read_by_their_strides(backend, triton_device):
    clusters, labels = (x.T.contiguous().T for x in labellings(12, "random"))
    assert not clusters.is_contiguous()
    assert_like_torch(backend, triton_device, clusters, labels, channel=torch.arange(4)[::2])


@BACKENDS
def test_no_draws_are_an_empty_result(backend, triton_device):
    assert draw(backend, triton_device, *labellings(7, "random"), draws=range(5, 5)).shape == (2, 0)


def test_more_samples_than_one_program_holds(triton_device):
    assert_like_torch("triton", triton_device, *labellings(520, "random"))


def test_draws_that_skip_are_refused():
    with pytest.raises(ValueError, match=r"draws must count up by 1, got range\(0, 4, 2\)"):
        draw("torch", torch.device("cpu"), *labellings(7, "random"), draws=range(0, 4, 2))


@pytest.mark.parametrize("spread", [3, 2**32])
@pytest.mark.parametrize("samples", [1, 5, 64, 300])
def test_compiled_order_is_the_stable_order(samples, spread):
    """Words below 3 are mostly equal and all fall into one bucket."""
    words = np.random.default_rng(samples).integers(spread, size=samples, dtype=np.uint64)
    order, starts = np.empty(samples, np.uint64), np.empty(2**7 + 1, np.int32)
    numba_impl.stable_order(words, order, starts, np.uint64(32 - 7))
    assert (order & np.uint64(2**32 - 1)).tolist() == words.argsort(kind="stable").tolist()


@pytest.mark.parametrize("seed", [0, 2**32 - 1, SEED, 2**64 - 1])
@pytest.mark.parametrize("count", [1, 4, 7, 100])
def test_compiled_words_are_those_of_the_reference(seed, count):
    for channel, number in ((0, 0), (2**31, 5), (2**32 - 1, 2**32 - 1)):
        words = np.empty(count, np.uint64)
        fill_words(words, 9, channel, number, seed % 2**32, seed >> 32)
        expected = philox.uint32(seed, 9, torch.tensor([channel]), torch.tensor([number]), count)[0]
        assert words.tolist() == expected.tolist()
        block = philox4x32(0, number, channel, 9, seed % 2**32, seed >> 32)
        assert [int(word) for word in block][:count] == expected[:4].tolist()


def test_cost_grows_with_the_draws_and_the_pairs_of_samples():
    once = cost.operations(1, 1, 100)
    assert cost.operations(3, 5, 100) == 15 * once
    assert 4 * 100**2 < once < cost.operations(1, 1, 200) < 4 * once
    assert cost.bytes_moved(2, 1000, 100) == 2 * 8 * (100 + 100 + 2 + 1000)
