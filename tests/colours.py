"""A network whose units fire for squares of known colours, images of such squares, and an encoder that names the colours."""

import numpy as np
import torch
from PIL import Image
from test_study import study as any_study
from torch import nn

from psi_fast import Network, Preprocess, PSIConfig
from psi_fast.image_set import ImageSet

COLOURS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "cyan": (-1, 1, 1),
    "magenta": (1, -1, 1),
    "white": (1, 1, 1),
    "black": (-1, -1, -1),
}
NAMES = tuple(COLOURS)
CORNERS = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
PREPROCESS = Preprocess(24, 24, (0.5,) * 3, (0.5,) * 3, "bilinear")
CONFIG = PSIConfig(top_k=18, k_max=4, n_init=2, draws=40, patch="image", batch_size=32, precision="float32")
LAYER = "units"
PROJECTION = 0.05 * torch.randn(192, 32, generator=torch.Generator().manual_seed(0))


class Units(nn.Module):
    """The largest of the weighted colours: [B, 8, H, W] -> [B, C, H, W] by weights [C, 8] in [0, 1]."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return (self.weights[:, :, None, None] * x[:, None]).amax(2)


def network(weights):
    """A network with a unit for each row of `weights`: how strongly it fires for squares of each colour, by name."""
    rows = torch.tensor([[row.get(name, 0.0) for name in NAMES] for row in weights])
    find = nn.Conv2d(3, len(NAMES), 4, stride=4)
    with torch.no_grad():
        find.weight.copy_((CORNERS / 48)[:, :, None, None].expand_as(find.weight))
        find.bias.fill_(-0.4)  # colours that share two of three parts reach a third
    module = nn.Sequential()
    module.add_module("find", nn.Sequential(find, nn.ReLU()))
    module.add_module(LAYER, Units(rows))
    return Network(module, PREPROCESS, "colours")


def square(number):
    """Picture `number`: noise with a square of colour `number % 8`, of its own strength and at its own place."""
    rng = np.random.default_rng(number)
    x, y = rng.integers(0, 13, 2)
    pixels = rng.normal(0, 0.15, (24, 24, 3))
    pixels[y : y + 12, x : x + 12] += rng.uniform(0.75, 1) * CORNERS[number % len(NAMES)].numpy()
    return Image.fromarray((127.5 * (1 + pixels.clip(-1, 1))).astype(np.uint8))


def image_set(count=240, class_names=NAMES, class_keys=None):
    """`count` pictures, the colours in turn, with their colours as labels."""
    names = [f"square-{number}" for number in range(count)]
    return ImageSet(
        names,
        lambda name: square(int(name.removeprefix("square-"))),
        [str(number) for number in range(count)],
        labels=[number % len(NAMES) for number in range(count)],
        class_names=class_names,
        class_keys=class_keys,
    )


class ColourEncoder:
    """How much of each colour a crop has, and some noise; concepts as weights of the colours, by name."""

    name = "colour-encoder"
    preprocess = PREPROCESS

    def __init__(self, concepts=None):
        self.warnings = []
        self._concepts = concepts or {name: {name: 1.0} for name in NAMES}

    def encode(self, batch):
        shares = torch.einsum("bchw,kc->bkhw", batch, CORNERS / 3).sub(0.4).clamp(min=0).mean((2, 3))
        # differences of neighbours hold no square, only its edge, which is clipped
        noise = (batch[:, :, ::3, ::3] - batch[:, :, 1::3, ::3]).clamp(-0.4, 0.4).flatten(1) @ PROJECTION
        return torch.cat([shares / shares.norm(dim=1, keepdim=True).clamp(min=1e-6), noise], 1)

    def concepts(self, vocabulary, progress=None):
        rows = [[weights.get(name, 0.0) for name in NAMES] for weights in self._concepts.values()]
        return list(self._concepts), torch.cat([torch.tensor(rows), torch.zeros(len(rows), 32)], 1)

    def fingerprint(self):
        return repr(self._concepts)

    def to(self, device):
        return self


def study(folder, weights, images=None, **changes):
    """A study of `network(weights)`."""
    options = {"encoder": ColourEncoder(), "config": CONFIG} | changes
    return any_study(folder, network(weights), LAYER, images or image_set(), **options)
