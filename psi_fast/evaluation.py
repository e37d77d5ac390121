"""Patch embeddings -> scores: cluster, measure, draw the nulls, calibrate. The stages in order."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from psi_fast.channel_parts import Given, clustered, spread_clustered, spread_text_null
from psi_fast.config import PSIConfig
from psi_fast.null_parts import Spread, spread_nulls
from psi_fast.nulls import concept_pool, draw_nulls, text_moments
from psi_fast.progress import Progress
from psi_fast.results import COMPONENTS, Bank, Clusters, PatchEmbeddings
from psi_fast.scores import tabulate
from psi_fast.trial_forward import memory_told
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import permutation

RANDOM_CHANNELS = 100
"""Random-patch channels scored beside the real ones; `random_percentile` moves in steps of 1 %."""
FEWER_CHANNELS = (
    "score fewer channels at once (--channels), free memory of the device, or choose another one (--device)"
)
FIRST_RANDOM_ID = 2**31  # their draws are no real channel's


@dataclass(frozen=True)
class Background:
    """Patches no channel chose: embeddings [M, d] float32 unit rows, labels [M] int64 or None."""

    embeddings: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Evaluation:
    """What the patch embeddings of a layer's channels come to.

    table : DataFrame, a row a channel, as `Scores.table` without the layer
    random : DataFrame, a row a random-patch channel, the same columns
    clusters : Clusters of the channels on the CPU, without the random-patch ones
    draws : the first null draws [C, b] float32 of each component, where they were kept, as of NullMoments
    centre : [d] float64, the mean patch embedding that was subtracted; None without centring
    """

    table: pd.DataFrame
    random: pd.DataFrame
    clusters: Clusters
    draws: dict[str, Tensor]
    centre: Tensor | None


def evaluate(
    patches: PatchEmbeddings,
    labels: Tensor | None,
    bank: Bank | None,
    background: Background | None,
    config: PSIConfig,
    device: torch.device,
    progress: Progress,
    *,
    dead: np.ndarray,
    max_activation: np.ndarray,
    selectivity: np.ndarray,
    unselective: np.ndarray,
    weights: np.ndarray | None = None,
    class_selectivity: np.ndarray | None = None,
    keep_draws: int = 0,
    centre: Tensor | None = None,
    spread: Spread | None = None,
) -> Evaluation:
    """Scores of patches of classes `labels` [C, K] int64; what is known of each channel as in `tabulate`.

    `weights` [C, K] and `class_selectivity` [C], float32, are those of TopPatches; without them the peers that take them are nan.
    With `config.center`, `centre` [d] float64 is subtracted, the patches' own mean by default. The first `keep_draws`
    null draws are kept. With `spread` the channels are scored in parts, and draws of S and Q kept, as it says.

    Raises
    ------
    OthersMissing
        Some parts are other workers' than those of this process.
    """
    if not config.center:
        centre = None
    elif centre is None and len(patches.unique):
        centre = patches.unique.double().mean(0)
    if background is not None:
        patches, labels = _with_random_channels(patches, labels, background, config)
    plain = patches.to(device)
    if centre is not None:
        patches, bank = _centred(patches, bank, centre)
    patches = patches.to(device)
    labels = None if labels is None else labels.to(device)
    bank = None if bank is None else bank.to(device)
    workers = None if spread is None else spread.others
    with progress.stage("clusters"), memory_told("clusters", FEWER_CHANNELS):
        scored = Given(patches, plain, labels, bank, weights, class_selectivity, config)
        made = clustered(scored, progress) if workers is None else spread_clustered(scored, progress, workers)
        clusters, components, peers = made
    with progress.stage("nulls"), memory_told("null draws", FEWER_CHANNELS):
        observed = {name: own for name, own in components.present().items() if name != "D"}
        given = (patches, clusters.labels, observed, labels, config, progress, keep_draws)
        nulls = draw_nulls(*given) if spread is None else spread_nulls(*given, spread)
        if bank is not None:
            pool = concept_pool(components.concepts[: patches.real], config)
            assert components.D is not None, "where there is a bank, there is D"
            about = (patches.channel, clusters.k, clusters.prototypes, components.D, bank, pool, config, keep_draws)
            nulls["D"] = text_moments(*about) if workers is None else spread_text_null(*about, workers)
    table, random = tabulate(
        patches,
        clusters,
        components,
        nulls,
        bank,
        peers,
        dead=dead,
        max_activation=max_activation,
        selectivity=selectivity,
        unselective=unselective,
    )
    real = slice(patches.real)
    own = Clusters(
        *(part[real].cpu() for part in (clusters.labels, clusters.k, clusters.silhouette, clusters.prototypes))
    )
    draws = {name: null.draws[real] for name, null in nulls.items() if name in COMPONENTS and null.draws is not None}
    return Evaluation(table, random, own, draws, centre)


def _centred(patches: PatchEmbeddings, bank: Bank | None, centre: Tensor) -> tuple[PatchEmbeddings, Bank | None]:
    """Images without `centre`, text without the mean of its bank: it removes the cone each sits in."""
    patches = replace(patches, unique=without(patches.unique, centre))
    return patches, None if bank is None else centred_bank(bank)


def centred_bank(bank: Bank) -> Bank:
    """The concepts without the mean of the bank, where there are several."""
    if len(bank.names) < 2:
        return bank
    text, head = (
        None if rows is None else without(rows, rows.double().mean(0)) for rows in (bank.embeddings, bank.head)
    )
    return replace(bank, embeddings=text, head=head)


def without(rows: Tensor, centre: Tensor) -> Tensor:
    """The rows [n, d] less `centre` [d], unit rows again; float32."""
    return normalize(rows.double() - centre, dim=1).float()


def _with_random_channels(
    patches: PatchEmbeddings, labels: Tensor | None, background: Background, config: PSIConfig
) -> tuple[PatchEmbeddings, Tensor | None]:
    """The channels followed by RANDOM_CHANNELS channels of K random background patches each."""
    places = patches.index.shape[1]
    ids = FIRST_RANDOM_ID + torch.arange(RANDOM_CHANNELS)
    order = permutation(config.seed, Stream.RANDOM_CHANNELS, ids, torch.zeros_like(ids), len(background.embeddings))
    drawn = order[:, :places]
    if labels is not None and background.labels is not None:
        random_labels = torch.nn.functional.pad(background.labels[drawn], (0, places - drawn.shape[1]))
        labels = torch.cat((labels, random_labels))
    index = torch.nn.functional.pad(len(patches.unique) + drawn, (0, places - drawn.shape[1]), value=-1)
    return PatchEmbeddings(
        torch.cat((patches.unique, background.embeddings)),
        torch.cat((patches.index, index)),
        torch.cat((patches.channel, ids)),
        random=RANDOM_CHANNELS,
    ), labels
