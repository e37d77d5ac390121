"""Null size: data sets have the shape they say, nulls keep their level on them, and clusters are found where there are some."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_experiment_planted import CONFIG, colours

from psi_fast.errors import ConfigError
from psi_fast.experiments import null_shapes as shapes
from psi_fast.experiments import null_size
from psi_fast.experiments.null_size import ROTATIONS

SMALL = replace(CONFIG, top_k=16, k_max=3, n_init=1, draws=19)


def cone(samples=60, width=30, seed=0):
    """A cloud of spectrum 1/i around a mean."""
    rng = np.random.default_rng(seed)
    return shapes.unit(rng.normal(size=(samples, width)) * (1 + np.arange(width)) ** -0.5 * 0.4 + np.eye(width)[-1] * 2)


def in_tangent_space(rows, mean):
    tangent = shapes.log_map(rows, mean)
    return tangent, np.cov(tangent.T)


def many(family, rows, times=200):
    rng = np.random.default_rng(0)
    return np.concatenate([family(rows, rng) for _ in range(times)])


def test_maps_are_each_others_inverse():
    rows = cone()
    mean = shapes.mean_direction(rows)
    tangent = shapes.log_map(rows, mean)
    np.testing.assert_allclose(np.linalg.norm(tangent, axis=1), np.arccos(rows @ mean), atol=1e-10)
    np.testing.assert_allclose(tangent @ mean, 0, atol=1e-12)
    np.testing.assert_allclose(tangent.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(shapes.exponential(tangent, mean), rows, atol=1e-12)


@pytest.mark.parametrize("family", [shapes.gaussian, shapes.own_angles, shapes.heavy_tailed])
def test_a_family_has_the_channels_mean_and_spectrum(family):
    rows = cone()
    made = many(family, rows)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-9)
    mean = shapes.mean_direction(rows)
    assert shapes.mean_direction(made) @ mean > 0.999
    _, expected = in_tangent_space(rows, mean)
    _, found = in_tangent_space(made, mean)
    np.testing.assert_allclose(np.trace(found), np.trace(expected), rtol=0.1)
    leading = np.linalg.eigh(expected)[1][:, -3:]
    np.testing.assert_allclose(np.diag(leading.T @ found @ leading), np.diag(leading.T @ expected @ leading), rtol=0.15)


def test_families_differ_in_what_their_names_say():
    rows = cone()
    mean = shapes.mean_direction(rows)
    angles = np.sort(np.arccos(rows @ mean))
    own = shapes.own_angles(rows, np.random.default_rng(1))
    np.testing.assert_allclose(np.sort(np.arccos(own @ mean)), angles, atol=1e-6)
    axis = np.linalg.svd(shapes.log_map(rows, mean), full_matrices=False)[2][0]
    tails = {
        f: stats.kurtosis(shapes.log_map(many(f, rows), mean) @ axis) for f in (shapes.gaussian, shapes.heavy_tailed)
    }
    assert abs(tails[shapes.gaussian]) < 0.2
    assert tails[shapes.heavy_tailed] > 1


def test_pooled_data_have_the_pools_moments():
    pool = cone(400)
    made = many(lambda rows, rng: shapes.pooled(rows, rng, pool=pool), cone(), 100)
    np.testing.assert_allclose(made.mean(0), pool.mean(0), atol=0.03)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(np.cov(made.T))[-3:], np.linalg.eigvalsh(np.cov(pool.T))[-3:], rtol=0.1
    )


@pytest.mark.parametrize("count", [2, 3])
def test_clouds_are_as_far_apart_as_they_say(count):
    rows = cone(90)
    mean = shapes.mean_direction(rows)
    rng = np.random.default_rng(0)
    radius = np.sqrt(np.trace(in_tangent_space(rows, mean)[1]))
    found = []
    for _ in range(40):
        tangent = shapes.log_map(shapes.clouds(rows, rng, count=count, distance=1.5), mean)
        centres = np.stack([tangent[own::count].mean(0) for own in range(count)])
        noise = 2 * radius**2 / (len(rows) / count)  # of the difference of two means
        found.append(np.sum((centres[0] - centres[1]) ** 2) - noise)
    assert np.sqrt(np.mean(found)) / radius == pytest.approx(1.5, rel=0.1)


def test_turning_keeps_angles_and_loses_the_direction():
    rows = cone(10, 40)
    rng = np.random.default_rng(0)
    turned = [shapes.turned(rows, rng) for _ in range(100)]
    np.testing.assert_allclose(turned[0] @ turned[0].T, rows @ rows.T, atol=1e-10)
    cosines = np.array([own[0] @ rows[0] for own in turned])
    assert abs(cosines.mean()) < 0.06
    assert np.std(cosines) == pytest.approx(40**-0.5, rel=0.3)


def test_data_sets_have_lost_classes_and_text():
    module = sys.modules["psi_fast.experiments.null_size"]
    rows = cone(20, 60)
    shape = module.Shape(torch.from_numpy(rows[None]).float(), np.arange(20)[None])
    parts = dict(module._data_sets(shape, lambda own, _: own, 30, [0]))
    assert list(parts) == [0, 25]
    made, labels = (np.concatenate([getattr(own, name) for own in parts.values()]) for name in ("rows", "labels"))
    np.testing.assert_allclose(made @ made.transpose(0, 2, 1), np.broadcast_to(rows @ rows.T, (30, 20, 20)), atol=1e-5)
    assert abs((made @ rows[0]).mean()) < 0.1  # the cone itself has .9
    assert (np.sort(labels) == np.arange(20)).all()
    assert len(np.unique(labels, axis=0)) == 30


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    own = colours(tmp_path_factory.mktemp("null-size"), config=SMALL)
    return null_size(own, data_sets=60, null_draws=39, clouds=(2,), distances=(0.3, 6.0))


def rates(found, start):
    return {one.name.removeprefix(start): one for one in found.claims if one.name.startswith(start)}


def test_permuted_labels_and_turned_text_keep_their_level(found):
    alarms = rates(found, "false alarms, ")
    for null in ("Q permuted", "D rotated"):
        rows = found.table[(found.table["null"] == null) & ~found.table["structured"]]
        # four families of 60 data sets; p = .05 is reached in at most 5 % of them
        assert stats.binomtest(int((rows["p"] <= 0.05).sum()), len(rows), 0.05, "greater").pvalue > 0.001, null
        assert all(one.low <= one.value <= one.high for name, one in alarms.items() if null in name)
    assert alarms["gaussian: S independent"].value > 0.9  # the data are no isotropic cloud
    assert alarms["gaussian: S marginal"].value < 0.15
    assert alarms["gaussian: joint"].value <= alarms["gaussian: S marginal"].value


def test_clusters_are_found_where_there_are_some(found):
    power = rates(found, "found, ")
    assert power["2 clouds, 6 apart: S marginal"].value > 0.8
    assert power["2 clouds, 0.3 apart: S marginal"].value < 0.3
    assert power["merged channels: Q permuted"].value == 1
    assert not any("clouds" in name and not name.split(": ")[1].startswith("S") for name in power)


def test_claims_are_rates_of_the_table(found):
    table = found.table
    assert set(table["null"]) == {
        *(f"S {name}" for name in ROTATIONS),
        "Q permuted",
        "D shuffled",
        "D rotated",
        "joint",
    }
    for (structured, family, null), rows in table.groupby(["structured", "family", "null"]):
        (one,) = [c for c in found.claims if c.name == f"{'found' if structured else 'false alarms'}, {family}: {null}"]
        assert one.value == pytest.approx((rows["p"] <= 0.05).mean())
        assert one.count == len(rows)
        expected = stats.binomtest(int((rows["p"] <= 0.05).sum()), len(rows)).proportion_ci(method="wilson")
        assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
    assert "S marginal" in found.text
    assert len(found.figure.axes) == 2


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    options = {"data_sets": 26, "null_draws": 19, "clouds": (2,), "distances": (1.0,)}
    module = sys.modules["psi_fast.experiments.null_size"]  # its name in the package is the function's
    monkeypatch.setattr(module, "PART", 13)
    whole = null_size(colours(tmp_path / "whole", config=SMALL), **options).table
    real, made = module._nulls, []

    def dying(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, "_nulls", dying)
    with pytest.raises(KeyboardInterrupt):
        null_size(colours(tmp_path / "cut", config=SMALL), **options)
    seen = []
    monkeypatch.setattr(module, "_nulls", lambda *arguments: seen.append(1) or real(*arguments))
    again = null_size(colours(tmp_path / "cut", config=SMALL), **options).table
    assert len(seen) == 11 - 3  # five families of two parts, and the merged channels
    pd.testing.assert_frame_equal(again, whole)


def test_without_labels_and_bad_input(tmp_path):
    own = colours(tmp_path, config=replace(SMALL, rotation="independent", text_null="rotated"))
    own.subject.images.labels = None
    found = null_size(own, data_sets=4, null_draws=19, clouds=(), distances=())
    assert set(found.table["null"]) == {*(f"S {name}" for name in ROTATIONS), "D shuffled", "D rotated", "joint"}
    assert np.isfinite(found.table["p"]).all()
    with pytest.raises(ConfigError, match="19 draws"):
        null_size(own, null_draws=9)
    with pytest.raises(ConfigError, match="distances above 0"):
        null_size(own, distances=(0.0,))
