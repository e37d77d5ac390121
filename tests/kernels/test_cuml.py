"""Clustering by cuML: what passes to and from it, with scikit-learn and NumPy standing in for cuML and CuPy."""

import sys
from types import ModuleType

import numpy as np
import pytest
import replicas
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from psi_fast_kernels import _backend
from psi_fast_kernels._backend import BackendError
from psi_fast_kernels.cluster import cluster, silhouette
from psi_fast_kernels.rotation_null import rotation_null, rotation_pool, tangent_space

STARTS = {"k_max": 5, "n_init": 3, "seed": 2**64 - 3}
IMPLEMENTATIONS = [f"psi_fast_kernels.{op}.cuml_impl" for op in ("cluster", "rotation_null")]


class Fits:
    """The settings of every fit, and what came in."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def k_means(self, **settings):
        fits = self

        class StandIn:
            def fit(self, x: np.ndarray) -> "StandIn":
                assert x.dtype == np.float32
                assert x.flags.c_contiguous
                fits.seen.append({**settings, "x": x.copy()})
                known = {name: value for name, value in settings.items() if name != "output_type"}
                self.labels_ = KMeans(**known).fit(x).labels_.astype(np.int32)
                return self

        return StandIn()


@pytest.fixture
def fits(monkeypatch):
    """cuML and CuPy by scikit-learn and NumPy, for one test."""
    fits, modules = Fits(), {}
    for name in ("cupy", "cuml", "cuml.cluster", "cuml.metrics", "cuml.metrics.cluster"):
        modules[name] = ModuleType(name)
    modules["cupy"].from_dlpack = np.from_dlpack
    modules["cuml.cluster"].KMeans = fits.k_means
    modules["cuml.metrics.cluster"].silhouette_score = silhouette_score
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_backend, "missing_for", lambda name, device: None)
    yield fits
    for name in IMPLEMENTATIONS:
        sys.modules.pop(name, None)


def gram_of(x: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    return rows @ rows.mT


def planted(clusters: int, samples: int = 40) -> np.ndarray:
    rng = np.random.default_rng(clusters)
    return replicas.planted_clusters(samples, np.eye(32)[:clusters], rng, noise=0.5)[0]


def run(gram: torch.Tensor, backend: str = "cuml", first: int = 0, **changes):
    ids = torch.arange(first, first + len(gram))
    return cluster(gram, **STARTS | changes, stream=2, channel=2**32 - 1 - ids, draw=ids, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_clusters_have_the_silhouette_of_the_reference(fits, dtype):
    gram = gram_of(np.stack([planted(m) for m in (2, 3, 5)]), dtype)
    found, expected = run(gram), run(gram, "torch")
    assert found.k.tolist() == expected.k.tolist() == [2, 3, 5]
    assert found.silhouette.dtype == dtype
    assert found.labels.dtype == found.k.dtype == torch.int64
    torch.testing.assert_close(found.silhouette, expected.silhouette, rtol=0, atol=1e-5)
    for own, labels, k, value in zip(gram, found.labels, found.k, found.silhouette, strict=True):
        replayed = silhouette(own[None].double(), labels[None], int(k))
        assert float(value) == pytest.approx(float(replayed), abs=1e-5)


def test_cuml_gets_points_at_the_distances_of_the_samples(fits):
    gram = gram_of(planted(3)[None])
    run(gram)
    assert [fit["n_clusters"] for fit in fits.seen] == [2, 3, 4, 5]
    for fit in fits.seen:
        np.testing.assert_allclose(fit["x"] @ fit["x"].T, gram[0], atol=1e-5)
        assert (fit["init"], fit["n_init"], fit["max_iter"], fit["output_type"]) == ("k-means++", 3, 50, "cupy")


def test_starts_depend_on_seed_channel_and_draw_and_on_no_chunk(fits):
    gram = gram_of(np.stack([planted(2)] * 3))
    whole = run(gram, k_max=2)
    states = [fit["random_state"] for fit in fits.seen]
    assert len(set(states)) == 3
    assert all(0 <= state < 2**32 for state in states)  # what cuML takes
    part = run(gram[1:], k_max=2, first=1)
    assert [fit["random_state"] for fit in fits.seen[3:]] == states[1:]
    for ours, theirs in zip(part, whole, strict=True):
        assert torch.equal(ours, theirs[1:])
    run(gram, k_max=2, seed=0)
    assert not set(states) & {fit["random_state"] for fit in fits.seen[5:]}


@pytest.mark.parametrize("gram", [torch.ones(2, 7, 7), torch.zeros(2, 7, 7)], ids=["equal rows", "zero rows"])
def test_one_point_is_not_clustered(fits, gram):
    found = run(gram)
    assert found.silhouette.tolist() == [0, 0]
    assert found.k.tolist() == [1, 1]
    assert (found.labels == 0).all()
    assert fits.seen == []


def test_no_more_clusters_than_distinct_samples_are_asked_for(fits):
    x = np.repeat(np.eye(8)[:3], [4, 5, 3], axis=0)
    found, expected = run(gram_of(x[None])), run(gram_of(x[None]), "torch")
    assert [fit["n_clusters"] for fit in fits.seen] == [2, 3]
    assert int(found.k) == int(expected.k) == 3
    assert float(found.silhouette) == pytest.approx(1, abs=1e-6)


def test_samples_all_alone_count_zero(fits):
    """Four orthogonal samples: nothing is gained by any k, and four clusters have no silhouette in cuML."""
    found = run(torch.eye(4)[None], k_max=4)
    assert [fit["n_clusters"] for fit in fits.seen] == [2, 3, 4]
    assert float(found.silhouette) == pytest.approx(0, abs=1e-6)


def test_rotation_draws_are_clustered_by_cuml(fits):
    """The same draws as with torch: of eight samples both find the best two clusters."""
    x = replicas.gaussian_cloud(8, 16, np.random.default_rng(0))[None]
    space, pool = tangent_space(gram_of(x), 16), rotation_pool(8, 16, rotation="radial", draws=range(6), seed=0)
    common = {"rotation": "radial", "k_max": 2, "n_init": 60, "seed": 0, "channel": torch.arange(1)}
    drawn, expected = (rotation_null(space, pool, **common, backend=name) for name in ("cuml", "torch"))
    assert len(fits.seen) == 6
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", ["cluster", "rotation_null"])
def test_cuml_asked_for_on_a_cpu_says_what_is_missing(op):
    gram, ids = torch.eye(6)[None], torch.zeros(1, dtype=torch.int64)
    common = {"k_max": 2, "n_init": 1, "seed": 0, "channel": ids, "backend": "cuml"}
    pool = rotation_pool(6, 8, rotation="radial", draws=range(1), seed=0)
    calls = {
        "cluster": lambda: cluster(gram, **common, stream=2, draw=ids),
        "rotation_null": lambda: rotation_null(tangent_space(gram, 8), pool, rotation="radial", **common),
    }
    with pytest.raises(BackendError, match="'cuml' cannot run here: it needs"):
        calls[op]()
