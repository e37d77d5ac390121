"""Readers of folders and zips, and their one-line errors."""

import os
import stat
import zipfile

import numpy as np
import pytest
from image_helpers import message, pack, paint
from PIL import Image

from psi_fast.images import open_images


@pytest.fixture
def tiny(tmp_path):
    """A Tiny-ImageNet tree of two classes: three train images each, twelve val images."""
    root = tmp_path / "download" / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for number in (10, 9, 0):
            paint(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    lines = []
    for number in range(12):
        paint(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t62\t62")
    paint(root / "test" / "images" / "test_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tblack cat\nn03\tunused\n")
    return root


# ---- folders and zips


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_image_folder_has_torchvisions_order_and_labels(image_folder, tmp_path, zipped):
    images = open_images(pack(image_folder, tmp_path / "pets.zip") if zipped else str(image_folder))
    assert images.names == ["cat/a.png", "cat/b.PNG", "cat/deep/c.png", "dog/a.png", "dog/b.png"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.class_names == images.class_keys == ["cat", "dog"]
    assert [images.load(i).getpixel((0, 0)) for i in range(5)] == [(0, 0, i) for i in range(5)]
    assert images.load(0).mode == "RGB"
    assert images.load(0).size == (4, 3)
    assert images.warnings == []


def test_image_folder_agrees_with_torchvision(image_folder):
    datasets = pytest.importorskip("torchvision.datasets")
    (image_folder / "cat" / ".hidden.png").unlink()  # torchvision would list it
    theirs = datasets.ImageFolder(str(image_folder))
    ours = open_images(image_folder)
    assert [os.path.relpath(path, image_folder) for path, _ in theirs.samples] == ours.names
    assert theirs.targets == ours.labels.tolist()
    assert theirs.classes == ours.class_names


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("level", ["tree", "folder-around"])
def test_tiny_imagenet_tree(tiny, tmp_path, zipped, level):
    root = tiny if level == "tree" else tiny.parent
    images = open_images(pack(root, tmp_path / "tiny.zip") if zipped else root)
    prefix = "" if level == "tree" else "tiny-imagenet-200/"
    train = [f"{prefix}train/{w}/images/{w}_{n}.JPEG" for w in ("n01", "n02") for n in (0, 9, 10)]
    assert images.names == train + [f"{prefix}val/images/val_{n}.JPEG" for n in range(12)]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] + [0, 1] * 6
    assert images.class_keys == ["n01", "n02"]
    assert images.class_names == ["goldfish", "black cat"]


def test_tiny_imagenet_without_lists_of_classes(tiny):
    (tiny / "wnids.txt").unlink()
    (tiny / "words.txt").unlink()
    images = open_images(tiny)
    assert images.class_names == images.class_keys == ["n01", "n02"]
    assert len(images) == 18


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_flat_folder_has_no_labels(tmp_path, zipped):
    for name in ("b.jpg", "a.webp", "c.bmp"):
        paint(tmp_path / "flat" / "photos" / name)
    images = open_images(pack(tmp_path / "flat", tmp_path / "f.zip") if zipped else tmp_path / "flat" / "photos")
    assert [name.split("/")[-1] for name in images.names] == ["a.webp", "b.jpg", "c.bmp"]
    assert images.labels is None
    assert images.class_names is None
    assert images.class_keys is None


def test_zip_looks_through_one_folder_around_the_classes(image_folder, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    image_folder.rename(outer / "pets")
    images = open_images(pack(outer, tmp_path / "o.zip"))
    assert images.class_names == ["cat", "dog"]
    assert images.names[0] == "pets/cat/a.png"


def test_images_beside_class_folders_are_counted(image_folder):
    paint(image_folder / "cover.png")
    images = open_images(image_folder)
    assert len(images) == 5
    assert images.warnings == ["ignored 1 image beside the class folders"]


def test_real_val_zip(tiny_val_zip):
    images = open_images(tiny_val_zip)
    assert len(images) == 10_000
    assert images.names[9].endswith("/val_9.JPEG")
    assert images.names[10].endswith("/val_10.JPEG")
    assert np.bincount(images.labels).tolist() == [50] * 200
    assert images.class_keys == sorted(images.class_keys)
    assert images.class_names[0] == "goldfish"
    # First line of val_annotations.txt.
    assert images.class_keys[images.labels[0]] == "n03444034"
    assert images.load(0).size == (64, 64)
    assert images.load(9_999).mode == "RGB"


def test_real_train_zip(tiny_train_zip):
    images = open_images(tiny_train_zip)
    assert len(images) == 20_000
    assert np.bincount(images.labels).tolist() == [100] * 200
    assert all(images.class_keys[images.labels[i]] in images.names[i] for i in range(0, 20_000, 997))
    few = open_images(tiny_train_zip, max_images=450, seed=3)
    assert sorted(np.bincount(few.labels).tolist()) == [2] * 150 + [3] * 50


# ---- broken sources


def test_missing_path_names_its_neighbours(image_folder):
    said = message(open_images, image_folder.parent / "petz")
    assert "petz" in said
    assert "nearest: 'pets'" in said
    assert "no folder or zip" in message(open_images, image_folder / "no" / "where")


def test_sources_without_images(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing else")
    assert ".jpeg .jpg" in message(open_images, tmp_path)
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    assert "no images in" in message(open_images, tmp_path / "none.zip")
    assert "neither a folder nor a zip" in message(open_images, tmp_path / "readme.txt")


def test_splits_are_not_classes(tmp_path):
    for name in ("train/cat/a.png", "val/cat/b.png"):
        paint(tmp_path / name)
    assert "holds splits (train, val), not classes" in message(open_images, tmp_path)


def test_undecodable_images_are_named_or_skipped(image_folder):
    for number in range(7):
        (image_folder / "cat" / f"bad{number}.jpg").write_bytes(b"no jpeg")
    images = open_images(image_folder)
    said = message(images.load, images.names.index("cat/bad0.jpg"))
    assert "'cat/bad0.jpg'" in said
    assert "skip_unreadable" in said
    assert "0x" not in said
    good = open_images(image_folder, skip_unreadable=True)
    listed = ", ".join(f"cat/bad{i}.jpg" for i in range(5))
    assert good.warnings == [f"skipped 7 unreadable images: {listed} and 2 more"]
    assert len(good) == 5
    assert good.labels.tolist() == [0, 0, 0, 1, 1]


def test_truncated_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    assert "'a.jpg'" in message(open_images(tmp_path).load, 0)
    assert "none of the 1 images can be decoded; the first is 'a.jpg'" in message(
        open_images, tmp_path, skip_unreadable=True
    )


def test_image_removed_after_opening_is_named(image_folder):
    images = open_images(image_folder)
    (image_folder / "cat" / "a.png").unlink()
    assert "'cat/a.png'" in message(images.load, 0)


def test_dangling_link_is_named_or_skipped(image_folder):
    (image_folder / "cat" / "a.png").unlink()
    (image_folder / "cat" / "a.png").symlink_to("gone.png")
    assert "'cat/a.png'" in message(open_images(image_folder).load, 0)
    assert open_images(image_folder, skip_unreadable=True).warnings == ["skipped 1 unreadable image: cat/a.png"]


def test_decompression_bomb_is_named(image_folder, monkeypatch):
    paint(image_folder / "cat" / "a.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    said = message(open_images(image_folder).load, 0)
    assert "'cat/a.png'" in said
    assert "decompression bomb" in said


def test_damaged_zip(image_folder, tmp_path):
    target = pack(image_folder, tmp_path / "pets.zip")
    content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    assert "is damaged" in message(open_images, target)
    # One wrong byte inside an image: the directory is fine, the member is not.
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(image_folder / "cat" / "a.png", "a.png")
    content = bytearray((tmp_path / "b.zip").read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(content)
    assert "'a.png'" in message(open_images(tmp_path / "b.zip").load, 0)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("../evil.png", "climbs out"),
        ("a/../../evil.png", "climbs out"),
        ("a\\..\\evil.png", "climbs out"),
        ("/etc/evil.png", "absolute path"),
        ("C:/evil.png", "absolute path"),
        ("link.png", "is a link"),
    ],
)
def test_unsafe_zip_members_are_refused(tmp_path, image_folder, member, says):
    info = zipfile.ZipInfo(member)
    if member == "link.png":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(image_folder / "cat" / "a.png", "fine.png")
        archive.writestr(info, "/etc/passwd")
    said = message(open_images, tmp_path / "evil.zip")
    assert repr(info.filename) in said
    assert says in said


def test_encrypted_zip_is_refused(tmp_path, image_folder):
    target = pack(image_folder, tmp_path / "pets.zip")
    content = bytearray(target.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # flag of the first entry in the directory
    target.write_bytes(content)
    assert "is encrypted" in message(open_images, target)


@pytest.mark.parametrize(
    "links",
    [
        {"dog/again": "."},
        {"dog/again": ".."},  # in which the folder lies
        {"cat/loop": "dog", "dog/loop": "cat"},  # each in the other
        {"fox": "dog"},
        {"cat/far": "../far", "dog/far": "../far"},
        {"cat/far": "../far/deep", "dog/far": "../far"},
    ],
)
def test_a_folder_that_links_lead_to_twice_is_refused(image_folder, links):
    paint(image_folder.parent / "far" / "deep" / "a.png")
    for name, to in links.items():
        (image_folder / name).symlink_to(image_folder / to)
    said = message(open_images, image_folder)
    assert "images would count twice; remove the link" in said
    assert any(str(image_folder / name) in said for name in links)


def test_links_that_double_at_each_level_are_refused_at_once(image_folder):
    """Followed, 13 levels would make 4096 folders of the last one, and 40 levels no end."""
    for level in range(12):
        for name in ("left", "right"):
            paint(image_folder / f"at{level}" / "a.png")
            (image_folder / f"at{level}" / name).symlink_to(image_folder.parent / f"next{level}")
        (image_folder / f"at{level}").rename(image_folder.parent / (f"next{level - 1}" if level else "top"))
    paint(image_folder.parent / "next11" / "a.png")
    assert "images would count twice" in message(open_images, image_folder.parent / "top")


def test_folders_too_deep_in_each_other_are_one_line(tmp_path):
    """A thousand stop Python's listing, and about two thousand of a letter each are what a path can hold."""
    folders = [str(tmp_path) + "/a" * level for level in range(1, 1501)]
    try:
        for folder in folders:
            os.mkdir(folder)
        assert "folders lie too deep in each other; move them up" in message(open_images, tmp_path)
    finally:  # pytest would not take them away either
        for folder in reversed(folders):
            os.rmdir(folder)


def test_links_of_folders_that_are_left_out_do_not_matter(image_folder):
    (image_folder / ".git").mkdir()
    (image_folder / ".git" / "again").symlink_to(image_folder)
    assert len(open_images(image_folder)) == 5


def test_linked_class_folders_are_followed(image_folder, tmp_path):
    paint(tmp_path / "elsewhere" / "a.png")
    (image_folder / "fox").symlink_to(tmp_path / "elsewhere")
    assert open_images(image_folder).names[-1] == "fox/a.png"


# ---- broken Tiny-ImageNet trees


def test_tiny_without_annotations(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    assert "'val/val_annotations.txt' is missing" in message(open_images, tiny)


def test_tiny_annotations_and_images_must_match(tiny):
    (tiny / "val" / "images" / "val_3.JPEG").unlink()
    assert "names 'val/images/val_3.JPEG', which is not there" in message(open_images, tiny)
    paint(tiny / "val" / "images" / "val_3.JPEG")
    paint(tiny / "val" / "images" / "val_99.JPEG")
    assert "has no line for 'val/images/val_99.JPEG'" in message(open_images, tiny)


def test_tiny_annotations_that_cannot_be_read(tiny):
    listing = tiny / "val" / "val_annotations.txt"
    listing.write_text("val_0.JPEG n01\n")
    assert "'val/val_annotations.txt' line 1" in message(open_images, tiny)
    listing.write_bytes(b"\xff\xfe\x00")
    assert "cannot read 'val/val_annotations.txt'" in message(open_images, tiny)


def test_tiny_class_that_is_not_listed(tiny):
    (tiny / "wnids.txt").write_text("n01\n")
    said = message(open_images, tiny)
    assert "class 'n02'" in said
    assert "wnids.txt" in said


def test_tiny_without_train_and_val(tmp_path):
    (tmp_path / "wnids.txt").write_text("n01\n")
    paint(tmp_path / "test" / "images" / "test_0.JPEG")
    assert "no images under train/ or val/" in message(open_images, tmp_path)


def test_tiny_val_folder_alone_points_to_the_tree(tiny):
    assert "pass the folder above it" in message(open_images, tiny / "val")
