"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from browser import chromium, visit  # noqa: F401 - fixtures
from image_helpers import paint
from reports import bare, hostile, pair, runs, single  # noqa: F401 - fixtures

from psi_fast import Network
from psi_fast.forward import SLICE


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded images go to a folder of the session's own, and those of earlier ones are not found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSI_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def batched(monkeypatch):
    """Steps of `batch_size` on the CPU too, in whole slices, so that a row's place in its slice stays the same."""
    for module in ("mining", "crops"):
        monkeypatch.setattr(f"psi_fast.{module}.step_of", lambda _device, size, *_: -(-size // SLICE) * SLICE)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real images, beside the repository or where PSI_FAST_DATA points."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PSI_FAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set PSI_FAST_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_val_zip(data_dir: Path) -> Path:
    """Tiny-ImageNet's 10,000 val images."""
    return _present(data_dir / "tiny-imagenet-200-val.zip")


@pytest.fixture(scope="session")
def tiny_train_zip(data_dir: Path) -> Path:
    """100 training images of each Tiny-ImageNet class."""
    return _present(data_dir / "tiny-imagenet-200-train100.zip")


@pytest.fixture
def image_folder(tmp_path):
    """Two classes; the blue channel numbers the images in the expected order."""
    root = tmp_path / "pets"
    for number, name in enumerate(("cat/a.png", "cat/b.PNG", "cat/deep/c.png", "dog/a.png", "dog/b.png")):
        paint(root / name, (0, 0, number))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".hidden.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of tiny's pictures."""
    return tiny.write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def net():
    """The network of every case, its flags mixed."""
    torch.manual_seed(0)
    module = tiny.Net()
    module.norm.eval()  # a mixture of flags has to come back, not one flag for all
    module.conv.bias.requires_grad_(False)
    module.head.weight.grad = torch.ones_like(module.head.weight)
    return Network(module, tiny.SMALL, "net")


def _present(path: Path) -> Path:
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {path.parent}")
    return path
