"""Philox 4x32-10 in Triton: device functions for any kernel that draws its own numbers, and the op's own kernels.

Word i of (channel, draw) is word i % 4 of the block i // 4:

    words = philox4x32(i // 4, draw, channel, stream, key_low, key_high)   # word i is words[i % 4]

A kernel takes the key as the two int32 of `key_words(seed)`, and names them in its `do_not_specialize`: a seed is no
reason to compile again.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from psi_fast_kernels._specimen import Specimen
from psi_fast_kernels.philox.reference import MASK, MULTIPLIERS, ROUNDS, WEYL

RANKED = 1024  # largest permutation ranked by comparing all pairs of words; longer ones are sorted
NUMBERS = 1024  # numbers per program
COMPARED = 8192  # pairs of words one step of the ranking compares

MULTIPLIER_0, MULTIPLIER_1 = (tl.constexpr(multiplier) for multiplier in MULTIPLIERS)
WEYL_0, WEYL_1 = (tl.constexpr(constant) for constant in WEYL)
PHILOX_ROUNDS = tl.constexpr(ROUNDS)
# (-1)^n (2 pi)^(2n+1) / (2n+1)! and (-1)^n (2 pi)^(2n) / (2n)!: sine and cosine of turns, from the highest power down
SINE = tl.constexpr([(-1) ** n * math.tau ** (2 * n + 1) / math.factorial(2 * n + 1) for n in reversed(range(9))])
COSINE = tl.constexpr([(-1) ** n * math.tau ** (2 * n) / math.factorial(2 * n) for n in reversed(range(9))])


def key_words(seed: int) -> tuple[int, int]:
    """The key's low and high 32 bits of a seed in [0, 2**64), as a kernel takes them: with the bits of an int32."""
    return signed_word(seed & MASK), signed_word(seed >> 32)


def signed_word(word: int) -> int:
    """The int32 with the bits of a word in [0, 2**32): an argument of one type, whatever its value."""
    return (word ^ 2**31) - 2**31


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


@triton.jit
def to_normal(first, second):
    """Two independent standard normal numbers of two words, by Box and Muller in float64."""
    radius = tl.sqrt(-2.0 * tl.log(to_uniform(first)))
    turn = to_uniform(second)
    # the nearest quarter turn is taken off exactly; on the eighth of a turn left, the series ends below 1e-18
    quarter = tl.floor(4.0 * turn + 0.5)
    rest = turn - 0.25 * quarter
    square = rest * rest
    sine = tl.full(rest.shape, SINE[0], tl.float64)
    cosine = tl.full(rest.shape, COSINE[0], tl.float64)
    for n in tl.static_range(1, 9):
        sine = sine * square + SINE[n]
        cosine = cosine * square + COSINE[n]
    sine = sine * rest
    quarter = quarter.to(tl.int32)
    swap = (quarter & 1) == 1
    along = tl.where(swap, sine, cosine) * tl.where(((quarter + 1) & 2) == 2, -1.0, 1.0)
    across = tl.where(swap, cosine, sine) * tl.where((quarter & 2) == 2, -1.0, 1.0)
    return radius * along, radius * across


@triton.jit
def in_order(word0, word1, word2, word3):
    """The words of blocks [..., N] one after the other, [..., 4 N]."""
    return tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))


@triton.jit(do_not_specialize=["stream", "key_low", "key_high", "below"])
def _numbers(
    result,  # [rows, count] int64 or float64
    channel,  # [rows] int64
    draw,  # [rows] int64
    stream,
    key_low,
    key_high,
    below,
    rows,
    count,
    KIND: tl.constexpr,  # which numbers: uint32, uniform, normal or integers
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,  # blocks of 4 numbers, per row
):
    across = tl.cdiv(count, 4 * BLOCKS)
    tile = tl.program_id(0)
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = (tile % across) * BLOCKS + tl.arange(0, BLOCKS)
    row_channel = tl.load(channel + row, mask=row < rows, other=0)
    row_draw = tl.load(draw + row, mask=row < rows, other=0)
    word0, word1, word2, word3 = philox4x32(
        block[None, :], row_draw[:, None], row_channel[:, None], stream, key_low, key_high
    )
    if KIND == "normal":
        normal0, normal1 = to_normal(word0, word1)
        normal2, normal3 = to_normal(word2, word3)
        numbers = in_order(normal0, normal1, normal2, normal3)
    else:
        numbers = in_order(word0, word1, word2, word3)
        if KIND == "uniform":
            numbers = to_uniform(numbers)
        if KIND == "integers":
            numbers = to_integer(numbers, below)
    column = (tile % across) * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    place = result + row[:, None] * count + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < count)
    tl.store(place, numbers.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["stream", "key_low", "key_high"])
def _permutation(
    result,  # [rows, count] int64
    channel,  # [rows] int64
    draw,  # [rows] int64
    stream,
    key_low,
    key_high,
    count,
    SIZE: tl.constexpr,  # count rounded up
    STEP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_channel = tl.load(channel + row)
    row_draw = tl.load(draw + row)
    own0, own1, own2, own3 = philox4x32(tl.arange(0, SIZE // 4), row_draw, row_channel, stream, key_low, key_high)
    own = in_order(own0, own1, own2, own3)
    place = tl.arange(0, SIZE)
    rank = tl.zeros([SIZE], tl.int32)
    for start in range(0, count, STEP):
        block = start // 4 + tl.arange(0, STEP // 4)
        word0, word1, word2, word3 = philox4x32(block, row_draw, row_channel, stream, key_low, key_high)
        other = in_order(word0, word1, word2, word3)
        other_place = start + tl.arange(0, STEP)
        less = other[None, :] < own[:, None]
        same = (other[None, :] == own[:, None]) & (other_place[None, :] < place[:, None])
        rank += tl.sum(((less | same) & (other_place[None, :] < count)).to(tl.int32), axis=1)
    tl.store(result + row * count + rank, place.to(tl.int64), mask=place < count)


def uint32(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.uint32`."""
    return _draw("uint32", torch.int64, seed, stream, channel, draw, count)


def uniform(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.uniform`."""
    return _draw("uniform", torch.float64, seed, stream, channel, draw, count)


def normal(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.normal`; differs from the reference in the last bits of logarithm, sine and cosine."""
    return _draw("normal", torch.float64, seed, stream, channel, draw, count)


def integers(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, below: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.integers`."""
    return _draw("integers", torch.int64, seed, stream, channel, draw, count, below)


def permutation(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """See `psi_fast_kernels.philox.op.permutation`; up to RANKED numbers in one program each, more by a stable sort."""
    if count > RANKED:
        return uint32(seed, stream, channel, draw, count).argsort(dim=-1, stable=True)
    channel, draw = torch.broadcast_tensors(channel, draw)
    result = torch.empty(*channel.shape, count, dtype=torch.int64, device=channel.device)
    if result.numel():
        size, step = permutation_tile(count)
        _permutation[(channel.numel(),)](
            result, channel.contiguous(), draw.contiguous(), signed_word(stream), *key_words(seed), count,
            SIZE=size, STEP=step, num_warps=4,
        )  # fmt: skip
    return result


def numbers_tile(count: int) -> tuple[int, int]:
    """Rows and blocks of 4 numbers per program, powers of two: whole rows of short ones, parts of long ones."""
    blocks = min(triton.next_power_of_2(max(1, triton.cdiv(count, 4))), NUMBERS // 4)
    return NUMBERS // (4 * blocks), blocks


def permutation_tile(count: int) -> tuple[int, int]:
    """Places per program, `count` rounded up to a power of two, and words compared at once: whole blocks of 4, both."""
    size = max(4, triton.next_power_of_2(count))
    return size, min(size, 32, COMPARED // size)


def specimens() -> list[Specimen]:
    """The kernels at the defaults: the rotations of 64 draws, and permutations of K = 100 labels."""
    rows, blocks = numbers_tile(99 * 99)
    inputs = {"channel": "*i64", "draw": "*i64", "stream": "i32", "key_low": "i32", "key_high": "i32", "count": "i32"}
    found = [
        Specimen(
            kind,
            _numbers,
            {"result": "*fp64" if kind in ("uniform", "normal") else "*i64", "below": "i32", "rows": "i32", **inputs},
            {"KIND": kind, "ROWS": rows, "BLOCKS": blocks},
        )
        for kind in ("uint32", "uniform", "normal", "integers")
    ]
    for count in (100, RANKED):
        size, step = permutation_tile(count)
        name, constants = f"permutation of {count}", {"SIZE": size, "STEP": step}
        found.append(Specimen(name, _permutation, {"result": "*i64", **inputs}, constants, default=count == 100))
    return found


def _draw(
    kind: str, dtype: torch.dtype, seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, below: int = 0
) -> Tensor:
    channel, draw = torch.broadcast_tensors(channel, draw)
    result = torch.empty(*channel.shape, count, dtype=dtype, device=channel.device)
    if result.numel():
        rows, blocks = numbers_tile(count)
        programs = triton.cdiv(channel.numel(), rows) * triton.cdiv(count, 4 * blocks)
        _numbers[(programs,)](
            result, channel.contiguous(), draw.contiguous(), signed_word(stream), *key_words(seed), signed_word(below),
            channel.numel(), count, KIND=kind, ROWS=rows, BLOCKS=blocks, num_warps=4,
        )  # fmt: skip
    return result
