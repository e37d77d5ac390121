"""How many distinct crops top patches come to, for more images than were looked at.

An image is among a channel's top K of N when it is in the channel's top K / N: how many of the images are in any channel's, and
with how many boxes, depends on that share alone. So of n images the top k tell about the top k N / n of N.
"""

import math

import numpy as np

Curve = tuple[tuple[float, float], ...]
"""Ascending shares K / N, and distinct crops an image at each."""

RANKS = (1, 2, 3, 5, 8, 12, 20, 32, 50, 80, 128, 200, 320, 500)


def distinct_curve(image: np.ndarray, box: np.ndarray, rank: np.ndarray, images: int) -> Curve:
    """The curve of some of the ranks from 1 to the largest.

    Parameters
    ----------
    image, box : [M] int64 and [M, 4] float64
        Of every patch of every channel.
    rank : [M] int64, from 0
        Place of the patch among its channel's.
    images : int
        How many images there were.
    """
    _, crop = np.unique(np.column_stack((image, box)), axis=0, return_inverse=True)
    first = np.full(crop.max() + 1, rank.max() + 1)
    np.minimum.at(first, crop.reshape(-1), rank)  # the crop is there from this rank on
    most = int(rank.max()) + 1
    return tuple((k / images, int((first < k).sum()) / images) for k in sorted({*RANKS, most}) if k <= most)


def distinct_crops_of(curve: Curve, top_k: int, images: int) -> int:
    """Distinct crops of the top `top_k` of `images`, from a curve of fewer or more of them.

    Between the curve's points log crops is linear in log share; beyond them as between the last two, but never faster than the
    share itself, at which all patches are different ones.
    """
    wanted, share, crops = math.log(top_k / images), *(np.log(np.array(column)) for column in zip(*curve, strict=True))
    if len(curve) == 1:
        slope, at = 1.0, 0
    elif wanted < share[0]:
        slope, at = _slope(share, crops, 0, min(2, len(curve) - 1)), 0
    elif wanted > share[-1]:
        slope, at = _slope(share, crops, -1 - min(2, len(curve) - 1), -1), -1
    else:
        return max(1, round(images * math.exp(np.interp(wanted, share, crops))))
    return max(1, round(images * math.exp(crops[at] + slope * (wanted - share[at]))))


def _slope(x: np.ndarray, y: np.ndarray, first: int, last: int) -> float:
    """Between two points, within 0..1."""
    return float(np.clip((y[last] - y[first]) / (x[last] - x[first]), 0, 1))
