"""Philox 4x32-10 in plain torch integer arithmetic, and the distributions drawn from it.

References
----------
Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011.
"""

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, added to the key each round
ROUNDS = 10
MASK = 0xFFFFFFFF
TWO_32 = 4294967296.0


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter, as int64 tensors in [0, 2**32).

    Parameters
    ----------
    counter : four int64 tensors of shapes that broadcast together, each in [0, 2**32)
    key : two integers in [0, 2**32)
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap around, but their 64 bits are those of the unsigned product
        product0, product2 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((product2 >> 32) & MASK) ^ c1 ^ k0, ((product0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = product2 & MASK, product0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uint32(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """`count` random words for every (channel, draw) pair, int64 [..., count] in [0, 2**32).

    Parameters
    ----------
    seed : int in [0, 2**64), the key
    stream : int in [0, 2**32), keeps the uses of one seed apart
    channel, draw : int64 tensors of shapes that broadcast to [...], in [0, 2**32)
    """
    channel, draw = torch.broadcast_tensors(channel, draw)
    block = torch.arange(math.ceil(count / 4), device=channel.device)
    words = philox4x32(
        (block, draw[..., None], channel[..., None], torch.full_like(block, stream)),
        (seed & MASK, seed >> 32),
    )
    return torch.stack(words, dim=-1).flatten(-2)[..., :count]


def uniform(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64 [..., count]; arguments as in `uint32`."""
    return (uint32(seed, stream, channel, draw, count).double() + 0.5) / TWO_32


def normal(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """Standard normal numbers by Box and Muller, float64 [..., count]; arguments as in `uint32`."""
    pairs = uniform(seed, stream, channel, draw, count + count % 2).unflatten(-1, (-1, 2))
    radius, angle = torch.sqrt(-2 * torch.log(pairs[..., 0])), 2 * math.pi * pairs[..., 1]
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)[..., :count]


def integers(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, below: int) -> Tensor:
    """Integers in [0, below), int64 [..., count], below <= 2**31; bias under below / 2**32. Arguments as in `uint32`."""
    return (uint32(seed, stream, channel, draw, count) * below) >> 32


def permutation(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int) -> Tensor:
    """A random order of 0..count-1 per (channel, draw), int64 [..., count]; arguments as in `uint32`."""
    return uint32(seed, stream, channel, draw, count).argsort(dim=-1, stable=True)
