"""Null draws of S, Q and D, block by block -> NullMoments. The same pipeline as the data, draw by draw."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from psi_fast.clustering import unit_gram
from psi_fast.config import PSIConfig
from psi_fast.moments import RunningMoments
from psi_fast.progress import Progress
from psi_fast.results import Bank, Group, NullMoments, PatchEmbeddings
from psi_fast_kernels._backend import offered
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.permutation_null import dense_labels, permutation_moments, permutation_null
from psi_fast_kernels.rotation_null import Tangent, rotation_null, rotation_pool, sphere_null, tangent_space
from psi_fast_kernels.text_null import shuffle_moments, text_rotation_null, text_shuffle_null

BLOCK = 64  # draws of S made at once; part of the result's last bits, so it is the same everywhere
CHEAP_BLOCK = 1024  # draws of Q or D
CHANNELS = {"cpu": 16}  # channels between two steps of the progress bar; a GPU takes them all at once


def draw_nulls(
    patches: PatchEmbeddings,
    clusters: Tensor,
    observed: Mapping[str, Tensor],
    labels: Tensor | None,
    config: PSIConfig,
    progress: Progress,
    keep: int = 0,
) -> dict[str, NullMoments]:
    """The nulls of S, and of Q where there are labels, under their names, and the paper's S null under "S_independent".

    The first `keep` draws of all but the last are held on to. No channel's null depends on which others there are.

    Parameters
    ----------
    clusters, labels : [C, K] int64
        Cluster of each patch, and its class.
    observed : by name, [C] float64 each
    """
    spherical = config.rotation == "independent"
    independent = _sphere_moments(patches, observed["S"], config, keep if spherical else 0)
    nulls = {"S_independent": independent}
    nulls["S"] = independent if spherical else _rotation_moments(patches, observed["S"], config, progress, keep)
    if labels is not None:
        nulls["Q"] = _permutation_moments(patches, clusters, observed["Q"], labels, config, progress, keep)
    return nulls


def _rotation_moments(
    patches: PatchEmbeddings, observed: Tensor, config: PSIConfig, progress: Progress, keep: int
) -> NullMoments:
    result = _empty(observed, config, keep)
    groups = list(patches.groups(2 * config.k_max))
    width = patches.unique.shape[1]
    with progress.bar("null draws of S", sum(len(group.rows) for group in groups) * config.draws, "draw") as bar:
        for group in groups:
            tangent = _tangent_space(patches, group, config.rotation)
            running = RunningMoments(observed[group.rows], keep)
            for block in _blocks(config.draws, BLOCK):
                pool = rotation_pool(
                    group.columns.shape[1],
                    width,
                    rotation=config.rotation,
                    draws=block,
                    seed=config.seed,
                    dtype=patches.unique.dtype,
                    device=observed.device,
                )
                for part in _parts(group):
                    drawn = rotation_null(
                        tangent.rows(part),
                        pool,
                        rotation=config.rotation,
                        k_max=config.k_max,
                        n_init=config.n_init,
                        seed=config.seed,
                        channel=patches.channel[group.rows[part]],
                        backend=config.backend,
                    )
                    running.add(part, drawn)
                    bar.update(drawn.numel())
            _put(result, group.rows, running.result())
    return result


def _tangent_space(patches: PatchEmbeddings, group: Group, rotation: str) -> Tangent:
    samples, width = group.columns.shape[1], patches.unique.shape[1]
    parts: list[Tangent] = []

    def work(part: slice) -> None:
        rows, columns = group.rows[part], group.columns[part]
        gram = unit_gram(patches.unique[patches.index[rows[:, None], columns]])
        parts.append(tangent_space(gram, width, rotation=rotation))

    per_chunk = rows_per_chunk(4 * samples * (width + 4 * samples), budget_bytes=64 * 2**20)
    in_chunks(work, len(group.rows), per_chunk, "channels")
    return Tangent(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _sphere_moments(patches: PatchEmbeddings, observed: Tensor, config: PSIConfig, keep: int) -> NullMoments:
    """The paper's S null: it depends on the number of patches alone, so it is drawn once per group."""
    result = _empty(observed, config, keep)
    for group in patches.groups(2 * config.k_max):
        running = RunningMoments(observed[group.rows], keep)
        for block in _blocks(config.draws, BLOCK):
            drawn = sphere_null(
                group.columns.shape[1],
                patches.unique.shape[1],
                draws=block,
                k_max=config.k_max,
                n_init=config.n_init,
                seed=config.seed,
                dtype=patches.unique.dtype,
                device=observed.device,
                backend=config.backend,
            )
            running.add(slice(None), drawn.expand(len(group.rows), -1))
        _put(result, group.rows, running.result())
    return result


def _permutation_moments(
    patches: PatchEmbeddings,
    clusters: Tensor,
    observed: Tensor,
    labels: Tensor,
    config: PSIConfig,
    progress: Progress,
    keep: int,
) -> NullMoments:
    result = _empty(observed, config, keep)
    groups = list(patches.groups(2 * config.k_max))
    with progress.bar("null draws of Q", sum(len(group.rows) for group in groups) * config.draws, "draw") as bar:
        for group in groups:
            places = group.rows[:, None], group.columns
            found, classes = clusters[places], dense_labels(labels[places])
            running = RunningMoments(observed[group.rows], keep)
            for block in _blocks(config.draws, CHEAP_BLOCK):
                for part in _parts(group):
                    drawn = permutation_null(
                        found[part],
                        classes[part],
                        draws=block,
                        seed=config.seed,
                        channel=patches.channel[group.rows[part]],
                        backend=offered("permutation_null", config.backend),
                    )
                    running.add(part, drawn)
                    bar.update(drawn.numel())
            part = running.result()
            if config.exact:
                mean, sd = permutation_moments(found, classes)
                part = replace(part, mean=mean, sd=sd)
            _put(result, group.rows, part)
    return result


def concept_pool(concepts: Tensor, config: PSIConfig) -> Tensor | None:
    """The concepts that the null of D draws from: those of a layer's own channels [C, k_max], or None for the whole bank."""
    return concepts[concepts >= 0] if config.text_pool == "layer" and (concepts >= 0).any() else None


def text_moments(
    channel: Tensor,
    k: Tensor,
    prototypes: Tensor,
    observed: Tensor,
    bank: Bank,
    pool: Tensor | None,
    config: PSIConfig,
    keep: int = 0,
) -> NullMoments:
    """The null of D alone. No channel's depends on which others there are, but for what `pool` holds.

    Parameters
    ----------
    channel : [C] int64, as of PatchEmbeddings
    k, prototypes : as of Clusters
    observed : [C] float64
    pool : as of `concept_pool`
    """
    result = _empty(observed, config, keep)
    # one cluster has nothing to be told apart from: its null has no variation
    _put(result, torch.nonzero(k == 1)[:, 0], None)
    rows = torch.nonzero(k > 1)[:, 0]
    if len(rows) == 0:
        return result
    channel, k, prototypes = channel[rows], k[rows], prototypes[rows]
    shuffled = config.text_null == "shuffled"
    shared: dict[str, Any] = {
        "kind": config.distinctness,
        "head": bank.head,
        "seed": config.seed,
        "backend": offered("text_null", config.backend),
    }
    running = RunningMoments(observed[rows], keep)
    for block in _blocks(config.draws, CHEAP_BLOCK):
        if shuffled:
            drawn = text_shuffle_null(prototypes, k, bank.embeddings, draws=block, pool=pool, channel=channel, **shared)
        else:
            drawn = text_rotation_null(prototypes, k, bank.embeddings, draws=block, **shared)
        running.add(slice(None), drawn)
    part = running.result()
    if config.exact and shuffled:
        mean, sd = shuffle_moments(prototypes, k, bank.embeddings, kind=config.distinctness, head=bank.head, pool=pool)
        part = replace(part, mean=mean.double(), sd=sd.double())
    _put(result, rows, part)
    return result


def _blocks(draws: int, size: int) -> Iterator[range]:
    """The indices of the draws, `size` at a time."""
    for first in range(0, draws, size):
        yield range(first, min(first + size, draws))


def _parts(group: Group) -> Iterator[slice]:
    """The group's channels in parts that the device takes at once."""
    channels = len(group.rows)
    step = CHANNELS.get(group.rows.device.type, channels)
    for start in range(0, channels, step):
        yield slice(start, min(start + step, channels))


def _empty(observed: Tensor, config: PSIConfig, keep: int) -> NullMoments:
    draws = torch.full((len(observed), min(keep, config.draws)), torch.nan) if keep else None
    return NullMoments(*(torch.full_like(observed, torch.nan) for _ in range(3)), draws=draws)


def _put(result: NullMoments, rows: Tensor, part: NullMoments | None) -> None:
    """Write a part's rows; None stands for a null without variation, which nothing exceeds."""
    result.mean[rows] = 0 if part is None else part.mean
    result.sd[rows] = 0 if part is None else part.sd
    result.p[rows] = 1 if part is None else part.p
    if result.draws is not None:
        result.draws[rows.cpu()] = 0 if part is None or part.draws is None else part.draws
