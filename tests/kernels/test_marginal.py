"""The rotation `marginal`: the unimodal distributions of the leading axes, the strata of its draws, and its backends."""

import numpy as np
import pytest
import replicas
import torch
from scipy import stats

from psi_fast_kernels.rotation_null import (
    Tangent,
    marginals,
    reference,
    rotation_null,
    rotation_pool,
    tangent_space,
)

SAMPLES = {
    "normal": lambda rng: rng.normal(size=50),
    "skewed": lambda rng: rng.exponential(size=51),
    "two modes": lambda rng: np.concatenate([rng.normal(-2, 0.5, 24), rng.normal(2, 0.5, 16)]),
    "uniform": lambda rng: rng.uniform(size=30),
    "few": lambda rng: rng.normal(size=4),
    "near ties": lambda rng: np.round(rng.normal(size=40), 1) + 1e-3 * np.arange(40),
}
TIGHT = 2e-6  # the replica's bisection ends at 1e-6
UNIFORM_PART = 0.01 * np.sqrt(12) * (np.linspace(0, 1, marginals.CELLS + 1) - 0.5)
# how far a float32 draw may lie from that of torch
NEAR = {"numba": 1e-6, "triton": 1e-6}
# K, width, k_max, n_init
SHAPES = [(4, 3, 2, 1), (7, 4, 2, 2), (13, 64, 3, 2), (40, 6, 3, 1)]


def samples_of(name: str) -> np.ndarray:
    """Sorted samples of mean 0 and variance 1 that are skewed to the right."""
    x = SAMPLES[name](np.random.default_rng(0))
    x = (x - x.mean()) / x.std()
    return np.sort(x if (x**3).sum() >= 0 else -x)


def fit_of(x: np.ndarray) -> tuple[float, np.ndarray]:
    fit = np.empty(len(x))
    return marginals.narrowest_tube(x, fit), fit


def axes_of(*columns: np.ndarray) -> torch.Tensor:
    """Unit columns [1, K, m]."""
    return torch.from_numpy(np.stack([x / np.linalg.norm(x) for x in columns], axis=1))[None]


def gram_of(samples: int, width: int, channels: int) -> torch.Tensor:
    rng = np.random.default_rng(samples)
    rows = torch.from_numpy(np.stack([replicas.gaussian_cloud(samples, width, rng) for _ in range(channels)]))
    return rows @ rows.mT


# ---- the unimodal distribution of an axis


@pytest.mark.parametrize("name", SAMPLES)
def test_taut_string_is_the_replicas(name):
    x = samples_of(name)
    radius, fit = fit_of(x)
    expected, heights = replicas.unimodal_fit(tuple(x))
    assert abs(radius - expected) < TIGHT
    np.testing.assert_allclose(fit, heights, atol=TIGHT)


@pytest.mark.parametrize("name", SAMPLES)
def test_density_has_one_mode_and_no_narrower_tube_leaves_one(name):
    x = samples_of(name)
    radius, fit = fit_of(x)
    assert np.abs(fit - np.linspace(0, 1, len(x))).max() <= radius + 1e-12
    density = np.diff(fit) / np.diff(x)
    steps = np.sign(np.diff(density)) * (np.abs(np.diff(density)) > 1e-9 * density.max())
    steps = steps[steps != 0]
    assert (density >= 0).all()
    assert (np.diff(steps) <= 0).all()  # rises, then falls
    string = np.empty_like(x)
    assert marginals.taut_string(x, radius, string)
    assert radius < 1e-6 or not marginals.taut_string(x, 0.999 * radius, string)


@pytest.mark.parametrize("name", SAMPLES)
def test_quantiles_are_the_replicas_and_rise(name):
    x = samples_of(name)
    table = marginals.quantiles(axes_of(x))[0, 0].numpy()
    assert table.shape == (marginals.CELLS + 1,)
    assert (np.diff(table) >= 0).all()
    table -= UNIFORM_PART
    assert (table[0], table[-1]) == pytest.approx((x[0], x[-1]), abs=1e-12)
    # a flat stretch of the distribution function makes its inverse sensitive there: compare how much mass lies below
    _, heights = replicas.unimodal_fit(tuple(x))
    np.testing.assert_allclose(np.interp(table, x, heights), np.linspace(0, 1, len(table)), atol=2 * TIGHT)


def test_two_clusters_turn_into_one_plateau():
    x = samples_of("two modes")
    table = marginals.quantiles(axes_of(x))[0, 0].numpy()
    gap = np.diff(x).max()
    assert gap > 0.8
    assert np.diff(table)[4:-4].max() < gap / 4


def test_a_skewed_axis_keeps_its_tail():
    x = samples_of("skewed")
    drawn = np.interp(
        np.random.default_rng(0).random(100_000), np.linspace(0, 1, 129), marginals.quantiles(axes_of(x))[0, 0]
    )
    assert stats.skew(drawn) > 0.7 * stats.skew(x) > 0.7


def test_an_axis_and_its_opposite_have_the_same_quantiles():
    """The sign of a principal axis is the library's choice, so it must not reach the draws."""
    x = samples_of("skewed")
    both = marginals.quantiles(axes_of(x, -x))
    torch.testing.assert_close(both[0, 0], both[0, 1], rtol=0, atol=1e-14)


def test_tables_do_not_depend_on_threads(monkeypatch):
    axes = torch.linalg.qr(torch.randn(9, 40, 8, dtype=torch.float64)).Q
    whole = marginals.quantiles(axes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(marginals.quantiles(axes), whole)
    assert torch.equal(marginals.quantiles(axes[4:5]), whole[4:5])


def test_only_marginal_takes_the_time_for_quantiles():
    gram = gram_of(12, 8, 2)
    assert tangent_space(gram, 8, rotation="marginal").quantiles.shape == (2, 4, marginals.CELLS + 1)
    assert tangent_space(gram, 8, rotation="unimodal").quantiles.shape == (2, 0, marginals.CELLS + 1)


# ---- a draw's numbers


@pytest.mark.parametrize("samples", [4, 9, 100])
def test_each_draw_has_as_many_samples_in_either_stratum(samples):
    u = rotation_pool(samples, 64, rotation="marginal", draws=range(40), seed=5, dtype=torch.float64).columns.numpy()
    assert u.shape == (40, min(8, (samples - 1) // 2), samples)
    lower = (samples + 1) // 2
    assert ((u < lower / samples).sum(2) == lower).all()
    assert (u > 0).all()
    assert (u < 1).all()


def test_strata_are_shuffled_and_places_uniform():
    u = rotation_pool(9, 64, rotation="marginal", draws=range(2000), seed=5, dtype=torch.float64).columns.numpy()
    error = (5 / 9 * 4 / 9 / 2000) ** 0.5
    assert np.abs((u < 5 / 9).mean(0) - 5 / 9).max() < 4.5 * error
    # every entry alone is uniform; those of one row are not independent
    assert min(stats.kstest(u[:, j, i], "uniform").pvalue for j in range(4) for i in range(9)) > 1e-4
    rows = u.reshape(-1, 9)
    between = np.corrcoef(np.concatenate([rows, u[:, [1, 2, 3, 0]].reshape(-1, 9)], axis=1).T)[:9, 9:]
    assert np.abs(between).max() < 4.5 / len(rows) ** 0.5


def test_columns_are_quantiles_between_the_tables_points():
    samples, width = 20, 64
    space = tangent_space(gram_of(samples, width, 2), width, rotation="marginal")
    pool = rotation_pool(samples, width, rotation="marginal", draws=range(3), seed=1, dtype=torch.float64)
    c, b = torch.tensor([1, 0]), torch.tensor([2, 1])
    y = reference._columns(space, pool, "marginal", c, b)
    grid = np.linspace(0, 1, marginals.CELLS + 1)
    for n in range(2):
        for j in range(8):
            expected = np.interp(pool.columns[b[n], j], grid, space.quantiles[c[n], j])
            np.testing.assert_allclose(y[n, :, j], expected - expected.mean(), atol=1e-12)


def test_largest_float32_below_one_stays_in_the_table():
    """A place of float64 just below 1 is 1 in float32."""
    space = tangent_space(gram_of(8, 8, 1).float(), 8, rotation="marginal")
    pool = rotation_pool(8, 8, rotation="marginal", draws=range(1), seed=0)
    pool.columns[0, 0, 0] = 1.0
    c = torch.zeros(1, dtype=torch.int64)
    y = reference._columns(space, pool, "marginal", c, c)[0]
    rest = reference._columns(space, pool._replace(columns=pool.columns.clamp(max=1 - 2**-24)), "marginal", c, c)[0]
    torch.testing.assert_close(y, rest, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_data_of_another_rotation_are_refused(backend):
    space = tangent_space(gram_of(12, 8, 2), 8, rotation="radial")
    pool = rotation_pool(12, 8, rotation="marginal", draws=range(2), seed=0, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"must be those of rotation 'marginal' .*takes 0 rows of columns, the pool has 4"
    ):
        rotation_null(
            space, pool, rotation="marginal", k_max=2, n_init=1, seed=0, channel=torch.arange(2), backend=backend
        )


# ---- the backends


def draw(backend: str, device: torch.device, space: Tangent, rotation: str, shape: tuple, draws: range) -> torch.Tensor:
    samples, width, k_max, n_init = shape
    pool = rotation_pool(
        samples, width, rotation=rotation, draws=draws, seed=3, dtype=space.angles.dtype, device=device
    )
    space = Tangent(*(part.to(device) for part in space))
    channel = torch.arange(len(space.angles), device=device)
    given = {"k_max": k_max, "n_init": n_init, "seed": 3, "channel": channel, "backend": backend}
    return rotation_null(space, pool, rotation=rotation, **given).cpu()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rotation", ["marginal", "unimodal"])
@pytest.mark.parametrize("backend", NEAR)
def test_backends_give_the_draws_of_torch(backend, rotation, shape, triton_device):
    space = tangent_space(gram_of(*shape[:2], 2).float(), shape[1], rotation=rotation)
    device = triton_device if backend == "triton" else torch.device("cpu")
    ours = draw(backend, device, space, rotation, shape, range(3))
    theirs = draw("torch", torch.device("cpu"), space, rotation, shape, range(3))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=NEAR[backend])
    assert len(theirs.unique()) > 1


@pytest.mark.parametrize("backend", NEAR)
def test_samples_that_coincide_but_for_one(backend, triton_device):
    """Their distribution function is a step: what a draw varies by is the uniform part."""
    rows = np.repeat(replicas.unit(np.random.default_rng(0).normal(size=(2, 1, 8))), 24, axis=1)
    rows[:, -1, 0] += 1
    x = torch.from_numpy(replicas.unit(rows)).float()
    space = tangent_space(x @ x.mT, 8, rotation="marginal")
    device, shape = triton_device if backend == "triton" else torch.device("cpu"), (24, 8, 2, 1)
    ours = draw(backend, device, space, "marginal", shape, range(4))
    theirs = draw("torch", torch.device("cpu"), space, "marginal", shape, range(4))
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("samples", "width"), [(5, 4), (31, 40), (60, 9)])
def test_numba_gives_the_draws_of_torch_in_float64(samples, width):
    space = tangent_space(gram_of(samples, width, 3), width, rotation="marginal")
    cpu = torch.device("cpu")
    ours, theirs = (
        draw(name, cpu, space, "marginal", (samples, width, 2, 2), range(20)) for name in ("numba", "torch")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_neither_company_nor_parts_change_a_bit(backend, triton_device):
    device = triton_device if backend == "triton" else torch.device("cpu")
    shape = (12, 8, 2, 1)
    space = tangent_space(gram_of(12, 8, 3).float(), 8, rotation="marginal")
    whole = draw(backend, device, space, "marginal", shape, range(4))
    assert torch.equal(draw(backend, device, space, "marginal", shape, range(1, 4)), whole[:, 1:])
    assert torch.equal(draw(backend, device, space.rows(slice(0, 2)), "marginal", shape, range(4)), whole[:2])
