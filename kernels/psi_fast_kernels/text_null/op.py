"""text_shuffle_null and text_rotation_null: D of random concepts, for every channel and draw."""

from torch import Tensor

from psi_fast_kernels._backend import implementation

OFFERS = ("torch",)


def text_shuffle_null(
    prototypes: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    kind: str,
    pool: Tensor | None,
    draws: range,
    seed: int,
    channel: Tensor,
    backend: str = "auto",
) -> Tensor:
    """D with a random concept in the place of each cluster's own, [C, B] in the dtype of `prototypes`.

    Parameters
    ----------
    prototypes : [C, k_max, d] float
        Unit mean of each cluster; rows from k on are ignored.
    k : [C] int64, 2..k_max
    text : [P, d] float
        Concept bank, unit rows.
    kind : {"gap", "pairwise"}
    pool : [M] int64 or None
        Concepts to draw from, with repeats as weights; None is the whole bank.
    draws, seed, channel, backend
        As in `psi_fast_kernels.permutation_null.permutation_null`.
    """
    _check(prototypes, k, text, channel)
    module = implementation(__package__, backend, text.device, offers=OFFERS)
    return module.text_shuffle_null(prototypes, k, text, kind=kind, pool=pool, draws=draws, seed=seed, channel=channel)


def text_rotation_null(
    prototypes: Tensor, k: Tensor, text: Tensor, *, kind: str, draws: range, seed: int, backend: str = "auto"
) -> Tensor:
    """D after the bank is turned against the image space and concepts are chosen again, [C, B].

    The rotations are shared by all channels; arguments as in `text_shuffle_null`.
    """
    _check(prototypes, k, text, k)
    module = implementation(__package__, backend, text.device, offers=OFFERS)
    return module.text_rotation_null(prototypes, k, text, kind=kind, draws=draws, seed=seed)


def _check(prototypes: Tensor, k: Tensor, text: Tensor, channel: Tensor) -> None:
    if prototypes.ndim != 3 or text.ndim != 2 or prototypes.shape[2] != text.shape[1]:
        raise ValueError(
            f"prototypes must be [C, k_max, d] and text [P, d], got {tuple(prototypes.shape)} and {tuple(text.shape)}"
        )
    if k.shape != prototypes.shape[:1] or channel.shape != prototypes.shape[:1]:
        raise ValueError(
            f"k and channel must be [{prototypes.shape[0]}], got {tuple(k.shape)} and {tuple(channel.shape)}"
        )
