"""spatial_maxima and topk_merge: the streaming top-K in the order value descending, image ascending, position ascending."""

from typing import NamedTuple

import torch
from torch import Tensor


class Maxima(NamedTuple):
    """Per channel, image and rank: value [C, B, m] float32 descending in m, and flat position [C, B, m] int64."""

    values: Tensor
    positions: Tensor


class TopK(NamedTuple):
    """Running top-K per channel: values [C, K] float32 (-inf = empty place), images and positions [C, K] int64 (-1 = empty)."""

    values: Tensor
    images: Tensor
    positions: Tensor


def empty_top_k(channels: int, k: int, device: torch.device | str = "cpu") -> TopK:
    """A top-K with all places empty; -inf, not 0, so that channels that are never positive rank as well."""
    nothing = torch.full((channels, k), -1, dtype=torch.int64, device=device)
    return TopK(torch.full((channels, k), -torch.inf, device=device), nothing, nothing.clone())


def spatial_maxima(activations: Tensor, per_image: int = 1) -> Maxima:
    """The largest `per_image` positions of each channel and image; equal values by ascending position.

    Parameters
    ----------
    activations : [B, C, P] float32, finite
    per_image : int, at most P
    """
    if per_image == 1:
        values, positions = activations.max(dim=2)  # torch gives the first of equal maxima
        return Maxima(values.T[..., None], positions.T[..., None])
    values, positions = activations.sort(dim=2, descending=True, stable=True)
    return Maxima(values[..., :per_image].transpose(0, 1), positions[..., :per_image].transpose(0, 1))


def topk_merge(top: TopK, maxima: Maxima, first_image: int) -> TopK:
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
