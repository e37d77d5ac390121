"""Inputs for the fuzzer of readers: small valid files of every kind, and ways to spoil them that a seed decides."""

import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

NUMBERS = (0, 1, 2, 7, 8, 255, 256, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
"""What sizes, counts and offsets are set to: edges of what they are held in."""
NAMES = (
    "../../out.png",
    "/out.png",
    "C:/out.png",
    "a/../../b.png",
    "\\..\\out.png",
    "nul\0.png",
    "\x1b[31m.png",
    "a" * 300,
)
"""Names that lead elsewhere, or spoil a line."""


# ---- valid files


def image_bytes(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 17), seed: int = 0, **options) -> bytes:
    """A picture of noise in a format of PIL."""
    rng, held = np.random.default_rng(seed), io.BytesIO()
    shape = (size[1], size[0], 3) if mode != "I;16" else (size[1], size[0])
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, shape, dtype=np.uint16))
    else:
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode)
    picture.save(held, kind, **options)
    return held.getvalue()


def images() -> dict[str, list[bytes]]:
    """Pictures by the ending of their file's name."""

    def two() -> dict[str, list[Image.Image]]:  # anew each time, since saving leaves settings of the format in an image
        return {"append_images": [Image.new("RGB", (24, 17), colour) for colour in ("red", "blue")]}

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    several, tiff = {"save_all": True}, ("I;16", "CMYK", "LAB")
    kinds = {
        "png": [*(("PNG", mode, {}) for mode in ("RGB", "RGBA", "P", "L", "1", "LA", "I;16")), ("PNG", "RGB", several)],
        "jpg": [*(("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")), ("MPO", "RGB", several)],
        "bmp": [("BMP", mode, {}) for mode in ("RGB", "P", "1", "RGBA")],
        "ppm": [("PPM", mode, {}) for mode in ("RGB", "L", "1", "I;16")],
        "tif": [*(("TIFF", "RGB", {"compression": one}) for one in packings), *(("TIFF", mode, {}) for mode in tiff)],
        "webp": [("WEBP", "RGB", {}), ("WEBP", "RGB", {"lossless": True}), ("WEBP", "RGBA", {})],
        "gif": [("GIF", "P", {}), ("GIF", "P", several)],
        "jp2": [("JPEG2000", "RGB", {}), ("JPEG2000", "L", {"irreversible": True})],
    }
    kinds["png"].append(("PNG", "P", {"transparency": 3}))
    kinds["jpg"] += [("JPEG", "RGB", {"progressive": True}), ("JPEG", "RGB", {"exif": exif})]
    kinds["tif"] += [("TIFF", "1", {"compression": "group4"}), ("TIFF", "RGB", several)]
    kinds["tif"] += [("TIFF", mode, {"big_tiff": True}) for mode in ("RGB", "L", "I;16")]
    kinds["webp"].append(("WEBP", "RGB", {**several, "exif": exif}))
    made = {
        ending: [
            image_bytes(kind, mode, **options, **(two() if "save_all" in options else {}))
            for kind, mode, options in own
        ]
        for ending, own in kinds.items()
    }
    made["ppm"].append(b"P3 2 2 255 " + b"9 8 7 " * 4)
    return made


def zips() -> list[bytes]:
    """A class a folder, Tiny-ImageNet's tree, and images alone; stored and packed."""
    found, picture = [], image_bytes("PNG", size=(6, 5))
    trees = (
        {f"{name}/{number}.png": picture for name in ("cat", "dog") for number in range(3)},
        {
            "wnids.txt": b"n01\nn02\n",
            "words.txt": b"n01\tcat, a\nn02\tdog\n",
            "train/n01/images/n01_0.png": picture,
            "train/n02/images/n02_0.png": picture,
            "val/images/val_0.png": picture,
            "val/val_annotations.txt": b"val_0.png\tn02\t0\t0\t1\t1\n",
        },
        {f"around/{number}.png": picture for number in range(3)},
    )
    for tree in trees:
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            held = io.BytesIO()
            with zipfile.ZipFile(held, "w", method) as archive:
                for name, data in tree.items():
                    archive.writestr(zipfile.ZipInfo(name), data, method)
            found.append(held.getvalue())
    return found


def tars() -> list[bytes]:
    """Shards with labels of both kinds, with long names and links, in each of the formats of tars."""
    picture, found = image_bytes("PNG", size=(6, 5)), []
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for label in ("cls", "json", "none"):
            held = io.BytesIO()
            with tarfile.open(fileobj=held, mode="w", format=style) as archive:
                for number in range(3):
                    stem = f"{'long/' * (16 if number == 1 else 1)}{number}{'é' if number == 2 else ''}"
                    texts = {"cls": b"%d" % (number % 2), "json": b'{"label": %d}' % (number % 2)}
                    for ending, data in {"png": picture, **{k: v for k, v in texts.items() if k == label}}.items():
                        member = tarfile.TarInfo(f"{stem}.{ending}")
                        member.size = len(data)
                        member.pax_headers = {"comment": "é" * 5} if style == tarfile.PAX_FORMAT else {}
                        archive.addfile(member, io.BytesIO(data))
            found.append(held.getvalue())
    return found


def tables(arrow: bool) -> list[bytes]:
    """Data sets of Hugging Face with images in rows, as parquet files of every packing or as arrow streams."""
    import pyarrow as pa
    from pyarrow import parquet

    pictures = [{"bytes": image_bytes("PNG", size=(6, 5), seed=i), "path": f"{i}.png"} for i in range(6)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = '{"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}'
    about = {b"huggingface": b'{"info": {"features": %s}}' % features.encode()}
    found = []
    for labels in ([0, 1] * 3, ["cat", "dog"] * 3, None):
        columns = {"image": pa.array(pictures, kind)} | ({"label": pa.array(labels)} if labels else {})
        table = pa.table(columns)
        if labels == [0, 1] * 3:
            table = table.replace_schema_metadata(about)
        for packing in (None,) if arrow else ("snappy", "zstd", "gzip", "none"):
            held = io.BytesIO()
            if arrow:
                with pa.ipc.new_stream(held, table.schema) as writer:
                    writer.write_table(table, 2)
            else:
                parquet.write_table(table, held, compression=packing, row_group_size=4, data_page_version="2.0")
            found.append(held.getvalue())
    return found


def checkpoints() -> list[bytes]:
    """State dicts as torch and safetensors write them, and as torch did before."""
    import torch
    from safetensors.torch import save

    state = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.float16)}
    found = [save(state)]
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        held = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, held, **options)
        found.append(held.getvalue())
    return found


# ---- ways to spoil them


def spoiled(rng: np.random.Generator, held: bytes, others: list[bytes], structure: Callable | None) -> bytes:
    """A file with one to four faults; half of them where its format's structure is, and so that checksums fit."""
    if rng.random() < 0.02:
        return held
    data = bytearray(held)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        if structure is not None and rng.random() < 0.5:
            structure(rng, data)
        else:
            WAYS[rng.integers(len(WAYS))](rng, data, others)
    return bytes(data)


def flip(rng, data, _others):
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(8)


def put_byte(rng, data, _others):
    data[rng.integers(len(data))] = rng.integers(256)


def put_number(rng, data, _others):
    put(rng, data, int(rng.integers(len(data))))


def put(rng, data, at):
    """A number at the edge of something, in one of the ways that numbers are held."""
    kind = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")[rng.integers(7)]
    held = struct.pack(kind, NUMBERS[rng.integers(len(NUMBERS))] % 2 ** (8 * struct.calcsize(kind)))
    data[at : at + len(held)] = held


def cut(rng, data, _others):
    del data[rng.integers(len(data)) :]


def leave_out(rng, data, _others):
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 65))]


def repeat(rng, data, _others):
    start = int(rng.integers(len(data)))
    data[start:start] = data[start : start + int(rng.integers(1, 257))] * int(rng.integers(1, 5))


def splice(rng, data, others):
    other = others[rng.integers(len(others))]
    data[rng.integers(len(data)) :] = other[rng.integers(len(other)) :]


def fill(rng, data, _others):
    start, count = int(rng.integers(len(data))), int(rng.integers(1, 65))
    data[start : start + count] = bytes([rng.choice([0, 255, 32, 57])]) * count


WAYS = (flip, flip, put_byte, put_number, put_number, cut, leave_out, repeat, splice, fill)


def spoil_png(rng, data):
    """A field of a chunk of a PNG, whose checksum is made to fit."""
    at, chunks = 8, []
    while at + 12 <= len(data):
        count = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((at, count))
        at += 12 + count
    at, count = chunks[rng.integers(len(chunks))] if chunks else (0, 0)
    if at + 12 + count > len(data):
        return
    put(rng, data, at + 4 + int(rng.integers(4 + max(1, count))))
    data[at + 8 + count : at + 12 + count] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + count]))


def spoil_tif(rng, data):
    """A field of an entry of a TIFF's first directory: its tag, kind, count or value; the kind often another that there is."""
    order, big = ("<" if data[:2] == b"II" else ">"), bytes(data[2:4]) in (b"+\0", b"\0+")
    number, pointer, place, first, size = ("Q", "Q", 8, 8, 20) if big else ("H", "I", 4, 2, 12)
    if len(data) < place + 8:
        return
    at = struct.unpack_from(order + pointer, data, place)[0]
    if at + first > len(data):
        return
    count = min(struct.unpack_from(order + number, data, at)[0], (len(data) - at - first) // size)
    if count < 1:
        return
    entry = at + first + size * int(rng.integers(count))
    if rng.random() < 0.3:
        data[entry + 2 : entry + 4] = struct.pack(order + "H", rng.integers(1, 19))
    else:
        put(rng, data, entry + int(rng.integers(size)))


def spoil_head(rng, data):
    """Something in the first 64 bytes, where most formats say how large they are."""
    put(rng, data, int(rng.integers(min(64, len(data)))))


def spoil_zip(rng, data):
    """A field of a header or an entry of the directory, or a name."""
    places = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x07)", data)]
    if not places:
        return
    at = places[rng.integers(len(places))]
    if rng.random() < 0.3:
        name = NAMES[rng.integers(len(NAMES))].encode()[: int(rng.integers(1, 20))]
        data[at + 46 : at + 46 + len(name)] = name
    else:
        put(rng, data, at + 4 + int(rng.integers(42)))


def spoil_tar(rng, data):
    """A field of a header, whose checksum is made to fit, so that the change is believed."""
    places = [match.start() - 257 for match in re.finditer(b"ustar", data)]
    if not places:
        return
    at = places[rng.integers(len(places))]
    field, size = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 97))[
        rng.integers(8)
    ]
    held = [
        lambda: NAMES[rng.integers(len(NAMES))].encode(),
        lambda: f"{NUMBERS[rng.integers(len(NUMBERS))]:o}".encode(),
        lambda: bytes([rng.choice(list(b"\0000123456789xgLKSDMVNX"))]),
        lambda: b"\x80" + rng.bytes(11),
        lambda: b"\xff" * 12,
        lambda: rng.bytes(size),
    ][rng.integers(6)]()[:size]
    data[at + field : at + field + len(held)] = held
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()[:8]


def spoil_tail(rng, data):
    """Something in the footer of a parquet file, or of any other the end."""
    count = struct.unpack("<I", data[-8:-4])[0] if data[-4:] == b"PAR1" else len(data) // 4
    put(rng, data, len(data) - 1 - int(rng.integers(min(len(data), max(1, count + 8)))))
