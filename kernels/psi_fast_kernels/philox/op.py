"""philox: random numbers that depend on (seed, stream, channel, draw, position) and on nothing else.

Every backend gives the same words, uniforms, integers and permutations to the last bit; normal numbers agree to 1e-12.
"""

from types import ModuleType

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation

OFFERS = ("triton", "numba", "torch")


def uint32(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, *, backend: str = "auto") -> Tensor:
    """`count` random words for every (channel, draw) pair, int64 [..., count] in [0, 2**32).

    Parameters
    ----------
    seed : int in [0, 2**64), the key
    stream : int in [0, 2**32), keeps the uses of one seed apart
    channel, draw : int64 tensors of shapes that broadcast to [...], in [0, 2**32), on one device
    count : int >= 0
    backend : {"auto", "triton", "numba", "torch"}
    """
    return _module(seed, stream, channel, draw, count, backend).uint32(seed, stream, channel, draw, count)


def uniform(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, *, backend: str = "auto") -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64 [..., count]; arguments as in `uint32`."""
    return _module(seed, stream, channel, draw, count, backend).uniform(seed, stream, channel, draw, count)


def normal(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, *, backend: str = "auto") -> Tensor:
    """Standard normal numbers by Box and Muller, float64 [..., count]; arguments as in `uint32`."""
    return _module(seed, stream, channel, draw, count, backend).normal(seed, stream, channel, draw, count)


def integers(
    seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, below: int, *, backend: str = "auto"
) -> Tensor:
    """Integers in [0, below), int64 [..., count], 1 <= below <= 2**31; bias under below / 2**32. Else as in `uint32`."""
    if not 1 <= below <= 2**31:
        raise ValueError(f"below must lie in 1..2**31, got {below}")
    return _module(seed, stream, channel, draw, count, backend).integers(seed, stream, channel, draw, count, below)


def permutation(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, *, backend: str = "auto") -> Tensor:
    """A random order of 0..count-1 per (channel, draw), int64 [..., count]; arguments as in `uint32`."""
    return _module(seed, stream, channel, draw, count, backend).permutation(seed, stream, channel, draw, count)


def _module(seed: int, stream: int, channel: Tensor, draw: Tensor, count: int, backend: str) -> ModuleType:
    """The implementation, after a look at the arguments; the ids themselves stay on their device."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), got {seed}")
    if not 0 <= stream < 2**32:
        raise ValueError(f"stream must lie in [0, 2**32), got {stream}")
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if channel.dtype != torch.int64 or draw.dtype != torch.int64 or channel.device != draw.device:
        raise ValueError(
            "channel and draw must be int64 on one device, "
            f"got {channel.dtype} on {channel.device} and {draw.dtype} on {draw.device}"
        )
    return implementation(__name__, backend, channel.device, offers=OFFERS)
