"""Decoding, fingerprints and subsets."""

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from image_helpers import message, pack, paint
from PIL import Image

from psi_fast.errors import ConfigError, InputError
from psi_fast.image_set import ImageSet, readable
from psi_fast.images import open_images
from psi_fast.progress import Progress

# ---- pixels


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}")
    image = open_images(tmp_path).load(0)
    assert image.mode == "RGB"
    assert image.getpixel((4, 3)) == (255, 255, 255)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert open_images(tmp_path).load(0).getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 1000, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(open_images(tmp_path).load(0))[0, :, 1].tolist() == [0, 4, 128, 255]


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    said = message(open_images(tmp_path).load, 0)
    assert "'a.tif'" in said
    assert "8 or 16 bits" in said


def test_whatever_an_image_makes_its_decoder_raise_the_image_is_broken(tmp_path):
    """Places of the strips as a kind of number that holds no place: PIL raises a TypeError."""
    paint(tmp_path / "a.png")
    picture = io.BytesIO()
    Image.new("RGB", (24, 17)).save(picture, "TIFF", big_tiff=True)
    held = picture.getvalue()
    places, fractions = struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 5)
    assert held.count(places) == 1
    (tmp_path / "b.tif").write_bytes(held.replace(places, fractions))
    images = open_images(tmp_path)
    assert "cannot decode image 'b.tif': 'IFDRational' object" in message(images.load, 1)
    assert open_images(tmp_path, skip_unreadable=True).warnings == ["skipped 1 unreadable image: b.tif"]


@pytest.mark.parametrize("error", [MemoryError(), InputError("the shard has changed")])
def test_what_is_no_fault_of_an_image_comes_through(error):
    def read(name):
        raise error

    images = ImageSet(["a"], read, [""])
    for call in (lambda: images.load(0), lambda: readable(images, Progress(shown=False))):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error


def test_threads_read_a_zip_right(tmp_path):
    root = tmp_path / "many"
    for number in range(120):
        paint(root / f"{number:03d}.png", (number, 255 - number, 7), size=(31, 17))
    images = open_images(pack(root, tmp_path / "many.zip"))
    wanted = list(range(120)) * 5
    with ThreadPoolExecutor(max_workers=8) as pool:
        pixels = list(pool.map(lambda i: images.load(i).getpixel((30, 16)), wanted))
    assert pixels == [(i, 255 - i, 7) for i in wanted]


# ---- fingerprints


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_fingerprint_changes_with_content_names_and_subset(image_folder, tmp_path, zipped):
    def fingerprint(**kwargs):
        source = pack(image_folder, tmp_path / "pets.zip") if zipped else image_folder
        return open_images(source, **kwargs).fingerprint

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    seen.append(fingerprint(max_images=3))
    paint(image_folder / "dog" / "b.png", (0, 1, 4))
    os.utime(image_folder / "dog" / "b.png", ns=(10**18, 10**18))
    seen.append(fingerprint())
    (image_folder / "dog" / "b.png").rename(image_folder / "dog" / "c.png")
    seen.append(fingerprint())
    (image_folder / "dog").rename(image_folder / "fox")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_fingerprint_tells_files_of_one_size_that_changed_within_a_second(tmp_path):
    seen = []
    for blue, time in ((1, 10**18), (2, 10**18 + 1000)):
        paint(tmp_path / "a.bmp", (0, 0, blue))
        os.utime(tmp_path / "a.bmp", ns=(time, time))
        seen.append(open_images(tmp_path).fingerprint)
    assert seen[0] != seen[1]


# ---- subsets


def labelled(sizes):
    """An ImageSet whose classes have `sizes` images, shuffled."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    names = [str(i) for i in range(len(labels))]
    keys = [f"c{i}" for i in range(len(sizes))]
    return ImageSet(names, lambda name: Image.new("RGB", (1, 1)), names, labels=labels, class_names=keys)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 11, [3, 4, 4]),
        ([2, 50, 7], 20, [2, 7, 11]),
        ([1, 1, 40], 30, [1, 1, 28]),
        ([5, 5, 5], 2, [0, 1, 1]),
        ([5, 5, 5], 14, [4, 5, 5]),
        ([0, 6, 6], 4, [0, 2, 2]),
        ([7], 1, [1]),
    ],
)
def test_subset_is_balanced_ordered_and_seeded(sizes, count, expected):
    images = labelled(sizes)
    few = open_images(images, max_images=count, seed=5)
    assert len(few) == count
    assert sorted(np.bincount(few.labels, minlength=len(sizes)).tolist()) == expected
    rows = [int(name) for name in few.names]
    assert rows == sorted(set(rows))
    assert few.labels.tolist() == images.labels[rows].tolist()
    assert few.class_names == images.class_names
    again = open_images(images, max_images=count, seed=5)
    assert again.names == few.names
    assert again.fingerprint == few.fingerprint


def test_subset_depends_on_the_seed_and_reaches_every_image():
    images = labelled([40, 40])
    draws = [open_images(images, max_images=20, seed=seed).names for seed in range(40)]
    assert len({tuple(names) for names in draws}) > 30
    assert len({name for names in draws for name in names}) == 80


def test_which_classes_get_one_image_more_is_drawn_by_lot():
    images = labelled([5] * 6)
    assert {open_images(images, max_images=1, seed=seed).labels[0] for seed in range(60)} == set(range(6))


def test_subset_without_labels_is_spread_evenly():
    pixels = np.zeros((100, 2, 2), dtype=np.uint8)
    rows = [int(name) for name in open_images(pixels, max_images=10).names]
    assert [row // 10 for row in rows] == list(range(10))


def test_subset_as_large_as_the_set_is_the_set():
    images = labelled([3, 4])
    assert open_images(images) is images
    assert open_images(images, max_images=7) is images
    assert open_images(images, max_images=99) is images


@pytest.mark.parametrize(
    "setting", [{"max_images": 0}, {"max_images": 2.5}, {"seed": -1}, {"max_images": True}], ids=str
)
def test_settings_out_of_range(setting):
    said = message(open_images, labelled([3]), error=ConfigError, **setting)
    assert next(iter(setting)) in said
    assert repr(next(iter(setting.values()))) in said
