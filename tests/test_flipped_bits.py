"""One wrong bit in whatever is kept is found before it is used: the run is refused in one line, or its part is made again."""

import json
import random
import shutil

import pandas as pd
import pytest
import tiny
import torch
from image_helpers import message

from psi_fast import details, store
from psi_fast.errors import StoreError
from psi_fast.image_bank import held_bank, open_bank
from psi_fast.progress import Progress
from psi_fast.shelf import Shelf

FLIPS = 12
"""Of each file."""
READERS = {
    "scores.parquet": store.load,
    "patches.parquet": store.load,
    "embeddings.safetensors": store.load_embeddings,
    "distributions.safetensors": store.load_distributions,
    "manifest.json": store.load,
}
CPU = torch.device("cpu")


def flips(path, count=FLIPS):
    """Give the file one wrong bit, elsewhere each time, and in the end its own bytes back."""
    rng, whole = random.Random(path.name), path.read_bytes()
    for place in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(count - 2))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        yield place
    path.write_bytes(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "code_fingerprint", lambda: "this code")
        folder = tmp_path_factory.mktemp("flipped") / "run"
        tiny.score(out=folder)
        yield folder


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("name", READERS)
def test_a_run_with_a_wrong_bit_is_refused_by_whatever_reads_it(finished, name):
    for place in flips(finished / name):
        for read in (READERS[name], details.open_details):
            text = message(read, finished, error=StoreError)
            assert str(finished / name) in text, (place, text)
            assert text.endswith("score again")
    details.open_details(finished)


@pytest.mark.parametrize("name", ["scores.parquet", "patches.parquet", "manifest.json"])
def test_asking_for_a_run_with_a_wrong_bit_does_not_show_it(finished, name):
    for _ in flips(finished / name, 4):
        assert str(finished / name) in message(tiny.score, out=finished, error=StoreError)
    assert tiny.score(out=finished).manifest == store.load(finished).manifest


@pytest.mark.parametrize("checksums", [[], {}, None, 3, "x"])
def test_checksums_that_are_none_are_one_line(finished, checksums):
    manifest = store.load(finished).manifest | {"checksums": checksums}
    (finished / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json: it is not what was written" in message(store.load, finished, error=StoreError)


def test_a_run_is_made_anew_once_its_manifest_is_removed(finished, whole):
    next(flips(finished / "scores.parquet"))
    (finished / "manifest.json").unlink()
    tiny.score(out=finished)
    for name in store.FILES:
        assert (finished / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_without_checksums_is_read(finished, whole):
    """As one of an older psi_fast."""
    manifest = store.load(whole).manifest
    (finished / "manifest.json").write_text(
        json.dumps({name: own for name, own in manifest.items() if name != "checksums"})
    )
    assert store.load(finished).table.equals(store.load(whole).table)


def decoded(images, folder):
    """Pixels and sizes of the images' bank, and how many images were decoded for it."""
    loads, load = [], images.load
    images.load = lambda index: loads.append(index) or load(index)
    bank = open_bank(images, 32, folder=folder, side=32, progress=Progress(False))
    return bank.read(slice(None), CPU).clone(), bank.sizes.tolist(), len(loads)


@pytest.mark.parametrize("name", ["pixels.npy", "sizes.npy", "bank.json"])
def test_decoded_images_with_a_wrong_bit_are_decoded_anew(tmp_path, name):
    pixels, sizes, count = decoded(tiny.image_set(10), tmp_path)
    assert count == 10
    (folder,) = tmp_path.iterdir()
    whole = (folder / name).read_bytes()
    for place in flips(folder / name, 200 if name == "sizes.npy" else FLIPS):
        assert held_bank(tiny.image_set(10), folder=tmp_path, side=32) is None, place
    next(flips(folder / name))
    again = decoded(tiny.image_set(10), tmp_path)
    assert torch.equal(again[0], pixels)
    assert again[1:] == (sizes, 10)
    assert [path.read_bytes() for path in tmp_path.glob(f"*/{name}")] == [whole]
    assert decoded(tiny.image_set(10), tmp_path)[2] == 0


def test_a_shared_table_with_a_wrong_bit_is_made_again(tmp_path):
    table, made = pd.DataFrame({"a": [1.5, 2.5], "b": [[1], [2, 3]], "c": ["x", "y"]}), []

    def make():
        made.append(1)
        return table

    first = Shelf(tmp_path).table("kind", 1, make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for _ in flips(path, 100):
        made.clear()
        pd.testing.assert_frame_equal(Shelf(tmp_path).table("kind", 1, make), first)
        assert made == [1]
    made.clear()
    pd.testing.assert_frame_equal(Shelf(tmp_path).table("kind", 1, make), first)
    assert made == []
    path.write_bytes(whole[: len(whole) // 2])
    pd.testing.assert_frame_equal(Shelf(tmp_path).table("kind", 1, make), first)
    assert made == [1]
