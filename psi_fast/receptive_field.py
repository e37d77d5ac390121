"""How much of the input a unit sees: from its position to a box in pixels."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.errors import ConfigError, ModelError, nearest
from psi_fast.networks import Network
from psi_fast.progress import Progress

MODES = ("image", "cell", "theoretical", "effective")
ENERGY = 0.9
"""Share of the squared input gradient that an effective field holds."""
_PROBES_AT_ONCE = 8
_STRAY = 1 / 8
"""Share of a theoretical field by which those of neighbours may be off from its place, as behind an enlarged map."""


@dataclass(frozen=True)
class Field:
    """The part of the input one unit sees, in network-input pixels; the same for every unit of a layer."""

    mode: Literal["image", "cell", "theoretical", "effective"] | float
    size: tuple[float, float]
    """(height, width) of the box in px; the input's side where `whole_image` is true."""
    whole_image: bool
    """Every unit is given the whole image."""
    note: str = ""
    """Why, when the size is not simply what was asked for."""
    offset: tuple[float, float] = (0.0, 0.0)
    """(y, x) from the centre of a position's cell to the centre of its box in px; not zero for theoretical fields only:
    a strided 3 x 3 convolution padded by 1 lies half a pixel before its cell, and such shifts add up over a network."""


def measure_field(
    tap: ActivationTap,
    preprocess_size: int,
    mode: Literal["image", "cell", "theoretical", "effective"] | float,
    *,
    probes: int = 32,
    seed: int = 0,
    images: torch.Tensor | None = None,
) -> Field:
    """The field of a layer's units, measured at the centre position of its map.

    - image: the whole image.
    - cell: the input's side divided by the map's.
    - theoretical: every pixel that can change the unit, exactly. NaN in rows 0..r of the input reaches the unit if and
      only if its field starts at or above row r; bisection over r, and likewise from the other three sides. Where the
      centre's field reaches the border, the position at the far end of the map, which has most room on that side, tells
      how far the field goes on. One that reaches the border from there too makes the box the whole image; so does every
      field behind attention, squeeze-and-excitation or global pooling.
    - effective: the smallest square around the centre of the position's cell whose whole pixels hold 90 % of the squared
      gradient of one channel with respect to the input, summed over RGB. A probe is an image and a random channel; each
      probe is scaled to sum 1 before they are averaged, and probes without a gradient (a ReLU that is off) are left out.
    - a number in (0, 1]: a square of that fraction of the input's side.

    A layer without a grid (a vector, or tokens that form no square) sees the whole image in every mode.

    Parameters
    ----------
    tap
        The layer; it need not be entered.
    preprocess_size
        Side of the network's input in px (S).
    mode
        See above.
    probes
        Gradients averaged for the effective field.
    seed
        Chooses the channels, and the noise that stands in for images.
    images
        [N, 3, S, S] float32, preprocessed; probe i uses image i % N. None uses standard normal noise.

    Raises
    ------
    ConfigError
        For an unknown mode or a fraction outside (0, 1].
    ModelError
        When the layer is NaN on a blank image, or no probe has a finite gradient.
    """
    size = float(preprocess_size)
    if isinstance(mode, str) and mode not in MODES:
        raise ConfigError(f"patch must be one of {', '.join(MODES)} or a fraction, got {mode!r}{nearest(mode, MODES)}")
    if not isinstance(mode, str) and not 0 < mode <= 1:
        raise ConfigError(f"patch as a fraction must lie in (0, 1], got {mode}")
    if mode == "image":
        return _whole(mode, size, "")
    if tap.grid is None:
        return _whole(mode, size, "it has no map of positions")
    if mode == "cell":
        return Field(mode, (size / tap.grid[0], size / tap.grid[1]), False)
    if mode == "theoretical":
        return _theoretical(tap, preprocess_size, tap.grid)
    if mode == "effective":
        if images is None:
            noise = torch.Generator().manual_seed(seed % 2**63)
            images = torch.randn(_PROBES_AT_ONCE, 3, preprocess_size, preprocess_size, generator=noise)
        return _effective(tap, images, _centre(tap.grid, tap.prefix, preprocess_size), probes, seed)
    return Field(mode, (mode * size, mode * size), False)


def measure_fields(
    network: Network, layers: Iterable[str], device: torch.device, progress: Progress
) -> dict[str, tuple[Field | None, Field | None]]:
    """The theoretical and the effective field of each layer, at a few probes of noise, for an overview.

    None stands for a field that a layer has not: one that cannot be tapped has neither, and where no gradient reaches the
    input there is no effective one. A run measures its own, on its images and at more probes.
    """
    size = network.preprocess.size

    def measured(layer: str) -> tuple[Field | None, Field | None]:
        theoretical = effective = None
        with suppress(ModelError):
            tap = ActivationTap(network, layer, device)
            theoretical = measure_field(tap, size, "theoretical")
            effective = measure_field(tap, size, "effective", probes=_PROBES_AT_ONCE)
        return theoretical, effective

    found = {}
    names = list(layers)
    with progress.stage("receptive fields"), progress.bar("receptive fields", len(names), "layer") as bar:
        for name in names:
            found[name] = measured(name)
            bar.update()
    return found


def boxes(field: Field, positions: np.ndarray, grid: tuple[int, int] | None, prefix: int, size: int) -> np.ndarray:
    """The box each position sees.

    Parameters
    ----------
    field
        From `measure_field`.
    positions
        [...] int64 positions of the tap, row-major behind `prefix`; -1 marks a place that is not valid.
    grid, prefix
        Of the tap.
    size
        Side of the network's input in px.

    Returns
    -------
    np.ndarray
        [..., 4] float64 (x0, y0, x1, y1) in network-input px, clipped to [0, size]; zeros where a position is -1. Tokens
        in front of the grid, and every position of a layer without one, see the whole image.
    """
    positions = np.asarray(positions, dtype=np.int64)
    whole = np.array([0, 0, size, size], dtype=np.float64)
    if field.whole_image or grid is None:
        result = np.broadcast_to(whole, (*positions.shape, 4)).copy()
    else:
        row, column = np.divmod(np.maximum(positions - prefix, 0), grid[1])
        y = (row + 0.5) * size / grid[0] + field.offset[0]
        x = (column + 0.5) * size / grid[1] + field.offset[1]
        half_height, half_width = field.size[0] / 2, field.size[1] / 2
        result = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)
        result = np.clip(result, 0, size)
        result[positions < prefix] = whole
    result[positions < 0] = 0
    return result


def _whole(mode: Literal["image", "cell", "theoretical", "effective"] | float, size: float, note: str) -> Field:
    return Field(mode, (size, size), True, note)


def _centre(grid: tuple[int, int], prefix: int, size: int) -> tuple[int, float, float]:
    """Index of the centre position, and (y, x) of its cell's centre in px."""
    height, width = grid
    row, column = height // 2, width // 2
    return prefix + row * width + column, (row + 0.5) * size / height, (column + 0.5) * size / width


def _theoretical(tap: ActivationTap, size: int, grid: tuple[int, int]) -> Field:
    def lost(counts: np.ndarray) -> np.ndarray:
        """What NaN in the first `counts` lines from the top, left, bottom and right reaches; bool [4, H, W]."""
        images = torch.zeros(4, 3, size, size)
        top, left, bottom, right = (int(count) for count in counts)
        images[0, :, :top] = torch.nan
        images[1, :, :, :left] = torch.nan
        images[2, :, size - bottom :] = torch.nan
        images[3, :, :, size - right :] = torch.nan
        return tap(images)[:, :, tap.prefix :].isnan().any(1).unflatten(1, grid).cpu().numpy()

    # The positions read: the centre, but the corner with most room on a side where the centre's field meets the border.
    rows, columns = np.full(4, grid[0] // 2), np.full(4, grid[1] // 2)
    far = (np.array([grid[0] - 1, grid[0] - 1, 0, 0]), np.array([grid[1] - 1, grid[1] - 1, 0, 0]))

    def reached(counts: np.ndarray) -> np.ndarray:
        return lost(counts)[range(4), rows, columns]

    # Lines needed from each side until the field is met: more than `low`, at most `high`.
    low, high = np.zeros(4, dtype=np.int64), np.full(4, size)
    # No gradient is taken; with gradients off the tap would fill up slices with more images than these four.
    with tap, torch.inference_mode(False), torch.enable_grad(), _plain_convolutions():
        if reached(low).any():
            raise ModelError(f"layer {tap.layer} of {tap.network.name} is NaN on a blank image; check its weights")
        if not reached(high).all():
            return _whole("theoretical", float(size), "the input does not reach it, or it hides NaN")
        low += 1
        met = reached(low)
        rows, columns = np.where(met, far[0], rows), np.where(met, far[1], columns)
        if reached(low).any():
            return _whole("theoretical", float(size), f"the field reaches the border of the {size} px input")
        while (high - low > 1).any():
            middle = (low + high) // 2
            hit = reached(middle)
            high, low = np.where(hit, middle, high), np.where(hit, low, middle)
        touched = lost(high)
    y, x = (rows + 0.5) * size / grid[0], (columns + 0.5) * size / grid[1]
    # from the centre of the cell to each side of the field; less than 0 where the field does not hold that centre
    room = np.array([y[0], x[1], size - y[2], size - x[3]])
    up, left, down, right = (room - (high - 1)).tolist()
    height, width = up + down, left + right
    # a position further on must not be reached yet: its field is the same one, moved
    ahead = [touched[0, rows[0] :, columns[0]], touched[1, rows[1], columns[1] :]]
    ahead += [touched[2, : rows[2] + 1, columns[2]], touched[3, rows[3], : columns[3] + 1]]
    strays = [(own.sum() - 1) * size / cells for own, cells in zip(ahead, (*grid, *grid), strict=True)]
    if max(strays[::2]) > _STRAY * height or max(strays[1::2]) > _STRAY * width:
        return _whole(
            "theoretical", float(size), "positions of the map see fields of different shapes, as in windows do"
        )
    return Field("theoretical", (height, width), False, "", ((down - up) / 2, (right - left) / 2))


def _effective(
    tap: ActivationTap, images: torch.Tensor, centre: tuple[int, float, float], probes: int, seed: int
) -> Field:
    position, y, x = centre
    size = images.shape[-1]
    generator = torch.Generator().manual_seed(seed % 2**63)
    channels = torch.randint(tap.channels, (probes,), generator=generator)
    used = 0
    with tap, torch.inference_mode(False), torch.enable_grad():
        energy = torch.zeros(size, size, dtype=torch.float64)
        for index in torch.arange(probes).split(_PROBES_AT_ONCE):
            batch = images[index % len(images)].to(tap.device, torch.float32).clone().requires_grad_()
            units = tap(batch * 1)[:, :, position]  # a copy, since a network may change its input in place
            chosen = units.gather(1, channels[index].to(tap.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, batch)
            squares = gradient.cpu().double().square().sum(1)
            sums = squares.sum((1, 2))
            good = sums.isfinite() & (sums > 0)
            used += int(good.sum())
            energy += (squares[good] / sums[good, None, None]).sum(0)
    if not used:
        raise ModelError(
            f"no gradient of layer {tap.layer} of {tap.network.name} reaches the input in {probes} probes, so it has no "
            "effective field; choose patch = theoretical, cell, image or a fraction"
        )
    side = _side_holding(energy.numpy() / used, y, x, ENERGY)
    if side >= size:
        return _whole("effective", float(size), f"{ENERGY:.0%} of the gradient needs {side:.0f} of {size} px")
    note = f"{probes - used} of {probes} probes had no gradient" if used < probes else ""
    return Field("effective", (side, side), False, note)


def _side_holding(energy: np.ndarray, y: float, x: float, share: float) -> float:
    """Side of the smallest square around (y, x) whose whole pixels hold `share` of `energy` [S, S]."""
    middles = np.arange(len(energy)) + 0.5
    distance = np.maximum(np.abs(middles - y)[:, None], np.abs(middles - x)[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(energy.ravel()[order])
    last = min(int(np.searchsorted(held, share * held[-1])), len(order) - 1)
    return float(2 * distance[order[last]] + 1)


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """Convolutions as sums of products: the transforms of faster ones spread NaN over a tile of outputs.

    oneDNN is left on, since torch asks it for direct convolutions only.
    """
    with torch.backends.nnpack.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
        yield
