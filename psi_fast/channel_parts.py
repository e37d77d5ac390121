"""Clusters, components, peers' scores and the null of D: of all channels at once, or in parts of them, which workers do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_fast.clustering import cluster_patches
from psi_fast.components import measure
from psi_fast.config import PSIConfig
from psi_fast.nulls import text_moments
from psi_fast.peer_scores import peer_scores
from psi_fast.progress import Progress
from psi_fast.results import Bank, Clusters, Components, NullMoments, PatchEmbeddings, PeerScores
from psi_fast.workers import Workers, part_size

FEWEST, MOST = 16, 256
"""Channels of a part for one of several workers."""


class Given(NamedTuple):
    """What channels are clustered and measured from.

    patches, plain : as they are scored, and the same without centring
    labels : [C, K] int64 or None
    bank : as of `measure`
    weights, class_selectivity, config : as of `peer_scores`
    """

    patches: PatchEmbeddings
    plain: PatchEmbeddings
    labels: Tensor | None
    bank: Bank | None
    weights: np.ndarray | None
    class_selectivity: np.ndarray | None
    config: PSIConfig


class Clustered(NamedTuple):
    """What a layer's patches come to before anything is drawn."""

    clusters: Clusters
    components: Components
    peers: PeerScores


def clustered(given: Given, progress: Progress) -> Clustered:
    """Clusters, components and peers' scores of all channels."""
    clusters = cluster_patches(given.patches, given.config, progress)
    components = measure(given.patches, clusters, given.labels, given.bank, given.config)
    return Clustered(
        clusters, components, peer_scores(given.plain, given.weights, given.class_selectivity, given.config)
    )


def spread_clustered(given: Given, progress: Progress, workers: Workers) -> Clustered:
    """As `clustered`, to the same bits."""
    patches, plain, labels, bank, *activations, config = given
    device, count = patches.unique.device, len(patches.index)

    def task(rows: np.ndarray) -> tuple[Any, ...]:
        real = rows[rows < patches.real]  # the activations of random patches are not known
        known = (None if own is None else own[real] for own in activations)
        return patches.take(rows), plain.take(rows), None if labels is None else labels[rows].cpu(), *known

    shared = (None if bank is None else bank.to(torch.device("cpu")), config, device)
    with progress.bar("clustering", count, "channel") as bar:
        size = part_size(count, workers, FEWEST, MOST)
        found = _joined(workers, clustered_part, count, size, task, shared, bar.update)
    records = {"clusters": Clusters, "components": Components, "peers": PeerScores}
    made = {
        name: kind(**{field: _on(found.get(f"{name} {field}"), device) for field in kind.__dataclass_fields__})
        for name, kind in records.items()
    }
    return Clustered(**made)


def clustered_part(
    shared: tuple[Bank | None, PSIConfig, torch.device],
    patches: PatchEmbeddings,
    plain: PatchEmbeddings,
    labels: Tensor | None,
    weights: np.ndarray | None,
    class_selectivity: np.ndarray | None,
) -> dict[str, Tensor]:
    """`clustered` of some channels as tensors on the CPU, under "RECORD FIELD"."""
    bank, config, device = shared
    bank = None if bank is None else bank.to(device)
    given = Given(patches.to(device), plain.to(device), _on(labels, device), bank, weights, class_selectivity, config)
    found = clustered(given, Progress(False))
    return {
        f"{name} {field}": tensor.cpu()
        for name, record in found._asdict().items()
        for field, tensor in vars(record).items()
        if tensor is not None
    }


def spread_text_null(
    channel: Tensor,
    k: Tensor,
    prototypes: Tensor,
    observed: Tensor,
    bank: Bank,
    pool: Tensor | None,
    config: PSIConfig,
    keep: int,
    workers: Workers,
) -> NullMoments:
    """As `text_moments`, to the same bits."""
    device, count = observed.device, len(observed)
    arrays = [own.cpu() for own in (channel, k, prototypes, observed)]
    shared = (bank.to(torch.device("cpu")), None if pool is None else pool.cpu(), config, keep, device)
    # a turned bank serves all channels of a part, so there each worker has one
    fewest = FEWEST if config.text_null == "shuffled" else -(-count // workers.count)
    size = part_size(count, workers, fewest, MOST)
    found = _joined(workers, text_part, count, size, lambda rows: tuple(own[rows] for own in arrays), shared)
    draws = found.pop("draws", None)
    return NullMoments(**{name: own.to(device) for name, own in found.items()}, draws=draws)


def text_part(
    shared: tuple[Bank, Tensor | None, PSIConfig, int, torch.device],
    channel: Tensor,
    k: Tensor,
    prototypes: Tensor,
    observed: Tensor,
) -> dict[str, Tensor]:
    """`text_moments` of some channels as tensors on the CPU, by name."""
    bank, pool, config, keep, device = shared
    channel, k, prototypes, observed = (own.to(device) for own in (channel, k, prototypes, observed))
    found = text_moments(channel, k, prototypes, observed, bank.to(device), _on(pool, device), config, keep)
    return {name: tensor.cpu() for name, tensor in vars(found).items() if tensor is not None}


def _joined(
    workers: Workers,
    work: Callable[..., dict[str, Tensor]],
    count: int,
    size: int,
    task: Callable[[np.ndarray], tuple[Any, ...]],
    shared: Any,
    done: Callable[[int], Any] = lambda rows: None,
) -> dict[str, Tensor]:
    """What the parts of `size` channels give, one behind the other in the order of the channels."""
    parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    found: list[dict[str, Tensor]] = [{} for _ in parts]
    for number, own in workers.results(work, dict(enumerate(map(task, parts))), shared):
        found[number] = own
        done(len(parts[number]))
    return {name: torch.cat([own[name] for own in found]) for name in found[0]}


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
