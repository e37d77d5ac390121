"""Decoding, fingerprints, subsets and Datasets."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from image_helpers import message, pack, paint
from PIL import Image

from psi_fast.errors import ConfigError
from psi_fast.images import ImageSet, open_images

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


def test_fingerprint_of_a_dataset_follows_pixels_labels_and_length():
    pixels = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    other = pixels.copy()
    other[2, 3, 3, 2] = 1
    sets = [
        list(zip(pixels, (0, 1, 0), strict=True)),
        list(zip(other, (0, 1, 0), strict=True)),
        list(zip(pixels, (0, 1, 1), strict=True)),
        list(zip(pixels, (0, 1, 2), strict=True)),
        list(zip(pixels[:2], (0, 1), strict=True)),
        list(pixels),
    ]
    assert len({open_images(s).fingerprint for s in sets}) == len(sets)
    assert open_images(sets[0]).fingerprint == open_images(list(sets[0])).fingerprint


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


# ---- Datasets


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
RGB = np.stack([GREY, GREY + 50, GREY + 100], axis=2)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (RGB, RGB),
        (GREY, np.stack([GREY] * 3, axis=2)),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, RGB),
        ((torch.from_numpy(RGB).permute(2, 0, 1) / 255).to(torch.float64), RGB),
    ],
    ids=["pil", "array-rgb", "array-grey", "tensor-uint8", "tensor-float", "tensor-double"],
)
def test_dataset_images(item, expected):
    for items in ([item], [(item, 3)]):
        images = open_images(items)
        assert images.names == ["0"]
        assert images.load(0).mode == "RGB"
        np.testing.assert_array_equal(np.asarray(images.load(0)), expected)


@pytest.mark.parametrize(
    ("item", "came"),
    [
        (torch.full((3, 4, 4), -1.5), "a float32 tensor [3, 4, 4] within -1.5..-1.5"),
        (torch.full((3, 4, 4), 2.0), "a float32 tensor [3, 4, 4] within 2..2"),
        (torch.full((3, 4, 4), float("nan")), "a float32 tensor [3, 4, 4]"),
        (torch.zeros(1, 4, 4), "a float32 tensor [1, 4, 4]"),
        (np.zeros((4, 4, 3)), "a float64 array [4, 4, 3]"),
        (np.zeros((4, 4, 4), dtype=np.uint8), "a uint8 array [4, 4, 4]"),
        ("cat.png", "str 'cat.png'"),
        ({"image": GREY}, "dict"),
    ],
    ids=["normalised", "above-one", "nan", "one-channel", "float-array", "four-channels", "path", "dict"],
)
@pytest.mark.parametrize("skip", [False, True])
def test_dataset_images_that_are_refused(item, came, skip):
    said = message(open_images, [GREY, item], skip_unreadable=skip)
    assert f"item 1 is {came}" in said
    assert "uint8 arrays [H, W]" in said


class Counting:
    """A Dataset with `targets` that counts how often an item is read."""

    def __init__(self, targets, shift=0):
        self.targets = targets
        self.shift = shift
        self.reads = 0

    def __len__(self):
        return 500

    def __getitem__(self, index):
        self.reads += 1
        return GREY, index % 3 * 10 + self.shift


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_targets_spare_a_pass_over_the_dataset(kind):
    dataset = Counting(kind([i % 3 * 10 for i in range(500)]))
    images = open_images(dataset)
    assert images.labels.tolist() == [i % 3 for i in range(500)]
    assert images.class_names == images.class_keys == ["0", "10", "20"]
    assert dataset.reads < 200


@pytest.mark.parametrize("targets", [None, [1, 2], [0] * 500, ["a"] * 500], ids=["none", "short", "wrong", "text"])
def test_items_decide_when_targets_do_not_fit(targets):
    images = open_images(Counting(targets, shift=1))
    assert images.labels.tolist() == [i % 3 for i in range(500)]
    assert images.class_names == ["1", "11", "21"]


@pytest.mark.parametrize("label", [3, np.int32(3), torch.tensor(3)], ids=["int", "numpy", "tensor"])
def test_integer_labels(label):
    images = open_images([(GREY, label), (GREY, 1)])
    assert images.labels.tolist() == [1, 0]
    assert images.class_keys == ["1", "3"]


@pytest.mark.parametrize("label", [1.0, "cat", True, np.zeros(2), torch.tensor(0.5), torch.tensor(True)], ids=repr)
def test_other_labels_are_refused(label):
    assert "label of item 1 must be a whole number" in message(open_images, [(GREY, 0), (GREY, label)])


def test_dataset_of_other_shapes_is_refused():
    assert "item 0 is a tuple of 3" in message(open_images, [(GREY, 0, 0)])
    assert "some items have a label and some have none" in message(open_images, [(GREY, 0), GREY])
    assert "list holds no images" in message(open_images, [])
    assert "got int" in message(open_images, 7)
    stream = type("Stream", (torch.utils.data.IterableDataset,), {"__iter__": lambda self: iter(())})
    assert "map-style Dataset" in message(open_images, stream())


def test_dataset_is_read_by_one_thread_at_a_time():
    class Fragile(Counting):
        inside = 0
        clashes = 0

        def __getitem__(self, index):
            self.inside += 1
            self.clashes += self.inside > 1
            time.sleep(0.001)
            self.inside -= 1
            return super().__getitem__(index)

    dataset = Fragile([i % 3 * 10 for i in range(500)])
    images = open_images(dataset)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(images.load, range(40)))
    assert dataset.clashes == 0


def test_dataset_items_that_fail_are_named_or_skipped():
    class Failing(Counting):
        def __getitem__(self, index):
            if index in (5, 400):
                raise OSError("disk\ngone")
            return super().__getitem__(index)

    said = message(open_images, Failing(None))
    assert "item 5" in said
    assert "disk gone" in said
    images = open_images(Failing(None), skip_unreadable=True)
    assert len(images) == len(images.labels) == 498
    assert images.names[5] == "6"
    assert images.warnings == ["skipped 2 unreadable images: 5, 400"]
    assert images.labels[5] == 0
