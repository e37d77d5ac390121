"""NMI, its permutation null and the exact moments, against scikit-learn and brute force over all permutations."""

import numpy as np
import pytest
import replicas
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from psi_fast.nulls import moments
from psi_fast_kernels.permutation_null import (
    dense_labels,
    entropy,
    mutual_information_moments,
    nmi,
    permutation_null,
    reference,
)

ROUNDING = 1e-10


def groups(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def sizes_of(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_counts=True)[1]


def random_labels(
    channels: int, samples: int, k: int, classes: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.integers(n, size=(channels, samples))) for n in (k, classes))


@pytest.mark.parametrize(("samples", "k", "classes"), [(7, 2, 3), (40, 3, 5), (41, 6, 40), (100, 2, 200), (129, 6, 2)])
def test_nmi_equals_scikit_learn(samples, k, classes):
    clusters, labels = random_labels(20, samples, k, classes)
    expected = [normalized_mutual_info_score(b, a) for a, b in zip(clusters, labels, strict=True)]
    np.testing.assert_allclose(nmi(clusters, dense_labels(labels)), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("clusters", "labels", "value"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),  # one group each: they agree fully
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.0),
        ([0, 0, 0, 0], [0, 1, 1, 2], 0.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 1, 0, 1], [0, 0, 1, 1], 0.0),
    ],
)
def test_nmi_of_small_cases(clusters, labels, value):
    assert normalized_mutual_info_score(labels, clusters) == pytest.approx(value, abs=ROUNDING)
    assert float(nmi(torch.tensor([clusters]), torch.tensor([labels]))) == pytest.approx(value, abs=ROUNDING)


def test_entropy_is_that_of_the_frequencies():
    labels = torch.tensor([[0, 0, 1, 2], [3, 3, 3, 3], [0, 1, 2, 3]])
    expected = [stats.entropy(np.bincount(row)) for row in labels]
    np.testing.assert_allclose(entropy(labels), expected, rtol=0, atol=1e-14)


def test_dense_labels_renumber_in_ascending_order():
    labels = torch.tensor([[5, -3, 5, 900], [2**62, 7, 7, -(2**62)], [4, 4, 4, 4]])
    assert dense_labels(labels).tolist() == [[1, 0, 1, 2], [2, 1, 1, 0], [0, 0, 0, 0]]


# ---- exact moments

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


@pytest.mark.parametrize(("clusters", "classes"), SIZES)
def test_exact_mean_is_the_expected_mutual_information(clusters, classes):
    a, b = groups(clusters), groups(classes)
    mean, _ = mutual_information_moments(np.array(clusters), np.array(classes))
    expected = expected_mutual_information(contingency_matrix(b, a, sparse=True), len(a))
    assert mean == pytest.approx(expected, abs=ROUNDING)


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
def test_exact_moments_equal_brute_force_over_all_permutations(clusters, classes):
    values = replicas.permuted_information(groups(clusters), groups(classes))
    mean, variance = mutual_information_moments(np.array(clusters), np.array(classes))
    assert mean == pytest.approx(values.mean(), abs=ROUNDING)
    assert variance == pytest.approx(values.var(), abs=ROUNDING)


def test_replica_agrees_with_scikit_learn():
    a, b = groups([4, 3]), np.array([0, 1, 1, 2, 2, 0, 0])
    assert replicas.mutual_information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-12)
    assert replicas.permuted_information(a, b)[0] == pytest.approx(mutual_info_score(a, b), abs=1e-12)


@pytest.mark.parametrize(("clusters", "classes"), [case for case in SIZES if len(case[0]) > 1 and max(case[1]) > 1])
def test_monte_carlo_converges_to_the_exact_moments(clusters, classes):
    a, b = (torch.from_numpy(groups(sizes))[None] for sizes in (clusters, classes))
    drawn = permutation_null(a, b, draws=range(20_000), seed=0, channel=torch.tensor([3]))[0].numpy()
    scale = float(entropy(a) + entropy(b)) / 2
    mean, variance = mutual_information_moments(np.array(clusters), np.array(classes))
    mean, variance = mean / scale, variance / scale**2
    assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / len(drawn))
    fourth = ((drawn - mean) ** 4).mean()
    assert abs(drawn.var() - variance) < 4 * np.sqrt((fourth - variance**2) / len(drawn))


@pytest.mark.parametrize(("clusters", "classes"), [([10, 10], [20]), ([5, 5, 5], [1] * 15)])
def test_null_without_variation(clusters, classes):
    _, variance = mutual_information_moments(np.array(clusters), np.array(classes))
    assert variance == pytest.approx(0, abs=1e-15)
    drawn = permutation_null(
        *(torch.from_numpy(groups(s))[None] for s in (clusters, classes)),
        draws=range(50),
        seed=0,
        channel=torch.tensor([0]),
    )
    assert float(drawn.std()) < 1e-12


# ---- the draws


def test_p_values_are_uniform_under_exchangeable_labels():
    """400 channels; clusters of unequal sizes and 20 classes, so that ties are rare."""
    clusters, labels = random_labels(400, 60, 5, 20)
    drawn = permutation_null(clusters, labels, draws=range(199), seed=0, channel=torch.arange(400))
    p = moments(nmi(clusters, labels), drawn).p.numpy()
    spread = np.random.default_rng(0).random(400) / 200  # p falls on multiples of 1 / 200
    assert stats.kstest(p - spread, "uniform").pvalue > 0.05
    assert p.min() >= 1 / 200
    assert p.max() <= 1


def test_p_values_are_small_when_labels_follow_the_clusters():
    clusters, labels = random_labels(50, 60, 4, 20)
    labels = torch.where(torch.rand(50, 60, generator=torch.Generator().manual_seed(0)) < 0.5, clusters, labels)
    drawn = permutation_null(clusters, labels, draws=range(99), seed=0, channel=torch.arange(50))
    assert (moments(nmi(clusters, labels), drawn).p == 0.01).all()


def test_draws_lie_in_the_unit_interval_and_differ_between_channels_and_seeds():
    clusters, labels = (x[:1].expand(8, -1) for x in random_labels(1, 50, 4, 9))
    drawn = permutation_null(clusters, labels, draws=range(60), seed=0, channel=torch.arange(8))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert len({tuple(row) for row in drawn.tolist()}) == 8
    again = permutation_null(clusters, labels, draws=range(60), seed=1, channel=torch.arange(8))
    assert not torch.equal(drawn, again)


@pytest.mark.parametrize("chunk", [1, 3, 10**6])
def test_chunks_and_other_channels_change_no_bit(chunk, monkeypatch):
    clusters, labels = random_labels(6, 41, 5, 9)
    ids = torch.tensor([5, 3, 11, 2**31, 0, 7])
    whole = permutation_null(clusters, labels, draws=range(20), seed=0, channel=ids)
    monkeypatch.setattr(reference, "rows_per_chunk", lambda *_, **__: chunk)
    assert torch.equal(permutation_null(clusters, labels, draws=range(20), seed=0, channel=ids), whole)
    assert torch.equal(
        permutation_null(clusters[3:5], labels[3:5], draws=range(12, 20), seed=0, channel=ids[3:5]), whole[3:5, 12:]
    )


@pytest.mark.parametrize("classes", [[24], [1] * 24], ids=["all alike", "all different"])
def test_labels_that_cannot_vary_have_variance_zero(classes):
    mean, variance = mutual_information_moments(np.array([11, 8, 5]), np.array(classes))
    clusters = -np.array([11, 8, 5]) / 24 @ np.log(np.array([11, 8, 5]) / 24)
    assert mean == pytest.approx(0 if len(classes) == 1 else clusters, abs=1e-12)
    assert variance == 0
