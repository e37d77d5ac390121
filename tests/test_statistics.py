"""Rates: what a p-value promises under its null, on fixed seeds."""

import numpy as np
import pytest
import replicas
from scipy import stats

from psi_fast import PSIConfig, score_embeddings

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
    """Isotropic images lie at random to the text: choosing concepts again makes D's p uniform."""
    rng = np.random.default_rng(4)
    x = np.stack([replicas.gaussian_cloud(40, 32, rng, decay=0.0, offset=0.0) for _ in range(200)])
    text = rng.normal(size=(50, 32))
    config = PSIConfig(draws=DRAWS, n_init=1, k_max=3, text_null="rotated", center=False)
    p = score_embeddings(x, text=text, config=config).table["D_p"].to_numpy()
    assert stats.kstest(p - rng.random(200) / (DRAWS + 1), "uniform").pvalue > 0.01


def test_psi_of_a_channel_under_all_three_nulls_is_about_an_eighth():
    rng = np.random.default_rng(5)
    x = np.stack([replicas.gaussian_cloud(40, 32, rng, decay=0.0, offset=0.0) for _ in range(150)])
    labels, text = rng.integers(12, size=(150, 40)), rng.normal(size=(50, 32))
    config = PSIConfig(draws=DRAWS, n_init=1, k_max=3, text_null="rotated", center=False)
    table = score_embeddings(x, labels=labels, text=text, config=config).table
    assert table["psi"].mean() < 0.20
    assert table["psi"].quantile(0.95) < 0.40
    assert (table["q"] < 0.05).mean() <= 0.02  # the largest of three p is conservative
