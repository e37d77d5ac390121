"""PSI and its differentiable stand-in of the same units, and the stand-in's calibration."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from psi_fast.evaluation import Background, evaluate
from psi_fast.experiments.lesson import Lesson, seen
from psi_fast.experiments.planted_units import Logits, Units, classifier_units, pure_logits
from psi_fast.experiments.study import Study
from psi_fast.pipeline import RANDOM_POOL, used_rows
from psi_fast.ranking import rank_maxima
from psi_fast.results import PatchEmbeddings
from psi_fast.surrogate import Calibration, Measures, calibrated, soft_measures

CANDIDATES = 1.5
"""Images that the stand-in looks at, in multiples of the top."""
MEMBERS = (2, 3)
"""Classes of the planted units of several meanings."""
UNITS = 100
"""Planted units of each kind."""
SCORES = ("psi", "log_psi", "S", "S_z", "Q_z", "D_z", "S_sd")


class Scoring:
    """How units are scored on the images of a lesson, by PSI and by its stand-in.

    Attributes
    ----------
    candidates : int
        Images of a unit that the stand-in looks at.
    about : JSON-ready, what decides the scores
    """

    def __init__(self, study: Study, own: Lesson) -> None:
        self.study, self.own = study, own
        self.config = study.with_changes(top_k=own.top)
        self.candidates = round(CANDIDATES * own.top)
        self._rows = seen(study, own)
        self.about = {
            "encoder": study.mark(study.subject.encoder),
            "concepts": [list(study.text.names), study.text.embeddings.double().sum(0).tolist()],
            "config": {k: v for k, v in self.config.to_dict().items() if k not in ("batch_size", "backend")},
            "stand-in": [CANDIDATES, UNITS, list(MEMBERS)],
        }

    def gram(self, images: np.ndarray) -> torch.Tensor:
        """Inner products [n, n] of the images' embeddings as PSI sees them."""
        rows = self._rows[images].to(self.study.subject.device)
        return rows @ rows.T

    def measured(
        self, activations: torch.Tensor, places: torch.Tensor, images: np.ndarray, gram: torch.Tensor
    ) -> Measures:
        """What the stand-in is made of, of activations [C, M] at `places` [C, M] in the `images` that `gram` is of."""
        labels = torch.from_numpy(self.own.classes[images]).to(places.device)
        return soft_measures(
            activations,
            gram[places[:, :, None], places[:, None]],
            labels[places],
            top_k=self.own.top,
            k_max=self.config.k_max,
            n_init=self.config.n_init,
            seed=self.config.seed + 1,  # not PSI's starts of k-means, whose chance both would share
        )

    def channels(
        self, maxima: torch.Tensor, positions: torch.Tensor, lowest: torch.Tensor, images: np.ndarray, ids: np.ndarray
    ) -> pd.DataFrame:
        """A row a channel that is no dead one, of maxima and positions [m, C] in the images [m], and the lowest values [C]."""
        labels = self.study.labels[images]
        names = [self.study.subject.images.names[image] for image in images]
        top = rank_maxima(maxima, positions, lowest, ids, names, self.config, labels)
        table = self._scored(np.where(top.dead[:, None], -1, top.images), images, ids, top.dead)
        values, places = maxima.T.topk(self.candidates, dim=1)
        return _living(table.join(_listed(self.measured(values, places, images, self.gram(images)))))

    def planted(self, logits: torch.Tensor, images: np.ndarray) -> pd.DataFrame:
        """A row a unit whose meaning is known, made of logits [m, c] of the images [m] and of random images.

        Units of several classes need as many classes whose logit stands for them; where there are no two, there are no units.
        """
        units = self._units(logits.numpy(), self.own.classes[images])
        if units is None:
            return pd.DataFrame(columns=pd.Index(["kind"]))
        count = len(units.images)
        table = self._scored(units.images[:, : self.own.top], images, np.arange(count), np.zeros(count, dtype=bool))
        values = torch.from_numpy(_falling(self.candidates, len(images))).float().expand(count, -1)
        found = self.measured(values, torch.from_numpy(units.images), images, self.gram(images))
        return _living(table.assign(kind=units.kind).join(_listed(found)))

    def _units(self, logits: np.ndarray, classes: np.ndarray) -> Units | None:
        chosen, _ = pure_logits(logits, classes, self.own.top)
        members = [size for size in MEMBERS if size <= len(chosen)]
        if not members:
            return None
        source = Logits(logits, [str(own) for own in self.own.outputs], "", np.zeros(4))
        rng = np.random.default_rng(self.config.seed)
        return classifier_units(source, chosen, members, UNITS, self.candidates, rng)

    def _scored(self, places: np.ndarray, images: np.ndarray, ids: np.ndarray, dead: np.ndarray) -> pd.DataFrame:
        """PSI and its parts of units that consist of `places` [U, K] in the images, -1 where there is none."""
        study = self.study
        rows, index = used_rows(self.own.rows[images], places)
        labels = study.labels[images]
        pool = np.random.default_rng(self.config.seed).permutation(len(images))[:RANDOM_POOL]
        unknown = np.full(len(ids), np.nan, dtype=np.float32)
        found = evaluate(
            PatchEmbeddings(rows, index, torch.from_numpy(ids)),
            torch.from_numpy(labels[places]),
            study.text,
            Background(self.own.rows[images[pool]], torch.from_numpy(labels[pool])),
            self.config,
            study.subject.device,
            study.bars,
            dead=dead,
            max_activation=unknown,
            selectivity=unknown,
            unselective=np.zeros(len(ids), dtype=bool),
            keep_draws=self.config.draws,
            centre=self.own.centre,
        )
        table = found.table.assign(S_sd=found.draws["S"].double().std(1).cpu().numpy())
        return table[["channel", *(name for name in SCORES if name in table)]].reset_index(drop=True)


def fitted(rows: pd.DataFrame) -> Calibration:
    """The stand-in's calibration by scored units, a row each."""
    return calibrated(_measures(rows), *(_tensor(rows, name) for name in ("S_z", "S_sd", "Q_z")))


def with_stand_in(rows: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The rows with the stand-ins of the z of S and Q, of ln PSI and of PSI."""
    found = calibration(_measures(rows))
    stand_ins = {
        "soft_S_z": found.S_z,
        "soft_Q_z": found.Q_z,
        "soft_log_psi": found.log_psi,
        "soft": found.log_psi.exp(),
    }
    return rows.assign(**{name: own.numpy() for name, own in stand_ins.items()})


def _falling(count: int, images: int) -> np.ndarray:
    """What the strongest `count` of so many images have where activations are normal, [count]: planted units have ranks alone."""
    return norm.isf((np.arange(count) + 0.5) / images)


MEASURED = ("soft_S", "soft_Q", "share", "variance")


def _listed(measures: Measures) -> pd.DataFrame:
    held = (measures.S, measures.Q, measures.spectrum[:, 1], measures.spectrum[:, 2])
    return pd.DataFrame({name: own.double().cpu().numpy() for name, own in zip(MEASURED, held, strict=True)})


def _measures(rows: pd.DataFrame) -> Measures:
    S, Q, share, variance = (_tensor(rows, name) for name in MEASURED)
    return Measures(S, Q, torch.stack([torch.ones_like(share), share, variance], 1))


def _tensor(rows: pd.DataFrame, name: str) -> torch.Tensor:
    return torch.from_numpy(rows[name].to_numpy(dtype=np.float64, copy=True))


def _living(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[np.isfinite(rows["log_psi"])].reset_index(drop=True)
