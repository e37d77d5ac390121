"""Hugging Face datasets as images: from files, folders and objects, with their classes."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_helpers import message

from psi_fast import hf_datasets
from psi_fast.hf_datasets import names_dataset
from psi_fast.images import open_images

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")
CLASSES = ["stripes", "squares", "gradient", "noise"]


def png(number):
    held = io.BytesIO()
    tiny.picture(number, tiny.sizes(number)).save(held, "png")
    return {"bytes": held.getvalue(), "path": None}


def made(count=12, labels="classes", name="image"):
    columns = {name: [png(i) for i in range(count)]}
    features = {name: datasets.Image()}
    if labels == "classes":
        columns["label"], features["label"] = [i % 4 for i in range(count)], datasets.ClassLabel(names=CLASSES)
    elif labels == "names":
        columns["label"], features["label"] = [CLASSES[i % 4] for i in range(count)], datasets.Value("string")
    elif labels == "numbers":
        columns["label"], features["label"] = [10 * (i % 4) for i in range(count)], datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def as_parquet(folder, data):
    path = str(folder / "data.parquet")
    data.to_parquet(path)
    return path


def as_folder(folder, data):
    data.save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def as_arrow(folder, data):
    return str(next((folder / "saved").glob("*.arrow"))) if as_folder(folder, data) else ""


@pytest.mark.parametrize("form", [as_parquet, as_folder, as_arrow, lambda _folder, data: data])
def test_every_form_gives_images_and_classes(tmp_path, form):
    images = open_images(form(tmp_path, made()))
    assert len(images) == 12
    assert images.labels.tolist() == [i % 4 for i in range(12)]
    assert images.class_names == CLASSES
    assert images.lasting
    for i in (0, 5, 11):
        np.testing.assert_array_equal(np.asarray(images.load(i)), np.asarray(tiny.picture(i, tiny.sizes(i))))


@pytest.mark.parametrize(
    ("labels", "names"),
    [("names", sorted(CLASSES)), ("numbers", ["class 0", "class 10", "class 20", "class 30"]), (None, None)],
)
def test_other_label_columns(labels, names):
    images = open_images(made(labels=labels))
    assert images.class_names == names
    if names is None:
        assert images.labels is None
    else:
        values = [CLASSES[i % 4] if labels == "names" else f"class {10 * (i % 4)}" for i in range(12)]
        assert [names[label] for label in images.labels] == values


def test_a_subset_and_another_column_name():
    images = open_images(made(name="picture"), max_images=8)
    assert np.bincount(images.labels).tolist() == [2, 2, 2, 2]
    number = int(images.names[3])
    np.testing.assert_array_equal(np.asarray(images.load(3)), np.asarray(tiny.picture(number, tiny.sizes(number))))


def test_the_fingerprint_follows_the_content(tmp_path):
    same = [open_images(as_folder(tmp_path, made())).fingerprint, open_images(str(tmp_path / "saved")).fingerprint]
    assert same[0] == same[1]
    assert open_images(made(11)).fingerprint != open_images(made(12)).fingerprint


def test_splits(tmp_path):
    several = datasets.DatasetDict({"train": made(9), "valid": made(5)})
    assert len(open_images(several)) == 5
    several.save_to_disk(str(tmp_path / "several"))
    assert len(open_images(str(tmp_path / "several"))) == 5
    assert "odd" in message(open_images, datasets.DatasetDict({"odd": made(3)}))


def shards(folder, **splits):
    """Two parquet files a split in `folder`, each with half of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, data in splits.items():
        for part in range(2):
            data.shard(2, part, contiguous=True).to_parquet(str(folder / f"{split}-0000{part}-of-00002.parquet"))
    return folder


@pytest.mark.parametrize("kind", [str, Path])
def test_parquet_shards_by_pattern_or_folder(tmp_path, kind):
    folder = shards(tmp_path / "set" / "data", train=made())
    (tmp_path / "set" / "README.md").write_text("no data")
    for source in (folder / "*.parquet", folder, tmp_path / "set"):
        images = open_images(kind(source))
        assert images.labels.tolist() == [i % 4 for i in range(12)], source
        for i in (0, 7, 11):
            np.testing.assert_array_equal(np.asarray(images.load(i)), np.asarray(tiny.picture(i, tiny.sizes(i))))


@pytest.mark.parametrize("form", [as_parquet, as_folder, as_arrow])
def test_every_form_may_be_a_path(tmp_path, form):
    assert len(open_images(Path(form(tmp_path, made())))) == 12


def test_arrow_shards_by_pattern(tmp_path):
    made().save_to_disk(str(tmp_path / "saved"), num_shards=3)
    images = open_images(tmp_path / "saved" / "*.arrow")
    assert images.labels.tolist() == [i % 4 for i in range(12)]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "parquet"])
def test_a_split_is_named_behind_a_folder(tmp_path, saved, kind):
    folder, splits = tmp_path / "several", {"train": made(9), "test": made(5)}
    if saved:
        datasets.DatasetDict(splits).save_to_disk(str(folder))
    else:
        shards(folder, **splits)
    sizes = {end: len(open_images(kind(f"{folder}{end}"))) for end in ("", "@train", "@test")}
    assert sizes == {"": 5, "@train": 9, "@test": 5}
    said = message(open_images, kind(f"{folder}@odd"))
    assert "odd" in said
    assert "train" in said


def test_a_split_of_what_has_none_is_one_line(tmp_path):
    assert "leave out @odd" in message(open_images, as_folder(tmp_path, made()) + "@odd")
    assert "leave out @odd" in message(open_images, as_parquet(tmp_path, made()) + "@odd")


def test_a_folder_with_an_at_sign_is_no_split(tmp_path):
    made().save_to_disk(str(tmp_path / "set@work"))
    assert len(open_images(tmp_path / "set@work")) == 12


def test_a_pattern_without_files_is_one_line(tmp_path):
    assert "no file matches" in message(open_images, tmp_path / "*.parquet")


def test_a_table_beside_images_does_not_make_them_a_dataset(image_folder):
    made().to_parquet(str(image_folder / "metadata.parquet"))
    assert open_images(image_folder).class_names == ["cat", "dog"]


def unlabelled(values, kind):
    features = {"image": datasets.Image(), "label": kind}
    columns = {"image": [png(i) for i in range(len(values))], "label": values}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


KINDS = pytest.mark.parametrize(
    "kind", [datasets.ClassLabel(names=CLASSES), datasets.Value("int64")], ids=["classes", "numbers"]
)


@KINDS
@pytest.mark.parametrize("none", [-1, None])
def test_rows_that_are_all_without_label_have_none(kind, none):
    images = open_images(unlabelled([none] * 5, kind))
    assert images.labels is None
    assert images.class_names is None
    (said,) = images.warnings
    assert "'label' holds no labels" in said


@KINDS
@pytest.mark.parametrize("none", [-1, None])
def test_the_first_of_some_rows_without_label_is_named(kind, none):
    said = message(open_images, unlabelled([0, 1, none, none, 2], kind))
    assert "row 2 of the dataset has no label" in said
    assert str(none) in said


def test_names_of_which_some_are_missing_are_one_line():
    assert "row 1" in message(open_images, unlabelled(["a", None, "b"], datasets.Value("string")))


@pytest.mark.parametrize(
    ("kind", "values"), [(datasets.Value("float64"), [0.5, 1]), (datasets.List(datasets.Value("int64")), [[1], [2, 3]])]
)
def test_labels_of_another_kind_are_one_line(kind, values):
    assert "as a number or a name" in message(open_images, unlabelled(values, kind))


def test_files_that_rows_point_to_count(tmp_path):
    for i in range(14):
        tiny.picture(i).save(tmp_path / f"{i:02}.png")
    held = [str(path) for path in sorted(tmp_path.glob("*.png"))] + [png(20)]
    data = datasets.Dataset.from_dict({"image": held}, features=datasets.Features({"image": datasets.Image()}))
    data = data.select(range(14, 0, -1))
    first = open_images(data)
    assert open_images(data).fingerprint == first.fingerprint
    assert first.lasting
    tiny.picture(20).save(tmp_path / "00.png")  # not selected
    assert open_images(data).fingerprint == first.fingerprint
    tiny.picture(20).save(tmp_path / "07.png")
    assert open_images(data).fingerprint != first.fingerprint
    np.testing.assert_array_equal(np.asarray(first.load(7)), np.asarray(tiny.picture(20)))


def test_what_is_no_images_is_one_line(tmp_path):
    assert "text" in message(open_images, datasets.Dataset.from_dict({"text": ["a", "b"]}))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    assert "broken.parquet" in message(open_images, str(tmp_path / "broken.parquet"))


def test_a_stream_is_one_line():
    assert "IterableDataset" in message(open_images, made().to_iterable_dataset())


def test_a_row_without_an_image_is_named():
    rows = {"image": [png(0), None, png(2)]}
    images = open_images(datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})))
    assert "'1'" in message(images.load, 1)


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(hf_datasets, "hub_in_reach", lambda: True)
    text = message(open_images, "zh-plus/tiny-imagenet@valid")
    assert "zh-plus/tiny-imagenet@valid" in text
    assert "(no network at all)" in text
    assert "parquet" in text


def test_a_mistyped_folder_is_told_without_asking_the_hub_for_long(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", None)  # called, this would be a TypeError
    monkeypatch.setattr(hf_datasets, "hub_in_reach", lambda: False)
    text = message(open_images, "picture/cats")
    assert text.startswith(
        f"there is no file or folder 'picture/cats' in {tmp_path}, where the nearest is 'pictures', and as a"
    )
    assert "the hub cannot be reached" in text
    assert "check the path" in text


def test_an_older_package_which_could_run_a_script_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("psi_fast.environment.metadata.version", lambda name: "3.6.0")
    (tmp_path / "x.parquet").touch()
    text = message(open_images, tmp_path / "x.parquet")
    assert 'need datasets>=4.0, and 3.6.0 is installed: pip install --upgrade "psi-fast[datasets]"' in text


def test_a_mistyped_folder_without_the_package_is_told_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    text = message(open_images, "pictures/cats")
    assert text.startswith(
        f"there is no file or folder 'pictures/cats' in {tmp_path}; as a dataset of the hub it needs"
    )


@pytest.mark.parametrize("folder", ["owner___two_words", "datasets--owner--TwoWords"])
def test_a_dataset_in_a_cache_is_read_without_the_hub(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    hub = huggingface_hub.constants
    for holder, name in ((datasets.config, "HF_DATASETS_CACHE"), (hub, "HF_HUB_CACHE")):
        monkeypatch.setattr(holder, name, str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda _name, split: made())
    monkeypatch.setattr(hf_datasets, "hub_in_reach", lambda: False)
    assert len(open_images("owner/TwoWords")) == 12


def test_a_hub_id_and_its_split_reach_the_package(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: (asked.append((name, split)), made())[1])
    monkeypatch.setattr(hf_datasets, "hub_in_reach", lambda: True)
    open_images("zh-plus/tiny-imagenet@valid")
    open_images("zh-plus/tiny-imagenet")
    assert asked == [("zh-plus/tiny-imagenet", "valid"), ("zh-plus/tiny-imagenet", None)]


def test_paths_are_not_taken_for_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not names_dataset("owner/name")
    assert names_dataset("owner/another")
    for path in ("images.zip", "owner/images.zip", "./owner/x", "/owner/name", "images", "a/b/c", "owner/x.parquet"):
        assert not names_dataset(path), path


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_file_whose_texts_lie_outside_of_it_is_one_line(tmp_path, name):
    """Reading them would end the process."""
    import pyarrow as pa

    bad = pa.py_buffer(np.array([0, 2**31 - 1, 4], dtype=np.int32).tobytes())
    texts = pa.Array.from_buffers(pa.string(), 2, [None, bad, pa.py_buffer(b"abcd")])
    pictures = [png(0)["bytes"], png(1)["bytes"]]
    image = pa.StructArray.from_arrays(
        [pa.array(pictures), texts if name == "image" else pa.array(["a", "b"])], ["bytes", "path"]
    )
    label = texts if name == "label" else pa.array(["a", "b"])
    table = pa.table({"image": image, "label": label})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    said = message(open_images, tmp_path / "x.arrow")
    assert said.startswith(f"column {name!r} of the dataset is damaged (")
    assert said.endswith("fetch or write its files again")


@pytest.mark.parametrize("number", [-2, 4])
def test_a_class_that_has_no_name_is_one_line(number):
    import pyarrow as pa

    whole = made()
    labels = pa.array([*whole["label"][:5], number, *whole["label"][6:]])
    table = whole.data.table.set_column(1, "label", labels)
    data = datasets.Dataset(table, info=whole.info)
    assert f"column 'label' of the dataset numbers 4 classes from 0, got {number}" in message(open_images, data)


def test_other_columns_are_not_read():
    """One that cannot be is no matter for the images."""
    data = made().add_column("text", ["x"] * 12)
    images = open_images(data)
    assert images.load(11).size == tiny.sizes(11)


def test_a_dataset_without_rows_is_one_line():
    assert "holds no rows" in message(open_images, made().select([]))
