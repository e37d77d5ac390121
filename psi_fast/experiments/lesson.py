"""What a layer is tuned on: whole classes of a study's images, half of each to train on and half held out."""

from dataclasses import dataclass

import numpy as np
import torch

from psi_fast.errors import InputError
from psi_fast.evaluation import without
from psi_fast.experiments.breadth import class_concepts
from psi_fast.experiments.study import Study
from psi_fast.shelf import content


@dataclass(frozen=True)
class Lesson:
    """Images to train on and to test on, with what stays the same of them.

    train, held : [n] and [m] int64, images of the study: half of each class
    classes : [N] int64, of every image of the study, the place of its class in `outputs`; -1 where it has none
    outputs : [c] int64, the network's outputs that are classes of the images
    top : images that count as a channel's top
    rows : [N, d] float32 unit embeddings of whole images, zero beside `train` and `held`
    centre : [d] float64, their mean, which is subtracted where the study centres
    """

    train: np.ndarray
    held: np.ndarray
    classes: np.ndarray
    outputs: np.ndarray
    top: int
    rows: torch.Tensor
    centre: torch.Tensor

    def mark(self) -> str:
        """What tells it from others."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("train", "held", "classes", "outputs")}
        return content(arrays | {"rows": self.rows, "centre": self.centre, "top": torch.tensor(self.top)})


def lesson(study: Study, count: int) -> Lesson:
    """Whole classes that the network knows, in a seeded order, until there are `count` images: half of each class held out.

    A channel's top is as large as four fifths of a class in one half, so that a channel of one class is possible; at least
    2 * k_max and at most top_k images.

    Raises
    ------
    InputError
        The images have no labels, the network's outputs have no names or too few of the classes' names, or there are too few
        images.
    """
    labels, images, network = study.labels, study.subject.images, study.subject.network
    names = images.class_names or []
    keys = images.class_keys or names
    if network.class_names is None:
        raise InputError(
            f"the outputs of {network.name} have no names, so the images' classes cannot be found among them; give a "
            "psi_fast.Network with class_names"
        )
    found = class_concepts(names, keys, network.class_names)
    places = np.array([own[0] if len(own) == 1 else -1 for own in found], dtype=np.int64)
    known = places[labels]
    rng = np.random.default_rng(study.config.seed)
    train, held, outputs = [], [], []
    for output in rng.permutation(np.unique(known[known >= 0])):
        own = rng.permutation(np.flatnonzero(known == output))
        train.append(own[: len(own) // 2])
        held.append(own[len(own) // 2 :])
        outputs.append(output)
        if sum(map(len, train + held)) >= count and len(outputs) > 1:
            break
    if len(outputs) < 2:
        raise InputError(
            f"{len(outputs)} of {len(names)} classes of the images, such as {', '.join(map(repr, names[:3]))}, are outputs of "
            f"{network.name}, such as {', '.join(map(repr, network.class_names[:3]))}; give images of classes that it knows"
        )
    each = int(np.median([len(own) for own in train]))
    top = max(min(study.config.top_k, 4 * each // 5), 2 * study.config.k_max)
    train, held, outputs = np.sort(np.concatenate(train)), np.sort(np.concatenate(held)), np.sort(outputs)
    if len(train) < 4 * top:
        raise InputError(
            f"{len(train)} images to train on are too few for tops of {top}; give more images of classes that the network "
            "knows, raise image_count or lower k_max"
        )
    classes = np.where(np.isin(known, outputs), np.searchsorted(outputs, known), -1)
    both = np.concatenate([train, held])
    size, side = network.preprocess.size, study.squares.side
    box = network.preprocess.to_image(np.array([0.0, 0, size, size]), np.array([side, side]))
    unique, index = study.embed(both, np.tile(box, (len(both), 1)))
    rows = unique.new_zeros(len(labels), unique.shape[1])
    rows[both] = unique[index]
    return Lesson(train, held, classes, outputs, top, rows, rows[both].double().mean(0))


def seen(study: Study, own: Lesson) -> torch.Tensor:
    """Embeddings [N, d] of the images as PSI sees them: centred where the study centres; zero where there is none."""
    if not study.config.center:
        return own.rows
    found = torch.zeros_like(own.rows)
    both = np.concatenate([own.train, own.held])
    found[both] = without(own.rows[both], own.centre)
    return found
