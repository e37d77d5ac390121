"""Room on the disk of a run, and of what experiments share: told before it starts, with what is needed and what is free."""

import re
import shutil
from collections import namedtuple

import pytest
import tiny
from image_helpers import message
from test_study import study
from torch import nn

from psi_fast import api, store
from psi_fast.disk_room import require_free
from psi_fast.errors import StoreError
from psi_fast.experiments import study as studies

USAGE = namedtuple("USAGE", "total used free")


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def asked(monkeypatch):
    """What room was asked for, in bytes, by runs and by studies."""
    needed = []
    for module in (api, studies):
        monkeypatch.setattr(module, "require_free", lambda _folder, count, *_: needed.append(count))
    return needed


@pytest.fixture
def full(monkeypatch):
    """Makes the disk have as many bytes free."""
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _path: USAGE(10**12, 10**12 - free, free))


def vectors():
    """A layer "3" with one position an image."""
    return tiny.conv_network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize(("network", "layer"), [(tiny.network(), "2"), (vectors(), "3")], ids=["map", "vector"])
def test_a_run_asks_for_hardly_more_than_it_writes(tmp_path, asked, network, layer):
    tiny.score(network, layer, out=tmp_path / "run")
    first, second = asked
    assert first == second
    written = size(tmp_path / "run")
    assert written <= first < 1.5 * written


def test_a_run_asks_for_each_image_once_where_patches_are_whole(tmp_path, asked):
    tiny.score(config=tiny.replace(tiny.CONFIG, patch="image"), out=tmp_path / "run")
    whole = asked[0]
    tiny.score(out=tmp_path / "other")
    patches = 6 * tiny.CONFIG.top_k
    assert asked[-1] - whole == (patches - 40) * 10 * 4  # 10 numbers an embedding


def test_a_run_asks_for_the_draws_and_maxima_it_keeps(tmp_path, asked):
    def needed(name, images=40, **changes):
        tiny.score(images=tiny.image_set(images), config=tiny.replace(tiny.CONFIG, **changes), out=tmp_path / name)
        return asked[-1]

    first = needed("first")
    assert needed("images", images=50) - first == 6 * 10 * 4
    assert needed("more", draws=1000) - first == 6 * 3 * (1000 - tiny.CONFIG.draws) * 4
    assert needed("most", draws=1010) == needed("more again", draws=1000)  # of which 1000 are kept
    assert store.load_distributions(tmp_path / "most")["S_null"].shape == (6, 1000)


def test_a_study_asks_for_hardly_more_than_it_keeps_and_not_for_what_it_has(tmp_path, asked):
    own = study(tmp_path)
    own.evaluation(own.layers[0])
    (first,) = asked
    kept = size(tmp_path / "shared")
    assert kept / 2 < first
    again = study(tmp_path)
    again.survey(again.layers[0])
    assert asked[1:] == [first - kept]


def test_too_little_room_is_told_before_images_are_mined_and_nothing_is_left(tmp_path, full, monkeypatch):
    monkeypatch.setattr("psi_fast.mining.Miner.whole", None)  # called, this would be a TypeError
    full(30_000)
    text = message(tiny.score, out=tmp_path / "run", bank="stream", error=StoreError)
    assert re.match(
        r"the run's files may need up to 0\.0\d MB, but the disk of .*/run has 0\.03 MB free; free some, or", text
    )
    assert not (tmp_path / "run").exists()
    full(10**9)
    with pytest.raises(TypeError):
        tiny.score(out=tmp_path / "run", bank="stream")


def test_a_bank_that_fills_the_disk_of_a_run_is_noticed_before_images_are_mined(tmp_path, full, monkeypatch):
    decoded = api.Progress.stage

    def stage(bars, name):
        if name == "decoding":
            full(10)
        return decoded(bars, name)

    monkeypatch.setattr(api.Progress, "stage", stage)
    monkeypatch.setattr("psi_fast.mining.Miner.whole", None)
    assert "has 0.00 MB free" in message(tiny.score, out=tmp_path / "run", bank="stream", error=StoreError)


def test_too_little_room_for_a_study_is_told_before_images_are_mined(tmp_path, full):
    own = study(tmp_path)
    len(own.squares)
    full(10)
    text = message(own.survey, own.layers[0], error=StoreError)
    assert text.startswith("what experiments share may need up to 0.")
    assert str(tmp_path / "shared") in text
    assert not (tmp_path / "shared").exists()


def test_room_is_told_in_fitting_units(full, tmp_path):
    require_free(tmp_path / "a" / "b", 10, "x needs", "wait")
    full(123 * 10**6)
    text = message(require_free, tmp_path / "a" / "b", 5 * 10**9, "x needs", "wait", error=StoreError)
    assert text == f"x needs 5.00 GB, but the disk of {tmp_path / 'a' / 'b'} has 0.12 GB free; free some, or wait"
