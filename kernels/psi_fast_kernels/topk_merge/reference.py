"""Spatial extremes and the streaming top-K in plain torch. Order: value descending, image ascending, position ascending.

NaN counts as the largest value, as torch sorts it, and makes a minimum NaN too. A zero loses its sign, so that backends
agree to the last bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Maxima(NamedTuple):
    """Per channel, image and rank: value [C, B, m] float32 descending in m, and flat position [C, B, m] int64."""

    values: Tensor
    positions: Tensor


class Extremes(NamedTuple):
    """Per image and channel: maximum [B, C] float32, the first position that has it [B, C] int64, minimum [B, C] float32."""

    maxima: Tensor
    positions: Tensor
    minima: Tensor


class TopK(NamedTuple):
    """Running top-K per channel: values [C, K] float32 (-inf = empty place), images and positions [C, K] int64 (-1 = empty)."""

    values: Tensor
    images: Tensor
    positions: Tensor


def empty_top_k(channels: int, k: int, device: torch.device | str = "cpu") -> TopK:
    """A top-K with all places empty; -inf, not 0, so that channels that are never positive rank as well."""
    nothing = torch.full((channels, k), -1, dtype=torch.int64, device=device)
    return TopK(torch.full((channels, k), -torch.inf, device=device), nothing, nothing.clone())


def topk_merge(top: TopK, activations: Tensor, first_image: int, *, per_image: int) -> tuple[TopK, Extremes]:
    """See `psi_fast_kernels.topk_merge.op.topk_merge`; activations [B, C, P]."""
    maxima = spatial_maxima(activations, per_image)
    minima = activations.amin(2).float() + 0.0
    extremes = Extremes(maxima.values[..., 0].T, maxima.positions[..., 0].T, minima)
    return merge(top, maxima, first_image), extremes


def spatial_maxima(activations: Tensor, per_image: int = 1) -> Maxima:
    """The largest `per_image` positions of each channel and image; equal values by ascending position.

    Parameters
    ----------
    activations : [B, C, P] float32, bfloat16 or float16
    per_image : int, at most P
    """
    if per_image == 1:
        values, positions = activations.max(dim=2, keepdim=True)  # torch gives the first of equal maxima
    else:
        values, positions = activations.sort(dim=2, descending=True, stable=True)
    values = values[..., :per_image].float() + 0.0
    return Maxima(values.transpose(0, 1), positions[..., :per_image].transpose(0, 1))


def merge(top: TopK, maxima: Maxima, first_image: int) -> TopK:
    """`top` with the maxima of the images first_image, first_image + 1, ... merged in.

    Images must arrive in ascending order: the stable sort then keeps image and position ascending among equal values.
    """
    channels, images, rank = maxima.values.shape
    index = torch.arange(first_image, first_image + images, device=maxima.values.device)
    new = (maxima.values, index[:, None].expand(images, rank).expand(channels, -1, -1), maxima.positions)
    values, others = (
        torch.cat((top.values, new[0].flatten(1)), dim=1),
        [torch.cat((old, fresh.flatten(1)), dim=1) for old, fresh in zip(top[1:], new[1:], strict=True)],
    )
    order = values.argsort(dim=1, descending=True, stable=True)[:, : top.values.shape[1]]
    return TopK(values.gather(1, order), *(other.gather(1, order) for other in others))


def joined(earlier: TopK, later: TopK) -> TopK:
    """The top-K of all images from that of earlier and that of later ones, both [C, ...]; as many places as `earlier` has."""
    parts = [torch.cat(pair, dim=1) for pair in zip(earlier, later, strict=True)]
    order = parts[0].argsort(dim=1, descending=True, stable=True)[:, : earlier.values.shape[1]]
    return TopK(*(part.gather(1, order) for part in parts))
