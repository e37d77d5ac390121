"""Philox 4x32-10 compiled by Numba: for loops that draw their own numbers, and the op itself."""

import math

import numpy as np
import torch
from torch import Tensor

from psi_fast_kernels._compiled import compiled, over_threads
from psi_fast_kernels.philox import reference
from psi_fast_kernels.philox.reference import TWO_32

# Numba mixes a Python integer with an unsigned one in floating point, so every constant is typed
MULTIPLIER_0, MULTIPLIER_1 = (np.uint64(multiplier) for multiplier in reference.MULTIPLIERS)
WEYL_0, WEYL_1 = (np.uint64(constant) for constant in reference.WEYL)
MASK = np.uint64(reference.MASK)
HALF = np.uint64(32)
ROUNDS = reference.ROUNDS


@compiled(inline=True)
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four words in [0, 2**32), uint64, of the counter (block, draw, channel, stream) and the key's low and high word.

    Arguments are integers of any type; of each the low 32 bits count.
    """
    c0, c1 = np.uint64(c0) & MASK, np.uint64(c1) & MASK
    c2, c3 = np.uint64(c2) & MASK, np.uint64(c3) & MASK
    k0, k1 = np.uint64(k0) & MASK, np.uint64(k1) & MASK
    for _ in range(ROUNDS):
        product0, product2 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c2 = (product2 >> HALF) ^ c1 ^ k0, (product0 >> HALF) ^ c3 ^ k1
        c1, c3 = product2 & MASK, product0 & MASK
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


@compiled
def fill_words(words, stream, channel, draw, k0, k1):
    """The first len(words) words of (stream, channel, draw), as `philox.uint32` gives them, into `words` [count] uint64."""
    count = len(words)
    whole = count // 4
    for block in range(whole):
        w0, w1, w2, w3 = philox4x32(block, draw, channel, stream, k0, k1)
        words[4 * block] = w0
        words[4 * block + 1] = w1
        words[4 * block + 2] = w2
        words[4 * block + 3] = w3
    if count > 4 * whole:
        rest = philox4x32(whole, draw, channel, stream, k0, k1)
        for i in range(count - 4 * whole):
            words[4 * whole + i] = rest[i]


def uint32(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.uint32`."""
    return _filled(_words_each, torch.int64, seed, stream, channel, draw, count)


def uniform(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.uniform`."""
    return (uint32(seed, stream, channel, draw, count).double() + 0.5) / TWO_32


def normal(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.normal`."""
    return _filled(_normal_each, torch.float64, seed, stream, channel, draw, count)


def integers(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, below: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.integers`."""
    return (uint32(seed, stream, channel, draw, count) * below) >> 32


def permutation(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.permutation`."""
    return uint32(seed, stream, channel, draw, count).argsort(dim=-1, stable=True)


def _filled(fill, dtype: torch.dtype, seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    channel, draw = torch.broadcast_tensors(channel, draw)
    result = torch.empty(*channel.shape, count, dtype=dtype)
    ids = [x.reshape(-1).numpy() for x in (channel, draw)]
    rows = result.view(-1, count).numpy() if result.numel() else np.empty((0, count))
    over_threads(
        lambda part: fill(rows[part], int(stream), *(x[part] for x in ids), seed & reference.MASK, seed >> 32),
        len(rows),
    )
    return result


@compiled(in_order=True)
def _words_each(rows, stream, channel, draw, k0, k1):
    words = np.empty(rows.shape[1], np.uint64)
    for i in range(len(rows)):
        fill_words(words, stream, channel[i], draw[i], k0, k1)
        rows[i] = words


@compiled(in_order=True)
def _normal_each(rows, stream, channel, draw, k0, k1):
    """By Box and Muller: two numbers of two words."""
    count = rows.shape[1]
    words = np.empty(count + count % 2, np.uint64)
    for i in range(len(rows)):
        fill_words(words, stream, channel[i], draw[i], k0, k1)
        for j in range(0, count, 2):
            radius = math.sqrt(-2 * math.log((words[j] + 0.5) / TWO_32))
            angle = 2 * math.pi * ((words[j + 1] + 0.5) / TWO_32)
            rows[i, j] = radius * math.cos(angle)
            if j + 1 < count:
                rows[i, j + 1] = radius * math.sin(angle)
