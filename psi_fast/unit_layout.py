"""Where channels and positions lie in a layer's output."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

MAX_PREFIX = 8
"""Most class and register tokens looked for in front of a square of patch tokens."""


@dataclass(frozen=True)
class Layout:
    """Where channels and positions lie in a layer's output."""

    channels: int
    grid: tuple[int, int] | None
    prefix: int
    to_positions: Callable[[torch.Tensor], torch.Tensor]  # [B, ...] -> [B, C, P]


def layout_of(shape: tuple[int, ...]) -> Layout:
    """The layout rule of `ActivationTap` for one image's output of 1 to 3 dimensions."""
    if len(shape) == 1:
        return Layout(shape[0], None, 0, lambda output: output.unsqueeze(2))
    if len(shape) == 2:
        tokens, channels = shape
        side = math.isqrt(tokens)
        prefix = tokens - side * side
        grid = (side, side) if side and prefix <= MAX_PREFIX else None
        return Layout(channels, grid, prefix if grid else 0, lambda output: output.transpose(1, 2))
    if shape[0] == shape[1] != shape[2]:  # the network's input is square, so equal sides are the picture's
        return Layout(shape[2], (shape[0], shape[1]), 0, lambda output: output.permute(0, 3, 1, 2).flatten(2))
    return Layout(shape[0], (shape[1], shape[2]), 0, lambda output: output.flatten(2))
