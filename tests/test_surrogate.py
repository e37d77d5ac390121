"""The stand-in for PSI: against a plain replica, its gradient, its invariances, and that it falls by descent."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import silhouette_score
from torch.nn.functional import normalize

from psi_fast.errors import InputError
from psi_fast.surrogate import Calibration, Measures, SoftScores, _agreement, calibrated, soft_measures, top_weights
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.cluster import cluster

TOP, K_MAX = 12, 3


def groups(distance, count=4, images=18, width=8, seed=0, labelled=True):
    """Activations [C, M], Gram matrices and labels of channels whose images lie in two groups that far apart."""
    rng = np.random.default_rng(seed)
    rows = 0.4 * rng.normal(size=(count, images, width))
    group = np.arange(images) % 2
    rows[:, :, 0] += 1
    rows[:, :, 1] += distance * (group - 0.5)
    rows = normalize(torch.from_numpy(rows), dim=2)
    activations = torch.from_numpy(np.sort(rng.normal(size=(count, images)), axis=1)[:, ::-1].copy())
    labels = np.tile(group, (count, 1)) if labelled else rng.integers(0, 2, (count, images))
    return activations, rows @ rows.mT, torch.from_numpy(labels)


def measured(activations, gram, labels, **options):
    return soft_measures(activations, gram, labels, **({"top_k": TOP, "k_max": K_MAX} | options))


def starts(gram):
    """The k-means clusters of the tops."""
    ids = torch.arange(len(gram))
    top = gram[:, :TOP, :TOP].float().contiguous()
    about = {"seed": 0, "stream": Stream.OBSERVED_STARTS, "channel": ids, "draw": torch.zeros_like(ids)}
    return cluster(top, k_max=K_MAX, n_init=4, **about).labels.numpy()


def replica(values, gram, labels, first):
    """One channel, sum by sum: values descending, `first` the clusters of its top."""
    border = (values[TOP - 1] + values[TOP]) / 2
    weights = 1 / (1 + np.exp(-5 * (values - border) / (values[TOP // 2] - border)))
    weights /= weights.sum()
    count, ks = len(values), range(first.max() + 1)
    distance = np.empty((count, len(ks)))
    for j in ks:
        share = np.where(np.pad(first, (0, count - TOP), constant_values=-1) == j, weights, 0)
        share = share / share.sum()
        distance[:, j] = [gram[i, i] - 2 * gram[i] @ share + share @ gram @ share for i in range(count)]
    within = sum(weights[i] * distance[i, first[i]] for i in range(TOP))
    parts = np.exp(-distance / (0.15 * within))
    parts /= parts.sum(1, keepdims=True)
    S = 0.0
    for i in range(count):
        for j in ks:
            means = []
            for other in ks:
                share = weights * parts[:, other]
                if other == j:
                    share[i] = 0
                means.append(share @ (1 - gram[i]) / share.sum())
            near = min(means[o] for o in ks if o != j)
            S += weights[i] * parts[i, j] * (near - means[j]) / max(near, means[j])
    mean = np.eye(count) - np.outer(np.ones(count), weights)
    clusters = mean @ sum(np.outer(parts[:, j], parts[:, j]) / (weights @ parts[:, j]) for j in ks) @ mean.T
    classes = mean @ (labels[:, None] == labels).astype(float) @ mean.T
    pairs, n = np.outer(weights, weights), 1 / (weights**2).sum()
    trace, square, diagonal = zip(
        *(
            (n * weights @ np.diag(own), n**2 * (pairs * own**2).sum(), n * weights @ np.diag(own) ** 2)
            for own in (clusters, classes)
        ),
        strict=True,
    )
    variance = 2 * np.prod([(n - 1) * two - one**2 for one, two in zip(trace, square, strict=True)])
    variance /= (n - 1) ** 2 * (n + 1) * (n - 2)
    rest = [
        n * (n + 1) * own - (n - 1) * (one**2 + 2 * two) for one, two, own in zip(trace, square, diagonal, strict=True)
    ]
    variance += np.prod(rest) / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    found = n**2 * (pairs * clusters * classes).sum() - np.prod(trace) / (n - 1)
    Q = found / np.sqrt(max(variance, 0) + (n / 4) ** 2)
    values = np.linalg.eigvalsh(np.sqrt(pairs) * (mean @ gram @ mean.T)).clip(0)
    return S, Q, (values**8).sum() ** (1 / 8) / values.sum(), values.sum()


@pytest.mark.parametrize("distance", [0.0, 1.5])
def test_it_is_what_the_definition_says(distance):
    activations, gram, labels = groups(distance, labelled=False)
    found = measured(activations, gram, labels)
    expected = [
        replica(values.numpy(), own.numpy(), classes.numpy(), first)
        for values, own, classes, first in zip(activations, gram, labels, starts(gram), strict=True)
    ]
    rows = torch.stack([found.S, found.Q, found.spectrum[:, 1], found.spectrum[:, 2]], 1)
    np.testing.assert_allclose(rows, np.array(expected), rtol=1e-6, atol=1e-7)
    assert (found.spectrum[:, 0] == 1).all()


def test_gradient_is_that_of_finite_differences():
    activations, gram, labels = groups(1.0, count=3, labelled=False)
    calibration = Calibration(torch.tensor([0.0, 0.8, -0.1]), torch.tensor([0.1, 0.05, -0.02]), 0.01, torch.ones(2))
    free = activations.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: calibration(measured(x, gram, labels)).penalty, free, atol=1e-6)
    (gradient,) = torch.autograd.grad(calibration(measured(free, gram, labels)).penalty.sum(), free)
    assert (gradient.abs().amax(1) > 1e-3).all()


def test_with_a_clear_top_and_groups_it_is_the_silhouette():
    activations, gram, labels = groups(6.0)
    activations[:, :TOP] += 1e4  # the rest weighs nothing
    activations[:, :TOP] -= 1e-3 * activations[:, :TOP]
    found = measured(activations, gram, labels)
    expected = [
        silhouette_score(1 - own[:TOP, :TOP].clamp(max=1), np.arange(TOP) % 2, metric="precomputed") for own in gram
    ]
    np.testing.assert_allclose(found.S, expected, atol=2e-3)


def test_both_parts_rise_with_the_distance_of_groups_and_their_labels():
    made = [groups(distance, count=20) for distance in (0.0, 1.0, 2.0, 4.0)]
    each = [measured(activations, gram, labels) for activations, gram, labels in made]
    for name in ("S", "Q"):
        means = [float(getattr(own, name).mean()) for own in each]
        assert means == sorted(means)
    assert float(each[-1].Q.mean()) > 5
    activations, gram, labels = groups(4.0, count=200, labelled=False)
    independent = measured(activations, gram, labels).Q
    assert abs(float(independent.mean())) < 0.25  # less its mean, over its deviation
    assert 0.7 < float(independent.std()) < 1.4
    one_class = measured(activations, gram, torch.zeros_like(labels)).Q
    assert one_class.abs().max() < 1e-6


@pytest.mark.parametrize("case", ["balanced", "one of twelve", "many"])
def test_agreement_is_in_deviations_of_permuted_labels(case):
    rng = np.random.default_rng(0)
    made = {"balanced": np.arange(TOP) % 2, "one of twelve": np.arange(TOP) // 11, "many": rng.integers(0, 4, TOP)}[
        case
    ]
    labels = np.where(rng.random(TOP) < 0.2, 0, made) if case != "one of twelve" else made
    weights = torch.full((1, TOP), 1 / TOP, dtype=torch.float64)
    parts = torch.nn.functional.one_hot(torch.from_numpy(made)).double()[None]

    def agreement(own):
        return float(_agreement(torch.from_numpy(own[:, None] == own)[None].double(), weights, parts))

    deviation = np.std([agreement(rng.permutation(labels)) for _ in range(2000)])
    assert np.mean([agreement(rng.permutation(labels)) for _ in range(2000)]) == pytest.approx(0, abs=0.1)
    assert 0.7 < deviation < 1.02  # less than 1 by what is added to the variance
    assert agreement(labels) > 1.5


def test_order_scale_and_shift_do_not_matter():
    activations, gram, labels = groups(1.0)
    expected = measured(activations, gram, labels)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    for found in (
        measured(7 * activations - 40, gram, labels),
        measured(activations[:, order], gram[:, order][:, :, order], labels[:, order]),
    ):
        for name in ("S", "Q", "spectrum"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_descent_lowers_what_psi_is_made_of():
    """Two thirds of a channel's top are of one group at first."""
    activations, gram, labels = groups(1.5, count=8, images=60)
    activations = activations + 0.5 * (labels == 0)
    free = activations.clone().requires_grad_()
    fit = Calibration(torch.tensor([0.0, 0.9, 0.0]), torch.tensor([0.05, 0.0, 0.0]), 0.01, torch.tensor([0.0, 1.0]))

    before = fit(measured(free, gram, labels))
    optimiser = torch.optim.Adam([free], lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        fit(measured(free, gram, labels)).penalty.sum().backward()
        optimiser.step()
    after = fit(measured(free, gram, labels))
    assert (after.penalty < before.penalty).all()
    assert float((before.Q_z - after.Q_z).detach().mean()) > 1
    assert float((before.S_z - after.S_z).detach().mean()) > 0.5


def test_a_calibration_finds_the_lines_it_was_made_with():
    rng = torch.Generator().manual_seed(0)
    S, Q, share, variance, z = torch.rand(5, 50, generator=rng, dtype=torch.float64)
    spectrum = torch.stack([torch.ones_like(S), share, variance], 1)
    deviation = spectrum @ torch.tensor([0.1, 0.05, -0.04], dtype=torch.float64)
    S = z * deviation + spectrum @ torch.tensor([0.2, 0.7, -0.1], dtype=torch.float64)
    wanted = 0.5 + 2 * Q
    wanted[3] = torch.nan  # left out
    fit = calibrated(Measures(S, Q, spectrum), z, deviation, wanted)
    found = fit(Measures(S, Q, spectrum))
    torch.testing.assert_close(found.S_z, z)
    torch.testing.assert_close(found.Q_z, 0.5 + 2 * Q)
    assert fit.least == pytest.approx(float(deviation[torch.arange(50) != 3].min()) / 2)
    beyond = Measures(S[:1], Q[:1], torch.tensor([[0.0, 0.0, 50.0]], dtype=torch.float64))  # the line is negative there
    expected = (S[:1] - beyond.spectrum @ fit.null) / fit.least
    torch.testing.assert_close(fit(beyond).S_z, expected)
    with pytest.raises(InputError, match="needs at least 8 channels with finite z, got 7"):
        calibrated(*(Measures(S[:8], Q[:8], spectrum[:8]), z[:8], deviation[:8], wanted[:8]))


def test_scores_combine_as_psi_does():
    z = torch.tensor([-2.0, 0.0, 3.0, 300.0], dtype=torch.float64)
    found = SoftScores(z, torch.tensor([1.0, 0.0, 3.0, 400.0], dtype=torch.float64))
    psi = 1 / (1 + np.exp(-z.numpy())) / (1 + np.exp(-found.Q_z.numpy()))
    np.testing.assert_allclose(found.log_psi.exp(), psi)
    hats = [1 / (1 + np.exp(-own.numpy()[:3])) for own in (z, found.Q_z)]
    np.testing.assert_allclose(found.penalty[:3], -np.log(1 - hats[0]) - np.log(1 - hats[1]))
    assert float(found.penalty[3]) == pytest.approx(700)  # where PSI is 1, its slope is not 0


def test_weights_of_the_top():
    values = torch.sort(torch.randn(50, 40, generator=torch.Generator().manual_seed(0)), dim=1, descending=True).values
    weights = top_weights(values, TOP)
    torch.testing.assert_close(weights.sum(1), torch.ones(50))
    whole = weights / weights.amax(1, keepdim=True)
    assert (whole[:, TOP - 1] > 0.5 * 0.999).all()
    assert (whole[:, TOP] < 0.51).all()
    assert (weights.diff(dim=1) <= 0).all()
    count = 1 / weights.square().sum(1)
    assert TOP < float(count.mean()) < 1.5 * TOP


def test_degenerate_channels_have_a_value_and_a_gradient():
    activations, gram, labels = groups(1.0, count=2)
    for values, own in (
        (torch.ones_like(activations), gram),
        (activations, torch.ones_like(gram)),
        ((torch.arange(18) < 3).double().expand(2, -1), gram),
    ):
        free = values.clone().requires_grad_()
        found = measured(free, own, labels)
        for part in (found.S, found.Q, found.spectrum):
            (gradient,) = torch.autograd.grad(part.sum(), free, retain_graph=True, allow_unused=True)
            assert torch.isfinite(part).all()
            assert gradient is not None
            assert torch.isfinite(gradient).all()


def test_it_follows_the_separation_over_its_null_of_the_same_spectrum():
    """Channels of one stretched cloud and of two groups, of every share of the leading axis: only the second are polysemantic."""
    rng = np.random.default_rng(3)
    rows, several = [], []
    for channel in range(160):
        own = rng.normal(size=(18, 10)) * np.r_[1.0, np.full(9, rng.uniform(0.2, 0.7))]
        if channel % 2:
            own[:, 0] = np.where(np.arange(18) % 2, 1, -1) + 0.1 * rng.normal(size=18)
        own += np.r_[np.zeros(9), 4.0]
        rows.append(own)
        several.append(channel % 2)
    rows = normalize(torch.from_numpy(np.array(rows)), dim=2)
    activations = torch.from_numpy(np.sort(rng.normal(size=(160, 18)), axis=1)[:, ::-1].copy())
    found = measured(activations, rows @ rows.mT, torch.zeros(160, 18, dtype=torch.int64))
    several = np.array(several, dtype=bool)
    null = np.linalg.lstsq(found.spectrum[~several].numpy(), found.S[~several].numpy(), rcond=None)[0]
    z = found.S.numpy() - found.spectrum.numpy() @ null
    raw, calibrated_z = (
        stats.mannwhitneyu(own[several], own[~several]).statistic / 80**2 for own in (found.S.numpy(), z)
    )
    assert calibrated_z > max(raw + 0.05, 0.8)


@pytest.mark.parametrize(
    ("shapes", "options", "error"),
    [
        (
            ((2, 18), (2, 18, 17), (2, 18)),
            {},
            r"expected activations \[C, M\].*got \[2, 18\], \[2, 18, 17\], \[2, 18\]",
        ),
        (((2, 18), (2, 18, 18), (2, 17)), {}, r"labels \[C, M\], got"),
        (((2, 12), (2, 12, 12), (2, 12)), {}, r"at least 2 \* k_max = 6 and less than the 12 candidates, got 12"),
        (((2, 18), (2, 18, 18), (2, 18)), {"top_k": 5}, "got 5"),
    ],
)
def test_bad_input_ends_in_one_line(shapes, options, error):
    activations, gram, labels = (torch.ones(shape) for shape in shapes)
    with pytest.raises(InputError, match=error):
        measured(activations, gram, labels.long(), **options)
    with pytest.raises(InputError, match="unit rows"):
        measured(activations=groups(1.0)[0], gram=2 * groups(1.0)[1], labels=groups(1.0)[2])
