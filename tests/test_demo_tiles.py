"""Tiles of scikit-image's photographs."""

import numpy as np
import pytest
from image_helpers import message

from psi_fast import demo
from psi_fast.errors import ModelError
from psi_fast.images import open_images

pytest.importorskip("skimage", reason="the demo's photographs come with scikit-image")


@pytest.fixture(scope="module")
def tiles():
    return demo.demo_tiles()


def test_tiles_are_spread_evenly_over_the_photographs(tiles):
    counts = np.bincount(tiles.labels)
    assert len(tiles) == 1939
    assert len(counts) == len(tiles.class_names) == 18
    assert counts.min() == 103
    assert counts.max() == 109
    assert len(set(tiles.names)) == len(tiles)
    sides = [int(name.split("/")[1][1:]) for name in tiles.names if name.startswith("coffee/")]
    assert set(sides) == {400, 200, 100}


def test_a_tile_is_the_cut_its_name_says(tiles):
    with demo.Image.open(demo.Path(demo.find_spec("skimage").origin).parent / "data" / "coffee.png") as image:
        photograph = np.asarray(image.convert("RGB"))
    for name in ("coffee/s400/x200_y0", "coffee/s200/x100_y50", "coffee/s100/x500_y300"):
        side = int(name.split("/")[1][1:])
        x, y = (int(part[1:]) for part in name.split("/")[2].split("_"))
        tile = tiles.load(tiles.names.index(name))
        assert tile.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(tile), photograph[y : y + side, x : x + side])
        assert tiles.class_keys[tiles.labels[tiles.names.index(name)]] == "coffee"


def test_no_tile_is_flat_or_out_of_bounds(tiles):
    for i in range(0, len(tiles), 7):
        assert np.asarray(tiles.load(i).convert("L"), dtype=float).std() >= 2
        assert tiles.load(i).width == tiles.load(i).height
    assert all(x >= 0 and y >= 0 and x + s <= 741 and y + s <= 500 for s, x, y in demo._boxes(741, 500))
    assert {x + s for s, x, _ in demo._boxes(741, 500)} >= {741}


def test_tiles_are_the_same_every_time(tiles):
    again = demo.demo_tiles()
    assert again.names == tiles.names
    assert again.fingerprint == tiles.fingerprint


def test_they_are_a_source_of_images(tiles):
    assert open_images("scikit-image:tiles").fingerprint == tiles.fingerprint
    assert len(open_images(demo.DEMO_IMAGES, max_images=36)) == 36
    assert "there are scikit-image:tiles alone, got 'scikit-image:cats'" in message(open_images, "scikit-image:cats")


def test_the_demo_takes_them_by_their_name(monkeypatch):
    taken = []
    monkeypatch.setattr("psi_fast.api.score", lambda _network, _layer, images, **_: taken.append(images))
    demo.run_demo("nowhere")
    assert taken == ["scikit-image:tiles"]


def test_missing_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'pip install "psi-fast\[demo\]"'):
        demo.demo_tiles()


def test_missing_photograph_is_named(monkeypatch):
    monkeypatch.setitem(demo._PHOTOGRAPHS, "gone.png", "nothing")
    with pytest.raises(ModelError, match=r"'gone\.png'"):
        demo.demo_tiles()
