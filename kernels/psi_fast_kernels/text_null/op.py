"""text_shuffle_null and text_rotation_null: D of random concepts, for every channel and draw.

The same seed gives the same draws on every backend. Values agree to rounding, 1e-5 in float32; where two concepts are
equally near within rounding, the rotated null may take the other one. Memory beyond the arguments and the result is bounded
for any number of channels, draws and concepts; when even a chunk of that finds no room, a smaller one is tried.
"""

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.text_null.reference import compared_bank

OFFERS = ("triton", "numba", "torch")
KINDS = ("gap", "pairwise")


def text_shuffle_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    head: Tensor | None = None,
    pool: Tensor | None,
    draws: range,
    seed: int,
    channel: Tensor,
    backend: str = "auto",
) -> Tensor:
    """D with a random concept in the place of each cluster's own, [C, B] in the dtype of `prototypes`.

    Parameters
    ----------
    prototypes : [C, k_max, d] float32 or float64
        Unit mean of each cluster; rows from k on are ignored.
    k : [C] int64, 2..k_max
    text : [P, d], dtype as `prototypes`
        Concept bank, unit rows.
    kind : {"gap", "pairwise"}
        How much better clusters fit their own concept than each other's, in [-2, 2], or how far apart the concepts are,
        in [0, 2].
    head : [P, e], dtype as `text`, or None
        Unit rows of the same concepts, of which `pairwise` takes its distances; None is `text`.
    pool : [M] int64 in 0..P-1, M >= 1, or None
        Concepts to draw from, with repeats as weights; None is the whole bank.
    draws : range
        Indices of the draws, one by one, each below 2**32; a draw depends on its index, not on the range it is asked in.
    seed : int in [0, 2**64)
    channel : [C] int64 in [0, 2**32)
        Channel ids; every channel draws on its own.
    backend : {"auto", "triton", "numba", "torch"}

    Raises
    ------
    ValueError
        An argument has another shape, dtype or value.
    BackendError
        The backend asked for cannot run here.
    """
    _check(prototypes, k, text, kind, draws, seed)
    head = compared_bank(text, head, kind)
    if channel.shape != k.shape or channel.dtype != torch.int64:
        raise ValueError(f"channel must be [{len(k)}] int64, got {tuple(channel.shape)} {channel.dtype}")
    if pool is not None:
        if pool.ndim != 1 or pool.dtype != torch.int64 or len(pool) == 0:
            raise ValueError(f"pool must be [M] int64 with M >= 1, got {tuple(pool.shape)} {pool.dtype}")
        if int(pool.min()) < 0 or int(pool.max()) >= len(text):
            raise ValueError(f"pool must lie in 0..{len(text) - 1}, got {int(pool.min())}..{int(pool.max())}")
    module = implementation(__name__, backend, text.device, offers=OFFERS)
    if len(k) == 0 or len(draws) == 0:
        return prototypes.new_empty(len(k), len(draws))
    return module.text_shuffle_null(
        prototypes, k, text, kind=kind, head=head, pool=pool, draws=draws, seed=seed, channel=channel
    )


def text_rotation_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    head: Tensor | None = None,
    draws: range,
    seed: int,
    backend: str = "auto",
) -> Tensor:
    """D after the bank is turned against the image space and concepts are chosen again, [C, B].

    A head is not turned: the distances within it are the same in every rotation. The rotations are shared by all channels,
    and drawn again in every call; arguments as in `text_shuffle_null`.
    """
    _check(prototypes, k, text, kind, draws, seed)
    head = compared_bank(text, head, kind)
    module = implementation(__name__, backend, text.device, offers=OFFERS)
    if len(k) == 0 or len(draws) == 0:
        return prototypes.new_empty(len(k), len(draws))
    return module.text_rotation_null(prototypes, k, text, kind=kind, head=head, draws=draws, seed=seed)


def _check(prototypes: Tensor, k: Tensor, text: Tensor, kind: str, draws: range, seed: int) -> None:
    if prototypes.ndim != 3 or text.ndim != 2 or prototypes.shape[2] != text.shape[1] or len(text) == 0:
        raise ValueError(
            "prototypes must be [C, k_max, d] and text [P, d] with P >= 1, "
            f"got {tuple(prototypes.shape)} and {tuple(text.shape)}"
        )
    if prototypes.dtype != text.dtype or text.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"prototypes and text must both be float32 or float64, got {prototypes.dtype} and {text.dtype}"
        )
    if k.shape != prototypes.shape[:1] or k.dtype != torch.int64:
        raise ValueError(f"k must be [{len(prototypes)}] int64, got {tuple(k.shape)} {k.dtype}")
    if len(k) and not 2 <= int(k.min()) <= int(k.max()) <= prototypes.shape[1]:
        raise ValueError(f"k must lie in 2..{prototypes.shape[1]}, got {int(k.min())}..{int(k.max())}")
    if kind not in KINDS:
        raise ValueError(f"unknown distinctness {kind!r}; there are {', '.join(KINDS)}")
    if draws.step != 1 or draws.start < 0 or draws.stop > 2**32:
        raise ValueError(f"draws must count up by 1 within 0..2**32, got {draws}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), got {seed}")
