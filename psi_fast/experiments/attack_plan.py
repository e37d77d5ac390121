"""What an attack is made of: channels, halves of their patches, a direction that pulls these apart, noise to compare with."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from psi_fast.errors import InputError
from psi_fast.evaluation import without

NEAREST = 10
"""Concepts nearest to a channel, of which the two least alike pull its halves apart."""


def most_monosemantic(draws: Sequence[pd.DataFrame], count: int) -> pd.Series:
    """PSI of the channels of lowest PSI, by their ids, the lowest first: [count or fewer] float64.

    Parameters
    ----------
    draws : tables of the same channels, scored by different seeds
        PSI is its mean over them, because the lowest of many channels by one draw are lucky ones too. Only channels that
        are scored in all of them, live and selective can be chosen.

    Raises
    ------
    InputError
        There is none.
    """
    psi = pd.DataFrame({seed: table.set_index("channel")["psi"] for seed, table in enumerate(draws)})
    fit = [not {"dead", "unselective"} & set(flags) for flags in draws[0]["flags"]]
    own = psi[fit].dropna().mean(axis=1)
    if own.empty:
        raise InputError(
            "adversarial found no channel that is scored, live and selective; see the flags of `psi-fast score`"
        )
    return own.sort_values(kind="stable")[:count]


def halves(classes: np.ndarray, *, by_class: bool) -> np.ndarray:
    """1 or -1 for each patch [K], float32: halves of equal size that hold the same classes, or as nearly none in common.

    The patches of a class take turns, or all go to the half that is smaller so far, the largest class first.
    """
    names, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if not by_class:
        aims = np.empty(len(classes), np.float32)
        aims[np.argsort(inverse, kind="stable")] = np.where(np.arange(len(classes)) % 2, -1, 1)
        return aims
    side, size = np.zeros(len(names), np.float32), {1: 0, -1: 0}
    for own in np.argsort(-counts, kind="stable"):
        side[own] = 1 if size[1] <= size[-1] else -1
        size[int(side[own])] += int(counts[own])
    return side[inverse]


def concept_axis(
    rows: torch.Tensor, text: torch.Tensor, centre: torch.Tensor | None, count: int = NEAREST
) -> torch.Tensor:
    """The unit difference [d] of the two least alike of the `count` concepts nearest to the patches' mean.

    Parameters
    ----------
    rows : [K, d] float32 unit embeddings of the patches
    text : [P, d] float32 unit embeddings of the concepts
    centre : [d] float64 that patches are centred by; concepts then are by their own mean
    """
    if centre is not None and len(text) > 1:
        rows, text = without(rows, centre), without(text, text.double().mean(0))
    near = text[(text @ rows.mean(0)).topk(min(count, len(text))).indices]
    first, second = divmod(int((near @ near.T).argmin()), len(near))
    return normalize(near[first] - near[second], dim=0)


def noised(pixels: torch.Tensor, boxes: np.ndarray, budget: float, seed: Sequence[int]) -> torch.Tensor:
    """The images [K, S, S, 3] float32 with `budget` added to or taken from every value in its box [K, 4], within 0..255."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), size=pixels.shape)
    found = pixels.clone()
    for image, sign, (x0, y0, x1, y1) in zip(found, torch.from_numpy(signs), boxes.tolist(), strict=True):
        own = image[y0:y1, x0:x1]
        own.copy_((own + budget * sign[y0:y1, x0:x1]).clamp(0, 255))
    return found
