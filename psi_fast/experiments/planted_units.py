"""Units whose meanings are known: made from a classifier's logits, from random images, and from two channels at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from psi_fast.activation_tap import ActivationTap, final_linear
from psi_fast.errors import ConfigError, InputError, ModelError
from psi_fast.experiments.shared_classes import JOIN
from psi_fast.experiments.study import Study
from psi_fast.experiments.survey import survey
from psi_fast.networks import load_network
from psi_fast.results import TopPatches
from psi_fast.trial import choose_pace
from psi_fast.vocabulary import numbered

PURE = 0.5
"""Share of a logit's top images that one class must have, for the logit to stand for that class."""


@dataclass(frozen=True)
class Units:
    """U units of K patches.

    kind : [U], "mono", "poly2", ..., "random", "merged" or "channel"
    meaning : [U], what each is made of
    images : [U, K] int64
    boxes : [U, K, 4] float64 in px of the study's squares
    planted : [U, K] int64, which of the unit's parts a patch was taken for; -1 where it has no parts
    """

    kind: list[str]
    meaning: list[str]
    images: np.ndarray
    boxes: np.ndarray
    planted: np.ndarray


@dataclass(frozen=True)
class Logits:
    """A classifier's answers to a study's images.

    values : [N, n] float32
    names : [n], of the classes
    layer : of the network, that gives them
    box : [4] float64, what the classifier sees of an image, in px of the study's squares
    """

    values: np.ndarray
    names: list[str]
    layer: str
    box: np.ndarray


def class_logits(study: Study, classifier: str | None) -> Logits:
    """Logits of the study's network, or of the network that `classifier` names: one pass, kept on the shelf.

    Raises
    ------
    ModelError
        The network does not end in class logits.
    """
    subject = study.subject
    network = subject.network if classifier is None else load_network(classifier, study.trust_checkpoint)
    try:
        layer = final_linear(network)
    except ModelError as error:
        raise ModelError(f"planted units are made of class logits, and {error}; name it with --classifier") from error
    mark = subject.fingerprints["network"] if classifier is None else network.fingerprint()
    tap = ActivationTap(network, layer, subject.device)
    own = replace(
        subject,
        network=network,
        taps=[tap],
        channels=[np.arange(tap.channels)],
        pace=choose_pace([tap], subject.config.precision, mark),
        fingerprints=subject.fingerprints | {"network": mark},
    )
    with study.bars.stage("logits"):
        found = survey(own, study.squares, study.shelf, study.bars, study.said)[layer]
    preprocess, side = network.preprocess, study.squares.side
    box = preprocess.to_image(np.array([0.0, 0.0, preprocess.size, preprocess.size]), np.array([side, side]))
    names = network.class_names or [numbered(index) for index in range(tap.channels)]
    return Logits(found.maxima.cpu().numpy(), list(names), layer, box)


def pure_logits(values: np.ndarray, classes: np.ndarray, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n'] int64 that stand for a class, and the purity [n'] of each: that share of its top `patches` images is of it.

    A logit stands for the class that most of its top images have, at least PURE of them; of several logits for one class
    the purest does, the first among equals. `values` [N, n], `classes` [N] int64.
    """
    top = np.argsort(-values, axis=0, kind="stable")[:patches].T
    counts = [np.bincount(row) for row in classes[top]]
    purity = np.array([row.max() / patches for row in counts])
    best: dict[int, int] = {}
    for logit in np.flatnonzero(purity >= PURE):
        own = int(counts[logit].argmax())
        if own not in best or purity[logit] > purity[best[own]]:
            best[own] = int(logit)
    chosen = np.array(sorted(best.values()), dtype=np.int64)
    return chosen, purity[chosen]


def classifier_units(
    logits: Logits, chosen: np.ndarray, members: Sequence[int], count: int, patches: int, rng: np.random.Generator
) -> Units:
    """`count` units of each kind, or as many different ones as there are.

    mono: the images with the largest values of one of the `chosen` logits. poly m: those with the largest maximum of m of
    them, each as ranks over the images, so that every one gets its share of the top. random: random images.

    Raises
    ------
    ConfigError
        There are fewer chosen logits than a unit needs.
    """
    if len(chosen) < max(2, *members):
        raise ConfigError(
            f"only {len(chosen)} classes have a logit with at least {PURE:.0%} of its top {patches} images of that class, and "
            f"units of up to {max(2, *members)} were asked for; give a better classifier, more images, fewer unit_patches "
            "or smaller members"
        )
    ranks = np.argsort(np.argsort(logits.values[:, chosen], axis=0, kind="stable"), axis=0, kind="stable")
    kinds, meanings, images, planted = [], [], [], []
    for size in (1, *members):
        for own in _subsets(len(chosen), size, count, rng):
            top = np.argsort(-ranks[:, own].max(1), kind="stable")[:patches]
            kinds.append("mono" if size == 1 else f"poly{size}")
            meanings.append(JOIN.join(logits.names[logit] for logit in chosen[own]))
            images.append(top)
            planted.append(ranks[top][:, own].argmax(1))
    for _ in range(count):
        images.append(rng.choice(len(ranks), patches, replace=False))
        planted.append(np.full(patches, -1))
    kinds += ["random"] * count
    meanings += [""] * count
    boxes = np.broadcast_to(logits.box, (len(images), patches, 4)).copy()
    return Units(kinds, meanings, np.array(images), boxes, np.array(planted))


def merged_units(study: Study, layer: str, count: int, patches: int, rng: np.random.Generator) -> Units:
    """Up to `count` units of the top patches of two channels each, half and half; and the first channel of each pair alone.

    No channel is in two pairs, and no image in both halves. `patches` is even.

    Raises
    ------
    InputError
        There is no such pair.
    """
    half = patches // 2
    top = study.top(layer, study.with_changes(top_k=patches))
    pairs = disjoint_pairs(top, half, count, rng)
    if not len(pairs):
        raise InputError(
            f"no two live channels of {layer} have {half} top images each without one in common, so none can be merged; give "
            "more images or fewer patches, or choose another layer"
        )
    places = study.boxes(layer, top.positions)
    first, second = pairs.T
    halves = np.repeat([0, 1], half)
    ids = [f"{layer} {channel}" for channel in top.channels]
    return Units(
        ["merged"] * len(pairs) + ["channel"] * len(pairs),
        [f"{ids[a]} + {ids[b]}" for a, b in pairs] + [ids[a] for a in first],
        np.concatenate([np.concatenate([top.images[first, :half], top.images[second, :half]], 1), top.images[first]]),
        np.concatenate([np.concatenate([places[first, :half], places[second, :half]], 1), places[first]]),
        np.concatenate([np.tile(halves, (len(pairs), 1)), np.full((len(pairs), patches), -1)]),
    )


def disjoint_pairs(top: TopPatches, half: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` random pairs [p, 2] of places in `top` whose first `half` images have none in common, no place twice."""
    free = list(rng.permutation(np.flatnonzero(~top.dead & top.valid.all(1))))
    pairs = []
    while free and len(pairs) < count:
        one = free.pop()
        other = next(
            (own for own in reversed(free) if not np.intersect1d(top.images[one, :half], top.images[own, :half]).size),
            None,
        )
        if other is not None:
            free.remove(other)
            pairs.append((one, other))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index of two labellings [n] int: 1 where they are the same partition, 0 on average by chance.

    References
    ----------
    Hubert and Arabie: Comparing partitions. Journal of Classification 2, 1985.
    """
    table = np.zeros((a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(table, (a, b), 1)
    both, rows, columns = ((own * (own - 1) / 2).sum() for own in (table, table.sum(1), table.sum(0)))
    chance = rows * columns / (len(a) * (len(a) - 1) / 2)
    largest = (rows + columns) / 2
    return float((both - chance) / (largest - chance)) if largest != chance else 1.0


def _subsets(total: int, size: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` different sets of `size` of `total`, or all there are, in random order; each [size] int64."""
    if size == 1:
        return list(rng.permutation(total)[:count, None])
    found: dict[tuple[int, ...], np.ndarray] = {}
    wanted = min(count, math.comb(total, size))
    while len(found) < wanted:
        own = np.sort(rng.choice(total, size, replace=False))
        found.setdefault(tuple(own.tolist()), own)
    return list(found.values())
