"""What is too large or has no end is refused before it is read: files, members, unpacked sizes, headers, pipes."""

import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import pytest
from image_helpers import message, paint
from PIL import Image

from psi_fast import image_files, tar_headers
from psi_fast.errors import InputError
from psi_fast.image_files import FORMATS, MAX_BYTES, open_image
from psi_fast.images import open_images

LINE = f"and at most {MAX_BYTES:,} are read; replace it or pass skip_unreadable=True (--skip-unreadable)"


def png(size=(6, 5)):
    held = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(held, "png")
    return held.getvalue()


def tar_of(path, *members):
    """A tar of (header, bytes), whatever the header says."""
    with path.open("wb") as file:
        for header, held in members:
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + held + bytes(-len(held) % 512))
        file.write(bytes(1024))
    return path


def header(name, size, kind=tarfile.REGTYPE):
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made


# ---- images too large to be read


def sparse(path):
    """A file that claims more than is read, and takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def in_a_folder(root):
    paint(root / "a.png")
    sparse(root / "b.png")
    return root


def in_a_zip(root):
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("b.png", png())
    held = bytearray((root / "x.zip").read_bytes())
    at = held.index(b"PK\1\2", held.index(b"PK\1\2") + 1)  # the second member's entry in the directory
    held[at + 24 : at + 28] = struct.pack("<I", MAX_BYTES + 1)
    (root / "x.zip").write_bytes(held)
    return root / "x.zip"


def in_a_tar(root):
    path = tar_of(root / "x.tar", (header("a.png", 9), png()[:9]), (header("b.png", MAX_BYTES + 1), b""))
    with path.open("r+b") as file:
        file.seek(1536)
        file.truncate(1536 + MAX_BYTES + 1 + 511 + 10240)
    return path


def in_a_dataset(root):
    datasets = pytest.importorskip("datasets")
    sparse(root / "images" / "b.png")
    paint(root / "images" / "a.png")
    rows = [str(root / "images" / name) for name in ("a.png", "b.png")]
    return datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())


@pytest.mark.parametrize("make", [in_a_folder, in_a_zip, in_a_tar, in_a_dataset])
def test_an_image_too_large_is_named_and_none_of_it_is_read(tmp_path, make):
    images = open_images(make(tmp_path))
    assert len(images) == 2
    tracemalloc.start()
    said = message(images.load, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said.startswith(f"cannot decode image {images.names[1]!r}: it holds {MAX_BYTES + 1:,} bytes, {LINE}")
    assert peak < 2**20


def test_bytes_of_a_row_too_large(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": png(), "path": None}]
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    monkeypatch.setattr(image_files, "MAX_BYTES", 20)
    assert f"it holds {len(png())} bytes, and at most 20 are read" in message(open_images(data).load, 0)


def test_one_too_large_is_skipped_and_counted(tmp_path):
    images = open_images(in_a_folder(tmp_path), skip_unreadable=True)
    assert images.names == ["a.png"]
    assert images.warnings == ["skipped 1 unreadable image: b.png"]


# ---- bombs


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    """A zip says 100 bytes, and holds 256 MB of zeros in 260 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(2**28)) + packer.flush()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", bomb)
    held = bytearray((tmp_path / "x.zip").read_bytes())
    for at, method, size in ((0, 8, 22), (held.rindex(b"PK\1\2"), 10, 24)):
        held[at + method : at + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        held[at + size : at + size + 4] = struct.pack("<I", 100)
    (tmp_path / "x.zip").write_bytes(held)
    images = open_images(tmp_path / "x.zip")
    tracemalloc.start()
    said = message(images.load, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "cannot decode image 'a.png': Bad CRC-32" in said
    assert peak < 2**21


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_without_a_bound_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a.png", png())
    said = message(open_images, tmp_path / "x.zip")
    assert "is refused: member 'a.png' is packed otherwise than by deflate; pack it again" in said


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_image_of_too_many_pixels_is_counted_as_unreadable(tmp_path, kind):
    """179 million pixels in a few bytes, or in those of a header."""
    size = (16384, 16384) if kind != "WEBP" else (16383, 16383)
    if kind == "WEBP":
        bits = (size[0] - 1) | (size[1] - 1) << 14
        held = b"RIFF" + struct.pack("<I", 26) + b"WEBPVP8L" + struct.pack("<IBI", 14, 0x2F, bits) + bytes(9)
    else:
        packed = io.BytesIO()
        Image.new("1", size).save(packed, kind, **({"compression": "group4"} if kind == "TIFF" else {}))
        held = packed.getvalue()
    assert len(held) < 2**20
    (tmp_path / "bomb.png").write_bytes(held)
    paint(tmp_path / "good.png")
    said = message(open_images(tmp_path).load, 0)
    assert said.startswith("cannot decode image 'bomb.png': Image size (")
    assert "decompression bomb" in said
    assert open_images(tmp_path, skip_unreadable=True).warnings == ["skipped 1 unreadable image: bomb.png"]


# ---- headers of tars


def record(key, value):
    """A line of a pax header."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


HEADERS = {  # of which tarfile makes sense for more than 10 s each (Python 3.11.7)
    "digits": b"1" * 100_000,
    "a number": record(b"comment", b"1" * 100_000),
    "no key": b"3 \n" * 33_000 + b"=",
}


@pytest.mark.parametrize("held", HEADERS.values(), ids=HEADERS)
def test_headers_that_take_for_ever_are_refused(tmp_path, held):
    extended = (header("x", len(held), tarfile.XHDTYPE), held)
    path = tar_of(tmp_path / "x.tar", extended, (header("a.png", len(png())), png()))
    begun = time.monotonic()
    assert "damaged extended header at byte 0" in message(open_images, path)
    assert time.monotonic() - begun < 2


def test_ordinary_extended_headers_are_read(tmp_path):
    held = record(b"path", b"long" * 500 + b"/a.png") + record(b"SCHILY.xattr.user.x", b"\n=\0\xff" * 50)
    extended = (header("x", len(held), tarfile.XHDTYPE), held)
    path = tar_of(tmp_path / "x.tar", extended, (header("a.png", len(png())), png()))
    assert open_images(path).names == ["x.tar/" + "long" * 500 + "/a.png"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_too_large_is_refused(tmp_path, kind):
    path = tar_of(tmp_path / "x.tar", (header("x", tar_headers.MAX_BYTES + 1, kind), b""))
    with path.open("r+b") as file:
        file.truncate(2**30)
    tracemalloc.start()
    said = message(open_images, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "1,048,577 bytes extend a header, and at most 1,048,576 are read" in said
    assert peak < 2**20


# ---- what is no file


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    paint(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.symlink("/dev/zero", tmp_path / "c.png")
    images = open_images(tmp_path)
    for row in (1, 2):
        assert "it is no file, but a folder, a pipe or a device" in message(images.load, row)
    assert open_images(tmp_path, skip_unreadable=True).warnings == ["skipped 2 unreadable images: b.png, c.png"]
    assert "is neither a folder nor a zip" in message(open_images, tmp_path / "b.png")


def test_a_row_of_a_dataset_that_points_to_a_pipe(tmp_path):
    datasets = pytest.importorskip("datasets")
    os.mkfifo(tmp_path / "a.png")
    rows = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": None}]
    images = open_images(datasets.Dataset.from_dict({"image": rows}))
    assert "it is no file" in message(images.load, 0)
    assert "the row holds no image" in message(images.load, 1)


# ---- formats


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_tells_the_format(kind):
    held = io.BytesIO()
    Image.new("RGB", (9, 7), (50, 60, 70)).save(held, kind)
    assert open_image(held.getvalue()).size == (9, 7)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "TGA"])
def test_formats_that_nobody_asked_for_are_not_decoded(tmp_path, kind):
    """EPS above all: PIL hands it to an interpreter of PostScript."""
    Image.new("RGB", (16, 16)).save(tmp_path / "held", kind)
    os.rename(tmp_path / "held", tmp_path / "a.png")
    assert "its content is no image format known here" in message(open_images(tmp_path).load, 0, error=InputError)
