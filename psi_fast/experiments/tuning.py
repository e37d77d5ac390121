"""Fine-tuning with a penalty on a layer's soft polysemanticity, and what the tuned layer does on images held out."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from psi_fast.errors import InputError
from psi_fast.evaluation import Background, evaluate, without
from psi_fast.experiments.breadth import class_concepts
from psi_fast.experiments.shelf import content
from psi_fast.experiments.study import Study
from psi_fast.experiments.tail import Tail
from psi_fast.forward import autocast
from psi_fast.mining import rank_maxima
from psi_fast.pipeline import RANDOM_POOL, used_rows
from psi_fast.results import PatchEmbeddings
from psi_fast.surrogate import soft_polysemanticity

BATCH = 256
LEAST_TOP = 8
"""Images of a batch that count as a channel's top, at least."""
RATE = 3e-4
"""Learning rate of Adam."""
CHECKED = 8
"""Images on which the tail is compared with the whole network."""
ROOM = 4 * 2**30
"""Bytes that what reaches the layer may take."""


@dataclass(frozen=True)
class Lesson:
    """Images to train on and to test on, with what stays the same of them.

    train, held : [n] and [m] int64, images of the study
    classes : [N] int64, of every image of the study, the place of its class in `outputs`; -1 where the network lacks it
    outputs : [c] int64, the network's outputs that are classes of the images
    rows : [N, d] float32 unit embeddings of whole images, zero beside `train` and `held`
    centre : [d] float64, their mean, which is subtracted where the study centres
    """

    train: np.ndarray
    held: np.ndarray
    classes: np.ndarray
    outputs: np.ndarray
    rows: torch.Tensor
    centre: torch.Tensor

    def mark(self) -> str:
        """What tells it from others."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("train", "held", "classes", "outputs")}
        return content(arrays | {"rows": self.rows, "centre": self.centre})


@dataclass(frozen=True)
class Tuned:
    """What a tuned layer does on the m images held out.

    maxima, positions : [m, C] float32 and int64 of each channel
    lowest : [C] float32, over images and positions
    correct : [m] bool, whether the logits are largest for the image's class
    """

    maxima: torch.Tensor
    positions: torch.Tensor
    lowest: torch.Tensor
    correct: np.ndarray


def lesson(study: Study, count: int) -> Lesson:
    """A seeded choice of at most `count` images whose class the network knows, half to train on, half held out.

    Raises
    ------
    InputError
        The images have no labels, the network's outputs have no names or too few of the classes' names, or fewer than top_k
        images would be held out.
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
    outputs = np.unique(places[np.unique(labels)])
    outputs = outputs[outputs >= 0]
    if len(outputs) < 2:
        raise InputError(
            f"{len(outputs)} of {len(names)} classes of the images, such as {', '.join(map(repr, names[:3]))}, are outputs of "
            f"{network.name}, such as {', '.join(map(repr, network.class_names[:3]))}; give images of classes that it knows"
        )
    known = places[labels]
    classes = np.where(known >= 0, np.searchsorted(outputs, known), -1)
    chosen = np.random.default_rng(study.config.seed).permutation(np.flatnonzero(known >= 0))[:count]
    train, held = np.sort(chosen[: len(chosen) // 2]), np.sort(chosen[len(chosen) // 2 :])
    if len(train) < study.config.top_k or len(train) < 2 * LEAST_TOP:
        raise InputError(
            f"{len(train)} images to train on and {len(held)} held out are too few for top_k {study.config.top_k}; give more "
            "images of classes that the network knows, raise image_count or lower top_k"
        )
    both = np.concatenate([train, held])
    size, side = network.preprocess.size, study.squares.side
    box = network.preprocess.to_image(np.array([0.0, 0, size, size]), np.array([side, side]))
    unique, index = study.embed(both, np.tile(box, (len(both), 1)))
    rows = unique.new_zeros(len(labels), unique.shape[1])
    rows[both] = unique[index]
    return Lesson(train, held, classes, outputs, rows, rows[both].double().mean(0))


def seen(study: Study, own: Lesson) -> torch.Tensor:
    """Embeddings [N, d] of the images as PSI sees them: centred where the study centres; zero where there is none."""
    if not study.config.center:
        return own.rows
    found = torch.zeros_like(own.rows)
    both = np.concatenate([own.train, own.held])
    found[both] = without(own.rows[both], own.centre)
    return found


def top_share(study: Study, images: int, batch: int) -> float:
    """The share of a batch that counts as a channel's top: as top_k of the images, and LEAST_TOP images at least."""
    return min(max(study.config.top_k / images, LEAST_TOP / batch), 0.5)


class Course:
    """The tuning of one layer; each strength starts from the study's network, and its results stay on the study's shelf.

    Parameters
    ----------
    study, layer, own
        `own` has the images.
    steps : int
        Batches of each strength.
    """

    def __init__(self, study: Study, layer: str, own: Lesson, steps: int) -> None:
        self.study, self.layer, self.own, self.steps = study, layer, own, steps
        self.batch = min(BATCH, len(own.train))
        self.share = top_share(study, len(own.train), self.batch)
        self._reached: torch.Tensor | None = None
        self._rows = seen(study, own)
        self._about = {
            "network": study.subject.fingerprints["network"],
            "images": study.subject.fingerprints["images"],
            "side": study.squares.side,
            "layer": layer,
            "pace": str(study.survey(layer).pace),
            "device": study.subject.device.type,
            "code": study.subject.fingerprints["code"],
            "lesson": own.mark(),
            "channels": study.channels(layer).tolist(),
            "training": [steps, self.batch, self.share, RATE, study.config.seed, study.config.center],
        }

    def tuned(self, strength: float | None) -> Tuned:
        """The layer after tuning with a penalty of that strength; None for the network as it is."""

        def make() -> dict[str, torch.Tensor]:
            tail = self._tail()
            if strength is not None:
                self._train(tail, strength)
            return self._tested(tail)

        found = self.study.shelf.tensors("tuned", self._about | {"strength": strength}, make)
        correct = found.pop("correct").bool().numpy()
        return Tuned(found["maxima"], found["positions"].long(), found["lowest"], correct)

    def scores(self, strength: float | None, channels: np.ndarray) -> pd.DataFrame:
        """PSI and soft polysemanticity of the channels, on the images held out; a row a channel."""
        about = self._about | {
            "strength": strength,
            "scored": channels.tolist(),
            "encoder": self.study.mark(self.study.subject.encoder),
            "text": [content({"rows": self.study.text.embeddings}), list(self.study.text.names)],
            "config": {k: v for k, v in self.study.config.to_dict().items() if k not in ("batch_size", "backend")},
        }
        return self.study.shelf.table("tuned-scores", about, lambda: self._scored(self.tuned(strength), channels))

    def soft(self, maxima: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        """Soft polysemanticity [C] of maxima [n, C] of these images, the mean over seeded batches as in training."""
        order = np.random.default_rng(self.study.config.seed).permutation(len(images))
        size = min(self.batch, len(images))
        batches = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
        with torch.no_grad():
            found = [soft_polysemanticity(maxima[rows], self._rows[images[rows]], share=self.share) for rows in batches]
        return torch.stack(found).mean(0)

    def embeddings(self, images: np.ndarray) -> torch.Tensor:
        """Unit embeddings [n, d] of these images as PSI sees them: centred where the study centres."""
        return self._rows[images]

    def _scored(self, tuned: Tuned, channels: np.ndarray) -> pd.DataFrame:
        study, held = self.study, self.own.held
        order = np.argsort(study.channels(self.layer))
        columns = order[np.searchsorted(study.channels(self.layer), channels, sorter=order)]
        maxima = tuned.maxima[:, columns]
        names = [study.subject.images.names[image] for image in held]
        labels = study.labels[held]
        top = rank_maxima(
            maxima, tuned.positions[:, columns], tuned.lowest[columns], channels, names, study.config, labels
        )
        images = np.where(top.dead[:, None], -1, top.images)
        rows, index = used_rows(self.own.rows[held], images)
        pool = np.random.default_rng(study.config.seed).permutation(len(held))[:RANDOM_POOL]
        found = evaluate(
            PatchEmbeddings(rows, index, torch.from_numpy(channels)),
            torch.from_numpy(labels[top.images]),
            study.text,
            Background(self.own.rows[held[pool]], torch.from_numpy(labels[pool])),
            study.config,
            study.subject.device,
            study.bars,
            dead=top.dead,
            max_activation=top.highest,
            selectivity=top.selectivity,
            unselective=top.unselective,
            centre=self.own.centre,
        )
        kept = ["channel", "psi", "log_psi", "S", *(name for name in ("S_z", "Q_z", "D_z") if name in found.table)]
        return found.table[kept].assign(soft=self.soft(maxima, held).numpy()).reset_index(drop=True)

    def _tail(self) -> Tail:
        """A new copy of the network, once it is known what reaches the layer."""
        study = self.study
        device = study.subject.device
        some = study.subject.network.preprocess(study.squares.read(self.own.train[:CHECKED], device))
        tail = Tail(study.subject.network, self.layer, device, some)
        if self._reached is None:
            self._reached = self._reach(tail)
        return tail

    def _reach(self, tail: Tail) -> torch.Tensor:
        """What reaches the layer of the images to train on, then of those held out, on the CPU."""
        study, pace = self.study, self.study.survey(self.layer).pace
        images = np.concatenate([self.own.train, self.own.held])
        device, parts = study.subject.device, []
        step = pace.size if device.type == "cpu" else study.config.batch_size
        with (
            torch.no_grad(),
            autocast(device, pace.dtype),
            study.bars.bar("what reaches it", len(images), "img") as bar,
        ):
            for first in range(0, len(images), step):
                pixels = study.squares.read(images[first : first + step], device)
                batch = study.subject.network.preprocess(pixels)
                batch = batch.contiguous(memory_format=pace.memory_format or torch.channels_last)
                parts.append(tail.reach(batch).float().cpu())
                if (needed := parts[0][0].nbytes * len(images)) > ROOM:
                    raise InputError(
                        f"what reaches {self.layer} takes {needed / 2**30:.1f} GiB of memory for {len(images)} images, and at "
                        f"most {ROOM / 2**30:.0f} are used; lower image_count or choose a layer further back"
                    )
                bar.update(len(batch))
        return torch.cat(parts)

    def _train(self, tail: Tail, strength: float) -> None:
        assert self._reached is not None, "the tail is made with it"
        device = self.study.subject.device
        channels = torch.from_numpy(self.study.channels(self.layer)).to(device)
        outputs = torch.from_numpy(self.own.outputs).to(device)
        optimiser = torch.optim.Adam(tail.parameters, lr=RATE)
        rng = np.random.default_rng(self.study.config.seed)
        order = np.empty(0, dtype=np.int64)
        with self.study.bars.bar(f"tuning at strength {strength:g}", self.steps, "step") as bar:
            for _ in range(self.steps):
                if len(order) < self.batch:
                    order = rng.permutation(len(self.own.train))
                rows, order = order[: self.batch], order[self.batch :]
                images = self.own.train[rows]
                activations, logits = tail(self._reached[rows].to(device))
                classes = torch.from_numpy(self.own.classes[images]).to(device)
                loss = cross_entropy(logits[:, outputs], classes)
                if strength:
                    maxima = activations.amax(2)[:, channels]
                    soft = soft_polysemanticity(maxima, self._rows[images].to(device), share=self.share)
                    loss = loss + strength * soft.mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                bar.update()

    def _tested(self, tail: Tail) -> dict[str, torch.Tensor]:
        assert self._reached is not None, "the tail is made with it"
        device = self.study.subject.device
        channels = torch.from_numpy(self.study.channels(self.layer)).to(device)
        found: dict[str, list[torch.Tensor]] = {name: [] for name in ("maxima", "positions", "lowest", "correct")}
        reached = self._reached[len(self.own.train) :]
        with torch.no_grad():
            for first in range(0, len(reached), BATCH):
                activations, logits = tail(reached[first : first + BATCH].to(device))
                maxima, positions = activations[:, channels].max(2)
                best = logits[:, self.own.outputs].argmax(1).cpu().numpy()
                right = best == self.own.classes[self.own.held[first : first + BATCH]]
                found["maxima"].append(maxima.float())
                found["positions"].append(positions.int())
                found["lowest"].append(activations[:, channels].amin((0, 2)).float()[None])
                found["correct"].append(torch.from_numpy(right.astype(np.uint8)))
        held = {name: torch.cat(parts) for name, parts in found.items()}
        if not torch.isfinite(held["maxima"]).all():
            raise InputError(f"{self.layer} is not finite after tuning; lower the strength")
        return held | {"lowest": held["lowest"].amin(0)}
