"""The bytes of an image file as an image: of the formats that are read, and within limits that no bomb passes."""

import stat
from io import BytesIO
from pathlib import Path

from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What the content may be, whatever the file's name says; PIL knows others, of which EPS is a program to be run."""
MAX_BYTES = 2**28
"""Of an image's file, or of a member that holds one; a larger one counts as an image that cannot be decoded."""


def open_image(held: bytes) -> Image.Image:
    """The image in a file's bytes, decoded when it is asked for.

    PIL's own errors come through; among them one for an image that unpacks to more than twice `PIL.Image.MAX_IMAGE_PIXELS`,
    which is about 179 million pixels.
    """
    return Image.open(BytesIO(held), formats=FORMATS)


def read_file(path: str | Path) -> bytes:
    """The bytes of a file; ValueError for one that is too large, and for a pipe or a device, which may have no end."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file, but a folder, a pipe or a device")
    require_size(status.st_size)
    return Path(path).read_bytes()


def require_size(count: int) -> None:
    """Raises a ValueError for a file or member of so many bytes that none of it is read."""
    if count > MAX_BYTES:
        raise ValueError(f"it holds {count:,} bytes, and at most {MAX_BYTES:,} are read")
