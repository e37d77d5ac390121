"""topk_merge: per image the spatial extremes of each channel, and their merge into the running top-K, in one pass."""

import torch
from torch import Tensor

from psi_fast_kernels._backend import implementation
from psi_fast_kernels.topk_merge.reference import Extremes, TopK

OFFERS = ("triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def topk_merge(
    top: TopK, activations: Tensor, first_image: int, *, per_image: int = 1, backend: str = "auto"
) -> tuple[TopK, Extremes]:
    """`top` with the largest activations of the images first_image, first_image + 1, ... merged in, and each image's extremes.

    Every backend gives the same bits: values are compared in float32, in the order value descending, image ascending,
    position ascending, NaN above everything. A value of -inf takes no place, as empty places come before it.

    Parameters
    ----------
    top : TopK
        C channels, K >= 0 places, from `empty_top_k` or from an earlier merge of earlier images; it is left as it is.
        With K = 0 only the extremes are found.
    activations : [B, C, H, W] or [B, C, P], float32, bfloat16 or float16
        Any strides; on `top`'s device. Positions are flat, row-major.
    first_image : int >= 0
        Index of the first image; batches arrive in ascending order.
    per_image : int, 1..P
        Positions of one image that compete for places.
    backend : {"auto", "triton", "torch"}

    Returns
    -------
    TopK
        values [C, K] float32, images and positions [C, K] int64.
    Extremes
        maxima and minima [B, C] float32, positions of the maxima [B, C] int64. NaN shows in both, inf in one of them.
    """
    if activations.ndim not in (3, 4) or activations.dtype not in DTYPES or not activations.numel():
        raise ValueError(
            "activations must be a float32, bfloat16 or float16 [B, C, H, W] or [B, C, P] with something in it, "
            f"got {activations.dtype} {tuple(activations.shape)}"
        )
    activations = activations.flatten(2)
    channels, positions = activations.shape[1:]
    if top.values.ndim != 2 or len(top.values) != channels or top.values.device != activations.device:
        raise ValueError(
            f"top must be [{channels}, K] on {activations.device}, got {tuple(top.values.shape)} on {top.values.device}"
        )
    if not 1 <= per_image <= positions:
        raise ValueError(f"per_image must lie in 1..P = {positions}, got {per_image}")
    if first_image < 0:
        raise ValueError(f"first_image must be at least 0, got {first_image}")
    module = implementation(__name__, backend, activations.device, offers=OFFERS)
    return module.topk_merge(top, activations, first_image, per_image=per_image)
