"""What the tests of images share: writing small images and zips, and reading an error's one line."""

import zipfile

import pytest
from PIL import Image

from psi_fast.errors import InputError


def paint(path, colour=(10, 20, 30), size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def pack(folder, target):
    """`folder` as a zip, members in an order that is not sorted."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def message(call, *args, error=InputError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
