"""A first run without any download: tiles of photographs that scikit-image ships."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageStat

from psi_fast.config import PSIConfig
from psi_fast.errors import ModelError
from psi_fast.image_set import ImageSet
from psi_fast.scores import Scores

DEMO_NETWORK, DEMO_LAYER = "efficientnet-lite:lite0", "_conv_head"
DEMO_IMAGES = "scikit-image:tiles"
DEMO_ENCODER = "classifier:efficientnet-lite:lite2"
DEMO_CONFIG = PSIConfig(patch="image", draws=100, top_k=60, n_init=2)

# File below skimage/data -> what it shows. Only photographs that lie in the package itself, never fetched ones.
_PHOTOGRAPHS = {
    "astronaut.png": "astronaut",
    "brick.png": "brick wall",
    "camera.png": "man with a camera",
    "cell.png": "cell under a microscope",
    "chelsea.png": "tabby cat",
    "clock_motion.png": "wall clock",
    "coffee.png": "cup of coffee",
    "coins.png": "ancient coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "ihc.png": "stained tissue",
    "moon.png": "surface of the moon",
    "motorcycle_left.png": "motorcycle",
    "page.png": "printed page",
    "retina.jpg": "retina",
    "rocket.jpg": "rocket on a launch pad",
    "text.png": "handwritten text",
}
_GRIDS = ((1, 3), (2, 5), (4, 9))  # (short side divided by, positions along each side)
_FLAT = 2.0  # standard deviation of the grey values (0..255) below which a tile shows nothing


def demo_tiles() -> ImageSet:
    """1,939 square tiles of 18 photographs; a tile's class is its photograph.

    Each photograph is cut at three scales: its full short side, one half and one quarter of it, at 3, 5 and 9 evenly
    spread positions along each side (equal positions count once). Tiles with hardly any contrast (standard deviation of
    the grey values below 2 of 255) are left out. A photograph gives 103 to 109 tiles. Names tell photograph, side and
    top left corner in its pixels: "coffee/s200/x100_y50".

    Returns
    -------
    ImageSet
        Tiles are cut when loaded, from the decoded photographs (about 13 MB), which stay in memory.

    Raises
    ------
    ModelError
        scikit-image is not installed, or its release lacks one of the photographs.
    """
    spec = find_spec("skimage")  # found without importing it: the files are all that is needed
    if spec is None or spec.origin is None:
        raise ModelError(f'{DEMO_IMAGES} needs scikit-image; install it with: pip install "psi-fast[demo]"')
    photographs: dict[str, Image.Image] = {}
    names: list[str] = []
    stamps: list[str] = []
    labels: list[int] = []
    for label, file in enumerate(_PHOTOGRAPHS):
        path = Path(spec.origin).parent / "data" / file
        try:
            with Image.open(path) as image:
                image.load()
                photograph = image.copy()
        except OSError as error:
            raise ModelError(
                f'scikit-image came without {file!r}, which {DEMO_IMAGES} needs; install "psi-fast[demo]" again'
            ) from error
        stem = path.stem
        photographs[stem] = photograph
        stamp = hashlib.sha256(photograph.tobytes()).hexdigest()
        grey = photograph.convert("L")
        for side, left, top in _boxes(*photograph.size):
            if ImageStat.Stat(grey.crop((left, top, left + side, top + side))).stddev[0] >= _FLAT:
                names.append(f"{stem}/s{side}/x{left}_y{top}")
                stamps.append(stamp)
                labels.append(label)

    def cut(name: str) -> Image.Image:
        stem, side, corner = name.split("/")
        left, top = (int(part[1:]) for part in corner.split("_"))
        return photographs[stem].crop((left, top, left + int(side[1:]), top + int(side[1:])))

    keys = [Path(file).stem for file in _PHOTOGRAPHS]
    return ImageSet(names, cut, stamps, labels=labels, class_names=list(_PHOTOGRAPHS.values()), class_keys=keys)


def _boxes(width: int, height: int) -> list[tuple[int, int, int]]:
    """(side, left, top) of every tile, in pixels: large to small, row by row."""
    boxes = []
    for part, positions in _GRIDS:
        side = min(width, height) // part
        lefts, tops = (
            np.unique(np.linspace(0, length - side, positions).round().astype(int)) for length in (width, height)
        )
        boxes += [(side, int(left), int(top)) for top in tops for left in lefts]
    return boxes


def run_demo(out: str | Path, progress: bool = True) -> Scores:
    """All 1280 channels of EfficientNet-Lite0's last convolution, on the tiles, in EfficientNet-Lite2's feature space.

    A tile is its own patch: it is as small as many a receptive field already, and the largest crop there is.
    """
    from psi_fast.api import score

    return score(
        DEMO_NETWORK, DEMO_LAYER, DEMO_IMAGES, encoder=DEMO_ENCODER, config=DEMO_CONFIG, out=out, progress=progress
    )
