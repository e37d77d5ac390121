"""Exact moments of the permutation null: all permutations of small cases, scikit-learn, Monte Carlo; and both versions."""

import numpy as np
import pytest
import replicas
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from psi_fast_kernels.permutation_null import (
    entropy,
    mutual_information_moments,
    numba_impl,
    permutation_moments,
    permutation_null,
    reference,
)

ROUNDING = 1e-10
VERSIONS = pytest.mark.parametrize("version", [numba_impl, reference], ids=["numba", "torch"])
SIZES = [
    ([20, 20], [20, 20]),
    ([33, 5, 2], [10, 10, 10, 10]),
    ([50, 30, 20], [1] * 60 + [10, 30]),
    ([1, 39], [39, 1]),
    ([7, 6, 5, 4, 3, 2], [9, 9, 9]),
    ([10, 10, 10, 10], [1] * 40),
    ([40], [10, 30]),
    ([100, 29], [64, 64, 1]),
]


def groups(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def one_channel(version, clusters, classes) -> tuple[float, float]:
    mean, variance = version.information_moments(np.array([clusters]), np.array([classes]))
    return mean.item(), variance.item()


def random_sizes(channels: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Channels of 1..6 clusters and 1..samples classes, some of them empty."""
    rng = np.random.default_rng(seed)
    clusters = np.stack([rng.multinomial(samples, rng.dirichlet(np.ones(6))) for _ in range(channels)])
    concentration = rng.choice([0.05, 0.5, 5.0], size=channels)
    classes = np.stack([rng.multinomial(samples, rng.dirichlet(np.full(samples, c))) for c in concentration])
    return clusters, classes


@VERSIONS
@pytest.mark.parametrize(("clusters", "classes"), SIZES)
def test_mean_is_the_expected_mutual_information(version, clusters, classes):
    a, b = groups(clusters), groups(classes)
    mean, _ = one_channel(version, clusters, classes)
    expected = expected_mutual_information(contingency_matrix(b, a, sparse=True), len(a))
    assert mean == pytest.approx(expected, abs=ROUNDING)


@VERSIONS
@pytest.mark.parametrize(
    ("clusters", "classes"),
    [
        ([4, 3], [3, 2, 2]),
        ([3, 3, 1], [2, 2, 2, 1]),
        ([5, 2], [4, 3]),
        ([2, 2, 2, 2], [3, 3, 2]),
        ([6, 1, 1], [4, 4]),
        ([4, 4], [1, 1, 1, 1, 2, 2]),
        ([3, 2, 2], [1] * 7),
    ],
)
def test_moments_equal_brute_force_over_all_permutations(version, clusters, classes):
    values = replicas.permuted_information(groups(clusters), groups(classes))
    mean, variance = one_channel(version, clusters, classes)
    assert mean == pytest.approx(values.mean(), abs=ROUNDING)
    assert variance == pytest.approx(values.var(), abs=ROUNDING)


def test_replica_agrees_with_scikit_learn():
    a, b = groups([4, 3]), np.array([0, 1, 1, 2, 2, 0, 0])
    assert replicas.mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-12)
    assert replicas.permuted_information(a, b)[0] == pytest.approx(mutual_info_score(a, b), abs=1e-12)


@pytest.mark.parametrize(("clusters", "classes"), [case for case in SIZES if len(case[0]) > 1 and max(case[1]) > 1])
def test_monte_carlo_converges_to_the_moments(clusters, classes):
    a, b = (torch.from_numpy(groups(sizes))[None] for sizes in (clusters, classes))
    drawn = permutation_null(a, b, draws=range(20_000), seed=0, channel=torch.tensor([3]))[0].numpy()
    mean, sd = (float(x) for x in permutation_moments(a, b))
    assert abs(drawn.mean() - mean) < 4 * sd / np.sqrt(len(drawn))
    fourth = ((drawn - mean) ** 4).mean()
    assert abs(drawn.var() - sd**2) < 4 * np.sqrt((fourth - sd**4) / len(drawn))


@pytest.mark.parametrize("samples", [4, 7, 40, 100, 129])
def test_versions_agree(samples):
    sizes = random_sizes(12, samples)
    compiled, plain = (np.stack(version.information_moments(*sizes)) for version in (numba_impl, reference))
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=ROUNDING)
    assert (plain[1] >= 0).all()
    assert plain[1].max() > 1e-4


def test_versions_agree_on_many_samples():
    clusters, classes = np.array([[200, 140, 100, 40, 30, 2]]), np.array([[190, 100, 90, 60, 30, 20, 10, 5, 5, 1, 1]])
    compiled, plain = (np.stack(version.information_moments(clusters, classes)) for version in (numba_impl, reference))
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=ROUNDING)


def test_neither_chunks_nor_threads_nor_other_channels_change_a_bit(monkeypatch):
    sizes = random_sizes(9, 60)
    whole = np.stack(numba_impl.information_moments(*sizes))
    part = np.stack(numba_impl.information_moments(*(x[4:6] for x in sizes)))
    np.testing.assert_array_equal(part, whole[:, 4:6])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(numba_impl, "rows_per_chunk", lambda *_: 1)
    np.testing.assert_array_equal(np.stack(numba_impl.information_moments(*sizes)), whole)


@pytest.mark.parametrize(
    ("total", "drawn", "marked"), [(10, 4, 3), (10, 7, 8), (10, 0, 5), (10, 10, 4), (0, 0, 0), (512, 200, 300)]
)
def test_hypergeometric_probabilities(total, drawn, marked):
    p = np.zeros(total + 1)
    low, high = numba_impl.hypergeometric(p, total, drawn, marked)
    n = np.arange(total + 1)
    expected = stats.hypergeom(total, marked, drawn).pmf(n) if total else np.ones(1)
    np.testing.assert_allclose(np.where((n >= low) & (n <= high), p, 0), expected, rtol=1e-10, atol=1e-24)


@VERSIONS
@pytest.mark.parametrize("classes", [[24], [1] * 24], ids=["all alike", "all different"])
def test_labels_that_cannot_vary_have_variance_zero(version, classes):
    mean, variance = one_channel(version, [11, 8, 5], classes)
    clusters = -np.array([11, 8, 5]) / 24 @ np.log(np.array([11, 8, 5]) / 24)
    assert mean == pytest.approx(0 if len(classes) == 1 else clusters, abs=1e-12)
    assert variance == 0


def test_moments_of_nmi_are_those_of_the_information_over_the_mean_entropy():
    rng = np.random.default_rng(0)
    clusters, labels = (torch.from_numpy(rng.integers(n, size=(5, 30))) for n in (4, 9))
    mean, sd = permutation_moments(clusters, labels)
    scale = (entropy(clusters) + entropy(labels)) / 2
    for c in range(5):
        expected, variance = mutual_information_moments(np.bincount(clusters[c]), np.bincount(labels[c]))
        assert float(mean[c] * scale[c]) == pytest.approx(expected, abs=1e-12)
        assert float(sd[c] * scale[c]) == pytest.approx(variance**0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("clusters", "labels", "value"),
    [([0] * 6, [0] * 6, 1.0), ([0] * 6, [0, 0, 0, 1, 1, 1], 0.0), ([0, 0, 0, 2, 2, 2], [0] * 6, 0.0)],
    ids=["both alike", "one cluster", "one class and an empty cluster"],
)
def test_moments_of_nmi_without_variation_are_what_every_draw_gives(clusters, labels, value):
    pair = torch.tensor([clusters]), torch.tensor([labels])
    mean, sd = permutation_moments(*pair)
    assert float(mean) == pytest.approx(value, abs=1e-12)
    assert float(sd) == 0
    drawn = permutation_null(*pair, draws=range(5), seed=0, channel=torch.tensor([0]))
    torch.testing.assert_close(drawn, mean[:, None].expand_as(drawn), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 5), torch.zeros(2, 4)])
def test_moments_name_a_bad_argument(bad):
    with pytest.raises(ValueError, match="clusters and labels must"):
        permutation_moments(bad, torch.zeros(2, 5, dtype=torch.int64))
