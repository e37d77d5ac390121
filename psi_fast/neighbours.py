"""Channels of a layer that share patches or concepts. C channels, K patches each, k_max clusters at most."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from psi_fast_kernels._tiling import rows_per_chunk


class Neighbours(NamedTuple):
    """The channels most like one, the most alike first; of equally like ones the first.

    patches : (row, number of patches that both have, that number as a share of the patches that either has, in (0, 1])
    concepts : (row, share of the patches that lie under the same concepts in both, in (0, 1])
    """

    patches: list[tuple[int, int, float]]
    concepts: list[tuple[int, float]]


def neighbours(
    index: np.ndarray, concepts: Sequence[Sequence[str]], sizes: Sequence[Sequence[int]], count: int
) -> list[Neighbours]:
    """At most `count` neighbours of either kind of each channel; channels that share nothing are none.

    Parameters
    ----------
    index : [C, K] int64
        Number of each patch, -1 where there is none.
    concepts, sizes : [C] lists
        Concept and number of patches of each cluster.
    """
    by_patches = _by_patches(index, count)
    by_concepts = _by_concepts(concepts, sizes, count)
    return [Neighbours(own, alike) for own, alike in zip(by_patches, by_concepts, strict=True)]


def _by_patches(index: np.ndarray, count: int) -> list[list[tuple[int, int, float]]]:
    row, column = np.nonzero(index >= 0)
    held = csr_array(
        (np.ones(len(row), dtype=np.int32), (row, index[row, column])), shape=(len(index), index.max() + 1)
    )
    held.data[:] = 1  # a patch that a channel has twice counts once
    numbers = held.sum(1)
    found = []
    for part in _parts(len(index)):
        shared = (held[part] @ held.T).toarray()
        jaccard = shared / np.maximum(numbers[part, None] + numbers - shared, 1)
        for one, near in enumerate(_largest(shared, part.start, count)):
            found.append([(j, int(shared[one, j]), float(jaccard[one, j])) for j in near])
    return found


def _by_concepts(
    concepts: Sequence[Sequence[str]], sizes: Sequence[Sequence[int]], count: int
) -> list[list[tuple[int, float]]]:
    channels, clusters = len(concepts), max(map(len, concepts), default=0)
    number = {name: i for i, name in enumerate(dict.fromkeys(name for own in concepts for name in own))}
    shares = [
        (row, number[name], size / sum(own_sizes))
        for row, (own, own_sizes) in enumerate(zip(concepts, sizes, strict=True))
        for name, size in zip(own, own_sizes, strict=True)
    ]
    row, column, share = (np.array(part) for part in zip(*shares, strict=True)) if shares else (np.zeros(0, int),) * 3
    held = csr_array((share, (row, column)), shape=(channels, max(1, len(number))))  # adds up clusters of one concept
    by_concept = held.T.tocsr()
    found = []
    for part in _parts(channels):
        alike = np.zeros((part.stop - part.start, channels))
        for place in range(clusters):  # a channel's concepts one after the other: there are few of them
            own, first, stop = (
                np.arange(part.start, part.stop),
                held.indptr[part],
                held.indptr[part.start + 1 : part.stop + 1],
            )
            used = first + place < stop
            at = (first + place)[used]
            alike[own[used] - part.start] += np.minimum(held.data[at, None], by_concept[held.indices[at]].toarray())
        for one, near in enumerate(_largest(alike, part.start, count)):
            found.append([(j, float(alike[one, j])) for j in near])
    return found


def _parts(channels: int) -> Iterator[slice]:
    """The channels in parts whose tables of similarities are held at once."""
    step = rows_per_chunk(3 * 8 * channels, budget_bytes=64 * 2**20)
    for start in range(0, channels, step):
        yield slice(start, min(start + step, channels))


def _largest(values: np.ndarray, first: int, count: int) -> Iterator[list[int]]:
    """Columns of the at most `count` largest values above 0 of each row [r, C], without the row's own, `first` on."""
    values = values.astype(np.float64)
    values[np.arange(len(values)), first + np.arange(len(values))] = 0
    for row, order in zip(values, np.argsort(-values, axis=1, kind="stable")[:, :count], strict=True):
        yield [int(j) for j in order if row[j] > 0]
