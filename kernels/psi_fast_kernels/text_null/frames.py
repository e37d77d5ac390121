"""The rotated bank as the prototypes see it: a root of their Gram matrix times a random frame of the bank.

Turning the bank T [P, d] by a Haar rotation R leaves A' = mu R T^T = L F T^T, with L L^T = mu mu^T and F [m, d] a random
orthonormal frame: F T^T is drawn once for all channels. L is the symmetric root, which is unique: eigenvectors have signs
that libraries choose differently. With fewer dimensions than clusters L is mu itself, and F a rotation.
"""

import torch
from torch import Tensor

from psi_fast_kernels._batched import eigh, products
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import normal
from psi_fast_kernels.text_null.nearest import fits


def frame_size(k_max: int, width: int) -> int:
    """Rows m of the frame."""
    return min(k_max, width)


def gram_root(prototypes: Tensor) -> Tensor:
    """L [C, k_max, m] of prototypes [C, k_max, d]; rows of zeros stay zero."""
    _, k_max, width = prototypes.shape
    if width < k_max:
        return prototypes
    exact = prototypes.double()
    return _power(products(exact, exact.mT), 0.5).to(prototypes.dtype)


def turned_banks(bank: Tensor, width: int, size: int, *, draws: range, seed: int) -> Tensor:
    """F T^T [B, m, P] for each draw, of an `aligned` bank [P, padded d] of `width` dimensions."""
    draw = torch.arange(draws.start, draws.stop, device=bank.device)
    numbers = normal(seed, Stream.TEXT_ROTATION, torch.zeros_like(draw), draw, width * size)
    # the polar factor of a normal matrix is uniform among all matrices with orthonormal columns
    frames = numbers.unflatten(-1, (width, size))
    for _ in range(2):  # the second time takes off what rounding left of a nearly singular matrix
        frames = products(frames, _power(products(frames.mT, frames), -0.5))
    rows = frames.mT.reshape(-1, width).to(bank.dtype)
    return fits(rows, bank)[: len(rows)].unflatten(0, (len(draws), size))


def bytes_per_draw(concepts: int, width: int, size: int, itemsize: int) -> int:
    """Memory that `turned_banks` takes for one draw: its result, and a dozen 8-byte numbers per random one."""
    return size * (itemsize * concepts + 12 * 8 * width)


def _power(gram: Tensor, exponent: float) -> Tensor:
    """Symmetric positive matrices [N, m, m] to a power, rounding errors below zero taken as zero."""
    values, vectors = eigh(gram)
    scale = values.clamp(min=torch.finfo(gram.dtype).tiny) ** exponent
    return products(vectors * scale[:, None], vectors.mT)
