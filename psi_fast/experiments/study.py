"""A study: one subject under many experiments, which share its mined patches, embeddings and scores through its folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.crops import distinct_crops
from psi_fast.disk_room import require_free, shelf_bytes
from psi_fast.embedding import shelved_crops
from psi_fast.encoders import Encoder
from psi_fast.encoders.text_head import TextHead
from psi_fast.errors import InputError, nearest
from psi_fast.evaluation import Background, Evaluation, evaluate
from psi_fast.experiments.survey import Survey, survey
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.mining import random_patches
from psi_fast.networks import Network
from psi_fast.paths import require_path
from psi_fast.pipeline import RANDOM_POOL, measured_fields, patch_boxes, used_rows
from psi_fast.progress import Progress
from psi_fast.receptive_field import Field
from psi_fast.results import Bank, Clusters, PatchEmbeddings, TopPatches
from psi_fast.shelf import Shelf, content
from psi_fast.store import SHARED
from psi_fast.subject import SETTINGS_WITHOUT_EFFECT, Subject, open_subject

CHANGES = ("k_max", "n_init", "distinctness", "rotation", "text_null", "text_pool", "draws", "exact", "seed", "center")
"""Settings that act behind the embeddings, so that trying others costs no forward pass."""


class Study:
    """A network's layers, images and an encoder, and what was computed of them so far.

    Takes the arguments of `psi_fast.score`. `out` is a run folder, of a finished run or none; experiments keep what they
    share in its folder `shared` (or in `share`), and their results in `experiments`.

    Attributes
    ----------
    subject : Subject
    layers : list[str]
    folder : Path
    bars : Progress
    """

    def __init__(
        self,
        model: str | nn.Module | Network,
        layer: str | Sequence[str],
        images: Any,
        *,
        encoder: str | Encoder,
        out: str | Path,
        vocabulary: str | None = None,
        text_head: str | TextHead | None = None,
        config: PSIConfig | None = None,
        channels: slice | Sequence[int] | None = None,
        device: str = "auto",
        progress: bool = True,
        max_images: int | None = None,
        skip_unreadable: bool = False,
        bank: str | Path | None = None,
        bank_side: int | None = None,
        share: str | Path | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        self.bars, self.trust_checkpoint = Progress(progress), trust_checkpoint
        for name, path in (("out", out), ("bank", bank), ("share", share)):
            if path is not None:
                require_path(name, path)
        self.subject: Subject = open_subject(
            model,
            layer,
            images,
            encoder=encoder,
            vocabulary=vocabulary,
            text_head=text_head,
            config=config,
            channels=channels,
            device=device,
            max_images=max_images,
            skip_unreadable=skip_unreadable,
            bank=bank,
            bank_side=bank_side,
            trust_checkpoint=trust_checkpoint,
            bars=self.bars,
        )
        self.about = self.subject.about(images, max_images, skip_unreadable)
        self.layers = [tap.layer for tap in self.subject.taps]
        self.folder = Path(out)
        self.shelf = Shelf(self.folder / SHARED if share is None else Path(share))
        self.said: list[str] = []
        """What a reader of the results must know, as it turns up."""
        self._marks: dict[int, tuple[Encoder, str]] = {}
        self._surveys: dict[str, Survey] = {}
        self._evaluations: dict[str, Evaluation] = {}

    @property
    def config(self) -> PSIConfig:
        """The settings all experiments start from."""
        return self.subject.config

    @cached_property
    def squares(self) -> ImageBank | ImageStream:
        """The images, decoded."""
        with self.bars.stage("decoding"):
            return self.subject.squares(self.bars)

    @cached_property
    def text(self) -> Bank:
        """The concepts, embedded; with the text head's rows where the study has one."""
        with self.bars.stage("concepts"):
            bank, said = self.subject.concepts(self.bars)
        self.said += said
        return bank

    @cached_property
    def fields(self) -> dict[str, Field]:
        """What a unit of each layer sees."""
        with self.bars.stage("patch size"):
            return dict(zip(self.layers, measured_fields(self.subject, self.squares), strict=True))

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, int64 [N].

        Raises
        ------
        InputError
            The images have none.
        """
        labels = self.subject.images.labels
        if labels is None:
            raise InputError(
                "this experiment compares with class labels, and the images have none; give a folder with a sub-folder per "
                "class, Tiny-ImageNet or a labelled data set"
            )
        return labels

    def tap(self, layer: str) -> ActivationTap:
        """The tap of a layer of the study."""
        return self.subject.taps[self._index(layer)]

    def channels(self, layer: str) -> np.ndarray:
        """Ids of the layer's channels in the study, int64 [C]."""
        return self.subject.channels[self._index(layer)]

    def survey(self, layer: str) -> Survey:
        """Each channel's largest activation in every image: one pass over the images for all layers, kept on the shelf."""
        self._index(layer)
        if not self._surveys:
            squares = self.squares  # first, since a bank on the same disk takes its share
            self._require_room()
            with self.bars.stage("mining"):
                self._surveys = survey(self.subject, squares, self.shelf, self.bars, self.said)
        return self._surveys[layer]

    def _require_room(self) -> None:
        """StoreError where the shelf's disk cannot hold what experiments share, beside what lies there already."""
        require_free(
            self.shelf.folder,
            shelf_bytes(self.subject, self.text) - self.shelf.bytes(),
            "what experiments share may need up to",
            "give another folder (--out), fewer channels (--channels) or fewer images (--max-images)",
        )

    def spread(self, layer: str, count: int) -> np.ndarray:
        """`count` of the layer's channels in the study, evenly over them, or all where there are fewer, int64."""
        return spread(self.channels(layer), count)

    def top(
        self, layer: str, config: PSIConfig | None = None, channels: Sequence[int] | np.ndarray | None = None
    ) -> TopPatches:
        """The top patches of the layer, or of `channels` of it, or their band's; other settings of mining are the study's."""
        ids, columns = self._chosen(layer, channels)
        return self.survey(layer).top(ids, config or self.config, columns)

    def boxes(self, layer: str, positions: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] float64 (x0, y0, x1, y1) in px of the decoded squares, of the layer's positions [...]."""
        return patch_boxes(self.tap(layer), self.fields[layer], positions, self.squares.side)

    def embed(
        self, images: np.ndarray, boxes: np.ndarray, encoder: Encoder | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Unit embeddings [U, d] of the distinct patches, and where each place finds its own; kept on the shelf.

        Parameters
        ----------
        images : [...] int64, -1 for a place without a patch
        boxes : [..., 4] float64 in px of the decoded squares
        encoder : of the study by default
        """
        encoder = encoder or self.subject.encoder
        crops, index = distinct_crops(images, boxes)
        with self.bars.stage("embedding"):
            rows = shelved_crops(
                crops, self.squares, self.subject, encoder, self.mark(encoder), self.shelf, self.bars, self.said
            )
        return rows, index

    def patches(
        self,
        layer: str,
        config: PSIConfig | None = None,
        encoder: Encoder | None = None,
        channels: Sequence[int] | np.ndarray | None = None,
    ) -> tuple[TopPatches, PatchEmbeddings, Background]:
        """The patches of the layer, or of `channels` of it, embedded, and as many random ones as a run has.

        Dead channels have none.
        """
        config = config or self.config
        top = self.top(layer, config, channels)
        images, positions = random_patches(
            RANDOM_POOL, self.tap(layer).positions, len(self.subject.images), config.seed
        )
        held = np.where(top.dead[:, None], -1, top.images)
        rows, index = self.embed(
            np.concatenate([held.ravel(), images]),
            np.concatenate([self.boxes(layer, top.positions).reshape(-1, 4), self.boxes(layer, positions)]),
            encoder,
        )
        own, random = index[: held.size].reshape(held.shape), index[held.size :]
        labels = self.subject.images.labels
        background = Background(rows[random], None if labels is None else torch.as_tensor(labels[images]))
        return top, PatchEmbeddings(*used_rows(rows, own), torch.as_tensor(top.channels)), background

    def evaluation(
        self,
        layer: str,
        config: PSIConfig | None = None,
        encoder: Encoder | None = None,
        text: Bank | None = None,
        channels: Sequence[int] | np.ndarray | None = None,
    ) -> Evaluation:
        """The layer's scores with their null draws, as `psi_fast.score` has them; kept on the shelf.

        Parameters
        ----------
        config : settings other than the study's: `top_k`, `band`, and those of `CHANGES`
        encoder, text : another encoder, which then needs its concepts
        channels : ids of some of the study's; they are centred on the mean of their own patches. Default all
        """
        config = config or self.config
        ids, _ = self._chosen(layer, channels)
        text = self.text if text is None else text
        about = {
            "network": self.subject.fingerprints["network"],
            "pace": str(self.survey(layer).pace),
            "layer": layer,
            "channels": ids.tolist(),
            "images": self.subject.fingerprints["images"],
            "side": self.squares.side,
            "encoder": self.mark(encoder or self.subject.encoder),
            "code": self.subject.fingerprints["code"],
            "device": self.subject.device.type,
            "text": _content(text),
            "config": {k: v for k, v in config.to_dict().items() if k not in SETTINGS_WITHOUT_EFFECT},
        }
        key = repr(about)
        if key not in self._evaluations:
            with self.bars.within(layer if len(self.layers) > 1 else ""):
                self._evaluations[key] = self._shelved(layer, config, encoder, text, ids, about)
        return self._evaluations[key]

    def _shelved(
        self,
        layer: str,
        config: PSIConfig,
        encoder: Encoder | None,
        text: Bank,
        channels: np.ndarray,
        about: dict[str, Any],
    ) -> Evaluation:
        made: list[Evaluation] = []

        def make() -> Evaluation:
            if not made:
                made.append(self._evaluated(layer, config, encoder, text, channels))
            return made[0]

        def tensors() -> dict[str, torch.Tensor]:
            found = make()
            centre = {} if found.centre is None else {"centre": found.centre}
            return vars(found.clusters) | {f"draws {name}": own for name, own in found.draws.items()} | centre

        held = self.shelf.tensors("clusters", about, tensors)
        table, random = (
            self.shelf.table(kind, about, lambda kind=kind: _listed(getattr(make(), kind)))
            for kind in ("table", "random")
        )
        return Evaluation(
            table,
            random,
            Clusters(*(held[name] for name in ("labels", "k", "silhouette", "prototypes"))),
            {name: held[f"draws {name}"] for name in "SQD" if f"draws {name}" in held},
            held.get("centre"),
        )

    def _evaluated(
        self, layer: str, config: PSIConfig, encoder: Encoder | None, text: Bank, channels: np.ndarray
    ) -> Evaluation:
        top, patches, background = self.patches(layer, config, encoder, channels)
        labels = self.subject.images.labels
        return evaluate(
            patches,
            None if labels is None else torch.as_tensor(labels[top.images]),
            text,
            background,
            config,
            self.subject.device,
            self.bars,
            dead=top.dead,
            max_activation=top.highest,
            selectivity=top.selectivity,
            unselective=top.unselective,
            weights=top.weights,
            class_selectivity=top.class_selectivity,
            keep_draws=config.draws,
        )

    def scored(
        self,
        patches: PatchEmbeddings,
        classes: np.ndarray | None,
        text: Bank | None,
        config: PSIConfig,
        bars: Progress | None = None,
    ) -> Evaluation:
        """Scores of units that are no channels, and so have no activations; `classes` [C, K] int64. Nothing is kept."""
        count = len(patches.index)
        unknown, nothing = np.full(count, np.nan, dtype=np.float32), np.zeros(count, dtype=bool)
        return evaluate(
            patches,
            None if classes is None else torch.as_tensor(classes),
            text,
            None,
            config,
            self.subject.device,
            bars or self.bars,
            dead=nothing,
            max_activation=unknown,
            selectivity=unknown,
            unselective=nothing,
        )

    def mark(self, encoder: Encoder) -> str:
        """The encoder's fingerprint, which takes a while to compute."""
        if encoder is self.subject.encoder:
            return self.subject.fingerprints["encoder"]
        if id(encoder) not in self._marks:
            self._marks[id(encoder)] = (encoder, encoder.fingerprint())  # held, so that no other object gets its id
        return self._marks[id(encoder)][1]

    def with_changes(self, **changes: Any) -> PSIConfig:
        """The study's settings with some of `top_k`, `band` and those of CHANGES changed."""
        return replace(self.config, **changes)

    def _chosen(self, layer: str, channels: Sequence[int] | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the channels, all of the layer's in the study by default, and their places among these."""
        held = self.channels(layer)
        ids = held if channels is None else np.asarray(channels, dtype=np.int64)
        if len(missing := np.setdiff1d(ids, held)):
            raise InputError(f"channel {missing[0]} of {layer} is not of this study; give it with --channels")
        order = np.argsort(held)
        return ids, order[np.searchsorted(held, ids, sorter=order)]

    def _index(self, layer: str) -> int:
        if layer not in self.layers:
            raise InputError(f"layer {layer!r} is not of this study{nearest(layer, self.layers)}; give it with --layer")
        return self.layers.index(layer)


def spread(ids: np.ndarray, count: int) -> np.ndarray:
    """`count` of the ids [n], evenly over their order, or all where there are fewer."""
    return ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)]


def _content(bank: Bank) -> list[Any]:
    """What tells a bank of concepts from another."""
    rows = {"text": bank.embeddings} | ({} if bank.head is None else {"head": bank.head})
    return [content(rows), list(bank.names)]


def _listed(table: pd.DataFrame) -> pd.DataFrame:
    """The table as parquet takes it, whatever its index."""
    return table.reset_index(drop=True)
