"""Images + network -> TopPatches: each channel's largest activations, one pass over the images."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.errors import InputError
from psi_fast.forward import whole_slices
from psi_fast.image_bank import ImageBank
from psi_fast.networks import Network
from psi_fast.progress import Progress
from psi_fast.results import TopPatches
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import uint32
from psi_fast_kernels.topk_merge import Extremes, TopK, empty_top_k, topk_merge


def mine(
    tap: ActivationTap,
    network: Network,
    bank: ImageBank,
    names: Sequence[str],
    channels: np.ndarray,
    config: PSIConfig,
    progress: Progress,
) -> TopPatches:
    """The top_k patches of each channel (ids [C] int64), per image the `per_image` largest positions.

    `names` are the images', for messages.

    Values are compared in float32 and ordered by value descending, image ascending, position ascending, so neither the
    batch size nor the device decides a tie. With `band`, images drawn from that quantile range of the channel's own
    per-image maxima take the place of the very top.

    Raises
    ------
    InputError
        The network returns a value that is not finite.
    """
    per_image = 1 if config.band else min(config.per_image, tap.positions)
    batch_size = whole_slices(config.batch_size)
    top = empty_top_k(len(channels), 0 if config.band else config.top_k, tap.device)
    held: list[Extremes] = []
    low = torch.full((len(channels),), torch.inf, device=tap.device)
    high = -low
    asked = None if np.array_equal(channels, np.arange(tap.channels)) else torch.as_tensor(channels, device=tap.device)
    with tap, torch.inference_mode(), progress.bar("mining", len(bank), "img") as bar:
        for first in range(0, len(bank), batch_size):
            pixels = bank.read(slice(first, first + batch_size), tap.device)
            activations = tap(network.preprocess(pixels))
            if asked is not None:
                activations = activations[:, asked]
            top, extremes = topk_merge(top, activations, first, per_image=per_image)
            _check_finite(extremes, names, first, channels)
            if config.band:  # all maxima are ranked at the end
                held.append(extremes)
            low = torch.minimum(low, extremes.minima.amin(0))
            high = torch.maximum(high, extremes.maxima.amax(0))
            bar.update(len(pixels))
    if config.band:
        top = _draw_band(held, channels, config)
    values, found, positions = (part.cpu().numpy() for part in top)
    dead = (low == high).cpu().numpy()
    return TopPatches(channels, values, found, positions, highest=high.cpu().numpy(), dead=dead)


def _check_finite(extremes: Extremes, names: Sequence[str], first: int, channels: np.ndarray) -> None:
    # a maximum hides no inf and no nan, a minimum hides no -inf
    bad = torch.nonzero(~(torch.isfinite(extremes.maxima) & torch.isfinite(extremes.minima)))
    if len(bad):
        image, channel = bad[0].tolist()
        raise InputError(
            f"mining: channel {channels[channel]} is not finite (nan or inf) for image {names[first + image]!r}; "
            "check the network's weights and precision, or leave the image out"
        )


def _draw_band(held: list[Extremes], channels: np.ndarray, config: PSIConfig) -> TopK:
    """Of all images, ranked by maximum, `top_k` from the band's quantile range, still ranked; fewer when it holds fewer."""
    low, high = config.band or (0.0, 1.0)
    maxima, places = (torch.cat([getattr(batch, name) for batch in held]).T for name in ("maxima", "positions"))
    total = maxima.shape[1]
    # quantile q of the ascending order lies at descending rank (1 - q) * total
    inside = slice(math.floor(round((1 - high) * total, 6)), math.ceil(round((1 - low) * total, 6)))
    found = maxima.argsort(dim=1, descending=True, stable=True)[:, inside]
    band = TopK(maxima.gather(1, found), found, places.gather(1, found))
    ids = torch.as_tensor(channels, device=maxima.device)
    keys = uint32(config.seed, Stream.BAND, ids, torch.zeros_like(ids), band.values.shape[1])
    chosen = keys.argsort(dim=1, stable=True)[:, : config.top_k].sort(dim=1).values
    drawn = TopK(*(part.gather(1, chosen) for part in band))
    missing = config.top_k - chosen.shape[1]
    if missing <= 0:
        return drawn
    return TopK(
        *(torch.cat(pair, 1) for pair in zip(drawn, empty_top_k(len(channels), missing, ids.device), strict=True))
    )


def random_patches(count: int, places: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` distinct random images (all of them when there are fewer) and a random position in each, int64."""
    nothing = torch.zeros(1, dtype=torch.int64)
    order = uint32(seed, Stream.RANDOM_PATCHES, nothing, nothing, images)[0].argsort(stable=True)[:count]
    position = (uint32(seed, Stream.RANDOM_PATCHES, nothing + 1, nothing, len(order))[0] * places) >> 32
    return order.numpy(), position.numpy()
