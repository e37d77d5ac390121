"""The shuffled text null compiled for the CPU: a draw's concepts are summed as they are drawn.

The rotated null spends its time in matrix products, so it is the reference's, with compiled pairwise distances.
"""

import numpy as np
from torch import Tensor

from psi_fast_kernels._chunks import in_chunks
from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox.numba_impl import HALF, philox4x32
from psi_fast_kernels.text_null.nearest import aligned
from psi_fast_kernels.text_null.reference import channel_fits, channels_per_chunk, distinct_pool, rotated_values

STREAM = int(Stream.TEXT_SHUFFLE)


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
    result = prototypes.new_empty(len(k), len(draws))
    drawn = concepts.numpy(), draws.start, seed & 0xFFFFFFFF, seed >> 32
    ks, ids, values = k.numpy(), channel.numpy(), result.numpy()
    if kind == "pairwise":
        vectors = bank.contiguous().numpy()
        squares = (vectors * vectors).sum(1)
        over_threads(lambda rows: _distances(values[rows], ids[rows], ks[rows], vectors, squares, *drawn), len(k))
        return result
    columns = aligned(bank)

    def work(part: slice) -> None:
        fit = channel_fits(prototypes[part], k[part], columns).numpy()
        own = values[part], ids[part], ks[part], fit
        over_threads(lambda rows: _gaps(*(array[rows] for array in own), *drawn), len(fit))

    in_chunks(work, len(k), channels_per_chunk(prototypes, columns, len(draws), kind), "channels")
    return result


def text_rotation_null(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, head: Tensor, draws: range, seed: int
) -> Tensor:
    """See `psi_fast_kernels.text_null.op.text_rotation_null`."""
    return rotated_values(prototypes, k, text, kind=kind, head=head, draws=draws, seed=seed, distances=distances)


def distances(chosen: Tensor, k: Tensor, bank: Tensor) -> Tensor:
    """See `psi_fast_kernels.text_null.reference.distances`."""
    result = bank.new_empty(chosen.shape[:2])
    vectors = bank.contiguous().numpy()
    arrays = [tensor.contiguous().numpy() for tensor in (result, chosen, k)]
    over_threads(lambda rows: _chosen_distances(*(array[rows] for array in arrays), vectors), len(k))
    return result


@compiled
def _gaps(values, channel, k, fit, concepts, first, key0, key1):
    for row in range(len(values)):
        for place in range(values.shape[1]):
            total = fit.dtype.type(0)
            for block in range((k[row] + 3) // 4):
                words = philox4x32(block, first + place, channel[row], STREAM, key0, key1)
                for i in range(min(4, k[row] - 4 * block)):
                    total += fit[row, 4 * block + i, concepts[_below(words[i], len(concepts))]]
            values[row, place] = total


@compiled
def _distances(values, channel, k, bank, squares, concepts, first, key0, key1):
    whole = np.empty(bank.shape[1], bank.dtype)
    for row in range(len(values)):
        for place in range(values.shape[1]):
            own = bank.dtype.type(0)
            for block in range((k[row] + 3) // 4):
                words = philox4x32(block, first + place, channel[row], STREAM, key0, key1)
                for i in range(min(4, k[row] - 4 * block)):
                    concept = concepts[_below(words[i], len(concepts))]
                    _add(whole, bank[concept], block + i == 0)
                    own += squares[concept]
            values[row, place] = _mean_distance(whole, own, k[row])


@compiled
def _chosen_distances(values, chosen, k, bank):
    whole = np.empty(bank.shape[1], bank.dtype)
    for row in range(len(values)):
        for place in range(values.shape[1]):
            own = bank.dtype.type(0)
            for cluster in range(k[row]):
                vector = bank[chosen[row, place, cluster]]
                _add(whole, vector, cluster == 0)
                own += _square(vector)
            values[row, place] = _mean_distance(whole, own, k[row])


@compiled
def _below(word, count):
    """An integer in [0, count) from a word in [0, 2**32)."""
    return np.int64((word * np.uint64(count)) >> HALF)


@compiled
def _add(total, vector, first):
    for i in range(len(total)):
        total[i] = vector[i] if first else total[i] + vector[i]


@compiled
def _square(vector):
    total = vector.dtype.type(0)
    for value in vector:
        total += value * value
    return total


@compiled
def _mean_distance(whole, own, k):
    return 1 - (_square(whole) - own) / whole.dtype.type(k * (k - 1))
