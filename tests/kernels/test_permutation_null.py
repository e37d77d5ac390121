"""NMI against scikit-learn, and its permutation null as statistics."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import normalized_mutual_info_score

from psi_fast.moments import moments
from psi_fast_kernels.permutation_null import dense_labels, entropy, nmi, permutation_null, reference

ROUNDING = 1e-10


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
    whole = permutation_null(clusters, labels, draws=range(20), seed=0, channel=ids, backend="torch")
    monkeypatch.setattr(reference, "rows_per_chunk", lambda *_, **__: chunk)
    settings = {"seed": 0, "backend": "torch"}
    assert torch.equal(permutation_null(clusters, labels, draws=range(20), channel=ids, **settings), whole)
    part = permutation_null(clusters[3:5], labels[3:5], draws=range(12, 20), channel=ids[3:5], **settings)
    assert torch.equal(part, whole[3:5, 12:])
