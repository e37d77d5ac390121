"""Philox 4x32-10 in Triton: device functions for any kernel that draws its own numbers.

Word i of (channel, draw) is word i % 4 of the block i // 4:

    words = philox4x32(i // 4, draw, channel, stream, key_low, key_high)   # word i is words[i % 4]

A kernel takes the key as the two int32 of `key_words(seed)`, and names them in its `do_not_specialize`: a seed is no
reason to compile again.
"""

import triton
import triton.language as tl

from psi_fast_kernels.philox.reference import MASK, MULTIPLIERS, ROUNDS, WEYL

MULTIPLIER_0, MULTIPLIER_1 = (tl.constexpr(multiplier) for multiplier in MULTIPLIERS)
WEYL_0, WEYL_1 = (tl.constexpr(constant) for constant in WEYL)
PHILOX_ROUNDS = tl.constexpr(ROUNDS)


def key_words(seed: int) -> tuple[int, int]:
    """The key's low and high 32 bits of a seed in [0, 2**64), as a kernel takes them: with the bits of an int32."""
    low, high = seed & MASK, seed >> 32
    return (low ^ 2**31) - 2**31, (high ^ 2**31) - 2**31


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four uint32 tensors per counter (block, draw, channel, stream) and key.

    Arguments are integer scalars or tensors whose shapes broadcast together; of each the low 32 bits count.
    """
    c0, c1 = tl.broadcast(tl.cast(c0, tl.uint32), tl.cast(c1, tl.uint32))
    c2, c3 = tl.broadcast(tl.cast(c2, tl.uint32), tl.cast(c3, tl.uint32))
    c0, c2 = tl.broadcast(c0, c2)
    c1, c3 = tl.broadcast(c1, c3)
    k0 = tl.cast(k0, tl.uint32)
    k1 = tl.cast(k1, tl.uint32)
    for _ in tl.static_range(PHILOX_ROUNDS):
        high0 = tl.umulhi(c0, tl.cast(MULTIPLIER_0, tl.uint32))
        high2 = tl.umulhi(c2, tl.cast(MULTIPLIER_1, tl.uint32))
        low0 = tl.mul(c0, tl.cast(MULTIPLIER_0, tl.uint32), sanitize_overflow=False)
        low2 = tl.mul(c2, tl.cast(MULTIPLIER_1, tl.uint32), sanitize_overflow=False)
        c0 = high2 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low2
        c3 = low0
        k0 = tl.add(k0, tl.cast(WEYL_0, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.cast(WEYL_1, tl.uint32), sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def to_uniform(word):
    """(word + 1/2) / 2**32 in float64, exact and inside (0, 1)."""
    return (word.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)


@triton.jit
def to_uniform32(word):
    """`to_uniform` rounded to float32, hence in (0, 1]; no float64 on the way.

    word + 1/2 has 33 bits. Doubled it fits 32 for words below 2**31; for the others its last bits only break ties
    upwards, as the lowest bit does.
    """
    small = word < 2147483648
    odd = tl.where(small, (word << 1) | 1, word | 1)
    return odd.to(tl.float32) * tl.where(small, 1.0 / 8589934592.0, 1.0 / 4294967296.0)


@triton.jit
def to_integer(word, below):
    """An integer in [0, below), int32, for below <= 2**31."""
    return tl.umulhi(word, tl.cast(below, tl.uint32)).to(tl.int32)
