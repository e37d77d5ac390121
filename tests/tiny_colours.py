"""Pictures of six colours, and a network whose units' meanings are known: one colour each, then two colours each."""

import numpy as np
import tiny
import torch
from PIL import Image
from tiny import TinyEncoder
from torch import nn

from psi_fast import Network, Preprocess
from psi_fast.image_set import ImageSet

COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
}
SIGNS = 2 * torch.tensor(list(COLOURS.values())).float() - 1
"""Of the colours around grey, [6, 3]."""
PREPROCESS = Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear")
PAIRS = [(i, j) for i in range(6) for j in range(i)]


class Pairs(nn.Module):
    """[B, 6, H, W] -> [B, 15, H, W], the larger of two channels."""

    def forward(self, x):
        return torch.stack([torch.maximum(x[:, i], x[:, j]) for i, j in PAIRS], 1)


def network(*behind):
    """A layer "0" of six one-colour units, a layer "1" of fifteen two-colour units, then `behind`."""
    mono = nn.Conv2d(3, 6, 1, bias=False)
    mono.weight.data = SIGNS[:, :, None, None].clone()
    return Network(nn.Sequential(mono, Pairs(), *behind).requires_grad_(False), PREPROCESS, "colours")


def image_set(count=120):
    """`count` pictures, number i of colour i % 6, each with its own noise."""

    def read(name):
        number = int(name)
        rng = np.random.default_rng(number)
        signs = SIGNS[number % 6].numpy()
        pixels = (
            0.5 + 0.35 * signs * rng.uniform(0.7, 1) + 0.12 * rng.normal(size=(32, 32, 3)) + 0.05 * rng.normal(size=3)
        )
        return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))

    names = [str(number) for number in range(count)]
    return ImageSet(
        names,
        read,
        [f"colour {name}" for name in names],
        labels=[i % 6 for i in range(count)],
        class_names=list(COLOURS),
    )


class ColourEncoder(TinyEncoder):
    """Patch pixels through a random matrix, and the pure colours through the same one as concepts.

    noise : how much of an embedding is noise that has nothing to do with the colour; 1 for nothing else
    """

    def __init__(self, seed=0, noise=0.0):
        super().__init__(names=COLOURS)
        self.name, self._mark, self._noise = f"colours-{seed}-{noise}", f"colours {seed} {noise}", noise
        generator = torch.Generator().manual_seed(seed)
        self._weight = torch.randn(192, 10, generator=generator)
        self._text = SIGNS.repeat_interleave(64, 1) @ self._weight

    def encode(self, batch):
        found = super().encode(batch)
        seeds = [int(row.abs().sum() * 1e4) for row in batch]  # of the patch alone
        drawn = [torch.randn(10, generator=torch.Generator().manual_seed(own)) * 14 for own in seeds]
        return (1 - self._noise) * found + self._noise * torch.stack(drawn)

    def fingerprint(self):
        return self._mark


CONFIG = tiny.replace(tiny.CONFIG, patch="image", draws=40, top_k=16)


class Both(nn.Module):
    """[B, 6, H, W] -> [B, 21, H, W], one-colour units and two-colour units in one layer."""

    def forward(self, x):
        return torch.cat((x, Pairs()(x)), 1)


def both_network():
    """One- and two-colour units in layer "1"."""
    made = network()
    made.module[1] = Both()
    return made


class Rough(nn.Module):
    """What a blur takes away: noise that knows nothing of a picture's colour."""

    def forward(self, x):
        return x - nn.functional.avg_pool2d(x, 9, 1, 4, count_include_pad=False)


def classifier(seed=0, *before, warnings=()):
    """Colours through a random matrix, told apart by the pure colours through the same one."""
    rows = torch.randn(10, 192, generator=torch.Generator().manual_seed(seed))
    inner, last = nn.Linear(192, 10, bias=False), nn.Linear(10, 6, bias=False)
    inner.weight.data, last.weight.data = rows, SIGNS.repeat_interleave(64, 1) @ rows.T
    module = nn.Sequential(*before, nn.AdaptiveAvgPool2d(8), nn.Flatten(), inner, last).requires_grad_(False)
    return Network(module, PREPROCESS, f"tiny_colours:{seed}{len(before)}", list(COLOURS), list(warnings))


def other_classifier():
    """The same colours through another matrix."""
    return classifier(1)


def third_classifier():
    """And another."""
    return classifier(2)


def rough_classifier():
    """One that does not see colours, and says that it knows nothing."""
    return classifier(3, Rough(), warnings=["random weights (rough)"])
