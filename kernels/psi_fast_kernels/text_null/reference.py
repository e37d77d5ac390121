"""D and its nulls in plain torch. C channels, B draws, k clusters of d-wide unit prototypes mu_j, P concepts T_p.

gap         D = mean_j [ mu_j . T_tj - mean_{l != j} mu_j . T_tl ] = sum_l nu_l . T_tl
            nu_l = mu_l / (k - 1) - sum_j mu_j / (k (k - 1))
pairwise    D = mean over pairs j < l of 1 - H_tj . H_tl

The concepts t_j are chosen in the bank T. H is T, or a text-only head's embeddings of the same concepts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from psi_fast_kernels._batched import ordered_sum, products
from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._streams import Stream
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.philox.reference import integers
from psi_fast_kernels.text_null.frames import bytes_per_draw, frame_size, gram_root, turned_banks
from psi_fast_kernels.text_null.nearest import ROWS, aligned, fits, largest, nearest_concepts

DRAWS = 1024  # draws of a channel held at once
CACHED = 2**17  # numbers searched at once, so that they stay in the cache
BUDGET = 64 * 2**20  # bytes of a chunk


class Concepts(NamedTuple):
    """D [C] of each channel, and the concept index of each cluster [C, k_max] int64, -1 from k on."""

    value: Tensor
    concept: Tensor


def distinctness(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, head: Tensor | None = None, search: str = "auto"
) -> Concepts:
    """D of each channel with every cluster's nearest concept.

    Arguments as in `text_null.op.text_shuffle_null`, `search` as in `text_null.nearest.nearest_concepts`.
    """
    head = compared_bank(text, head, kind)
    used = used_clusters(prototypes, k)
    index = nearest_concepts(torch.where(used[..., None], prototypes, 0), text, search=search)
    value = torch.empty_like(prototypes[:, 0, 0])

    def work(rows: slice) -> None:
        vectors = torch.where(used[rows, :, None], head[index[rows]], 0)
        left = gap_vectors(prototypes[rows], k[rows]) if kind == "gap" else vectors
        pairs = products(left, vectors.mT)
        own = ordered_sum(pairs.diagonal(dim1=1, dim2=2), 1)
        value[rows] = own if kind == "gap" else mean_distance(ordered_sum(pairs.flatten(1), 1), own, k[rows])

    per_channel = 4 * prototypes.itemsize * prototypes.shape[1] * (max(prototypes.shape[2], head.shape[1]) + 16)
    in_chunks(work, len(k), rows_per_chunk(per_channel, budget_bytes=BUDGET), "channels")
    return Concepts(value, torch.where(used, index, -1))


def text_shuffle_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    head: Tensor,
    pool: Tensor | None,
    draws: range,
    seed: int,
    channel: Tensor,
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_shuffle_null`."""
    bank, concepts = distinct_pool(text if kind == "gap" else head, pool)
    k_max = prototypes.shape[1]
    columns = aligned(bank)
    result = prototypes.new_empty(len(k), len(draws))

    def work(rows: slice) -> None:
        fit = channel_fits(prototypes[rows], k[rows], columns) if kind == "gap" else None
        for block in torch.arange(draws.start, draws.stop, device=k.device).split(DRAWS):
            tau = integers(seed, Stream.TEXT_SHUFFLE, channel[rows, None], block, k_max, len(concepts))
            chosen = concepts[tau]
            part = result[rows, int(block[0]) - draws.start :][:, : len(block)]
            part.copy_(distances(chosen, k[rows], bank) if fit is None else _gaps(chosen, fit))

    in_chunks(work, len(k), channels_per_chunk(prototypes, columns, len(draws), kind), "channels")
    return result


def text_rotation_null(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, head: Tensor, draws: range, seed: int
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_rotation_null`; `psi_fast_kernels.text_null.frames` has the formula."""
    return rotated_values(prototypes, k, text, kind=kind, head=head, draws=draws, seed=seed, distances=distances)


def rotated_values(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    head: Tensor,
    draws: range,
    seed: int,
    distances: Callable[..., Tensor],
) -> Tensor:
    """`text_rotation_null` with another function in the place of `distances`."""
    channels, k_max, width = prototypes.shape
    used = used_clusters(prototypes, k)
    size, bank = frame_size(k_max, width), aligned(text)
    root = gram_root(torch.where(used[..., None], prototypes, 0))
    weights = gap_vectors(root, k)[used].T
    # one product's rows, as many whatever the number of channels, few enough for its result to stay in the cache
    step = max(16, min(ROWS, CACHED // len(bank) // 16 * 16))
    rows = aligned(root[used], step, 1)
    fit = text.new_empty(step, len(bank))
    result = prototypes.new_empty(channels, len(draws))

    def work(part: slice) -> None:
        block = range(draws.start + part.start, draws.start + part.stop)
        for place, turned in enumerate(turned_banks(bank, width, size, draws=block, seed=seed), part.start):
            found = [largest(torch.mm(own, turned, out=fit)[:, : len(text)]) for own in rows.split(step)]
            nearest = torch.cat(found)[: weights.shape[1]]
            if kind == "gap":
                terms = prototypes.new_zeros(channels, k_max)
                terms[used] = ordered_sum(weights * turned[:, nearest], 0)
                result[:, place] = ordered_sum(terms, 1)
            else:
                chosen = torch.zeros_like(used, dtype=torch.int64)
                chosen[used] = nearest
                result[:, place] = distances(chosen[:, None], k, head)[:, 0]

    per_draw = bytes_per_draw(len(bank), width, size, text.itemsize)
    in_chunks(work, len(draws), rows_per_chunk(per_draw, budget_bytes=BUDGET), "draws")
    return result


def compared_bank(text: Tensor, head: Tensor | None, kind: str) -> Tensor:
    """The bank whose vectors D takes: `head` [P, e], or `text` where there is none.

    Raises
    ------
    ValueError
        The head has other concepts or another dtype than `text`, or `kind` is one that compares with prototypes.
    """
    if head is None:
        return text
    if kind != "pairwise":
        raise ValueError(f"a head goes with distinctness 'pairwise' alone, which needs no prototypes; got {kind!r}")
    if head.ndim != 2 or len(head) != len(text) or head.dtype != text.dtype:
        raise ValueError(f"head must be [{len(text)}, e] {text.dtype} like text, got {tuple(head.shape)} {head.dtype}")
    return head


def used_clusters(prototypes: Tensor, k: Tensor) -> Tensor:
    """Whether a place holds a cluster, [C, k_max] bool."""
    return torch.arange(prototypes.shape[1], device=k.device) < k[:, None]


def gap_vectors(prototypes: Tensor, k: Tensor) -> Tensor:
    """nu [C, k_max, d], 0 from k on: the gap is the sum of their products with the concepts."""
    used = used_clusters(prototypes, k)[..., None]
    clusters = k[:, None, None].clamp(min=2).to(prototypes.dtype)
    total = ordered_sum(torch.where(used, prototypes, 0), 1)[:, None]
    return torch.where(used, prototypes / (clusters - 1) - total / (clusters * (clusters - 1)), 0)


def mean_distance(whole: Tensor, own: Tensor, k: Tensor) -> Tensor:
    """Mean of 1 - T_j . T_l over the pairs, from |sum_j T_j|^2 and sum_j |T_j|^2."""
    clusters = k.clamp(min=2).to(whole.dtype)
    return 1 - (whole - own) / (clusters * (clusters - 1))


def distinct_pool(bank: Tensor, pool: Tensor | None) -> tuple[Tensor, Tensor]:
    """The concepts that can be drawn [U, d], and for each place of the pool the one it holds, [M] int64."""
    if pool is None:
        return bank, torch.arange(len(bank), device=bank.device)
    held, places = pool.unique(return_inverse=True)
    return bank[held], places


def channel_fits(prototypes: Tensor, k: Tensor, bank: Tensor) -> Tensor:
    """nu_l . T_p [C, k_max, P] with an `aligned` bank [P, padded d]."""
    return fits(gap_vectors(prototypes, k).flatten(0, 1), bank).unflatten(0, prototypes.shape[:2])


def channels_per_chunk(prototypes: Tensor, bank: Tensor, draws: int, kind: str) -> int:
    """Channels whose products (gap) or summed vectors (pairwise), and random numbers, are held at once; `bank` is aligned."""
    k_max = prototypes.shape[1]
    at_once = min(draws, DRAWS)
    numbers = k_max * len(bank) if kind == "gap" else 4 * at_once * bank.shape[1]
    count = rows_per_chunk(prototypes.itemsize * numbers + 16 * 8 * at_once * k_max, budget_bytes=BUDGET)
    whole = count * k_max // ROWS * ROWS  # rows of whole products
    return count if whole == 0 else whole // k_max


def _gaps(chosen: Tensor, fit: Tensor) -> Tensor:
    """Gap [C, B] of the concepts [C, B, k_max], from nu_l . T_p [C, k_max, P]."""
    gaps = (fit[:, cluster].gather(1, chosen[..., cluster]) for cluster in range(fit.shape[1]))
    return sum(gaps, start=fit.new_zeros(()))


def distances(chosen: Tensor, k: Tensor, bank: Tensor) -> Tensor:
    """Mean pairwise distance [C, B] of the concepts [C, B, k_max]."""
    whole, own = bank.new_zeros(*chosen.shape[:2], bank.shape[1]), bank.new_zeros(chosen.shape[:2])
    for cluster in range(chosen.shape[2]):
        used = (cluster < k)[:, None, None]
        vectors = torch.where(used, bank[chosen[..., cluster]], 0)
        whole, own = whole + vectors, own + vectors.square().sum(-1)
    return mean_distance(whole.square().sum(-1), own, k[:, None])
