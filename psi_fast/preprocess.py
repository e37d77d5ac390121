"""From images to a network's input, in batches on the device, with a geometry that boxes can be taken back through."""

from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from psi_fast.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """How a network is fed.

    The shorter side is resized to `resize` with antialiasing, the centre `size` x `size` is cut, and values on the 0..1
    scale are normalised by `mean` and `std`. With `squash` both sides are resized to `resize`, whatever the image's shape,
    before the centre is cut.
    """

    size: int
    """Side of the network's input in px."""
    resize: int
    """Shorter side after resizing in px, at least `size`."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    squash: bool = False
    """Resize both sides to `resize`, which takes in the whole image where `resize` equals `size`."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ModelError(f"preprocess needs 1 <= size <= resize, got size {self.size} and resize {self.resize}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ModelError(f"preprocess interpolation must be bilinear or bicubic, got {self.interpolation!r}")

    def __call__(self, pixels: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The network's input for images of one shape.

        Parameters
        ----------
        pixels
            [B, H, W, 3] uint8 RGB, on any device.
        out
            [B, size, size, 3] float32 to write into: fresh memory costs a CPU more than the arithmetic.

        Returns
        -------
        torch.Tensor
            [B, 3, size, size] float32 on the same device, with the channels last in memory, each image independent of the
            others. Resized values are rounded to whole numbers within 0..255, as image libraries do.
        """
        height, width = pixels.shape[1:3]
        (columns, rows), (x, y) = _plan(self, width, height)
        image = pixels.permute(0, 3, 1, 2)
        if (rows, columns) != (height, width):
            image = _resized(image, (rows, columns), self.interpolation)
        cut = image[:, :, y : y + self.size, x : x + self.size].permute(0, 2, 3, 1)
        if out is None:
            out = torch.empty(cut.shape, device=pixels.device)
        # rows of size * 3 numbers: in one long loop, where three channels would be as many short ones
        rows = out.copy_(cut).view(len(cut), self.size, 3 * self.size)
        shift, scale = _normalisation(self.mean, self.std, self.size, pixels.device)
        torch.addcmul(shift, rows, scale, out=rows)
        return out.permute(0, 3, 1, 2)

    def smooth(self, pixels: torch.Tensor) -> torch.Tensor:
        """As calling it, without rounding to whole numbers, so that gradients reach the pixels.

        Parameters
        ----------
        pixels
            [B, H, W, 3] float32 RGB within 0..255, on any device.

        Returns
        -------
        torch.Tensor
            [B, 3, size, size] float32 on the same device.
        """
        height, width = pixels.shape[1:3]
        (columns, rows), (x, y) = _plan(self, width, height)
        image = pixels.permute(0, 3, 1, 2)
        if (rows, columns) != (height, width):
            image = interpolate(
                image, size=(rows, columns), mode=self.interpolation, antialias=True, align_corners=False
            ).clamp(0, 255)
        cut = image[:, :, y : y + self.size, x : x + self.size]
        mean, std = (torch.tensor(part, device=pixels.device)[:, None, None] for part in (self.mean, self.std))
        return (cut / 255 - mean) / std

    def to_image(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Boxes of the network input as boxes of the images it was made from.

        Parameters
        ----------
        boxes
            [..., 4] (x0, y0, x1, y1) in network-input px.
        sizes
            [..., 2] (width, height) of each box's image in px.

        Returns
        -------
        np.ndarray
            [..., 4] float64 in px of the image, clipped to it.
        """
        sizes = np.asarray(sizes, dtype=np.int64)
        scaled, corner = _geometry(self, sizes)
        points = np.asarray(boxes, dtype=np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)
        points = (points + corner[..., None, :]) * (sizes / scaled)[..., None, :]
        points = np.clip(points, 0, sizes[..., None, :])
        return points.reshape(*points.shape[:-2], 4)


def _geometry(preprocess: Preprocess, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(width, height) after resizing and (x, y) of the cut's corner, for image sizes [..., 2]; all int64."""
    shorter = sizes if preprocess.squash else sizes.min(axis=-1, keepdims=True)
    scaled = preprocess.resize * sizes // shorter
    return scaled, np.rint((scaled - preprocess.size) / 2).astype(np.int64)


@lru_cache(maxsize=4096)
def _plan(preprocess: Preprocess, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) after resizing and (x, y) of the cut's corner, for one image."""
    scaled, corner = _geometry(preprocess, np.array((width, height)))
    return tuple(scaled.tolist()), tuple(corner.tolist())


@cache
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale [3 * size] float32 from values 0..255 in rows of `size` px to normalised ones."""
    centre, spread = (torch.tensor(part, device=device).repeat(size) for part in (mean, std))
    return -centre / spread, 1 / (255 * spread)


def _resized(image: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Images [B, 3, H, W] uint8 resized with antialiasing; uint8 from a CPU, float32 with whole numbers from a GPU."""
    resize = partial(interpolate, size=size, mode=interpolation, antialias=True, align_corners=False)
    if image.device.type == "cpu":  # in whole numbers throughout, and several times faster than in float32
        return resize(image)
    return resize(image.float()).round_().clamp_(0, 255)
