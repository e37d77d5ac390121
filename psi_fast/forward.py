"""How a batch goes through a network: fixed slices on a CPU, and the precision a device is fast in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

SLICE = 8
"""Images per forward pass on a CPU: few enough that activations stay in cache."""


@dataclass(frozen=True)
class Pace:
    """How the forward passes of a network run."""

    dtype: torch.dtype = torch.float32
    """Of convolutions and matrix products."""
    size: int = SLICE
    """Images at once on a CPU."""
    memory_format: torch.memory_format | None = None
    """Of a batch; None is what `channels_last` says of the network."""

    def __str__(self) -> str:
        return f"{name_of(self.dtype)}, {self.size} at once on a CPU{_FORMATS[self.memory_format]}"


_FORMATS = {None: "", torch.channels_last: ", channels last", torch.contiguous_format: ", channels first"}


def name_of(dtype: torch.dtype) -> str:
    """As in PSIConfig.precision."""
    return str(dtype).removeprefix("torch.")


def in_slices(
    function: Callable[[torch.Tensor], list[torch.Tensor]],
    batch: torch.Tensor,
    size: int = SLICE,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[torch.Tensor]:
    """`function` of `batch`, computed on slices of exactly `size` rows, the last one padded with zeros.

    A CPU library picks its loop order by the shape it is given, so the last bits of a row change with the batch it
    came in. With one shape, and one memory layout, for every call they do not.

    Parameters
    ----------
    function
        Maps [size, ...] to tensors [size, ...], every row on its own; called with tensors that are contiguous in
        `memory_format`.
    batch
        [B, ...] with B >= 1.

    Returns
    -------
    list of torch.Tensor
        [B, ...] each.
    """
    parts = []
    for start in range(0, len(batch), size):
        rows = batch[start : start + size]
        count = len(rows)
        if count < size:
            rows = torch.cat([rows, rows.new_zeros(size - count, *rows.shape[1:])])
        parts.append([output[:count] for output in function(rows.contiguous(memory_format=memory_format))])
    return parts[0] if len(parts) == 1 else [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def step_of(device: torch.device, batch_size: int, size: int = SLICE) -> int:
    """Images from their pixels to a result at once: on a CPU one slice of `size`, so that nothing leaves the cache between."""
    return size if device.type == "cpu" else batch_size


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on the calling thread alone: work on a few small images is done before other threads are awake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_precision(device: torch.device) -> torch.dtype:
    """The dtype an encoder's forward pass runs in on `device`: float16 on a GPU, bfloat16 on a CPU that has it natively.

    Any other device gets float32. Results are always returned as float32.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")):
            return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context that runs matrix products in `dtype`; it changes nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def channels_last(module: torch.nn.Module) -> torch.memory_format:
    """The memory format `module` is mostly fastest with: channels_last for a convolutional network, else contiguous.

    One convolution is a transformer's patch embedding and does not make a network convolutional.
    """
    convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    return torch.channels_last if convolutions > 1 else torch.contiguous_format
