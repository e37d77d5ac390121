"""The S nulls: the tangent space, what each rotation keeps, the moments of its draws, and independence of chunks."""

import numpy as np
import pytest
import replicas
import torch
from scipy import stats

from psi_fast_kernels.rotation_null import (
    ROTATIONS,
    pool,
    reference,
    rotation_null,
    rotation_pool,
    sphere,
    sphere_null,
    tangent,
    tangent_space,
)

STARTS = {"k_max": 4, "n_init": 2, "seed": 0}
# samples K, width d: narrow (d < K - 1), square, wide, prime
SHAPES = [(20, 3), (40, 5), (30, 30), (31, 30), (12, 64), (41, 97)]


def gram_of(x: np.ndarray) -> torch.Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(x))
    return rows @ rows.mT


def cloud(samples: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([replicas.gaussian_cloud(samples, width, rng) for _ in range(channels)])


def planted(samples: int, width: int, seed: int = 0) -> np.ndarray:
    """Two clusters on a cone: the leading axis is flatter than a normal one."""
    rng = np.random.default_rng(seed)
    x, _ = replicas.planted_clusters(samples, np.eye(width)[:2], rng, noise=0.8)
    return replicas.unit(x + 1.5 * np.eye(width)[2])


def pool_of(samples: int, width: int, rotation: str, draws: range = range(6), dtype: torch.dtype = torch.float64):
    return rotation_pool(samples, width, rotation=rotation, draws=draws, seed=0, dtype=dtype)


def drawn_vectors(x: np.ndarray, rotation: str, draws: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Tangent vectors F [B, K, r] and angles [B, K] of the draws for one channel x [K, d], from the unit vectors drawn."""
    samples, width = x.shape
    pool = pool_of(samples, width, rotation, range(draws))
    c, b = torch.zeros(draws, dtype=torch.int64), torch.arange(draws)
    points = reference._draw(tangent_space(gram_of(x[None]), width, rotation=rotation), pool, rotation, c, b)[
        :, :samples, :samples
    ].numpy()
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 1, atol=1e-12)
    angles = np.arccos(np.clip(points[..., -1], -1, 1))
    return points[..., :-1] * (angles / np.sin(angles))[..., None], angles


# ---- the tangent space


@pytest.mark.parametrize("kind", ["cloud", "planted"])
@pytest.mark.parametrize(("samples", "width"), SHAPES)
def test_tangent_space_equals_the_replica(samples, width, kind):
    x = cloud(samples, width) if kind == "cloud" else np.stack([planted(samples, width, seed) for seed in range(3)])
    found = tangent_space(gram_of(x), width, rotation="unimodal")
    for rows, spread, angles, weights in zip(x, *found[:3], strict=True):
        flat, peaked = weights.chunk(2)
        _, t = replicas.log_map(rows)
        u, s, _ = np.linalg.svd(t, full_matrices=False)
        expected = np.zeros(samples - 1)
        expected[: min(samples - 1, width)] = s[: samples - 1]
        m = min(8, min(samples - 1, width) // 2)
        # eigenvalues know squares only, so a zero comes out as the root of rounding
        np.testing.assert_allclose(spread, expected, atol=1e-6)
        np.testing.assert_allclose(angles, np.sort(np.linalg.norm(t, axis=1)), atol=1e-7)
        for ours, theirs in zip((flat, peaked), replicas.flat_weights(u[:, :m]), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_allclose(flat**2 + peaked**2, 1, atol=1e-12)


def test_tangent_space_of_an_exact_cone():
    ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    cone = np.c_[0.6 * np.cos(ring), 0.6 * np.sin(ring), np.full(24, 0.8)]
    found = tangent_space(gram_of(cone[None]), 3, rotation="unimodal")
    np.testing.assert_allclose(found.angles, np.full((1, 24), np.arccos(0.8)), atol=1e-9)
    np.testing.assert_allclose(found.spread[0, :2], np.full(2, np.arccos(0.8) * np.sqrt(12)), atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.0])
def test_tangent_space_of_points_around_a_right_angle(offset):
    """Centred embeddings lie about a right angle from their mean, where the mean converges slowly: the steps are counted."""
    x = replicas.gaussian_cloud(60, 40, np.random.default_rng(0), offset=offset)
    _, t = replicas.log_map(x, steps=tangent.MEAN_STEPS)
    found = tangent_space(gram_of(x[None]), 40, rotation="unimodal")
    np.testing.assert_allclose(found.angles[0], np.sort(np.linalg.norm(t, axis=1)), atol=1e-7)
    np.testing.assert_allclose(found.spread[0, :40], np.linalg.svd(t - t.mean(0), compute_uv=False), atol=1e-6)


def test_tangent_space_in_float32_is_that_of_float64():
    x = cloud(40, 64)
    exact, single = (tangent_space(gram_of(x.astype(t)), 64, rotation="marginal") for t in (np.float64, np.float32))
    for a, b, tolerance in zip(exact, single, (2e-3, 1e-4, 1e-2, 1e-2), strict=True):
        assert b.dtype == torch.float32
        np.testing.assert_allclose(a, b, atol=tolerance)


# ---- what a draw keeps


@pytest.mark.parametrize(("samples", "width"), SHAPES)
def test_tangent_draw_keeps_mean_and_covariance(samples, width):
    x = cloud(samples, width)[0]
    vectors, _ = drawn_vectors(x, "tangent")
    expected = np.linalg.svd(replicas.log_map(x)[1], compute_uv=False)
    for f in vectors:
        np.testing.assert_allclose(f.sum(0), 0, atol=1e-9)
        found = np.linalg.svd(f, compute_uv=False)[: len(expected)]
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@pytest.mark.parametrize("rotation", ["radial", "unimodal", "marginal"])
@pytest.mark.parametrize(("samples", "width"), SHAPES)
def test_angles_to_the_mean_are_kept(samples, width, rotation):
    x = cloud(samples, width)[0]
    _, angles = drawn_vectors(x, rotation)
    expected = np.sort(np.linalg.norm(replicas.log_map(x)[1], axis=1))
    np.testing.assert_allclose(np.sort(angles, axis=1), np.tile(expected, (6, 1)), atol=1e-7)
    assert not np.allclose(angles[0], angles[1])


def test_radial_keeps_the_directions_of_the_tangent_draw_and_the_rank_of_its_angles():
    x = cloud(30, 64)[0]
    (tangent, long), (radial, angles) = drawn_vectors(x, "tangent"), drawn_vectors(x, "radial")
    np.testing.assert_allclose(tangent / long[..., None], radial / angles[..., None], atol=1e-9)
    np.testing.assert_array_equal(long.argsort(1), angles.argsort(1))


@pytest.mark.parametrize("rotation", ["unimodal", "marginal"])
@pytest.mark.parametrize(("samples", "width"), SHAPES)
def test_the_leading_axes_are_turned_to_q_m(samples, width, rotation):
    space = tangent_space(gram_of(cloud(samples, width)), width, rotation=rotation)
    pool = pool_of(samples, width, rotation)
    c, b = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 5])
    q_m = reference._leading_axes(space, pool, rotation, c, b)
    turned = reference._turn_leading_axes(pool.mix[b], q_m)
    m = q_m.shape[-1]
    assert m == min(8, min(samples - 1, width) // 2)
    torch.testing.assert_close(turned[..., :m], q_m, rtol=0, atol=1e-9)
    eye = torch.eye(samples - 1, dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(turned.mT @ turned, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(turned.sum(1), torch.zeros_like(turned.sum(1)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("flat", [0.0, 0.6, 1.0])
def test_flat_columns_carry_the_kurtosis_they_are_asked_for(flat):
    """kappa = 3 - 1.2 a^4 of the mixture; orthonormalising 200 samples moves it little."""
    samples, draws = 200, range(80)
    pool = pool_of(samples, 64, "unimodal", draws)
    flat_part = torch.full((1, 8), flat, dtype=torch.float64)
    weights = torch.cat((flat_part, (1 - flat_part**2).sqrt()), dim=1)
    space = tangent_space(gram_of(cloud(samples, 8, 1)), 64, rotation="unimodal")._replace(weights=weights)
    c, b = torch.zeros(80, dtype=torch.int64), torch.arange(80)
    columns = reference._leading_axes(space, pool, "unimodal", c, b)
    kurtosis = samples * columns.pow(4).sum(1)
    error = float(kurtosis.std()) / kurtosis.numel() ** 0.5
    assert abs(float(kurtosis.mean()) - (3 - 1.2 * flat**4)) < 4 * error + 6 / samples


@pytest.mark.parametrize("size", [1, 5, 99])
def test_both_ways_to_orthogonal_factors_agree(size):
    x = torch.randn(20, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    q, failed = pool.by_cholesky(x)
    assert not failed
    torch.testing.assert_close(q, pool.by_reflections(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(q.mT @ q, torch.eye(size, dtype=x.dtype).expand_as(x), rtol=0, atol=1e-12)


def test_a_singular_matrix_is_told_from_the_others():
    x = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    x[1, 2] = x[1, 1]
    assert pool.by_cholesky(x)[1]


@pytest.mark.parametrize("rotation", ["radial", "gaussian"])
def test_pool_is_haar_or_normal(rotation):
    samples, draws = 9, range(4000)
    mix = pool_of(samples, 64, rotation, draws).mix.numpy()
    if rotation == "gaussian":
        assert stats.kstest(mix.ravel() * np.sqrt(samples - 1), "norm").pvalue > 0.01
        return
    np.testing.assert_allclose(mix.transpose(0, 2, 1) @ mix, np.tile(np.eye(samples - 1), (4000, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(mix.sum(1), 0, atol=1e-12)
    # an entry of Haar columns in the complement of 1 has variance 1 / K and no mean
    assert np.abs(mix.mean(0)).max() < 4.5 / np.sqrt(4000 * samples)
    np.testing.assert_allclose((mix**2).mean(0), 1 / samples, rtol=0.12)
    # one entry of a Haar matrix of size 8: its square is Beta(1/2, 7/2)
    inner = mix[:, 0, 0] / np.sqrt(1 - 1 / samples)
    assert stats.kstest(inner**2, stats.beta(0.5, 3.5).cdf).pvalue > 0.01


# ---- the moments of the draws


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(("kind", "samples", "width"), [("cloud", 50, 64), ("planted", 50, 64), ("cloud", 40, 5)])
def test_silhouettes_agree_with_the_replica(kind, samples, width, rotation):
    x = cloud(samples, width)[0] if kind == "cloud" else planted(samples, width)
    tangent = tangent_space(gram_of(x[None]), width, rotation=rotation)
    pool = pool_of(samples, width, rotation, range(400))
    ours = rotation_null(
        tangent, pool, rotation=rotation, k_max=3, n_init=3, seed=0, channel=torch.zeros(1, dtype=torch.int64)
    )[0].numpy()
    rng = np.random.default_rng(0)
    theirs = np.array([replicas.best_silhouette(replicas.rotate(x, rotation, rng), 3, 3, i) for i in range(80)])
    error = np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert 0.65 < ours.std(ddof=1) / theirs.std(ddof=1) < 1.5
    assert len(np.unique(ours)) > 390


def test_rotation_destroys_clusters():
    x, _ = replicas.planted_clusters(60, np.eye(64)[:3], np.random.default_rng(0), noise=0.4)
    observed = replicas.best_silhouette(x, 4, 3, 0)
    for rotation in ROTATIONS:
        drawn = rotation_null(
            tangent_space(gram_of(x[None]), 64, rotation=rotation),
            pool_of(60, 64, rotation, range(50)),
            rotation=rotation,
            **STARTS,
            channel=torch.zeros(1, dtype=torch.int64),
        )
        assert float(drawn.max()) < observed - 0.1, rotation


@pytest.mark.parametrize("width", [2, 3, 64])
def test_sphere_null_is_that_of_uniform_samples(width):
    ours = sphere_null(40, width, draws=range(300), k_max=3, n_init=3, seed=0, dtype=torch.float64).numpy()
    rng = np.random.default_rng(0)
    theirs = [replicas.best_silhouette(replicas.unit(rng.normal(size=(40, width))), 3, 3, i) for i in range(60)]
    error = np.sqrt(ours.var(ddof=1) / len(ours) + np.var(theirs, ddof=1) / len(theirs))
    assert abs(ours.mean() - np.mean(theirs)) < 4 * error


# ---- independence of chunks, blocks and other channels


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_change_no_bit(rotation, chunk, monkeypatch):
    tangent = tangent_space(gram_of(cloud(41, 20).astype(np.float32)), 20, rotation=rotation)
    pool = pool_of(41, 20, rotation, range(7), torch.float32)
    ids = torch.tensor([4, 9, 2])
    whole = rotation_null(tangent, pool, rotation=rotation, **STARTS, channel=ids)
    assert whole.shape == (3, 7)
    monkeypatch.setattr(reference, "draws_per_chunk", lambda *_, **__: chunk)
    assert torch.equal(rotation_null(tangent, pool, rotation=rotation, **STARTS, channel=ids), whole)
    for i in range(3):
        alone = rotation_null(tangent.rows(slice(i, i + 1)), pool, rotation=rotation, **STARTS, channel=ids[i : i + 1])
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_draw_does_not_depend_on_its_block(rotation):
    whole = pool_of(41, 20, rotation, range(9), torch.float32)
    for block in (range(1), range(3, 4), range(4, 9)):
        part = pool_of(41, 20, rotation, block, torch.float32)
        for name in whole._fields:
            assert torch.equal(getattr(part, name), getattr(whole, name)[block.start : block.stop]), name
    tangent = tangent_space(gram_of(cloud(41, 20).astype(np.float32)), 20, rotation=rotation)
    common = {"rotation": rotation, **STARTS, "channel": torch.arange(3)}
    late = rotation_null(tangent, pool_of(41, 20, rotation, range(4, 9), torch.float32), **common)
    assert torch.equal(late, rotation_null(tangent, whole, **common)[:, 4:])


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_sphere_chunks_change_no_bit(chunk, monkeypatch):
    whole, chunks = sphere_null(30, 17, draws=range(9), **STARTS), []
    monkeypatch.setattr(sphere, "rows_per_chunk", lambda *_, **__: (chunks.append(chunk), chunk)[1])
    assert torch.equal(sphere_null(30, 17, draws=range(9), **STARTS), whole)
    assert torch.equal(sphere_null(30, 17, draws=range(5, 9), **STARTS), whole[5:])
    assert chunks == [chunk, chunk]


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("samples", [4, 12, 40])
def test_narrow_and_small_data(samples, width, rotation):
    x = cloud(samples, width).astype(np.float32)
    drawn = rotation_null(
        tangent_space(gram_of(x), width, rotation=rotation),
        pool_of(samples, width, rotation, range(5), torch.float32),
        rotation=rotation,
        **STARTS,
        channel=torch.arange(3),
    )
    assert torch.isfinite(drawn).all()
    assert (drawn.abs() <= 1 + 1e-6).all()


def test_opposite_rows_lie_within_half_a_turn_of_their_mean():
    for seed, (samples, ahead) in enumerate([(12, 6), (12, 5), (20, 10), (40, 20), (40, 13)] * 4):
        one = torch.nn.functional.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)), dim=1)
        rows = torch.cat([one.repeat(ahead, 1), -one.repeat(samples - ahead, 1)])
        space = tangent_space((rows @ rows.T)[None], 16)
        assert space.angles.max() <= 1.01 * torch.pi
        assert space.spread.max() <= 1.01 * torch.pi * samples**0.5


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_equal_rows_give_a_null_without_variation(rotation):
    x = np.repeat(replicas.unit(np.random.default_rng(0).normal(size=(3, 1, 16))), 20, axis=1).astype(np.float32)
    pool = pool_of(20, 16, rotation, range(5), torch.float32)
    tangent = tangent_space(gram_of(x), 16, rotation=rotation)
    drawn = rotation_null(tangent, pool, rotation=rotation, **STARTS, channel=torch.arange(3))
    assert (drawn == 0).all()
