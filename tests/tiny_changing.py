"""Networks whose layer "4" changes its shape during a run; importable as specs such as `tiny_changing:by_content`."""

import tiny
from torch import nn


class ByContent(nn.Module):
    """Drops a row of the map where images are not blank."""

    def forward(self, x):
        return x[:, :, : x.shape[2] - int(x.std() > 0.1)]


class ByBatch(nn.Module):
    """As many rows of the map as there are images."""

    def forward(self, x):
        return x[:, :, : len(x)]


def by_content():
    return tiny.conv_network(nn.ReLU(), ByContent())


def by_batch():
    return tiny.conv_network(nn.ReLU(), ByBatch())
