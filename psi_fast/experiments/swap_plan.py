"""Which hosts a channel's swaps have, and which patches go into them."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from psi_fast.clustering import cluster_patches
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import Evaluation, without
from psi_fast.experiments.study import Study
from psi_fast.experiments.swaps import PATCHES, Places, Swaps
from psi_fast.results import TopPatches

Hosts = Literal["middle", "top"]
MIDDLE = (0.2, 0.8)
"""Quantile range of a channel's own per-image maxima that hosts come from."""
TRIED = 32
"""Random patches looked at for one that has room for the host's box."""


@dataclass(frozen=True)
class Members:
    """Patches in clusters, which swaps take theirs from.

    images, positions, labels : [C, K] int64, label -1 where there is no patch
    prototypes : [C, k_max, d] float32 unit mean of each cluster
    k : [C] int64 clusters of each channel, 0 for one that was not clustered
    """

    images: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    prototypes: torch.Tensor
    k: np.ndarray


def plan(study: Study, layer: str, places: Places, rows: np.ndarray, host_count: int, hosts: Hosts) -> Swaps:
    """The swaps of the channels at `rows` of the layer's, at most `host_count` each, in the channels' order.

    Draws depend on the study's seed and the channel alone. A channel is left out when fewer than two of its hosts can be used:
    a host must peak on the grid, where the box leaves room for another elsewhere.

    Raises
    ------
    ConfigError
        `hosts` is "top" and half of the top patches are too few to be clustered.
    InputError
        No channel is left.
    """
    top, evaluation = study.top(layer), study.evaluation(layer)
    members = _top_half(study, layer, top, evaluation) if hosts == "top" else _members(top, evaluation)
    rngs = {row: np.random.default_rng([study.config.seed, int(top.channels[row])]) for row in rows.tolist()}
    chosen = {}
    for row, rng in rngs.items():
        if members.k[row] > 1:
            images, positions = _candidates(study, layer, top, row, hosts)
            fit = np.flatnonzero(places.usable[positions])
            fit = rng.permutation(fit)[:host_count]
            chosen[row] = images[fit], positions[fit]
    clusters = _nearest(study, layer, evaluation, members, chosen)
    found = []
    for row, (images, positions) in chosen.items():
        own = [
            swap
            for image, position, cluster in zip(images.tolist(), positions.tolist(), clusters[row], strict=True)
            if (swap := _swap(study, places, members, row, image, position, cluster, rngs[row])) is not None
        ]
        if len(own) > 1:
            found += [(top.channels[row], *swap) for swap in own]
    if not found:
        raise InputError(
            f"no channel of {layer} has two hosts that peak where a box of {places.boxes[:, 2:].max()} px leaves room for "
            "another elsewhere; give a smaller box, or more images"
        )
    return Swaps(*(np.array(column, dtype=np.int64) for column in zip(*found, strict=True)))


def _candidates(study: Study, layer: str, top: TopPatches, row: int, hosts: Hosts) -> tuple[np.ndarray, np.ndarray]:
    """Images that may be hosts of a channel, and where it peaks in them."""
    if hosts == "top":
        odd = slice(1, None, 2)
        held = top.valid[row, odd]
        return top.images[row, odd][held], top.positions[row, odd][held]
    survey = study.survey(layer)
    column = int(np.flatnonzero(study.channels(layer) == top.channels[row])[0])
    order = survey.maxima[:, column].argsort(stable=True).numpy()
    low, high = (round(share * len(order)) for share in MIDDLE)
    middle = np.setdiff1d(order[low:high], top.images[row])
    return middle, survey.positions[middle, column].numpy()


def _members(top: TopPatches, evaluation: Evaluation) -> Members:
    found = evaluation.clusters
    return Members(top.images, top.positions, found.labels.numpy(), found.prototypes, found.k.numpy())


def _top_half(study: Study, layer: str, top: TopPatches, evaluation: Evaluation) -> Members:
    """The top patches of even rank, clustered without the others."""
    config = study.config
    if config.top_k < 4 * config.k_max:
        raise ConfigError(
            f"hosts top clusters half of the top patches, which takes top_k of at least 4 k_max = {4 * config.k_max}, got "
            f"{config.top_k}; raise top_k or take hosts from the middle"
        )
    _, patches, _ = study.patches(layer)
    if evaluation.centre is not None:
        patches = replace(patches, unique=without(patches.unique, evaluation.centre))
    half = replace(patches, index=patches.index[:, ::2])
    found = cluster_patches(half.to(study.subject.device), config, study.bars)
    labels, prototypes, k = (part.cpu() for part in (found.labels, found.prototypes, found.k))
    return Members(top.images[:, ::2], top.positions[:, ::2], labels.numpy(), prototypes, k.numpy())


def _nearest(
    study: Study,
    layer: str,
    evaluation: Evaluation,
    members: Members,
    chosen: dict[int, tuple[np.ndarray, np.ndarray]],
) -> dict[int, list[int]]:
    """The cluster of each channel's hosts: whose prototype the embedding of the host's own patch is nearest to."""
    if not any(len(own) for own, _ in chosen.values()):
        return {row: [] for row in chosen}
    images, positions = (np.concatenate(part) for part in zip(*chosen.values(), strict=True))
    rows, index = study.embed(images, study.boxes(layer, positions))
    if evaluation.centre is not None:
        rows = without(rows, evaluation.centre)
    parts = np.split(index, np.cumsum([len(own) for own, _ in chosen.values()])[:-1])
    return {
        row: (rows[own] @ members.prototypes[row, : members.k[row]].T).argmax(1).tolist()
        for row, own in zip(chosen, parts, strict=True)
    }


def _swap(
    study: Study,
    places: Places,
    members: Members,
    row: int,
    image: int,
    position: int,
    cluster: int,
    rng: np.random.Generator,
) -> tuple[int, int, np.ndarray, list[int], list[np.ndarray], np.ndarray] | None:
    """What `Swaps` has of one host behind the channel; None where a cluster has no patch on the grid."""
    labels = members.labels[row]
    held = (labels >= 0) & places.on_grid[members.positions[row]]
    pools = [
        (members.images[row][own], members.positions[row][own])
        for own in (held & (labels == cluster), held & (labels != cluster))
    ]
    count = len(study.subject.images)
    others = (image + rng.integers(1, count, TRIED)) % count
    pools.append((others, rng.choice(np.flatnonzero(places.on_grid), TRIED)))
    if not all(len(images) for images, _ in pools):
        return None
    drawn = [_fitting(places, position, *pool, rng) for pool in pools]
    assert len(drawn) == PATCHES, "a patch for each condition that has its own"
    donors, corners = map(list, zip(*drawn, strict=True))
    return image, position, places.boxes[position], donors, corners, places.elsewhere(position, rng)


def _fitting(
    places: Places, position: int, images: np.ndarray, positions: np.ndarray, rng: np.random.Generator
) -> tuple[int, np.ndarray]:
    """Of the patches [m], a random one of those that the image's border moves least: its image and corner."""
    corners, shifts = places.windows(position, positions)
    one = rng.choice(np.flatnonzero(shifts == shifts.min()))
    return int(images[one]), corners[one]
