"""Networks that raise, or talk, in the middle of a run; importable as the specs `tiny_raising:late` and `:talking`."""

import logging
import sys
import warnings

import tiny
from torch import nn

PASSES = 2
"""Batches of images that go well."""


class Late(nn.Module):
    """Raises at the third batch that is not blank."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += bool(x.std() > 0.1)
        if self.passes > PASSES:
            raise LookupError("no such\nentry: 7")
        return x


def late():
    return tiny.conv_network(nn.ReLU(), nn.Sequential(Late()), nn.ReLU())


class Talking(nn.Module):
    """Says at each batch, in every way that packages do, that something is out of order."""

    def forward(self, x):
        warnings.warn(f"a batch of mean {x.mean()}", stacklevel=1)
        logging.getLogger("somebody").warning("a batch of %d", len(x))
        sys.stderr.write("a batch " * 10_000)
        return x


def talking():
    return tiny.conv_network(nn.ReLU(), nn.Sequential(Talking()), nn.ReLU())
