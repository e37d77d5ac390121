"""What a p-value promises under its null, and planted channels that must stand apart; on fixed seeds."""

import numpy as np
import pytest
import replicas
import torch
from scipy import stats

from psi_fast import PSIConfig, score_embeddings
from psi_fast.moments import moments
from psi_fast_kernels.text_null import distinctness, text_rotation_null, text_shuffle_null

LEVELS = (0.01, 0.05, 0.10, 0.20)
CHANNELS = 200
DRAWS = 99  # p falls on multiples of .01, so every level is met exactly


def gaussian_channels(kind: str, samples: int) -> np.ndarray:
    """Unclustered channels [C, K, d]: a cone of spectrum 1/i in 64 dimensions, or 64 and 512 equal ones around the origin."""
    rng = np.random.default_rng(7)
    width, decay, offset = {"cone": (64, 1.0, 2.0), "isotropic": (64, 0.0, 0.0), "wide": (512, 0.0, 0.0)}[kind]
    return np.stack([replicas.gaussian_cloud(samples, width, rng, decay=decay, offset=offset) for _ in range(CHANNELS)])


@pytest.mark.parametrize(("kind", "samples"), [("cone", 60), ("isotropic", 100), ("wide", 60)])
def test_s_p_values_never_exceed_their_level_on_gaussian_data(kind, samples):
    config = PSIConfig(draws=DRAWS, n_init=1, k_max=4, center=False)
    p = score_embeddings(gaussian_channels(kind, samples), config=config).table["S_p"].to_numpy()
    rates = {level: float(np.mean(p <= level + 1e-9)) for level in LEVELS}
    for level, rate in rates.items():
        assert rate <= level + 3 * np.sqrt(level * (1 - level) / CHANNELS), rates
    assert p.std() > 0.05  # they do vary


def test_s_p_values_are_small_for_clusters():
    rng = np.random.default_rng(0)
    x = np.stack([replicas.planted_clusters(60, np.eye(64)[:2], rng, noise=0.9)[0] for _ in range(20)])
    table = score_embeddings(x, config=PSIConfig(draws=DRAWS, n_init=1, k_max=4)).table
    assert (table["S_p"] == 0.01).all()


def test_q_p_values_are_uniform_under_exchangeable_labels():
    rng = np.random.default_rng(3)
    x = np.stack([replicas.gaussian_cloud(48, 24, rng) for _ in range(400)])
    labels = rng.integers(16, size=(400, 48))
    config = PSIConfig(draws=DRAWS, n_init=1, k_max=3, center=False)
    table = score_embeddings(x, labels=labels, config=config).table
    p = table["Q_p"].to_numpy()
    spread = rng.random(400) / (DRAWS + 1)  # between the multiples of .01
    assert stats.kstest(p - spread, "uniform").pvalue > 0.01
    # the z-score of an exchangeable channel is centred and of unit size, apart from the null's skew
    assert abs(table["Q_z"].mean()) < 4 / 20
    assert 0.8 < table["Q_z"].std() < 1.25


def test_d_p_values_of_random_prototypes_under_the_rotated_null():
    """Prototypes at random to the text: choosing concepts again makes D's p uniform. The draws are shared, hence many."""
    rng = np.random.default_rng(4)
    prototypes = torch.from_numpy(replicas.unit(rng.normal(size=(300, 3, 32))))
    text = torch.from_numpy(replicas.unit(rng.normal(size=(50, 32))))
    k = torch.full((300,), 3)
    drawn = text_rotation_null(prototypes, k, text, kind="gap", draws=range(4999), seed=0)
    p = moments(distinctness(prototypes, k, text, kind="gap").value, drawn).p.numpy()
    assert stats.kstest(p, "uniform").pvalue > 0.01
    shuffled = text_shuffle_null(
        prototypes, k, text, kind="gap", pool=None, draws=range(99), seed=0, channel=torch.arange(300)
    )
    chosen = moments(distinctness(prototypes, k, text, kind="gap").value, shuffled).p.numpy()
    assert np.mean(chosen <= 0.05) > 0.5  # random concepts leave the choice out, so they are no such null


def test_psi_of_a_channel_under_all_three_nulls_is_about_an_eighth():
    rng = np.random.default_rng(5)
    x = np.stack([replicas.gaussian_cloud(40, 32, rng, decay=0.0, offset=0.0) for _ in range(150)])
    labels, text = rng.integers(12, size=(150, 40)), rng.normal(size=(50, 32))
    config = PSIConfig(draws=DRAWS, n_init=1, k_max=3, text_null="rotated", center=False)
    table = score_embeddings(x, labels=labels, text=text, config=config).table
    assert table["psi"].mean() < 0.20
    assert table["psi"].quantile(0.95) < 0.40
    assert (table["q"] < 0.05).mean() <= 0.02  # the largest of three p is conservative


# ---- planted channels


def planted(seed: int = 0):
    """Twelve channels of two or three labelled clusters, then twelve of one blob."""
    rng = np.random.default_rng(seed)
    text = replicas.unit(rng.normal(size=(60, 32)))
    x, labels = np.empty((24, 40, 32)), np.empty((24, 40), dtype=np.int64)
    for c in range(24):
        chosen = rng.choice(60, 2 + c % 2 if c < 12 else 1, replace=False)
        x[c], which = replicas.planted_clusters(40, text[chosen], rng, noise=0.8)
        labels[c] = chosen[which] if c < 12 else rng.integers(5, size=40)
    return x, labels, text


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    return stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))


@pytest.mark.parametrize(
    "changes",
    [{}, {"rotation": "radial"}, {"text_null": "rotated"}, {"distinctness": "pairwise"}, {"text_pool": "layer"}],
    ids=str,
)
def test_planted_polysemantic_channels_stand_apart(changes):
    x, labels, text = planted()
    table = score_embeddings(x, labels=labels, text=text, config=PSIConfig(draws=40, n_init=2, **changes)).table
    log_psi = table["log_psi"].to_numpy()
    assert auroc(log_psi[:12], log_psi[12:]) == 1
    assert table["k"][:12].tolist() == [2, 3] * 6
    assert (table["S_p"][:12] <= 1 / 41 + 1e-12).all()


def test_paper_preset_runs_the_independent_null():
    x, labels, text = planted()
    config = PSIConfig.preset("paper", draws=20, n_init=2)
    table = score_embeddings(x, labels=labels, text=text, config=config).table
    assert (table["S_z"] == table["S_z_independent"]).all()
    assert table["S_null_mean"].nunique() == 1


def test_random_percentile_compares_with_background_patches():
    x, labels, text = planted()
    rng = np.random.default_rng(5)
    background = replicas.unit(rng.normal(size=(200, 32)))
    table = score_embeddings(
        x, labels=labels, text=text, background=background, background_labels=rng.integers(20, size=200),
        config=PSIConfig(draws=20, n_init=1, k_max=3),
    ).table  # fmt: skip
    assert (table["random_percentile"][:12] >= 99).all()
    assert table["random_percentile"][12:].mean() < 90
    np.testing.assert_allclose(table["random_percentile"], table["random_percentile"].round())  # a hundred channels
