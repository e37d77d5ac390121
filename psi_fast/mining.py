"""Images + network -> TopPatches: each channel's largest activations, one pass over the images."""

import math
from contextlib import closing

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.errors import InputError
from psi_fast.forward import whole_slices
from psi_fast.images import ImageSet
from psi_fast.networks import Network
from psi_fast.prefetch import batches, prefetch
from psi_fast.progress import Progress
from psi_fast.results import TopPatches
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import uint32
from psi_fast_kernels.topk_merge import Maxima, TopK, empty_top_k, spatial_maxima, topk_merge


def mine(
    tap: ActivationTap, network: Network, images: ImageSet, channels: np.ndarray, config: PSIConfig, progress: Progress
) -> TopPatches:
    """The top_k patches of each channel (ids [C] int64), per image the `per_image` largest positions.

    Values are compared in float32 and ordered by value descending, image ascending, position ascending, so neither the
    batch size nor the device decides a tie. With `band`, images drawn from that quantile range of the channel's own
    per-image maxima take the place of the very top.

    Raises
    ------
    InputError
        An image cannot be decoded, or the network returns a value that is not finite.
    """
    per_image = 1 if config.band else min(config.per_image, tap.positions)
    batch_size = whole_slices(config.batch_size)
    keep = config.top_k if config.band is None else len(images)
    held: list[Maxima] = []
    top: TopK | None = None
    low, high = np.full(len(channels), np.inf), np.full(len(channels), -np.inf)
    sizes = np.empty((len(images), 2), dtype=np.int64)

    def load(index: int) -> torch.Tensor:
        image = images.load(index)
        sizes[index] = image.size
        return network.preprocess(image)

    first = 0
    with (
        closing(prefetch(load, range(len(images)), ahead=2 * batch_size)) as loaded,
        tap,
        torch.inference_mode(),
        progress.bar("mining", len(images), "img") as bar,
    ):
        for batch in batches(loaded, batch_size):
            activations = tap(torch.stack(batch))[:, channels]
            maxima = spatial_maxima(activations, per_image)
            minima = activations.amin(2)
            # a maximum hides no inf and no nan, a minimum hides no -inf
            _check_finite(maxima.values[..., 0].T, minima, images, first, channels)
            top = empty_top_k(len(channels), keep, activations.device) if top is None else top
            if config.band is None:
                top = topk_merge(top, maxima, first)
            else:  # all maxima are ranked at the end
                held.append(maxima)
            low = np.minimum(low, minima.amin(0).cpu().numpy())
            high = np.maximum(high, maxima.values[..., 0].amax(1).cpu().numpy())
            first += len(batch)
            bar.update(len(batch))
    if top is None:
        raise InputError("there are no images to mine: expected at least top_k of them")
    if config.band is not None:
        every = Maxima(*(torch.cat(part, 1) for part in zip(*held, strict=True)))
        top = _draw_band(topk_merge(top, every, 0), channels, config)
    values, found, positions = (part.cpu().numpy() for part in top)
    return TopPatches(
        channels, values, found, positions, highest=high.astype(np.float32), dead=low == high, sizes=sizes
    )


def _check_finite(
    maxima: torch.Tensor, minima: torch.Tensor, images: ImageSet, first: int, channels: np.ndarray
) -> None:
    bad = torch.nonzero(~(torch.isfinite(maxima) & torch.isfinite(minima)))
    if len(bad):
        image, channel = bad[0].tolist()
        raise InputError(
            f"mining: channel {channels[channel]} is not finite (nan or inf) for image {images.names[first + image]!r}; "
            "check the network's weights and precision, or leave the image out"
        )


def _draw_band(top: TopK, channels: np.ndarray, config: PSIConfig) -> TopK:
    """Of all patches, ranked, `top_k` drawn from the band's quantile range, still ranked; fewer when the range holds fewer."""
    low, high = config.band or (0.0, 1.0)
    total = top.values.shape[1]
    # quantile q of the ascending order lies at descending rank (1 - q) * total
    inside = slice(math.floor(round((1 - high) * total, 6)), math.ceil(round((1 - low) * total, 6)))
    band = TopK(*(part[:, inside] for part in top))
    ids = torch.as_tensor(channels, device=top.values.device)
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
