"""A differentiable stand-in for PSI, to train with: soft tops, soft clusters of them, S and Q calibrated in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from psi_fast.errors import InputError
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.cluster import cluster

SHARPNESS = 5.0
"""Temperatures of the top's sigmoid between its border and the median of the top: that image weighs .99. No mean, which a single
image could raise until all others are at the border."""
TEMPERATURE = 0.15
"""Of the soft clusters, in mean squared distances of the top from its centres."""
APART = 4.0
"""A cosine distance beyond all, of clusters that are not there."""
TINY = 1e-9
LEAST = 0.25
"""Standard deviation, as a share of the images, that the dependence of clusters and labels has besides its own: where labels are
all alike or all different it hardly has one."""


@dataclass(frozen=True)
class Measures:
    """What is measured of C channels, differentiable in their activations.

    S : [C] in [-1, 1], mean silhouette of the soft clusters
    Q : [C], how far clusters and labels agree, in standard deviations under independence
    spectrum : [C, 3], what the null of S depends on: 1, the leading axis's share of the variance, the variance
    """

    S: Tensor
    Q: Tensor
    spectrum: Tensor


@dataclass(frozen=True)
class SoftScores:
    """Stand-ins [C] for the z of S and of Q, and what follows from them as in PSI."""

    S_z: Tensor
    Q_z: Tensor

    @property
    def log_psi(self) -> Tensor:
        """ln of the product of the sigmoids, [C]."""
        return logsigmoid(self.S_z) + logsigmoid(self.Q_z)

    @property
    def penalty(self) -> Tensor:
        """-ln(1 - hat) of S and of Q, summed: [C] at least 0. Its slope does not vanish where PSI nears 1."""
        return -logsigmoid(-self.S_z) - logsigmoid(-self.Q_z)


@dataclass(frozen=True)
class Calibration:
    """Linear functions that make z of measures, fitted to channels whose PSI is known.

    null, spread : [3] float64, mean and standard deviation of the null of S by `Measures.spectrum`
    least : smallest standard deviation that is believed
    agreement : [2] float64, z of Q is the first plus the second times `Measures.Q`
    """

    null: Tensor
    spread: Tensor
    least: float
    agreement: Tensor

    def __call__(self, measures: Measures) -> SoftScores:
        """The scores [C] of measures."""
        null, spread, agreement = (own.to(measures.S) for own in (self.null, self.spread, self.agreement))
        deviation = (measures.spectrum @ spread).clamp_min(self.least)
        return SoftScores((measures.S - measures.spectrum @ null) / deviation, agreement[0] + agreement[1] * measures.Q)


def calibrated(measures: Measures, S_z: Tensor, S_sd: Tensor, Q_z: Tensor) -> Calibration:
    """The least-squares fit to channels [C] whose z of S and Q are known, and the standard deviation of S under its null.

    S under the null is hardly more than a function of the spectrum of the top images' Gram matrix. What is fitted is the
    measured S less z standard deviations, so that what soft weights and clusters change in S is taken out as well.

    Raises
    ------
    InputError
        Fewer than 8 channels have finite values.
    """
    known = torch.isfinite(S_z) & torch.isfinite(Q_z) & torch.isfinite(S_sd)
    if int(known.sum()) < 8:
        raise InputError(f"a calibration needs at least 8 channels with finite z, got {int(known.sum())}")
    S, Q, spectrum, z, deviation, wanted = (
        own[known].double() for own in (measures.S, measures.Q, measures.spectrum, S_z, S_sd, Q_z)
    )
    null, spread = (torch.linalg.lstsq(spectrum, own[:, None]).solution[:, 0] for own in (S - z * deviation, deviation))
    line = torch.stack([torch.ones_like(Q), Q], 1)
    agreement = torch.linalg.lstsq(line, wanted[:, None]).solution[:, 0]
    return Calibration(null, spread, float(deviation.min()) / 2, agreement)


def soft_measures(
    activations: Tensor, gram: Tensor, labels: Tensor, *, top_k: int, k_max: int = 6, n_init: int = 4, seed: int = 0
) -> Measures:
    """Separation and label agreement of each channel's strongest images, differentiable in the activations.

    The images count by a sigmoid of their activation around the border of the top `top_k`. PSI's own k-means on the top gives
    the first clusters and their number, as constants; the weighted images have centres by them, and are assigned to these
    softly. S is the weighted silhouette of that. Q is the Hilbert-Schmidt dependence of assignments and labels, less its
    mean and over its standard deviation under independence.

    Parameters
    ----------
    activations : [C, M] floating-point
        Of each channel's M > top_k candidates, its largest. Scale and shift of a channel do not matter. Gradients flow here.
    gram : [C, M, M] floating-point
        Inner products of the candidates' unit embeddings.
    labels : [C, M] int64
    top_k : int
        At least 2 * k_max.
    k_max, n_init, seed : as in PSIConfig

    Raises
    ------
    InputError
        The shapes do not fit, there are too few candidates, or the embeddings are no unit rows.
    """
    _check(activations, gram, labels, top_k, k_max)
    order = activations.detach().argsort(dim=1, descending=True, stable=True)
    values, labels = activations.gather(1, order), labels.gather(1, order)
    gram = gram[torch.arange(len(gram), device=gram.device)[:, None, None], order[:, :, None], order[:, None]]
    weights = top_weights(values, top_k)
    parts = _assigned(gram, weights, _first(gram, top_k, k_max, n_init, seed))
    same = (labels[:, :, None] == labels[:, None]).to(weights.dtype)
    return Measures(_silhouette(gram, weights, parts), _agreement(same, weights, parts), _spectrum(gram, weights))


def top_weights(values: Tensor, top_k: int) -> Tensor:
    """How much each candidate counts [C, M], sum 1, by its activations [C, M] in descending order.

    Before they are divided by their sum: .5 at the border, halfway between the last image in and the first one out. Where all
    values of the top are the same, so are their weights.
    """
    border = values[:, top_k - 1 : top_k + 1].mean(1, keepdim=True)
    scale = (values[:, top_k // 2, None] - border).clamp_min(TINY) / SHARPNESS
    weights = torch.sigmoid((values - border) / scale)
    return weights / weights.sum(1, keepdim=True)


def _check(activations: Tensor, gram: Tensor, labels: Tensor, top_k: int, k_max: int) -> None:
    shapes = [list(own.shape) for own in (activations, gram, labels)]
    if activations.ndim != 2 or shapes[1] != [*shapes[0], shapes[0][-1]] or shapes[2] != shapes[0]:
        raise InputError(
            f"expected activations [C, M], gram [C, M, M] and labels [C, M], got {', '.join(map(str, shapes))}"
        )
    if not 4 <= 2 * k_max <= top_k < activations.shape[1]:
        raise InputError(
            f"top_k must be at least 2 * k_max = {2 * k_max} and less than the {activations.shape[1]} candidates, got {top_k}"
        )
    if not (gram.diagonal(dim1=1, dim2=2) - 1).abs().max() < 1e-2:
        raise InputError("embeddings must be unit rows; divide each by its norm (torch.nn.functional.normalize)")


def _first(gram: Tensor, top_k: int, k_max: int, n_init: int, seed: int) -> Tensor:
    """The k-means clusters of the top, as PSI finds them: [C, M, k_max] of 0 and 1, nothing behind the top."""
    channels = torch.arange(len(gram), device=gram.device)
    found = cluster(
        gram[:, :top_k, :top_k].detach().float().contiguous(),
        k_max=k_max,
        n_init=n_init,
        seed=seed,
        stream=Stream.OBSERVED_STARTS,
        channel=channels,
        draw=torch.zeros_like(channels),
    )
    parts = gram.new_zeros(len(gram), gram.shape[1], k_max)
    parts[:, :top_k] = one_hot(found.labels, k_max).to(parts.dtype)
    return parts


def _assigned(gram: Tensor, weights: Tensor, parts: Tensor) -> Tensor:
    """How much each image is in each cluster [C, M, k], by its distance from the weighted centres of `parts` [C, M, k]."""
    held = weights[:, :, None] * parts
    mass = held.sum(1, keepdim=True)
    there = parts.amax(1, keepdim=True) > 0
    centres = held / mass.clamp_min(TINY)  # coefficients of the images
    inner = gram @ centres
    square = (centres * inner).sum(1, keepdim=True)
    distance = gram.diagonal(dim1=1, dim2=2)[:, :, None] - 2 * inner + square
    temperature = TEMPERATURE * (held * distance).sum((1, 2), keepdim=True).clamp_min(TINY)
    return torch.softmax((-distance / temperature).masked_fill(~there, -torch.inf), 2)


def _silhouette(gram: Tensor, weights: Tensor, parts: Tensor) -> Tensor:
    """The mean silhouette [C] of weighted images that are partly in several clusters, by cosine distance."""
    held = weights[:, :, None] * parts
    mass = held.sum(1, keepdim=True)
    total = (1 - gram) @ held
    others = mass - held  # the image itself does not count
    own = total / others.clamp_min(TINY)
    to = (total / mass.clamp_min(TINY)).masked_fill(mass <= TINY, APART)
    two = to.topk(2, dim=2, largest=False).values
    nearest = torch.where(to > two[:, :, :1], two[:, :, :1], two[:, :, 1:])  # of the other clusters
    each = (nearest - own) / torch.maximum(nearest, own).clamp_min(TINY)
    return (held * each.masked_fill(others <= TINY, 0)).sum((1, 2))


def _agreement(same: Tensor, weights: Tensor, parts: Tensor) -> Tensor:
    """Dependence of clusters and labels [C] in standard deviations, for `same` [C, M, M], which labels are alike.

    Mean and variance are those of 1 / sum(w^2) images, as many as these weights are worth, under permutations of the labels.

    References
    ----------
    Kazi-Aoual, Hitier, Sabatier and Lebreton: Refined approximations to permutation tests. Computational Statistics & Data
    Analysis 20, 1995.
    """
    mass = (weights[:, :, None] * parts).sum(1, keepdim=True)
    kernels = [_centred(own, weights) for own in ((parts / mass.clamp_min(TINY)) @ parts.mT, same)]
    pairs = weights[:, :, None] * weights[:, None]
    n = 1 / weights.square().sum(1)
    found = n**2 * (pairs * kernels[0] * kernels[1]).sum((1, 2))
    trace, square, skew = [], [], []
    for own in kernels:
        diagonal = own.diagonal(dim1=1, dim2=2)
        trace.append(n * (weights * diagonal).sum(1))
        square.append(n**2 * (pairs * own.square()).sum((1, 2)))
        skew.append(n * (weights * diagonal.square()).sum(1))
    first = [(n - 1) * own - total**2 for own, total in zip(square, trace, strict=True)]
    second = [
        n * (n + 1) * own - (n - 1) * (total**2 + 2 * two) for own, total, two in zip(skew, trace, square, strict=True)
    ]
    variance = 2 * first[0] * first[1] / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance = variance + second[0] * second[1] / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return (found - trace[0] * trace[1] / (n - 1)) / (variance.clamp_min(0) + (LEAST * n) ** 2).sqrt()


def _spectrum(gram: Tensor, weights: Tensor) -> Tensor:
    """[C, 3]: 1, the leading axis's share of the variance among the weighted images (by the 8-norm), the variance."""
    root = weights.sqrt()
    scatter = _centred(gram, weights) * root[:, :, None] * root[:, None]
    variance = scatter.diagonal(dim1=1, dim2=2).sum(1)
    scaled = scatter / variance.clamp_min(TINY)[:, None, None]
    fourth = torch.linalg.matrix_power(scaled, 4)
    share = (fourth.square().sum((1, 2)) + TINY**2).pow(1 / 8)
    return torch.stack([torch.ones_like(variance), share, variance], 1)


def _centred(kernel: Tensor, weights: Tensor) -> Tensor:
    """Inner products [C, M, M] of the same rows less their weighted mean."""
    row = kernel @ weights[:, :, None]
    return kernel - row - row.mT + weights[:, None] @ row
