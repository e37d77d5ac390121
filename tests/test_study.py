"""A study gives what a run gives, computes nothing twice, and goes on where it was killed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import psi_fast
from psi_fast import embedding, sight
from psi_fast.errors import ConfigError, InputError, StoreError
from psi_fast.experiments import Study, survey
from psi_fast.mining import mine
from psi_fast.progress import Progress
from psi_fast.results import Bank
from psi_fast.shelf import Shelf

QUIET = Progress(False)


def study(folder, model=None, layer=tiny.LAYER, images=None, **changes):
    options = {"encoder": tiny.TinyEncoder(), "config": tiny.CONFIG, "device": "cpu", "progress": False} | changes
    return Study(
        model or tiny.network(), layer, images if images is not None else tiny.image_set(), out=folder, **options
    )


def forbidden(*_args, **_keywords):
    raise AssertionError("nothing is computed again")


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.EFFECTIVE, replace(tiny.CONFIG, band=(0.2, 0.9), center=False)])
@pytest.mark.parametrize("channels", [None, [4, 1]])
def test_scores_are_those_of_a_run(tmp_path, config, channels):
    expected = tiny.score(tiny.dead_network(), "3", config=config, channels=channels).table.drop(columns="layer")
    found = study(tmp_path, tiny.dead_network(), "3", config=config, channels=channels).evaluation("3")
    assert [list(row) for row in found.table["concepts"]] == [list(row) for row in expected["concepts"]]
    sums = ["selectivity", "class_selectivity"]
    plain = [name for name in expected if name not in ("concepts", "flags", "cluster_sizes", *sums)]
    pd.testing.assert_frame_equal(found.table[plain], expected[plain])
    # sums over all images instead of batch by batch
    np.testing.assert_allclose(found.table[sums], expected[sums], rtol=1e-5)


def test_layers_are_read_in_one_pass_and_score_as_in_a_run(tmp_path, monkeypatch):
    together = study(tmp_path, layer=["2", "0"])
    expected = tiny.score(layer=["2", "0"]).table
    for layer in ("2", "0"):
        own = expected[expected["layer"] == layer]
        # a run centres each layer on its own patches, and so does a study
        np.testing.assert_array_equal(together.evaluation(layer).table["log_psi"], own["log_psi"])
        monkeypatch.setattr(survey, "activations", forbidden)


def test_the_order_of_the_layers_makes_no_other_survey(tmp_path, monkeypatch):
    first = study(tmp_path, layer=["2", "0"])
    wanted = {layer: first.survey(layer).maxima for layer in ("2", "0")}
    assert wanted["2"].shape != wanted["0"].shape
    monkeypatch.setattr(survey, "activations", forbidden)
    again = study(tmp_path, layer=["0", "2"])
    for layer in ("2", "0"):
        torch.testing.assert_close(again.survey(layer).maxima, wanted[layer], rtol=0, atol=0)


@pytest.mark.parametrize("band", [None, (0.1, 0.6)])
def test_top_patches_are_the_mined_ones(tmp_path, band):
    own = study(tmp_path, tiny.conv_network(tiny.Quantise()), "3", config=replace(tiny.CONFIG, band=band))
    subject = own.subject
    (expected,) = mine(
        subject.taps, subject.network, own.squares, subject.images.names, subject.channels, own.config, QUIET
    )
    found = own.top("3")
    for name in ("channels", "values", "images", "positions", "highest", "dead", "unselective", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_some_channels_are_scored_like_a_run_of_them(tmp_path):
    own = study(tmp_path, tiny.dead_network(), "3", channels=[4, 0, 1])
    expected = tiny.score(tiny.dead_network(), "3", channels=[1, 4]).table
    found = own.evaluation("3", channels=[1, 4])
    assert list(found.table["channel"]) == [1, 4]
    np.testing.assert_array_equal(found.table["log_psi"], expected["log_psi"])
    assert len(own.evaluation("3").table) == 3
    with pytest.raises(InputError, match="channel 2 of 3 is not of this study"):
        own.top("3", channels=[1, 2])


def test_channels_are_spread_over_the_layer(tmp_path):
    own = study(tmp_path)
    assert list(own.spread(tiny.LAYER, 3)) == [0, 2, 5]
    assert list(own.spread(tiny.LAYER, 99)) == list(range(6))


def test_null_draws_are_kept_and_give_the_moments(tmp_path):
    found = study(tmp_path).evaluation(tiny.LAYER)
    assert set(found.draws) == {"S", "Q", "D"}
    for name, draws in found.draws.items():
        assert draws.shape == (6, tiny.CONFIG.draws)
        np.testing.assert_allclose(draws.double().mean(1), found.table[f"{name}_null_mean"], atol=1e-6)
        np.testing.assert_allclose(draws.double().std(1), found.table[f"{name}_null_sd"], atol=1e-6)
    assert len(found.random) == 100


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    first = study(tmp_path)
    expected = first.evaluation(tiny.LAYER)
    encoder = tiny.TinyEncoder()
    monkeypatch.setattr(survey, "activations", forbidden)
    again = study(tmp_path, encoder=encoder)
    monkeypatch.setattr("psi_fast.experiments.study.evaluate", forbidden)
    found = again.evaluation(tiny.LAYER)
    assert encoder.encoded == 0
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.random, expected.random)
    for name in ("labels", "k", "silhouette", "prototypes"):
        torch.testing.assert_close(getattr(found.clusters, name), getattr(expected.clusters, name), rtol=0, atol=0)


def test_other_settings_share_patches_and_embeddings(tmp_path, monkeypatch):
    own = study(tmp_path)
    own.evaluation(tiny.LAYER)
    count = own.subject.encoder.encoded
    monkeypatch.setattr(survey, "activations", forbidden)
    other = own.evaluation(tiny.LAYER, own.with_changes(k_max=4, seed=0, draws=5))
    assert other.draws["S"].shape[1] == 5
    assert own.subject.encoder.encoded == count
    smaller = own.evaluation(tiny.LAYER, own.with_changes(top_k=8))
    assert smaller.clusters.labels.shape[1] == 8
    assert own.subject.encoder.encoded == count
    words = Bank(("a", "b"), own.text.embeddings[:2])
    assert set(np.concatenate(own.evaluation(tiny.LAYER, text=words).table["concepts"])) <= {"a", "b"}


@pytest.mark.parametrize(
    "changed",
    [
        {"model": tiny.attention_network(), "layer": "2"},
        {"images": tiny.image_set(36)},
        {"channels": [0, 1]},
        {"bank_side": 20},
    ],
    ids=["network", "images", "channels", "side"],
)
def test_another_subject_finds_nothing_of_this_one(tmp_path, changed):
    study(tmp_path).survey(tiny.LAYER)
    before = set((tmp_path / "shared").glob("maxima-*"))
    other = study(tmp_path, **changed)
    other.survey(other.layers[0])
    assert not before & (set((tmp_path / "shared").glob("maxima-*")) - before)
    assert len(set((tmp_path / "shared").glob("maxima-*"))) == 2 * len(before)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "PART", 16)
    monkeypatch.setattr(embedding, "PART", 10)
    expected = study(tmp_path / "whole").evaluation(tiny.LAYER)

    class Killed(BaseException):
        pass

    own = study(tmp_path / "cut")
    seen, real = [], survey.activations

    def dying(taps, network, bank, images, *others):
        seen.append(images)
        if len(seen) == 3:
            raise Killed
        return real(taps, network, bank, images, *others)

    monkeypatch.setattr(survey, "activations", dying)
    with pytest.raises(Killed):
        own.survey(tiny.LAYER)
    seen.clear()
    encoder = tiny.TinyEncoder()
    again = study(tmp_path / "cut", encoder=encoder)
    again.survey(tiny.LAYER)
    assert seen == [range(32, 40)]  # the third part alone
    monkeypatch.setattr(survey, "activations", real)

    real_embed = sight.embed

    def failing(*arguments):
        if encoder.encoded > 15:
            raise Killed
        return real_embed(*arguments)

    monkeypatch.setattr(sight, "embed", failing)
    with pytest.raises(Killed):
        again.evaluation(tiny.LAYER)
    before = encoder.encoded
    monkeypatch.setattr(sight, "embed", real_embed)
    found = again.evaluation(tiny.LAYER)
    whole = study(tmp_path / "other")
    whole.evaluation(tiny.LAYER)
    padded = whole.subject.encoder.encoded
    assert encoder.encoded - before < padded  # what was there is not encoded again
    pd.testing.assert_frame_equal(found.table, expected.table)


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied"])
def test_a_broken_file_is_made_again(tmp_path, harm):
    shelf = Shelf(tmp_path)
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(100.0)}

    shelf.tensors("kind", {"a": 1}, make)
    (path,) = tmp_path.glob("kind-*")
    held = bytearray(path.read_bytes())
    if harm == "flipped":
        held[-5] ^= 16
    path.write_bytes({"cut": held[:-9], "flipped": held, "emptied": b""}[harm])
    assert list(shelf.all_tensors("kind", ())) == []
    torch.testing.assert_close(shelf.tensors("kind", {"a": 1}, make)["x"], torch.arange(100.0))
    assert len(made) == 2
    shelf.tensors("kind", {"a": 1}, make)
    assert len(made) == 2
    shelf.tensors("kind", {"a": 2}, make)
    assert len(made) == 3


def test_a_broken_table_is_made_again(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.table("t", 1, lambda: pd.DataFrame({"x": [1, 2]}))
    (path,) = tmp_path.glob("t-*")
    path.write_bytes(path.read_bytes()[:-20])
    assert list(shelf.table("t", 1, lambda: pd.DataFrame({"x": [3]}))["x"]) == [3]


def test_a_folder_that_cannot_be_written_ends_in_one_line(tmp_path):
    (tmp_path / "shared").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot write to .*shared"):
        study(tmp_path).survey(tiny.LAYER)


def test_bad_input_ends_in_one_line(tmp_path):
    own = study(tmp_path, images=tiny.image_set(labelled=False), config=replace(tiny.CONFIG, per_image=2))
    with pytest.raises(InputError, match="labels"):
        _ = own.labels
    with pytest.raises(InputError, match="layer '22' is not of this study; nearest: '2'"):
        own.survey("22")
    with pytest.raises(ConfigError, match="one patch an image"):
        own.top(tiny.LAYER)


def test_a_network_that_overflows_in_half_precision_is_surveyed_in_float32(tmp_path):
    class Large(torch.nn.Module):
        def forward(self, x):
            return x * 1e4 if x.dtype != torch.float16 else x * float("inf")

    own = study(
        tmp_path, tiny.conv_network(Large(), torch.nn.Conv2d(6, 6, 1)), "3", config=replace(tiny.CONFIG, precision="float16")
    )  # fmt: skip
    found = own.survey("3")
    assert found.pace.dtype == torch.float32
    assert torch.isfinite(found.maxima).all()
    assert any("ran again in float32" in said for said in own.said)


def test_a_run_folder_takes_experiments_and_a_run(tmp_path):
    study(tmp_path).survey(tiny.LAYER)
    tiny.score(out=tmp_path)
    assert psi_fast.load(tmp_path).table["psi"].notna().any()
    assert (tmp_path / "shared").is_dir()
