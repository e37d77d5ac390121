"""Philox 4x32-10 for loops compiled by Numba: device functions for any of them that draws its own numbers."""

import numpy as np

from psi_fast_kernels._compiled import compiled
from psi_fast_kernels.philox import reference

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
