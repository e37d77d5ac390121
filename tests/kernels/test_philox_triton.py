"""Philox in Triton against the published vectors and against plain torch."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")
import triton
import triton.language as tl
from test_philox import KNOWN_ANSWERS

from psi_fast_kernels import philox
from psi_fast_kernels.philox import triton_impl

KINDS = {  # largest difference from torch; None = every bit
    "uint32": None,
    "uniform": None,
    "normal": 1e-12,
    "permutation": None,
}
COUNTS = [0, 1, 2, 7, 100, 129, 300]
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1]
IDS = {  # channels, draws
    "pairs": ([0, 1, 2**31, 2**32 - 1], [3, 2**32 - 1, 0, 1]),
    "grid": ([[7], [2**32 - 2], [1]], [0, 2**31 + 1]),
    "no shape": (2**32 - 1, 5),
    "empty": ([], []),
}


@triton.jit(do_not_specialize=["key_low", "key_high"])
def first_words(counter, result, key_low, key_high, WAY: tl.constexpr):
    """The block of a counter given as four int64, as tensors or as scalars."""
    if WAY == "tensors":
        place = tl.arange(0, 1)
        words = triton_impl.philox4x32(
            tl.load(counter + place), tl.load(counter + 1 + place), tl.load(counter + 2 + place),
            tl.load(counter + 3 + place), key_low, key_high,
        )  # fmt: skip
        for i in tl.static_range(4):
            tl.store(result + i + place, words[i].to(tl.int64))
    else:
        words = triton_impl.philox4x32(
            tl.load(counter), tl.load(counter + 1), tl.load(counter + 2), tl.load(counter + 3), key_low, key_high
        )
        for i in tl.static_range(4):
            tl.store(result + i, words[i].to(tl.int64))


@triton.jit
def uniforms32(words, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, triton_impl.to_uniform32(tl.load(words + place).to(tl.uint32)))


@pytest.mark.parametrize("way", ["tensors", "scalars"])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_vectors(counter, key, words, way, triton_device):
    counter = torch.tensor(counter, device=triton_device)
    result = torch.empty(4, dtype=torch.int64, device=triton_device)
    key_low, key_high = triton_impl.key_words(key[0] + (key[1] << 32))
    first_words[(1,)](counter, result, key_low, key_high, WAY=way)
    assert result.tolist() == words


@pytest.mark.parametrize("seed", SEEDS)
def test_key_words_are_int32_with_the_bits_of_the_seed(seed):
    words = triton_impl.key_words(seed)
    assert all(-(2**31) <= word < 2**31 for word in words)
    assert [word % 2**32 for word in words] == [seed % 2**32, seed // 2**32]


def test_float32_uniforms_are_the_float64_ones_rounded(triton_device):
    near = {2**power + step for power in range(33) for step in range(-30, 31)}  # where rounding changes
    words = [word for word in near if 0 <= word < 2**32]
    words += np.random.default_rng(0).integers(2**32, size=4096 - len(words)).tolist()
    words = torch.tensor(words, device=triton_device)
    result = torch.empty(4096, device=triton_device)
    uniforms32[(1,)](words, result, SIZE=4096)
    expected = (words.double() + 0.5) / 2**32
    assert torch.equal(result, expected.float())
    assert result.min() > 0
    assert result.max() == 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_torch(kind, ids, count, triton_device):
    seed, stream = SEEDS[count % len(SEEDS)], 2**32 - 1 - count
    channel, draw = (torch.tensor(part, dtype=torch.int64, device=triton_device) for part in IDS[ids])
    if kind == "permutation" and ids == "grid":
        channel = channel[:2]  # the interpreter ranks slowly
    agree(kind, KINDS[kind], seed, stream, channel, draw, count)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_the_seed_counts_as_in_torch(kind, seed, triton_device):
    channel = torch.tensor([2**32 - 1], device=triton_device)
    agree(kind, KINDS[kind], seed, 0, channel, channel, 9)


@pytest.mark.parametrize("count", [triton_impl.RANKED, triton_impl.RANKED + 1])
def test_permutations_on_both_sides_of_the_ranking_limit(count, triton_device):
    one = torch.tensor([1], device=triton_device)
    agree("permutation", None, 5, 6, one, one, count)


def test_equal_words_keep_their_order(triton_device):
    """Two of 200 words are equal once in 200,000 permutations; draw 266,544 of seed 0 is the first such."""
    channel, draw = (torch.tensor([value], device=triton_device) for value in (0, 266_544))
    assert len(philox.uint32(0, 1, channel, draw, 200).unique()) == 199
    agree("permutation", None, 0, 1, channel, draw, 200)


@pytest.mark.parametrize("below", [1, 2, 3, 1000, 2**31 - 1, 2**31])
def test_integers_are_those_of_torch(below, triton_device):
    channel = torch.tensor([[0], [2**32 - 1]], device=triton_device)
    draw = torch.tensor([0, 1, 2**31], device=triton_device)
    found, expected = (philox.integers(9, 8, channel, draw, 33, below, backend=b) for b in ("triton", "torch"))
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("count", [*range(1, 70), 100, 1000, 9801, 10**6])
def test_tiles_are_powers_of_two_that_hold_the_row(count):
    rows, blocks = triton_impl.numbers_tile(count)
    size, step = triton_impl.permutation_tile(min(count, triton_impl.RANKED))
    assert all(n & (n - 1) == 0 for n in (rows, blocks, size, step))
    assert rows * 4 * blocks == triton_impl.NUMBERS
    assert rows == 1 or 4 * blocks >= count
    assert size >= min(count, triton_impl.RANKED)
    assert size >= step >= 4
    assert size * step <= triton_impl.COMPARED


def agree(kind, tolerance, *arguments):
    found, expected = (getattr(philox, kind)(*arguments, backend=backend) for backend in ("triton", "torch"))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.device == expected.device
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance or 0)
