"""The stand-in for PSI: its gradient, its invariances, and that it follows the structure of a channel's top images."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch.nn.functional import normalize

from psi_fast.errors import ConfigError, InputError
from psi_fast.surrogate import soft_polysemanticity, top_weights


def two_groups(distance, images=60, width=6, seed=0, channels=1):
    """Activations [images, channels] and unit rows: the first third lies in two groups that far apart and is the top."""
    rng = np.random.default_rng(seed)
    top = images // 3
    rows = rng.normal(size=(images, width)) * 0.3
    rows[:, 0] += 1.5
    rows[:top, 1] += distance / 2 * np.where(np.arange(top) % 2, 1, -1)
    activations = np.where(np.arange(images) < top, 3.0, 0.0)[:, None] + 0.3 * rng.random((images, channels))
    return torch.from_numpy(activations), normalize(torch.from_numpy(rows), dim=1)


@pytest.mark.parametrize("width", [6, 90])  # fewer and more than images: with and without a Gram matrix
def test_gradient_is_that_of_finite_differences(width):
    rng = torch.Generator().manual_seed(3)
    rows = normalize(torch.randn(24, width, generator=rng, dtype=torch.float64), dim=1)
    activations = torch.randn(24, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_polysemanticity(x, rows, share=0.2), activations, atol=1e-6)
    (gradient,) = torch.autograd.grad(soft_polysemanticity(activations, rows, share=0.2).sum(), activations)
    assert gradient.abs().max() > 1e-4


def replica(values, rows, share, steps=4):
    """One channel in the rows' own space: power iteration, soft 2-means, share of variance."""
    count = round(share * len(values))
    order = np.sort(values)[::-1]
    edge = stats.norm.ppf(1 - share)
    temperature = (stats.norm.pdf(edge) / share - edge) / 2
    weights = 1 / (1 + np.exp((order[count - 1 : count + 1].mean() - values) / (values.std() * temperature)))
    weights /= weights.sum()
    mean = weights @ rows
    covariance = (rows - mean).T @ np.diag(weights) @ (rows - mean)
    axis = rows[values.argmax()] - mean
    for _ in range(8):
        axis = covariance @ axis
        axis /= np.linalg.norm(axis)
    along = (rows - mean) @ axis
    variance = weights @ along**2
    first = 1 / (1 + np.exp(-2 * along / np.sqrt(variance)))
    for _ in range(steps):
        centres = [(weights * part) @ rows / (weights @ part) for part in (first, 1 - first)]
        near, far = (((rows - centre) ** 2).sum(1) for centre in centres)
        first = 1 / (1 + np.exp((near - far) / (variance / 2)))
    between = 0
    for part in (first, 1 - first):
        mass = weights @ part
        between += mass * (((weights * part) @ rows / mass - mean) ** 2).sum()
    return between / (weights @ ((rows - mean) ** 2).sum(1))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("width", [5, 60])
def test_it_is_what_the_definition_says(width, steps):
    rng = np.random.default_rng(width)
    rows = rng.normal(size=(40, width)) + np.where(np.arange(40) % 4, 1, -1)[:, None] * rng.normal(size=width)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    activations = rng.normal(size=(40, 7))
    found = soft_polysemanticity(torch.from_numpy(activations), torch.from_numpy(rows), share=0.3, steps=steps)
    expected = [replica(own, rows, 0.3, steps) for own in activations.T]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_it_rises_from_one_cluster_to_two():
    found = [
        float(
            torch.cat([soft_polysemanticity(*two_groups(distance, seed=seed), share=1 / 3) for seed in range(5)]).mean()
        )
        for distance in (0, 1, 2, 3, 4)
    ]
    assert found == sorted(found)
    assert found[0] < 0.45 < 0.6 < found[-1] <= 1


def test_it_is_the_share_of_2_means_where_the_top_and_its_groups_are_clear():
    """With a top that is far above the rest and two tight groups, weights and assignments are nearly hard."""
    rng = np.random.default_rng(1)
    centres = np.array([[2, 1.5, 0, 0], [2, -1.5, 1, 0]])
    rows = np.concatenate([centres[(np.arange(20) % 4 == 0).astype(int)], np.ones((40, 4))]) + 0.15 * rng.normal(
        size=(60, 4)
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    activations = np.where(np.arange(60) < 20, 100.0, 0.0)[:, None] + rng.random((60, 1))
    found = soft_polysemanticity(torch.from_numpy(activations), torch.from_numpy(rows), share=1 / 3)
    weights = top_weights(torch.from_numpy(activations), 1 / 3)[0].numpy()
    fit = KMeans(2, random_state=0).fit(rows, sample_weight=weights)
    total = (weights[:, None] * (rows - np.average(rows, axis=0, weights=weights)) ** 2).sum()
    assert float(found) == pytest.approx(1 - fit.inertia_ / total, abs=5e-3)


def test_it_ranks_channels_as_the_best_silhouette_does():
    """Channels with one to three groups, each at its own distance, against scikit-learn's best k."""
    rng = np.random.default_rng(5)
    soft, hard = [], []
    for channel in range(40):
        groups, distance = 1 + channel % 3, rng.uniform(0.5, 3)
        centres = distance * np.linalg.qr(rng.normal(size=(8, 3)))[0].T[:groups]
        rows = 0.5 * rng.normal(size=(90, 8))
        rows[:30] += centres[np.arange(30) % groups]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        activations = np.where(np.arange(90) < 30, 3.0, 0.0)[:, None] + rng.random((90, 1))
        soft.append(float(soft_polysemanticity(torch.from_numpy(activations), torch.from_numpy(rows), share=1 / 3)))
        fits = [KMeans(k, random_state=0).fit_predict(rows[:30]) for k in (2, 3)]
        hard.append(max(silhouette_score(rows[:30], own, metric="cosine") for own in fits))
    assert np.corrcoef(stats.rankdata(soft), stats.rankdata(hard))[0, 1] > 0.6


def test_order_scale_and_shift_do_not_matter():
    activations, rows = two_groups(2.0, channels=4)
    expected = soft_polysemanticity(activations, rows)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_polysemanticity(activations[order], rows[order]), expected)
    torch.testing.assert_close(soft_polysemanticity(7 * activations - 40, rows), expected)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    torch.testing.assert_close(soft_polysemanticity(activations, rows @ turn), expected)
    # without a leading axis to converge to
    activations, rows = torch.randn(2, 60, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = normalize(rows, dim=1)
    expected = soft_polysemanticity(activations, rows)
    torch.testing.assert_close(soft_polysemanticity(activations[order], rows[order]), expected)
    # a channel's value is its own
    torch.testing.assert_close(soft_polysemanticity(activations[:, 2:3], rows), expected[2:3])


def test_descent_brings_a_channel_to_one_group():
    rng = torch.Generator().manual_seed(4)
    rows = 0.3 * torch.randn(60, 6, generator=rng)
    rows[:, 0] += 2 * (torch.arange(60) % 2 * 2 - 1)
    rows = normalize(rows, dim=1)
    free = torch.randn(60, 5, generator=rng).requires_grad_()

    def groups():
        return (free.detach().topk(10, dim=0).indices % 2).float().mean(0)

    assert ((groups() - 0.5).abs() < 0.45).all()
    before = soft_polysemanticity(free, rows, share=1 / 6).detach()
    optimiser = torch.optim.Adam([free], lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        soft_polysemanticity(free, rows, share=1 / 6).sum().backward()
        optimiser.step()
    after = soft_polysemanticity(free, rows, share=1 / 6).detach()
    assert (after < before - 0.2).all()
    assert ((groups() - 0.5).abs() > 0.45).all()


def test_weights_of_the_top():
    rng = torch.Generator().manual_seed(0)
    weights = top_weights(torch.randn(20000, 2, generator=rng), 0.05)
    values = weights[0].sort(descending=True).values
    assert values[999] > 0.5 > values[1000]
    assert 0.2 < float(values[1000:].sum()) / 1000 < 0.6  # what the rest weighs
    # the logit is linear in the activation: its mean over the top is 2
    assert float(torch.logit(values[:1000].double()).mean()) == pytest.approx(2, abs=0.15)


def test_degenerate_channels_have_a_value_and_a_gradient():
    rows = normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(2)), dim=1)
    for values in (
        torch.ones(20, 1),
        (torch.arange(20) == 3).float()[:, None],
        (torch.arange(20) < 2).float()[:, None],
    ):
        free = values.clone().requires_grad_()
        for embeddings in (rows, rows[:1].expand(20, 5)):
            found = soft_polysemanticity(free, embeddings, share=0.1)
            (gradient,) = torch.autograd.grad(found.sum(), free)
            assert 0 <= float(found.detach()) <= 1
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("activations", "embeddings", "options", "error"),
    [
        ((4,), (4, 3), {}, r"expected activations \[B, C\] .* got \[4\] and \[4, 3\]"),
        ((4, 2), (5, 3), {}, r"same B >= 3 images, got \[4, 2\] and \[5, 3\]"),
        ((2, 2), (2, 3), {}, "B >= 3"),
        ((4, 2), (4, 4), {}, "unit rows"),
        ((4, 2), (4, 1), {"share": 1.0}, "share must lie in"),
        ((4, 2), (4, 1), {"steps": 0}, "steps be at least 1"),
    ],
)
def test_bad_input_ends_in_one_line(activations, embeddings, options, error):
    with pytest.raises((InputError, ConfigError), match=error):
        soft_polysemanticity(torch.ones(activations), torch.ones(embeddings), **options)
