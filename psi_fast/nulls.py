"""Null draws of S, Q and D, in chunks bounded by memory -> NullMoments. The same pipeline as the data, draw by draw."""

import numpy as np
import torch
from torch import Tensor

from psi_fast.clustering import unit_gram
from psi_fast.config import PSIConfig
from psi_fast.progress import Progress
from psi_fast.results import Bank, Clusters, Components, NullMoments, PatchEmbeddings
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.permutation_null import dense_labels, entropy, mutual_information_moments, permutation_null
from psi_fast_kernels.rotation_null import Tangent, rotation_null, rotation_pool, sphere_null, tangent_space
from psi_fast_kernels.text_null import shuffle_moments, text_rotation_null, text_shuffle_null

TIE = 1e-6  # draws this close to the observed value count as reaching it: rounding must not decide
POOL_DRAWS = 64  # rotations held at once
CHANNELS = 16  # channels between two steps of the progress bar


def draw_nulls(
    patches: PatchEmbeddings,
    clusters: Clusters,
    components: Components,
    labels: Tensor | None,
    bank: Bank | None,
    config: PSIConfig,
    progress: Progress,
) -> dict[str, NullMoments]:
    """The nulls of the components there are, under "S", "Q", "D", and the paper's S null under "S_independent"."""
    independent = _sphere_moments(patches, components.S, config)
    nulls = {"S_independent": independent}
    nulls["S"] = (
        independent if config.rotation == "independent" else _rotation_moments(patches, components.S, config, progress)
    )
    if labels is not None and components.Q is not None:
        nulls["Q"] = _permutation_moments(patches, clusters, components.Q, labels, config, progress)
    if bank is not None and components.D is not None:
        nulls["D"] = _text_moments(patches, clusters, components, bank, config)
    return nulls


def moments(observed: Tensor, draws: Tensor) -> NullMoments:
    """Mean, standard deviation (B - 1) and p of draws [c, B] against the observed values [c]."""
    values = draws.double().cpu().numpy()  # NumPy sums each row in the same order, however many rows there are
    p = (1 + (values >= (observed.cpu().numpy() - TIE)[:, None]).sum(1)) / (values.shape[1] + 1)
    results = (np.mean(values, axis=1), np.std(values, axis=1, ddof=1), p)
    return NullMoments(*(torch.as_tensor(x, device=observed.device) for x in results))


def _rotation_moments(patches: PatchEmbeddings, observed: Tensor, config: PSIConfig, progress: Progress) -> NullMoments:
    result = _empty(observed)
    groups = list(patches.groups(2 * config.k_max))
    total = sum(len(group.rows) for group in groups) * config.draws
    with progress.bar("null draws of S", total, "draw") as bar:
        for group in groups:
            samples, width = group.columns.shape[1], patches.unique.shape[1]
            per_chunk = rows_per_chunk(4 * samples * (width + 4 * samples), budget_bytes=64 * 2**20)
            chunks = zip(group.rows.split(per_chunk), group.columns.split(per_chunk), strict=True)
            parts = [
                tangent_space(unit_gram(patches.unique[patches.index[rows[:, None], columns]]), width)
                for rows, columns in chunks
            ]
            tangent = Tangent(*(torch.cat(part) for part in zip(*parts, strict=True)))
            drawn = torch.empty(len(group.rows), config.draws, device=observed.device)
            for first in range(0, config.draws, POOL_DRAWS):
                block = range(first, min(first + POOL_DRAWS, config.draws))
                pool = rotation_pool(
                    samples,
                    width,
                    rotation=config.rotation,
                    draws=block,
                    seed=config.seed,
                    dtype=patches.unique.dtype,
                    device=observed.device,
                )
                for start in range(0, len(group.rows), CHANNELS):
                    part = slice(start, start + CHANNELS)
                    drawn[part, block.start : block.stop] = rotation_null(
                        tangent.rows(part),
                        pool,
                        rotation=config.rotation,
                        k_max=config.k_max,
                        n_init=config.n_init,
                        seed=config.seed,
                        channel=patches.channel[group.rows[part]],
                        backend=config.backend,
                    )
                    bar.update(len(group.rows[part]) * len(block))
            _put(result, group.rows, moments(observed[group.rows], drawn))
    return result


def _sphere_moments(patches: PatchEmbeddings, observed: Tensor, config: PSIConfig) -> NullMoments:
    """The paper's S null: it depends on the number of patches alone, so it is drawn once per group."""
    result = _empty(observed)
    for group in patches.groups(2 * config.k_max):
        drawn = sphere_null(
            group.columns.shape[1],
            patches.unique.shape[1],
            draws=range(config.draws),
            k_max=config.k_max,
            n_init=config.n_init,
            seed=config.seed,
            dtype=patches.unique.dtype,
            device=observed.device,
            backend=config.backend,
        )
        _put(result, group.rows, moments(observed[group.rows], drawn.expand(len(group.rows), -1)))
    return result


def _permutation_moments(
    patches: PatchEmbeddings,
    clusters: Clusters,
    observed: Tensor,
    labels: Tensor,
    config: PSIConfig,
    progress: Progress,
) -> NullMoments:
    result = _empty(observed)
    groups = list(patches.groups(2 * config.k_max))
    with progress.bar("null draws of Q", sum(len(group.rows) for group in groups) * config.draws, "draw") as bar:
        for group in groups:
            for rows, columns in zip(group.rows.split(CHANNELS), group.columns.split(CHANNELS), strict=True):
                found = clusters.labels[rows[:, None], columns]
                classes = dense_labels(labels[rows[:, None], columns])
                drawn = permutation_null(
                    found,
                    classes,
                    draws=range(config.draws),
                    seed=config.seed,
                    channel=patches.channel[rows],
                    backend=config.backend,
                )
                part = moments(observed[rows], drawn)
                if config.exact:
                    part = _exact_permutation(part, found, classes)
                _put(result, rows, part)
                bar.update(len(rows) * config.draws)
    return result


def _exact_permutation(drawn: NullMoments, clusters: Tensor, classes: Tensor) -> NullMoments:
    """`drawn` with its mean and standard deviation replaced by the closed form of the NMI's null."""
    scale = ((entropy(clusters) + entropy(classes)) / 2).cpu().numpy()
    mean, sd = np.zeros(len(scale)), np.zeros(len(scale))
    for i, (a, b) in enumerate(zip(clusters.cpu().numpy(), classes.cpu().numpy(), strict=True)):
        if scale[i] > 0:
            expected, variance = mutual_information_moments(np.bincount(a), np.bincount(b))
            mean[i], sd[i] = expected / scale[i], variance**0.5 / scale[i]
    device = drawn.mean.device
    return NullMoments(torch.as_tensor(mean, device=device), torch.as_tensor(sd, device=device), drawn.p)


def _text_moments(
    patches: PatchEmbeddings, clusters: Clusters, components: Components, bank: Bank, config: PSIConfig
) -> NullMoments:
    observed = components.D
    result = _empty(observed)
    # one cluster has nothing to be told apart from: its null has no variation
    _put(result, torch.nonzero(clusters.k == 1)[:, 0], None)
    rows = torch.nonzero(clusters.k > 1)[:, 0]
    if len(rows) == 0:
        return result
    prototypes, k = clusters.prototypes[rows], clusters.k[rows]
    chosen = components.concepts[: patches.real]
    pool = chosen[chosen >= 0] if config.text_pool == "layer" and (chosen >= 0).any() else None
    shared = {"kind": config.distinctness, "draws": range(config.draws), "seed": config.seed, "backend": config.backend}
    if config.text_null == "rotated":
        part = moments(observed[rows], text_rotation_null(prototypes, k, bank.embeddings, **shared))
    else:
        drawn = text_shuffle_null(prototypes, k, bank.embeddings, pool=pool, channel=patches.channel[rows], **shared)
        part = moments(observed[rows], drawn)
        if config.exact:
            mean, sd = shuffle_moments(prototypes, k, bank.embeddings, kind=config.distinctness, pool=pool)
            part = NullMoments(mean.double(), sd.double(), part.p)
    _put(result, rows, part)
    return result


def _empty(observed: Tensor) -> NullMoments:
    return NullMoments(*(torch.full_like(observed, torch.nan) for _ in range(3)))


def _put(result: NullMoments, rows: Tensor, part: NullMoments | None) -> None:
    """Write a part's rows; None stands for a null without variation, which nothing exceeds."""
    result.mean[rows] = 0 if part is None else part.mean
    result.sd[rows] = 0 if part is None else part.sd
    result.p[rows] = 1 if part is None else part.p
