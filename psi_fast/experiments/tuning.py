"""Fine-tuning with a penalty on a layer's stand-in for PSI, and what the tuned layer does on images held out."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from psi_fast.errors import InputError
from psi_fast.experiments.lesson import Lesson
from psi_fast.experiments.stand_in import Scoring, fitted, with_stand_in
from psi_fast.experiments.study import Study
from psi_fast.experiments.tail import Tail
from psi_fast.forward import Pace, autocast
from psi_fast.shelf import content
from psi_fast.surrogate import Calibration

BATCH = 256
RATE = 1e-3
"""Learning rate of Adam."""
CHECKED = 8
"""Images on which the tail is compared with the whole network."""
ROOM = 4 * 2**30
"""Bytes that what reaches the layer may take."""
CHANNEL = "channel"
"""Kind of the units that are channels."""


@dataclass(frozen=True)
class Passed:
    """What a layer does on m images.

    maxima, positions : [m, C] float32 and int64 of each channel
    lowest : [C] float32, over images and positions
    logits : [m, c] float32, of the lesson's outputs
    """

    maxima: torch.Tensor
    positions: torch.Tensor
    lowest: torch.Tensor
    logits: torch.Tensor

    def part(self, images: slice) -> "Passed":
        """Of some of the images; `lowest` stays that of all."""
        return Passed(self.maxima[images], self.positions[images], self.lowest, self.logits[images])


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
        self.scoring = Scoring(study, own)
        self._reached: torch.Tensor | None = None
        self._tuned: dict[float | None, Passed] = {}
        self._trained, self._unseen = slice(len(own.train)), slice(len(own.train), None)
        self._about = {
            "network": study.subject.fingerprints["network"],
            "images": study.subject.fingerprints["images"],
            "side": study.squares.side,
            "layer": layer,
            "pace": str(study.subject.pace),
            "device": study.subject.device.type,
            "code": study.subject.fingerprints["code"],
            "lesson": own.mark(),
            "channels": study.channels(layer).tolist(),
        }

    @property
    def start(self) -> Passed:
        """The layer as it is, on the images to train on."""
        return self.tuned(None).part(self._trained)

    @cached_property
    def stand_in(self) -> pd.DataFrame:
        """The layer's channels as they are and planted units, on the images to train on: PSI and its stand-in, a row each.

        `fitted` is true of every second row of each kind: the stand-in was calibrated on these.
        """
        return with_stand_in(self._units, self.calibration)

    @cached_property
    def calibration(self) -> Calibration:
        """The stand-in's, by every second channel and every second planted unit."""
        return fitted(pd.DataFrame(self._units[self._units["fitted"]]))

    @cached_property
    def _units(self) -> pd.DataFrame:
        start, train = self.start, self.own.train

        def make() -> pd.DataFrame:
            ids = self.study.channels(self.layer)
            found = self.scoring.channels(start.maxima, start.positions, start.lowest, train, ids).assign(kind=CHANNEL)
            found = pd.concat([found, self.scoring.planted(start.logits, train)], ignore_index=True)
            return found.assign(fitted=found.groupby("kind").cumcount() % 2 == 0)

        return self.study.shelf.table("stand-in", self._about | self.scoring.about, make)

    def tuned(self, strength: float | None) -> Passed:
        """The layer after tuning with a penalty of that strength, on the images to train on and then on those held out.

        None is for the network as it is.
        """

        def make() -> dict[str, torch.Tensor]:
            tail = self._tail()
            if strength is not None:
                self._train(tail, strength)
            return vars(self._passed(tail))

        training = [] if strength is None else [self.steps, self.batch, RATE, self.study.config.seed]
        about = self._about | {"training": training, "strength": strength} | (self.scoring.about if strength else {})
        if strength not in self._tuned:
            found = self.study.shelf.tensors("tuned", about, make)
            self._tuned[strength] = Passed(**found | {"positions": found["positions"].long()})
        return self._tuned[strength]

    def correct(self, strength: float | None) -> np.ndarray:
        """Whether the largest logit of each image held out is its class's, [m] bool."""
        held = self.tuned(strength).part(self._unseen)
        return held.logits.argmax(1).numpy() == self.own.classes[self.own.held]

    def scores(self, strength: float | None, channels: np.ndarray, *, trained: bool = False) -> pd.DataFrame:
        """PSI of the channels and its stand-in, a row a channel that is no dead one: on the images held out, or `trained` on."""
        found = self.tuned(strength).part(self._trained if trained else self._unseen)
        images = self.own.train if trained else self.own.held
        order = np.argsort(self.study.channels(self.layer))
        own = order[np.searchsorted(self.study.channels(self.layer), channels, sorter=order)]
        about = self._about | self.scoring.about
        about |= {"scored": channels.tolist(), "trained": trained, "seen": content(vars(found))}

        def make() -> pd.DataFrame:
            parts = found.maxima[:, own], found.positions[:, own], found.lowest[own]
            return self.scoring.channels(*parts, images, channels)

        return with_stand_in(self.study.shelf.table("tuned-scores", about, make), self.calibration)

    def _tail(self) -> Tail:
        """A new copy of the network, once it is known what reaches the layer."""
        study = self.study
        device = study.subject.device
        some = study.subject.network.preprocess(study.squares.read(self.own.train[:CHECKED], device))
        tail = Tail(study.subject.network, self.layer, device, some)
        if self._reached is None:
            pace = study.subject.pace
            self._reached = self._reach(tail, pace)
            if not torch.isfinite(self._reached).all() and pace.dtype != torch.float32:
                self._reached = self._reach(tail, replace(pace, dtype=torch.float32))
        return tail

    def _reach(self, tail: Tail, pace: Pace) -> torch.Tensor:
        """What reaches the layer of the images to train on, then of those held out, on the CPU."""
        study = self.study
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
        outputs = torch.from_numpy(self.own.outputs).to(device)
        bank = _Bank(self) if strength else None
        optimiser = torch.optim.Adam(tail.parameters, lr=RATE)
        rng = np.random.default_rng(self.study.config.seed)
        order = np.empty(0, dtype=np.int64)
        with self.study.bars.bar(f"tuning at strength {strength:g}", self.steps, "step") as bar:
            for _ in range(self.steps):
                if len(order) < self.batch:
                    order = rng.permutation(len(self.own.train))
                rows, order = order[: self.batch], order[self.batch :]
                activations, logits = tail(self._reached[rows].to(device))
                classes = torch.from_numpy(self.own.classes[self.own.train[rows]]).to(device)
                loss = cross_entropy(logits[:, outputs], classes)
                if bank is not None:
                    loss = loss + strength * bank.penalty(rows, activations)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                bar.update()

    def _passed(self, tail: Tail) -> Passed:
        """What the tail does on all images, those to train on first."""
        assert self._reached is not None, "the tail is made with it"
        device = self.study.subject.device
        channels = torch.from_numpy(self.study.channels(self.layer)).to(device)
        found: dict[str, list[torch.Tensor]] = {name: [] for name in ("maxima", "positions", "lowest", "logits")}
        reached = self._reached
        with torch.no_grad():
            for first in range(0, len(reached), BATCH):
                activations, logits = tail(reached[first : first + BATCH].to(device))
                maxima, positions = activations[:, channels].max(2)
                found["maxima"].append(maxima.float().cpu())
                found["positions"].append(positions.int().cpu())
                found["lowest"].append(activations[:, channels].amin((0, 2)).float().cpu()[None])
                found["logits"].append(logits[:, self.own.outputs].float().cpu())
        held = {name: torch.cat(parts) for name, parts in found.items()}
        if not all(torch.isfinite(own).all() for own in held.values()):
            raise InputError(f"{self.layer} is not finite after tuning; lower the strength")
        return Passed(**held | {"lowest": held["lowest"].amin(0)})


class _Bank:
    """Every channel's activation in every image to train on: of the current batch with gradients, else as last seen.

    So a channel's top is that of all images and not of a batch, which has hardly two images of a class. What was last seen
    is carried along: by the line that takes the batch's activations as last seen to those it has now.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        device = course.study.subject.device
        self.channels = torch.from_numpy(course.study.channels(course.layer)).to(device)
        self.values = course.start.maxima.T.to(device, copy=True).contiguous()
        self.gram = course.scoring.gram(course.own.train)

    def penalty(self, rows: np.ndarray, activations: torch.Tensor) -> torch.Tensor:
        """The channels' mean penalty, of activations [B, C, P] of the images `rows` [B] among those to train on.

        Its gradient, which comes from the batch alone, is scaled to be that of all images on average.
        """
        course, count = self.course, self.values.shape[1]
        live = activations.amax(2)[:, self.channels].T
        batch = torch.from_numpy(rows).to(live.device)
        self._carry(self.values[:, batch], live.detach())
        self.values[:, batch] = live.detach()
        held, places = self.values.topk(course.scoring.candidates, dim=1)
        where = torch.full((count,), -1, dtype=torch.int64, device=live.device)
        where[batch] = torch.arange(len(batch), device=live.device)
        own = where[places]
        values = torch.where(own >= 0, live.gather(1, own.clamp_min(0)), held)
        measures = course.scoring.measured(values, places, course.own.train, self.gram)
        return course.calibration(measures).penalty.mean() * (count / len(rows))

    def _carry(self, before: torch.Tensor, now: torch.Tensor) -> None:
        """Move all values [C, n] by each channel's least-squares line from values [C, B] before to those now."""
        (start, end) = (own.mean(1, keepdim=True) for own in (before, now))
        spread = (before - start).square().sum(1, keepdim=True)
        slope = ((before - start) * (now - end)).sum(1, keepdim=True) / spread.clamp_min(1e-12)
        slope = torch.where(spread > 0, slope, 1).clamp(0.5, 2)
        self.values = end + slope * (self.values - start)
