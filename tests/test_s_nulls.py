"""The study of the S nulls: every family is what its name says, and the default null keeps its documented rates."""

import csv
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import isotonic_regression

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FAMILIES = runpy.run_path(str(BENCHMARKS / "families.py"))
SAMPLES = 2000

# width, length of the mean, skewness and kurtosis of the leading axis: the scores' own, less what the sphere takes off
SHAPES = {
    "unit": (64, 2 / (4 + 4.74) ** 0.5, 0.0, 2.5),
    "cone": (512, 3 / (9 + 6.82) ** 0.5, 0.0, 2.6),
    "isotropic": (512, 0.0, 0.0, 3.0),
    "heavy-tailed": (512, 0.72, 0.0, 2.75),
    "steep": (512, 2 / (4 + 2.53) ** 0.5, 0.0, 2.3),
    "narrow": (16, 2 / (4 + 3.38) ** 0.5, 0.0, 2.4),
    "heavier-tailed": (512, 0.69, 0.0, 2.8),
    "scales": (512, 0.86, 0.0, 3.8),
    "skewed": (512, 3 / (9 + 6.82) ** 0.5, 0.7, 2.9),
    "exponential": (512, 3 / (9 + 6.82) ** 0.5, 1.4, 4.6),
    "segment": (64, 0.93, 0.0, 1.8),
    "arc": (64, 0.93, 0.0, 1.5),
    "cap": (16, 0.73, 0.0, 2.0),
    "like images": (1280, 0.0, 0.0, 2.7),
    "like a class": (1280, 0.48, 0.0, 2.9),
}
FLATTER_THAN_UNIMODAL = ("arc",)  # half a circle seen along its chord is densest at its ends
CENTRES = {
    "two far": (0.5, 0.5),
    "two near": (0.5, 0.5),
    "85 : 15": (0.85, 0.15),
    "three far": (1 / 3, 1 / 3, 1 / 3),
    "three near": (1 / 3, 1 / 3, 1 / 3),
}


def drawn(name: str) -> np.ndarray:
    return (FAMILIES["NULLS"] | FAMILIES["POWER"])[name](SAMPLES, np.random.default_rng(0))


@cache
def leading_axis(name: str) -> np.ndarray:
    """Scores of variance 1 on a family's first principal axis, sorted."""
    x = drawn(name)
    x = x - x.mean(0)
    return np.sort(stats.zscore(x @ np.linalg.eigh(x.T @ x)[1][:, -1]))


def distance_to_unimodal(x: np.ndarray) -> float:
    """Largest distance between the distribution function of the sorted samples and its unimodal fit, over modes."""
    n, gaps = len(x), np.diff(x)
    counts, best = np.linspace(0, 1, n), np.inf
    density = np.diff(counts) / gaps
    for mode in range(0, n, n // 100):
        parts = [
            isotonic_regression(density[part], sample_weight=gaps[part], increasing=increasing)
            for part, increasing in ((slice(0, mode), True), (slice(mode, n - 1), False))
            if len(density[part])
        ]
        fit = np.concatenate([[0], np.cumsum(np.concatenate(parts) * gaps)])
        best = min(best, float(np.abs(fit - counts).max()))
    return best


def test_every_null_family_is_described():
    assert SHAPES.keys() == FAMILIES["NULLS"].keys()
    assert CENTRES.keys() == FAMILIES["POWER"].keys()


@pytest.mark.parametrize("name", SHAPES)
def test_null_family_has_its_moments(name):
    width, length, skewness, kurtosis = SHAPES[name]
    x = drawn(name)
    assert x.shape == (SAMPLES, width)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-12)
    assert abs(np.linalg.norm(x.mean(0)) - length) < 0.05
    axis = leading_axis(name)
    assert abs(abs(stats.skew(axis)) - skewness) < 0.35
    assert abs(stats.kurtosis(axis, fisher=False) - kurtosis) < 0.1 * kurtosis


@pytest.mark.parametrize("name", SHAPES)
def test_null_family_has_one_mode(name):
    # for any unimodal distribution the distance lies below that of the samples to it: 1.63 / sqrt(n) in 99 % of cases
    distance = distance_to_unimodal(leading_axis(name))
    assert (distance < 1.63 / SAMPLES**0.5) == (name not in FLATTER_THAN_UNIMODAL), distance


@pytest.mark.parametrize(("name", "freedom"), [("cone", np.inf), ("heavy-tailed", 5), ("heavier-tailed", 3)])
def test_tails_are_those_of_student_t(name, freedom):
    x = drawn(name)
    mean = x.mean(0) / np.linalg.norm(x.mean(0))
    across = x / (x @ mean)[:, None] - mean  # the scores before the rows were made unit, but for the mean's axis
    score = across @ np.linalg.svd(across, full_matrices=False)[2][0]
    levels = (0.025, 0.25, 0.75, 0.975)
    ends, quartiles = (np.ptp(np.quantile(score, pair)) for pair in (levels[::3], levels[1:3]))
    assert ends / quartiles == pytest.approx(stats.t.ppf(0.975, freedom) / stats.t.ppf(0.75, freedom), rel=0.1)


@pytest.mark.parametrize("name", CENTRES)
def test_power_family_has_its_clusters(name):
    shares = CENTRES[name]
    x = drawn(name)
    # samples come cluster by cluster
    which = np.repeat(np.arange(len(shares)), np.round(np.array(shares) * SAMPLES).astype(int))[:SAMPLES]
    which = np.pad(which, (0, SAMPLES - len(which)), mode="edge")
    means = np.stack([x[which == j].mean(0) for j in range(len(shares))])
    direction = np.linalg.qr((means[1:] - means[0]).T)[0]
    scores = x @ direction
    nearest = ((scores[:, None] - means @ direction) ** 2).sum(2).argmin(1)
    assert (nearest == which).mean() > 0.99


def test_real_spectra_are_those_of_unit_rows():
    table = np.genfromtxt(FAMILIES["SPECTRA"], delimiter=",", names=True)
    for kind in ("all", "class"):
        # unit rows: the variances and the squared mean sum to 1
        total = table[f"variance_{kind}"].sum() + (table[f"mean_{kind}"] ** 2).sum()
        assert total == pytest.approx(1, abs=0.02)
        assert (np.diff(table[f"variance_{kind}"]) <= 0).all()


# ---- the default null

NULL_FAMILIES = ("unit", "narrow", "skewed", "exponential")  # on the last three the next best null has .14, .21, .64
DOCUMENTED = 0.05  # the largest rate at 5 % that docs/s_nulls.md gives for these families and K = 50
DATA_SETS = 100


@pytest.fixture(scope="module")
def rates(tmp_path_factory) -> dict[str, float]:
    """Rejections at 5 % by family, measured as the documented table is, on fewer data sets."""
    results = tmp_path_factory.mktemp("s_nulls") / "s_nulls.csv"
    command = [sys.executable, str(BENCHMARKS / "s_nulls.py"), "--results", str(results), "--samples", "50",
               "--nulls", "marginal", "--data-sets", str(DATA_SETS), "--families", *NULL_FAMILIES, "two far"]  # fmt: skip
    for _ in range(2):  # the second run finds every cell done
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    with results.open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(NULL_FAMILIES) + 1
    return {cell["family"]: float(cell["rate_0.05"]) for cell in cells}


@pytest.mark.parametrize("family", NULL_FAMILIES)
def test_marginal_keeps_its_documented_false_alarms(rates, family):
    assert rates[family] <= DOCUMENTED + 3 * (DOCUMENTED * (1 - DOCUMENTED) / DATA_SETS) ** 0.5


def test_marginal_finds_planted_clusters(rates):
    assert rates["two far"] == 1
