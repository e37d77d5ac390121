"""WebDataset shards as images: samples, labels, classes, what is refused, and the same scores as from a folder."""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
from image_helpers import message

from psi_fast.errors import PsiFastError
from psi_fast.images import open_images
from psi_fast.tar_shards import names_shards

webdataset = pytest.importorskip("webdataset")
COUNT = 12
KINDS = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
}


def png(number):
    held = io.BytesIO()
    tiny.picture(number, tiny.sizes(number)).save(held, "png")
    return held.getvalue()


def sample(number, **members):
    return {"__key__": f"{number:03}", "png": png(number), **members}


def write_shards(root, samples, per_shard=5):
    """The samples in shard-000.tar and so on, by WebDataset's own writer."""
    root.mkdir(exist_ok=True)
    for first in range(0, len(samples), per_shard):
        with webdataset.TarWriter(str(root / f"shard-{first // per_shard:03}.tar")) as sink:
            for each in samples[first : first + per_shard]:
                sink.write(each)
    return root


def write_tar(path, members):
    """A tar of (name, bytes or a kind of KINDS) by the standard library."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname, content = KINDS[content], "a.png", b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 5 and 2 samples."""
    return write_shards(tmp_path / "shards", [sample(i, cls=i % 4) for i in range(COUNT)])


@pytest.mark.parametrize("form", ["folder", "pattern", "one", "path"])
def test_every_form_gives_images_and_classes(shards, form):
    source = {
        "folder": str(shards),
        "pattern": f"{shards}/shard-{{000..002}}.tar",
        "one": f"{shards}/shard-000.tar",
        "path": shards / "shard-{000,001,002}.tar",
    }[form]
    images = open_images(source)
    count = 5 if form == "one" else COUNT
    assert images.names == [f"shard-{i // 5:03}.tar/{i:03}.png" for i in range(count)]
    assert images.labels.tolist() == [i % 4 for i in range(count)]
    assert images.class_names == [f"class {i}" for i in range(4)]
    assert images.lasting
    assert images.warnings == []
    for i in range(count):
        np.testing.assert_array_equal(np.asarray(images.load(i)), np.asarray(tiny.picture(i, tiny.sizes(i))))


@pytest.mark.parametrize("bank", [None, "stream"])
def test_scores_are_those_of_the_same_images_in_a_folder(pictures, tmp_path, bank):
    numbers = [i for label in range(4) for i in range(label, 24, 4)]  # a folder's order
    shards = write_shards(tmp_path / "shards", [sample(i, cls=f"class{i % 4}", txt="a caption") for i in numbers], 7)
    wanted, found = tiny.score(images=pictures), tiny.score(images=f"{shards}/shard-{{000..003}}.tar", bank=bank)
    assert found.table.equals(wanted.table)
    assert found.patches.drop(columns="image").equals(wanted.patches.drop(columns="image"))
    assert set(found.patches["image"].str.rsplit("/", n=1).str[1]) <= {f"{i:03}.png" for i in numbers}


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ([{"json": {"label": i % 3, "width": 4}} for i in range(6)], ["class 0", "class 1", "class 2"]),
        ([{"json": {"cls": f"{5 * (i % 3)}"}} for i in range(6)], ["class 0", "class 5", "class 10"]),
        ([{"cls": 9 - i % 3, "json": {"label": "other"}} for i in range(6)], ["class 7", "class 8", "class 9"]),
        ([{"cls": ["dog", "cat", "émeu"][i % 3]} for i in range(6)], ["cat", "dog", "émeu"]),
        ([{"json": {"width": 4}, "txt": "3"} for _ in range(6)], None),
    ],
    ids=["json label", "json cls", "cls before json", "names", "none"],
)
def test_labels(tmp_path, members, names):
    for held in members:
        held["cls"] = str(held["cls"]).encode() if "cls" in held else b""
        held["json"] = json.dumps(held.get("json", {})).encode()
    samples = [sample(i, **{k: v for k, v in held.items() if v}) for i, held in enumerate(members)]
    images = open_images(write_shards(tmp_path / "shards", samples))
    assert images.class_names == names
    if names is None:
        assert images.labels is None
    else:
        first = [names[label] for label in images.labels]
        assert first[:3] == first[3:]
        assert sorted(first[:3], key=names.index) == names


@pytest.mark.parametrize("listing", ["classes.txt", "classnames.txt"])
def test_class_names_from_a_list_beside_the_shards(shards, listing):
    before = open_images(shards)
    (shards / listing).write_text("crane\ncrane\nmaillot\nowl\nunused\n")
    images = open_images(shards)
    assert images.class_names == ["crane", "crane", "maillot", "owl", "unused"]
    assert images.labels.tolist() == before.labels.tolist()
    assert images.fingerprint != before.fingerprint
    (shards / listing).write_text("crane\nowl\n")
    text = message(open_images, shards)
    assert "'2'" in text
    assert "2 classes" in text


def test_names_as_labels_are_looked_up_in_the_list(tmp_path):
    shards = write_shards(tmp_path / "shards", [sample(i, cls=["owl", "crane"][i % 2]) for i in range(4)])
    (shards / "classes.txt").write_text("crane\nfox\nowl\n")
    assert open_images(shards).labels.tolist() == [2, 0, 2, 0]


def test_the_fingerprint_follows_the_shards(shards):
    first = open_images(shards).fingerprint
    assert open_images(shards).fingerprint == first
    os.utime(shards / "shard-001.tar", (1, 1))
    assert open_images(shards).fingerprint != first


def test_members_are_grouped_as_webdataset_does(tmp_path):
    members = [
        ("a/x.1.cls", b"skipped"),  # a sample "a/x" without an image
        ("a/b.c/y.JPG", png(0)),
        ("a/b.c/y.seg.png", png(1)),  # beside the image that is just .jpg
        ("a/b.c/y.txt", b"text"),
        ("README", b"no sample"),
        ("__index__/x.png", b"no sample"),
        ("b.input.png", png(2)),
        ("./._b.png", b"no sample"),
    ]
    images = open_images(write_tar(tmp_path / "x.tar", members))
    assert images.names == ["x.tar/a/b.c/y.JPG", "x.tar/b.input.png"]
    assert images.warnings == ["skipped 1 sample without an image, as x.tar/a/x"]
    found = webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False)
    assert [each["__key__"] for each in found][:3] == ["a/x", "a/b.c/y", "b"]
    np.testing.assert_array_equal(np.asarray(images.load(1)), np.asarray(tiny.picture(2, tiny.sizes(2))))


def test_long_names_and_other_kinds_of_tar(tmp_path):
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=kind) as archive:
            info = tarfile.TarInfo(f"{'long' * 60}/ü.png")
            info.size = len(png(number))
            archive.addfile(info, io.BytesIO(png(number)))
    images = open_images(tmp_path)
    assert [name[-6:] for name in images.names] == ["/ü.png", "/ü.png"]
    assert [images.load(i).size for i in range(2)] == [tiny.sizes(0), tiny.sizes(1)]


def test_images_are_read_from_many_threads(shards):
    images = open_images(shards)
    wanted = [images.load(i).tobytes() for i in range(COUNT)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: images.load(i % COUNT).tobytes(), range(20 * COUNT)))
    assert found == 20 * wanted


def test_a_shard_that_changes_after_indexing_is_said(shards):
    images = open_images(shards)
    shutil.copy(shards / "shard-000.tar", shards / "shard-002.tar")
    assert "changed" in message(images.load, 11)
    (shards / "shard-001.tar").unlink()
    assert "'shard-001.tar/005.png'" in message(images.load, 5)


def test_an_image_that_cannot_be_decoded_is_named_or_skipped(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.png", png(0)), ("b.png", b"no image"), ("c.png", png(2))])
    assert "'x.tar/b.png'" in message(open_images(tmp_path).load, 1)
    assert open_images(tmp_path, skip_unreadable=True).names == ["x.tar/a.png", "x.tar/c.png"]


def test_hostile_names_are_only_names(tmp_path):
    names = ["/etc/passwd.png", "../../up.png", "a\nb.png", "C:\\x.png"]
    (tmp_path / "in").mkdir()
    path = write_tar(tmp_path / "in" / "x.tar", [(name, png(i)) for i, name in enumerate(names)])
    images = open_images(path)
    assert images.names == [f"x.tar/{name}" for name in names]
    assert [images.load(i).size for i in range(4)] == [tiny.sizes(i) for i in range(4)]
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "x.tar"]


def test_a_name_or_label_that_is_no_unicode_can_be_written(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("\udcff.png", png(0)), ("\udcff.json", b'{"label": "\\ud800"}')])
    images = open_images(path)
    assert images.names == ["x.tar/\\xff.png"]
    assert images.class_names == ["\\ud800"]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a.png", b"."), ("b.png", "link")], "'b.png' is a link"),
        ([("a.png", b"."), ("b.png", "hard link")], "'b.png' is a link"),
        ([("b.png", "device")], "'b.png' is a device"),
        ([("b.png", "pipe")], "'b.png' is a device"),
        ([("b.png", "sparse")], "'b.png' is a sparse file"),
        ([("a.png", b"."), ("a.jpg", b".")], "sample 'a' has two images, .png and .jpg"),
        ([("img.1.png", b"."), ("img.2.png", b".")], "up to the first dot"),
        ([("a.png", b"."), ("a.PNG", b".")], "sample 'a' has two members .png"),
        ([("a.png", b"."), ("b.png", b"."), ("a.cls", b"1")], "sample 'a' lie apart"),
        ([("a.png", b"."), ("a.cls", b"1"), ("b.png", b".")], "'x.tar/a.png' has a label and 'x.tar/b.png' has none"),
        ([("a.png", b"."), ("a.cls", b"\xff")], "'a.cls' cannot be read"),
        ([("a.png", b"."), ("a.cls", b" \n")], "label of 'a'"),
        ([("a.png", b"."), ("a.cls", b"x\ny")], "label of 'a'"),
        ([("a.png", b"."), ("a.json", b"{")], "'a.json' cannot be read"),
        ([("a.png", b"."), ("a.json", b"[" * 100_000)], "'a.json' cannot be read"),
        ([("a.png", b"."), ("a.json", b'{"label": 1.5}')], "is a float"),
        ([("a.png", b"."), ("a.json", b'{"label": true}')], "is a bool"),
        ([("a.png", b"."), ("a.json", b'{"label": ' + b"1" * 5000 + b"}")], "'a.json' cannot be read"),
        ([("a.cls", b"1"), ("b.txt", b".")], "found 2 samples without an image"),
        ([], "found no samples"),
    ],
)
def test_bad_samples_are_one_line(tmp_path, members, says):
    path = write_tar(tmp_path / "x.tar", members)
    text = message(open_images, path)
    assert says in text
    assert "x.tar" in text


def test_a_label_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("psi_fast.tar_shards._LABEL_BYTES", 10)
    assert "too large" in message(open_images, write_tar(tmp_path / "x.tar", [("a.png", b"."), ("a.cls", b"1" * 11)]))


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_a_compressed_tar_says_how_to_decompress(tmp_path, tool, name):
    data = write_tar(tmp_path / "plain", [("a.png", png(0))]).read_bytes()
    (tmp_path / name).write_bytes(subprocess.run([tool, "-c"], input=data, capture_output=True, check=True).stdout)
    text = message(open_images, tmp_path / name)
    assert {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz"}[tool] in text


def test_a_truncated_tar_is_one_line_wherever_it_is_cut(shards):
    path = shards / "shard-000.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
        end = archive.offset
    cuts = [
        0,
        100,
        600,
        infos[0].offset_data + infos[0].size - 1,
        infos[1].offset,
        infos[1].offset + 9,
        infos[-1].offset,
        end,
        end + 100,
    ]
    for cut in cuts:
        path.write_bytes(data[:cut])
        text = message(open_images, shards)
        assert "shard-000.tar" in text
        assert "again" in text
    path.write_bytes(data[: infos[0].offset_data + infos[0].size - 1])
    assert "truncated within '000.cls'" in message(open_images, shards)
    path.write_bytes(data[: end + 512])
    assert len(open_images(shards)) == COUNT


def test_a_damaged_header_and_joined_tars_lose_no_image_silently(shards):
    path = shards / "shard-000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[3].offset
    path.write_bytes(data + data)
    assert "joined" in message(open_images, shards)
    data[offset + 150] ^= 1
    path.write_bytes(data)
    assert f"damaged header at byte {offset}" in message(open_images, shards)


def test_a_header_that_points_back_ends(tmp_path):
    """Python's tarfile would read it for ever."""
    first = bytearray(write_tar(tmp_path / "x.tar", [("a.png", b"." * 600)]).read_bytes())
    second = bytearray(first[:512])
    second[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512
    second[148:156] = b" " * 8
    second[148:156] = f"{sum(second):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(first[:1536] + second + bytes(1024))
    assert "damaged header" in message(open_images, tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("shard-{000..004}.tar", "of the 5 shards"),
        ("other-{000..004}.tar", "none are there"),
        ("shard-{000..002.tar", "no pattern"),
        ("shard-{000,000}.tar", "twice"),
        ("shard-{0..99999999999}.tar", "more than 1,000,000"),
        ("shard-00.tar", "'shard-000.tar'"),
        ("no/shard-{0..1}.tar", "none are there"),
    ],
)
def test_patterns_that_do_not_fit_are_one_line(shards, pattern, says):
    assert says in message(open_images, f"{shards}/{pattern}")


def test_one_missing_shard_is_named(shards):
    (shards / "shard-001.tar").unlink()
    text = message(open_images, f"{shards}/shard-{{000..002}}.tar")
    assert "2 are there" in text
    assert "shard-001.tar" in text


@pytest.mark.parametrize(
    "source",
    ["https://host/shard-{000..099}.tar", "s3://bucket/x.tar", "gs://bucket/x", "pipe:curl -s http://host/x.tar"],
)
def test_what_is_remote_is_one_line(source):
    assert "local or mounted" in message(open_images, source)


def test_a_missing_package_says_what_to_install(shards, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "psi-fast[webdataset]" in message(open_images, f"{shards}/shard-{{000..002}}.tar")
    assert len(open_images(shards)) == COUNT


def test_folders_of_shards_are_told_from_others(shards, image_folder, tmp_path):
    (shards / "sizes.json").write_text("{}")
    (shards / ".hidden").mkdir()
    assert names_shards(str(shards))
    (shards / "other").mkdir()
    assert not names_shards(str(shards))
    shutil.copy(shards / "shard-000.tar", image_folder)
    assert not names_shards(str(image_folder))
    assert open_images(image_folder).class_names == ["cat", "dog"]
    assert not names_shards(str(tmp_path / "images.zip"))


def test_mutated_tars_give_images_or_one_line(tmp_path):
    rng = np.random.default_rng(0)
    members = [(f"{i}.{end}", data) for i in range(3) for end, data in (("png", png(i)[:700]), ("cls", b"1"))]
    members.insert(2, ("long" * 40 + ".txt", b"gnu"))
    members.append(("ü" * 60 + ".json", b'{"label": 1}'))
    whole = write_tar(tmp_path / "whole", members).read_bytes()
    headers = [match.start() - 257 for match in re.finditer(b"ustar", whole)]
    assert len(headers) >= 8
    outcomes = []
    for number in range(300):
        data = bytearray(whole[: rng.integers(len(whole))] if number % 3 == 0 else whole)
        for _ in range(rng.integers(1, 4)):
            # most of a tar is data and padding; headers are where it can go wrong
            header = headers[rng.integers(len(headers))]
            at = header + int(rng.integers(512))
            if at < len(data):
                data[at] ^= int(rng.integers(1, 256))
                if number % 2 and header + 512 <= len(data):  # a checksum that fits, so that the change is believed
                    data[header + 148 : header + 156] = b" " * 8
                    data[header + 148 : header + 156] = f"{sum(data[header : header + 512]):06o}\0 ".encode()
        path = tmp_path / "x.tar"
        path.write_bytes(data)
        try:
            outcomes.append(len(open_images(path)))
        except PsiFastError as error:
            outcomes.append(str(error))
    said = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not any("\n" in text for text in said)
    assert len(said) > 50
    assert outcomes.count(3) > 50
