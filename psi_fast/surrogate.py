"""A differentiable stand-in for polysemanticity, to train with: how well a channel's strongest images fall into two groups."""

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from psi_fast.errors import ConfigError, InputError

POWER_STEPS = 8
"""Steps of power iteration towards the leading axis."""


def soft_polysemanticity(activations: Tensor, embeddings: Tensor, *, share: float = 0.1, steps: int = 4) -> Tensor:
    """The share of the variance among each channel's strongest images that lies between two clusters of them, [C] in [0, 1].

    It stands in for S, the structure among a channel's top patches, without a null, labels or concepts: each channel's top
    images are weighted instead of chosen, split along the leading axis of their embeddings, and assigned by some steps of soft
    k-means. A silhouette stays high until the last image of the smaller cluster is gone; this share falls as it empties, so
    that descent has a way. Every step can be differentiated in the activations, whose scale and shift do not matter. A
    channel whose activations are all the same has the value of the whole batch.

    Parameters
    ----------
    activations : [B, C] floating-point
        Of each image in a batch and each channel, such as maxima over positions. Gradients flow here.
    embeddings : [B, d] floating-point, unit rows
        Of the same images, on the same device.
    share : float in (0, 1)
        Of the batch that counts as a channel's top; at least one image does, and one does not.
    steps : int
        Of soft k-means.

    Raises
    ------
    InputError
        The shapes do not fit, or the rows are no unit rows.
    ConfigError
        `share` or `steps` is out of range.

    References
    ----------
    Soft k-means at a temperature below the critical one, twice the leading variance: Rose, Gurewitz and Fox 1990.
    """
    _check(activations, embeddings, share, steps)
    weights = top_weights(activations, share)
    weights = weights / weights.sum(1, keepdim=True)
    near = _products(embeddings.to(weights.dtype))
    first = _halves(weights, near, steps)
    whole = (weights * near(weights)).sum(1)
    between = -whole
    for part in (weights * first, weights * (1 - first)):
        between = between + (part * near(part)).sum(1) / part.sum(1).clamp_min(torch.finfo(weights.dtype).eps)
    return (between / (1 - whole).clamp_min(torch.finfo(weights.dtype).eps ** 0.5)).clamp(0, 1)


def top_weights(activations: Tensor, share: float) -> Tensor:
    """How much each image counts among a channel's top `share`, [C, B] in (0, 1), of activations [B, C].

    .5 halfway between the last image in and the first one out. In a normal channel the mean image of the top weighs
    .88: its distance from the border is two temperatures of the sigmoid.
    """
    values = activations.T
    count = min(max(1, round(share * values.shape[1])), values.shape[1] - 1)
    border = values.topk(count + 1, dim=1).values[:, -2:].mean(1, keepdim=True)
    variance = values.var(1, keepdim=True, correction=0)
    spread = torch.where(variance > 0, variance, 1).sqrt()
    normal = NormalDist()
    edge = normal.inv_cdf(1 - share)
    temperature = (normal.pdf(edge) / share - edge) / 2
    return torch.sigmoid((values - border) / (spread * temperature))


def _check(activations: Tensor, embeddings: Tensor, share: float, steps: int) -> None:
    shapes = tuple(activations.shape), tuple(embeddings.shape)
    if activations.ndim != 2 or embeddings.ndim != 2 or len(activations) != len(embeddings) or len(activations) < 3:
        raise InputError(
            f"expected activations [B, C] and embeddings [B, d] of the same B >= 3 images, got {list(shapes[0])} and "
            f"{list(shapes[1])}"
        )
    if not (embeddings.norm(dim=1) - 1).abs().max() < 1e-2:
        raise InputError("embeddings must be unit rows; divide each by its norm (torch.nn.functional.normalize)")
    if not 0 < share < 1 or steps < 1:
        raise ConfigError(f"share must lie in (0, 1) and steps be at least 1, got {share} and {steps}")


def _products(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """For sums of rows given by coefficients [C, B], their inner products [C, B] with the rows [B, d]."""
    if len(rows) > rows.shape[1]:
        return lambda coefficients: (coefficients @ rows) @ rows.T
    gram = rows @ rows.T
    return lambda coefficients: coefficients @ gram


def _halves(weights: Tensor, near: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """How much each image is in the first of two clusters [C, B], by weights [C, B] that sum to 1."""

    def centred(values: Tensor) -> Tensor:
        return values - (weights * values).sum(1, keepdim=True)

    least = torch.finfo(weights.dtype).tiny ** 0.5
    strongest = torch.nn.functional.one_hot(weights.argmax(1), weights.shape[1]).to(weights.dtype)
    axis = strongest - weights  # coefficients of the rows; the order of the batch does not matter
    for _ in range(POWER_STEPS):
        along = centred(near(axis))
        axis = weights * along / (weights * along**2).sum(1, keepdim=True).clamp_min(least).sqrt()
    along = near(axis)
    length = (axis * along).sum(1, keepdim=True)
    along = centred(along)
    scatter = (weights * along**2).sum(1, keepdim=True).clamp_min(least)
    temperature = (scatter / length.clamp_min(least) / 2).clamp_min(least)  # of the leading variance, a half
    first = torch.sigmoid(2 * along / scatter.sqrt())
    for _ in range(steps):
        inner, square = [], []
        for part in (first, 1 - first):
            centre = weights * part / (weights * part).sum(1, keepdim=True).clamp_min(least)
            inner.append(near(centre))
            square.append((centre * inner[-1]).sum(1, keepdim=True))
        # the difference of squared distances to the two centres
        first = torch.sigmoid((2 * (inner[0] - inner[1]) - square[0] + square[1]) / temperature)
    return first
