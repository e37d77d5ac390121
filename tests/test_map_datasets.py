"""Map-style Datasets: their items, labels and failures, and what tells a run on one from a run on another."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from psi_fast import store
from psi_fast.errors import StoreError
from psi_fast.image_bank import open_bank
from psi_fast.images import open_images
from psi_fast.progress import Progress

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
    for items in ([item], [(item, 3)], [{"image": item, "label": 3, "id": 7}], [{"img": item}]):
        images = open_images(items)
        assert images.names == ["0"]
        assert images.load(0).mode == "RGB"
        np.testing.assert_array_equal(np.asarray(images.load(0)), expected)


def test_items_that_are_mappings_bring_their_labels():
    items = [{"image": GREY, "label": number % 2} for number in range(4)]
    assert open_images(items).labels.tolist() == [0, 1, 0, 1]
    assert open_images([{"image": GREY}] * 2).labels is None
    coarse = [{"img": GREY, "fine_label": number, "coarse_label": 0} for number in (4, 2)]  # as in CIFAR-100
    assert open_images(coarse).labels.tolist() == [1, 0]
    assert "item 0 is a dict of 'pixels'; pass one with 'image' or 'img'" in message(open_images, [{"pixels": GREY}])
    twice = {"image": GREY, "label": 0, "class": 1}
    assert "item 0 is a dict of 'image', 'label', 'class'; pass one" in message(open_images, [twice])


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
        ({"image": {"image": GREY}}, "dict"),
    ],
    ids=["normalised", "above-one", "nan", "one-channel", "float-array", "four-channels", "path", "nested"],
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
    assert images.class_names == ["class 0", "class 10", "class 20"]
    assert images.class_keys == ["0", "10", "20"]
    assert dataset.reads < 200


def test_targets_are_found_through_subsets():
    dataset = Counting([i % 3 * 10 for i in range(500)])
    odd = Subset(dataset, range(1, 500, 2))
    few = Subset(odd, torch.arange(249, 19, -1).tolist())  # of the odd ones the last first, down to number 20
    images = open_images(few)
    assert images.labels.tolist() == [(2 * i + 1) % 3 for i in range(249, 19, -1)]
    assert len(images) == 230
    assert dataset.reads <= 64


def test_items_decide_when_a_subset_changes_them():
    class Relabelled(Subset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label + 7

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    images = open_images(Relabelled(Counting([i % 3 * 10 for i in range(500)]), range(90)))
    assert images.class_names == ["class 7", "class 17", "class 27"]


@pytest.mark.parametrize(
    "targets",
    [None, [1, 2], [0] * 500, ["a"] * 500, [[1], [2, 3]] * 250],
    ids=["none", "short", "wrong", "text", "ragged"],
)
def test_items_decide_when_targets_do_not_fit(targets):
    images = open_images(Counting(targets, shift=1))
    assert images.labels.tolist() == [i % 3 for i in range(500)]
    assert images.class_names == ["class 1", "class 11", "class 21"]


class Named(Counting):
    """A Dataset of three classes with names; `shift` is what its target_transform adds."""

    def __init__(self, classes, targets=True, shift=0):
        super().__init__([i % 3 for i in range(500)], shift)
        self.classes = classes
        self.target_transform = (lambda label: label + shift) if shift else None
        if not targets:
            del self.targets

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        return image, index % 3 + self.shift


ANIMALS = ["cat", "dog", "owl", "never seen"]


@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize(
    "wrap", [lambda own: own, lambda own: Subset(own, range(90)), lambda own: ConcatDataset([own, own])]
)
def test_names_of_classes_are_the_datasets_own(wrap, targets):
    images = open_images(wrap(Named(ANIMALS, targets)))
    assert images.class_names == ["cat", "dog", "owl"]
    assert images.class_keys == ["0", "1", "2"]
    assert images.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_targets_are_found_through_joined_datasets():
    dataset = Named(ANIMALS)
    images = open_images(ConcatDataset([dataset, Subset(dataset, range(2, 90))]))
    assert images.labels.tolist() == [i % 3 for i in (*range(500), *range(2, 90))]
    assert dataset.reads <= 64


def test_synonyms_are_joined():
    names = [("tench", "Tinca tinca"), ("goldfish",), ("shark", "white shark")]
    assert open_images(Named(names)).class_names == ["tench, Tinca tinca", "goldfish", "shark, white shark"]


@pytest.mark.parametrize(
    "dataset",
    [
        Named(["cat", "dog"]),
        Named([0, 1, 2]),
        Named("owl"),
        ConcatDataset([Named(ANIMALS), Named(ANIMALS[::-1])]),
        ConcatDataset([Named(ANIMALS), Counting([0] * 500)]),
    ],
    ids=["too few", "numbers", "text", "two lists", "one list"],
)
def test_lists_that_name_no_classes(dataset):
    assert open_images(dataset).class_names[0] == "class 0"


@pytest.mark.parametrize("targets", [True, False])
def test_a_target_transform_leaves_the_names_behind(targets):
    assert open_images(Named(ANIMALS, targets, shift=1)).class_names == ["class 1", "class 2", "class 3"]


def test_labels_in_the_table_of_patches():
    class Pictures(Named):
        def __getitem__(self, index):
            return tiny.picture(index), index % 3

    for classes, names in ((ANIMALS, {"cat", "dog", "owl"}), (None, {"class 0", "class 1", "class 2"})):
        found = tiny.score(images=Subset(Pictures(classes), range(40))).patches
        assert set(found["label"]) == names
        assert all(
            names and label == sorted(names)[int(image) % 3]
            for image, label in zip(found["image"], found["label"], strict=True)
        )


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
    no_length = type("NoLength", (torch.utils.data.Dataset,), {"__len__": lambda self: len(self.items)})
    assert "NoLength has no length" in message(open_images, no_length())


@pytest.mark.parametrize("length", [{}, {"__len__": lambda self: 30}], ids=["no length", "length"])
def test_an_iterable_dataset_is_refused_and_never_indexed(length):
    def indexed(_self, _index):
        raise AssertionError("indexed")

    own = {"__iter__": lambda self: iter([GREY] * 30), "__getitem__": indexed, **length}
    stream = type("Stream", (torch.utils.data.IterableDataset,), own)()
    for skip in (False, True):
        said = message(open_images, stream, skip_unreadable=skip)
        assert "Stream is an IterableDataset" in said
        assert "map-style Dataset" in said


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


ERRORS = [
    KeyError("x"),
    RuntimeError("decoder\ngone"),
    ValueError(),
    OSError("disk\ngone"),
    IndexError(5),
    AssertionError(),
]


class Failing(Counting):
    """Raises `error` on the items `bad`."""

    def __init__(self, targets, error, bad=(5, 400)):
        super().__init__(targets)
        self.error, self.bad = error, bad

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_items_that_raise_are_named(error):
    said = message(open_images, Failing(None, error))
    assert "item 5 of Failing raised " in said
    assert type(error).__name__ in said
    assert " ".join(str(error).split()) in said
    assert "--skip-unreadable" in said


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_items_that_raise_are_skipped_and_counted(error):
    images = open_images(Failing(None, error), skip_unreadable=True)
    assert len(images) == len(images.labels) == 498
    assert images.names[5] == "6"
    assert images.warnings == ["skipped 2 unreadable images: 5, 400"]
    assert images.labels[5] == 0


def test_skipping_reads_each_item_once_more_than_the_sample():
    dataset = Failing(None, KeyError(0))
    open_images(dataset, skip_unreadable=True)
    assert dataset.reads <= 498 + 64


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_item_that_raises_while_decoding_is_named(tmp_path, error):
    targets = [i % 3 * 10 for i in range(500)]
    images = open_images(Failing(targets, error, bad=(401,)))  # which no sample holds
    said = message(open_bank, images, 8, folder=tmp_path, progress=Progress(False))
    assert "item 401 of Failing raised " in said
    assert list(tmp_path.iterdir()) == []


# ---- a run's identity


class Painted(tiny.Pictures):
    """The pictures, as arrays that a test changes, and labels."""

    def __init__(self, count=100):
        super().__init__(count)
        self.pixels = [np.asarray(super(Painted, self).__getitem__(i)[0]).copy() for i in range(count)]
        self.targets = [i % 4 for i in range(count)]

    def __getitem__(self, index):
        return self.pixels[index], self.targets[index]


def change_a_pixel(dataset):
    dataset.pixels[99][25, 20] ^= 255


def change_a_size(dataset):
    dataset.pixels[97] = np.concatenate([dataset.pixels[97][:, :1], dataset.pixels[97], dataset.pixels[97][:, -1:]], 1)


def change_a_label(dataset):
    dataset.targets[99] = 0


@pytest.mark.parametrize("bank", [None, "stream"])
@pytest.mark.parametrize("change", [change_a_pixel, change_a_size, change_a_label])
def test_any_pixel_size_or_label_that_changes_makes_another_run(tmp_path, change, bank):
    dataset = Painted()
    first = tiny.score(images=dataset, out=tmp_path / "run", bank=bank)
    change(dataset)
    assert "other images" in message(tiny.score, images=dataset, out=tmp_path / "run", bank=bank, error=StoreError)
    other = tiny.score(images=dataset, bank=bank)
    assert other.manifest["identity"] != first.manifest["identity"]


@pytest.mark.parametrize("bank", [None, "stream"])
def test_the_same_data_are_the_same_run(tmp_path, bank):
    first = tiny.score(images=Painted(), out=tmp_path / "run", bank=bank)
    stamp = (tmp_path / "run" / store.SCORES).stat().st_mtime_ns
    again = tiny.score(images=Painted(), out=tmp_path / "run", bank=bank)
    assert again.manifest == first.manifest
    assert (tmp_path / "run" / store.SCORES).stat().st_mtime_ns == stamp


def test_a_dataset_with_targets_is_decoded_once(tmp_path):
    dataset = Counting([i % 3 * 10 for i in range(500)])
    tiny.score(images=dataset, bank=tmp_path)
    assert dataset.reads <= 500 + 2 * 64  # a sample for the labels, and one for the sizes
