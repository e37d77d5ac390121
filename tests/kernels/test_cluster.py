"""k-means and silhouette in the Gram matrix, against scikit-learn and the definition."""

import warnings

import numpy as np
import pytest
import replicas
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import silhouette_score

from psi_fast.config import PSIConfig
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.cluster import cluster, inertia, silhouette
from psi_fast_kernels.cluster.reference import CANDIDATES, lloyd, plus_plus
from psi_fast_kernels.philox import uniform

SIZES = [4, 7, 40, 100, 128, 129]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def gram_of(x: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.from_numpy(x).to(dtype)
    return rows @ rows.mT


def run(gram: torch.Tensor, k_max: int = 6, n_init: int = 4, first: int = 0):
    ids = torch.arange(first, first + len(gram))
    return cluster(
        gram,
        k_max=min(k_max, gram.shape[1]),
        n_init=n_init,
        seed=0,
        stream=Stream.OBSERVED_STARTS,
        channel=ids,
        draw=torch.zeros_like(ids),
    )


def clouds(samples: int, count: int = 6, width: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = [replicas.gaussian_cloud(samples, width, rng) for _ in range(count // 2)]
    for m in range(count - len(kinds)):
        kinds.append(
            replicas.planted_clusters(samples, replicas.unit(rng.normal(size=(2 + m, width))), rng, noise=1.0)[0]
        )
    return np.stack(kinds)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("samples", SIZES)
def test_silhouette_equals_scikit_learn_on_the_same_labels(samples, dtype):
    x = clouds(samples)
    found = run(gram_of(x, dtype))
    for value, labels, k, rows in zip(*found, x, strict=True):
        assert sorted(set(labels.tolist())) == list(range(int(k)))
        if int(k) < samples:  # scikit-learn refuses n clusters of n samples
            assert abs(float(value) - silhouette_score(rows, labels, metric="cosine")) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", [2, 3, 6])
def test_silhouette_of_given_labels(k, dtype):
    rng = np.random.default_rng(1)
    x = clouds(41)
    labels = rng.integers(k, size=(6, 41))
    labels[:, :k] = np.arange(k)
    values = silhouette(gram_of(x, dtype), torch.from_numpy(labels), k)
    expected = [silhouette_score(rows, own, metric="cosine") for rows, own in zip(x, labels, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_inertia_equals_the_replica(k, dtype):
    rng = np.random.default_rng(2)
    x = clouds(40)
    labels = rng.integers(k, size=(6, 3, 40))
    values = inertia(gram_of(x, dtype), torch.from_numpy(labels), k)
    expected = [[replicas.inertia(rows, one) for one in own] for rows, own in zip(x, labels, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=40 * TOLERANCE[dtype])


def test_inertia_is_within_2_percent_of_scikit_learn_on_real_problems():
    """200 subsets of real digits, k = 2..6: the default number of restarts against scikit-learn's ten."""
    n_init = PSIConfig().n_init
    digits, rng = load_digits().data, np.random.default_rng(0)
    x = np.stack([digits[rng.choice(len(digits), 100, replace=False)] for _ in range(200)])
    x = replicas.unit(x - digits.mean(0))
    good = []
    for k in range(2, 7):
        own = x[k - 2 :: 5]
        gram, ids = gram_of(own, torch.float32), torch.arange(len(own))
        numbers = uniform(0, Stream.OBSERVED_STARTS, ids, 0 * ids, n_init * 6 * CANDIDATES)
        starts = plus_plus(gram, numbers.unflatten(-1, (n_init, 6, CANDIDATES)).float())
        labels = lloyd(gram, starts[:, :, :k].argmax(2), k)
        ours = inertia(gram, labels, k).amin(1).numpy()
        best = np.array([KMeans(k, n_init=10, random_state=0).fit(rows).inertia_ for rows in own])
        good.extend(ours <= 1.02 * best)
    assert len(good) == 200
    assert np.mean(good) >= 0.95


@pytest.mark.parametrize("seed", range(3))
def test_lloyd_ends_where_no_sample_is_nearer_to_another_centre(seed):
    x = clouds(60, seed=seed)
    labels = lloyd(gram_of(x), torch.from_numpy(np.random.default_rng(seed).integers(4, size=(6, 2, 60))), 4).numpy()
    for rows, restarts in zip(x, labels, strict=True):
        for own in restarts:
            used = np.unique(own)
            centres = np.stack([rows[own == j].mean(0) for j in used])
            dist2 = ((rows[:, None] - centres) ** 2).sum(-1)
            chosen = dist2[np.arange(60), np.searchsorted(used, own)]
            np.testing.assert_allclose(chosen, dist2.min(1), atol=1e-12)


def test_emptied_cluster_stays_empty_and_counts_for_nothing():
    x = np.repeat(np.eye(8)[:2], 10, axis=0)
    labels = torch.tensor([[[0] * 10 + [1] * 9 + [2]]])  # two distinct points, three clusters: one must empty
    settled = lloyd(gram_of(x)[None], labels, 3)
    assert len(settled.unique()) == 2
    assert float(silhouette(gram_of(x)[None], settled[:, 0], 3)) == pytest.approx(1, abs=1e-12)
    assert float(inertia(gram_of(x)[None], settled, 3)) == pytest.approx(0, abs=1e-12)


def test_silhouette_needs_two_clusters_in_use():
    gram = gram_of(clouds(10, count=2))
    assert (silhouette(gram, torch.ones(2, 10, dtype=torch.int64), 3) == -torch.inf).all()


def test_sample_alone_in_its_cluster_counts_zero():
    rng = np.random.default_rng(3)
    x = replicas.unit(np.r_[np.eye(16)[:1], np.eye(16)[1] + 0.05 * rng.normal(size=(9, 16))])
    found = run(gram_of(x)[None], k_max=2)
    assert found.labels[0].bincount().min() == 1
    expected = silhouette_score(x, found.labels[0], metric="cosine")
    assert float(found.silhouette) == pytest.approx(expected, abs=1e-10)
    assert float(found.silhouette) < 0.91  # nine tenths at most: the lone sample counts 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k_max", [2, 3, 6])
def test_ties_take_the_smaller_k(k_max, dtype):
    """Two distinct points: silhouette 1 for every k that leaves the other clusters empty."""
    x = np.repeat(np.eye(4)[:2], [5, 7], axis=0)
    found = run(gram_of(x, dtype)[None], k_max=k_max)
    assert int(found.k) == 2
    assert float(found.silhouette) == pytest.approx(1, abs=1e-6)
    assert len(set(found.labels[0, :5].tolist())) == len(set(found.labels[0, 5:].tolist())) == 1


@pytest.mark.parametrize("distinct", [2, 3, 5])
def test_duplicates_form_their_own_clusters(distinct):
    x = np.repeat(np.eye(9)[:distinct], 8, axis=0)
    found = run(gram_of(x)[None])
    assert int(found.k) == distinct
    assert float(found.silhouette) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("width", [1, 3, 64, 513])
def test_equal_rows_have_no_clusters(samples, width, dtype):
    rng = np.random.default_rng(samples + width)
    x = np.repeat(replicas.unit(rng.normal(size=(3, 1, width))), samples, axis=1)
    found = run(gram_of(x, dtype))
    assert found.silhouette.tolist() == [0, 0, 0]
    assert found.k.tolist() == [1, 1, 1]
    assert (found.labels == 0).all()


def test_zero_rows_have_no_clusters():
    found = run(torch.zeros(2, 12, 12))
    assert found.silhouette.tolist() == [0, 0]
    assert found.k.tolist() == [1, 1]


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_no_bit(samples, chunk):
    gram = gram_of(clouds(samples, count=10), torch.float32)
    whole = run(gram)
    parts = [run(gram[i : i + chunk], first=i) for i in range(0, 10, chunk)]
    for name, values in whole._asdict().items():
        assert torch.equal(values, torch.cat([getattr(part, name) for part in parts])), name


def test_starts_depend_on_seed_channel_and_draw():
    x = replicas.gaussian_cloud(60, 32, np.random.default_rng(0), decay=0.2, offset=0.0)
    gram = gram_of(x, torch.float32).expand(30, -1, -1)
    zeros, ids = torch.zeros(30, dtype=torch.int64), torch.arange(30)
    common = {"k_max": 6, "n_init": 1, "stream": Stream.NULL_STARTS}
    same = cluster(gram, **common, seed=0, channel=zeros, draw=zeros)
    assert len(same.silhouette.unique()) == 1
    for channel, draw in ((ids, zeros), (zeros, ids)):
        assert len(cluster(gram, **common, seed=0, channel=channel, draw=draw).silhouette.unique()) > 5
    assert not torch.equal(
        cluster(gram, **common, seed=0, channel=ids, draw=zeros).silhouette,
        cluster(gram, **common, seed=1, channel=ids, draw=zeros).silhouette,
    )


def test_planted_clusters_are_found():
    rng = np.random.default_rng(4)
    for m in (2, 3, 5):
        x, which = replicas.planted_clusters(60, np.eye(64)[:m], rng, noise=0.5)
        found = run(gram_of(x, torch.float32)[None])
        assert int(found.k) == m
        assert len({(a, b) for a, b in zip(which.tolist(), found.labels[0].tolist(), strict=True)}) == m


def test_no_numpy_warning_on_degenerate_input():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(torch.ones(1, 5, 5))
