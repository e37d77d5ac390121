"""distributions.safetensors: what a run's scores were held against, whole or as a sample."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from torch import nn

from psi_fast import pipeline, ranking, store
from psi_fast.activation_tap import ActivationTap
from psi_fast.demo import DEMO_IMAGES
from psi_fast.errors import StoreError

LAYERS = ["3", "2"]
"""The first has a dead channel, and they stand in another order than they run in."""
NULLS = ["S_null", "Q_null", "D_null"]


def network():
    return tiny.conv_network(tiny.Kill(1, 0.5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, scores and distributions of a run of two layers of 6 channels on 40 images."""
    folder = tmp_path_factory.mktemp("distributions") / "run"
    scores = tiny.score(network(), LAYERS, out=folder)
    return folder, scores, store.load_distributions(folder)


def maxima(layer, images):
    """[channels, N] of all images, in one forward pass without mining."""
    made = network()
    tap = ActivationTap(made, layer, torch.device("cpu"))
    with tap, torch.inference_mode():
        return tap(made.preprocess(tiny.bank(images).read(slice(None), torch.device("cpu")))).amax(2).T


def test_shapes_and_types(run):
    assert {name: (own.dtype, tuple(own.shape)) for name, own in run[2].items()} == {
        **dict.fromkeys(NULLS, (torch.float32, (12, tiny.CONFIG.draws))),
        "image_maxima": (torch.float32, (12, 40)),
        "random_log_psi": (torch.float64, (2, 100)),
    }


@pytest.mark.parametrize("name", "SQD")
def test_draws_have_the_moments_of_the_table(run, name):
    table, draws = run[1].table, run[2][f"{name}_null"].double()
    scored = table["k"].to_numpy() > 0
    assert scored.sum() == 11
    assert np.array_equal(draws.isnan().numpy(), np.broadcast_to(~scored[:, None], draws.shape))
    assert (table.loc[scored, f"{name}_null_sd"] > 0).any()
    np.testing.assert_allclose(draws.mean(1)[scored], table.loc[scored, f"{name}_null_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draws.std(1)[scored], table.loc[scored, f"{name}_null_sd"], rtol=1e-4, atol=1e-6)


def test_random_channels_are_those_of_the_percentile(run):
    table, random = run[1].table, run[2]["random_log_psi"]
    assert run[1].manifest["layers"] == LAYERS
    assert (random <= 0).all()
    for layer, own in zip(LAYERS, random, strict=True):
        rows = table[(table["layer"] == layer) & (table["k"] > 0)]
        below = (own.numpy() <= rows["log_psi"].to_numpy()[:, None]).mean(1)
        np.testing.assert_allclose(100 * below, rows["random_percentile"])


@pytest.mark.parametrize("band", [None, (0.2, 0.8)], ids=str)
def test_maxima_are_those_of_a_pass_of_its_own(tmp_path, band):
    tiny.score(network(), LAYERS, config=replace(tiny.CONFIG, band=band), channels=[4, 1], out=tmp_path / "run")
    expected = torch.cat([maxima(layer, tiny.image_set())[[4, 1]] for layer in LAYERS])
    np.testing.assert_allclose(store.load_distributions(tmp_path / "run")["image_maxima"], expected, rtol=1e-5)


def test_a_large_run_keeps_the_first_draws_and_images_all_over_the_set_and_scores_the_same(run, tmp_path, monkeypatch):
    folder, _, whole = run
    monkeypatch.setattr(pipeline, "KEPT_DRAWS", 4)
    monkeypatch.setattr(ranking, "KEPT_IMAGES", 7)
    tiny.score(network(), LAYERS, out=tmp_path / "run")
    part = store.load_distributions(tmp_path / "run")
    for name in NULLS:
        torch.testing.assert_close(part[name], whole[name][:, :4], rtol=0, atol=0, equal_nan=True)
    spread = [0, 6, 13, 19, 26, 32, 39]
    torch.testing.assert_close(part["image_maxima"], whole["image_maxima"][:, spread], rtol=0, atol=0)
    for name in (store.SCORES, store.PATCHES, store.EMBEDDINGS):
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_two_runs_write_the_same_file_whatever_the_batch_size(run, tmp_path):
    tiny.score(network(), LAYERS, out=tmp_path / "run")
    file = tmp_path / "run" / store.DISTRIBUTIONS
    assert file.read_bytes() == (run[0] / store.DISTRIBUTIONS).read_bytes()
    tiny.score(network(), LAYERS, config=replace(tiny.CONFIG, batch_size=3), out=tmp_path / "other")
    other = store.load_distributions(tmp_path / "other")
    np.testing.assert_allclose(other["image_maxima"], run[2]["image_maxima"], rtol=1e-5)


def test_without_labels_there_are_no_draws_of_q(tmp_path):
    tiny.score(images=tiny.image_set(labelled=False), out=tmp_path / "run")
    assert set(store.load_distributions(tmp_path / "run")) == {"S_null", "D_null", "image_maxima", "random_log_psi"}


def test_a_null_of_one_cluster_is_zero(tmp_path):
    grey = tiny.image_set()
    grey._read = lambda _name: tiny.Image.new("RGB", (32, 32), (90, 90, 90))  # all patches look alike
    alike = tiny.conv_network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Numbered())
    images = grey.stamped([f"{i} grey" for i in range(40)])
    scores = tiny.score(alike, "5", images, config=replace(tiny.CONFIG, center=False), out=tmp_path / "run")
    assert (scores.table["k"] == 1).all()
    assert (store.load_distributions(tmp_path / "run")["D_null"] == 0).all()


class Numbered(nn.Module):
    """Adds the image's number in its batch, so that no channel is dead."""

    def forward(self, x):
        return x + torch.arange(len(x))[:, None]


def test_a_dataset_has_them_too(tmp_path):
    tiny.score(images=tiny.Pictures(), out=tmp_path / "data")
    tiny.score(out=tmp_path / "images")
    data, images = (store.load_distributions(tmp_path / name) for name in ("data", "images"))
    assert data.keys() == images.keys()
    for name, own in data.items():
        torch.testing.assert_close(own, images[name], rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_loaded_is_one_line(run, tmp_path):
    assert "holds no finished run" in message(store.load_distributions, tmp_path, error=StoreError)
    (tmp_path / store.MANIFEST).write_bytes((run[0] / store.MANIFEST).read_bytes())
    text = message(store.load_distributions, tmp_path, error=StoreError)
    assert text.startswith(f"the run in {tmp_path} has no distributions.safetensors")
    assert text.endswith("score it again")
    whole = (run[0] / store.DISTRIBUTIONS).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff\x00" * 99):
        (tmp_path / store.DISTRIBUTIONS).write_bytes(damaged)
        text = message(store.load_distributions, tmp_path, error=StoreError)
        assert text.startswith(f"cannot read {tmp_path / store.DISTRIBUTIONS}")


def test_the_manifest_says_how_to_open_the_images_again(run, tmp_path):
    pytest.importorskip("skimage", reason="the demo's photographs come with scikit-image")
    tiny.score(images=DEMO_IMAGES, max_images=40, skip_unreadable=True, out=tmp_path / "run")
    manifest = store.load(tmp_path / "run").manifest
    keys = ("source", "max_images", "skip_unreadable")
    assert [manifest[key] for key in keys] == ["scikit-image:tiles", 40, True]
    assert [run[1].manifest[key] for key in keys] == ["ImageSet", None, False]
