"""What lies behind the scores of a finished run, for its report and figures. C channels, K patches each, U distinct ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from psi_fast import store
from psi_fast.calibration import calibrate, combine
from psi_fast.clustering import unit_gram
from psi_fast.errors import InputError, nearest
from psi_fast.evaluation import centred_bank, without
from psi_fast.forward import one_thread
from psi_fast.neighbours import Neighbours, neighbours
from psi_fast.results import Bank, PatchEmbeddings
from psi_fast.scores import Scores
from psi_fast_kernels._batched import products
from psi_fast_kernels._tiling import rows_per_chunk
from psi_fast_kernels.cluster import silhouettes

if TYPE_CHECKING:
    from psi_fast.experiments.outcome import Outcome

BUDGET = 128 * 2**20  # bytes that a part of the channels takes
AT_ONCE = 2**14  # distinct patches that are centred at once
SAMPLE = 20_000  # null draws of ln PSI
SWAPS = "patch-swap"


class Part(NamedTuple):
    """c of the asked rows that lie in one layer and have n patches each.

    place : [c] int64 into the asked rows
    columns : [c, n] int64 into their K places
    embeddings : [c, n, d] float32 unit rows, as they were scored
    """

    place: Tensor
    columns: Tensor
    embeddings: Tensor


@dataclass(frozen=True, repr=False)
class Details:
    """A finished run opened for reading. `rows` are rows of `scores.table`, in any order.

    Attributes
    ----------
    folder : Path
    scores : Scores
    unique : [U, d] float32, embedding of each distinct patch, a unit row, without centring
    index : [C, K] int64 into unique, -1 where there is no patch
    text : [P, d] float32, embedding of each concept, a unit row, without centring
    concepts : [P], their names
    distributions : tensors of the file of that name
    """

    folder: Path
    scores: Scores
    unique: Tensor
    index: Tensor
    text: Tensor
    concepts: list[str]
    distributions: dict[str, Tensor]

    def __repr__(self) -> str:
        return f"Details({self.name}, {len(self.index)} channels, {len(self.unique)} distinct patches)"

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.folder.resolve().name

    @cached_property
    def layers(self) -> dict[str, np.ndarray]:
        """Rows [..] int64 of each layer, in the table's order."""
        layer = self.scores.table["layer"].to_numpy()
        return {name: np.flatnonzero(layer == name) for name in dict.fromkeys(layer)}

    @property
    def present(self) -> str:
        """The components that the scores are made of, such as "SQD"."""
        return str(self.scores.table["components"].iloc[0])

    def address(self, row: int) -> str:
        """The channel in a row, as `layer4/1234`."""
        return "{layer}/{channel}".format(**self.scores.table.loc[row, ["layer", "channel"]])

    def row(self, address: str) -> int:
        """The row of a channel such as `layer4/1234`; in a run of one layer the number alone says which.

        Raises
        ------
        InputError
            It names no channel of the run.
        """
        layer, _, number = address.rpartition("/")
        layer = layer or (next(iter(self.layers)) if len(self.layers) == 1 else "")
        if not layer or not number.isdecimal():
            raise InputError(f"a channel is given as LAYER/NUMBER, such as {self.address(0)}, got {address!r}")
        if layer not in self.layers:
            raise InputError(f"{self.folder} has no layer {layer!r}{nearest(layer, self.layers)}")
        channels = self.scores.table["channel"].to_numpy()[self.layers[layer]]
        found = self.layers[layer][channels == int(number)]
        if not len(found):
            raise InputError(
                f"{layer} in {self.folder} has no channel {int(number)}; it has {len(channels)}, from {channels.min()} to "
                f"{channels.max()}"
            )
        return int(found[0])

    def patches(self, row: int) -> pd.DataFrame:
        """The channel's rows of `scores.patches`, by rank."""
        patches = self.scores.patches
        assert patches is not None, "a run folder has patches"
        layer, channel = self.scores.table.loc[row, ["layer", "channel"]]
        return patches.loc[(patches["layer"] == layer) & (patches["channel"] == channel)]

    def silhouettes(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Silhouette of each patch by cosine distance, [c, K] float32 in [-1, 1]; nan where there is no patch or no score.

        Their mean over a channel is its S.
        """
        rows = np.asarray(rows)
        found = np.full((len(rows), self.index.shape[1]), np.nan, dtype=np.float32)
        for place, columns, embeddings in self._scored(rows):
            at = place[:, None], columns
            labels = torch.from_numpy(self.scores.labels[rows])[at]
            found[at] = silhouettes(unit_gram(embeddings), labels, self._k_max).numpy()
        return found

    def principal(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First two principal coordinates of the patches of each channel, and how much of their variance they have.

        The axes are eigenvectors of the Gram matrix of the embeddings less their mean; in each the patch farthest from 0 has a
        positive coordinate.

        Returns
        -------
        coordinates : [c, K, 2] float32, nan where there is no patch
        shares : [c, 2] float32 in [0, 1], nan for a channel without patches, 0 where all patches are alike
        """
        rows = np.asarray(rows)
        coordinates = np.full((len(rows), self.index.shape[1], 2), np.nan, dtype=np.float32)
        shares = np.full((len(rows), 2), np.nan, dtype=np.float32)
        for place, columns, embeddings in self._parts(rows):
            centred = embeddings - embeddings.mean(1, keepdim=True)
            with one_thread():  # LAPACK's own threads wait for each other on matrices as small as these
                values, vectors = torch.linalg.eigh(products(centred, centred.mT).double())
            values = values.clamp(min=0).flip(-1)
            found = torch.zeros(*columns.shape, 2, dtype=torch.float64)
            axes = min(2, columns.shape[1])
            found[..., :axes] = vectors.flip(-1)[..., :axes] * values[:, None, :axes].sqrt()
            farthest = found.gather(1, found.abs().argmax(1, keepdim=True))
            coordinates[place[:, None], columns] = torch.where(farthest < 0, -found, found).float().numpy()
            total = values.sum(-1, keepdim=True)
            shares[place] = 0
            shares[place, :axes] = (values[:, :axes] / total.clamp(min=torch.finfo(total.dtype).tiny)).float().numpy()
        return coordinates, shares

    def cluster_concepts(self, rows: Sequence[int] | np.ndarray, count: int = 5) -> list[list[list[tuple[str, float]]]]:
        """For each channel and each of its clusters the `count` nearest concepts, with their cosines to the cluster's mean.

        The first is the one in the table's column `concepts`. Concepts and patches are centred as they were scored.
        """
        rows = np.asarray(rows)
        found: list[list[list[tuple[str, float]]]] = [[] for _ in rows]
        number, named = {name: i for i, name in enumerate(self.concepts)}, self.scores.table["concepts"]
        bank = self._bank.embeddings
        for place, columns, embeddings in self._scored(rows):
            labels = torch.from_numpy(self.scores.labels[rows])[place[:, None], columns]
            members = one_hot(labels, self._k_max).to(embeddings.dtype)
            cosines = normalize(products(members.mT, embeddings), dim=-1) @ bank.T
            for row, own in zip(place.tolist(), cosines, strict=True):
                first = torch.tensor([number[name] for name in named[rows[row]]])
                own = own[: len(first)]
                # the last bits may tell equally near concepts apart in another way than those of the run did
                order = own.scatter(1, first[:, None], torch.inf).topk(min(count, len(bank))).indices
                found[row] = [
                    [(self.concepts[concept], value) for concept, value in zip(*cluster, strict=True)]
                    for cluster in zip(order.tolist(), own.gather(1, order).tolist(), strict=True)
                ]
        return found

    def cluster_classes(self, rows: Sequence[int] | np.ndarray, count: int = 5) -> list[list[list[tuple[str, int]]]]:
        """For each channel and each of its clusters the `count` most frequent classes and how many patches are of them.

        Of equally frequent ones the first by name. Empty lists without labels.
        """
        found = []
        for row in np.asarray(rows).tolist():
            own: list[list[tuple[str, int]]] = []
            for cluster in range(self.scores.table["k"].iloc[row]):
                classes = self._class_of[row, self.scores.labels[row] == cluster]
                numbers, counts = np.unique(classes[classes >= 0], return_counts=True)
                order = np.argsort(-counts, kind="stable")[:count]
                own.append([(self._classes[numbers[i]], int(counts[i])) for i in order])
            found.append(own)
        return found

    def null_draws(self, component: str) -> np.ndarray | None:
        """The first null draws [C, b] float32 of "S", "Q" or "D"; nan for channels without score, None for an absent one."""
        found = self.distributions.get(f"{component}_null")
        return None if found is None else found.numpy()

    @property
    def image_maxima(self) -> np.ndarray:
        """Each channel's largest activation in n images spread over the set, [C, n] float32 in the network's unit."""
        return self.distributions["image_maxima"].numpy()

    def random_log_psi(self, layer: str) -> np.ndarray:
        """ln PSI [100] float64 of the layer's random-patch channels."""
        return self.distributions["random_log_psi"][self.scores.manifest["layers"].index(layer)].numpy()

    def null_log_psi(self, layer: str) -> np.ndarray:
        """ln PSI [n] float64 that null draws of the layer's scored channels have, n <= 20000, the same ones at every call.

        The draws of a channel's components are taken together by their number and calibrated as what was observed is.
        """
        rows = self.layers[layer]
        rows = rows[self.scores.table["k"].to_numpy()[rows] > 0]
        drawn = {name: self.null_draws(name) for name in self.present}
        held = {name: own for name, own in drawn.items() if own is not None}
        draws = next(iter(held.values())).shape[1]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows) * draws)[:SAMPLE])
        row, draw = np.divmod(chosen, draws)
        parts = []
        for name, own in held.items():
            mean, sd = (self.scores.table[f"{name}_null_{of}"].to_numpy()[rows[row]] for of in ("mean", "sd"))
            parts.append(calibrate(own[rows[row], draw].astype(np.float64), mean, sd, np.ones(len(row))))
        return combine(parts)[0]

    def neighbours(self, count: int = 8) -> list[Neighbours]:
        """For each row of the table at most `count` channels of its layer that share most of its patches, and of its concepts.

        A patch is shared where both have the same place of the same image.
        """
        table, found = self.scores.table, []
        for rows in self.layers.values():
            concepts, sizes = (table[name].iloc[rows].tolist() for name in ("concepts", "cluster_sizes"))
            for patches, alike in neighbours(self.index[rows].numpy(), concepts, sizes, count):
                found.append(
                    Neighbours(
                        [(int(rows[j]), shared, jaccard) for j, shared, jaccard in patches],
                        [(int(rows[j]), share) for j, share in alike],
                    )
                )
        return found

    @cached_property
    def experiments(self) -> list["Outcome"]:
        """The finished experiments in the run folder, by name."""
        from psi_fast.experiments.outcome import MANIFEST, read_outcome

        return [read_outcome(path.parent) for path in sorted((self.folder / store.EXPERIMENTS).glob(f"*/{MANIFEST}"))]

    @property
    def swaps(self) -> pd.DataFrame | None:
        """The table of the experiment patch-swap, a row a channel and condition; None where it was not run."""
        return next((own.table for own in self.experiments if own.name == SWAPS), None)

    @property
    def _k_max(self) -> int:
        return self.scores.manifest["config"]["k_max"]

    @cached_property
    def _bank(self) -> Bank:
        """The concepts as they were scored."""
        bank = Bank(tuple(self.concepts), self.text)
        return centred_bank(bank) if self.scores.manifest["config"]["center"] else bank

    @cached_property
    def _latest(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What `_patches_of` last found: the next question is mostly about the same layer, and one layer fits into memory."""
        return {}

    def _patches_of(self, layer: str) -> tuple[Tensor, Tensor]:
        """Embeddings [u, d] float32 of a layer's distinct patches as they were scored, and index [c, K] of its channels."""
        if layer not in self._latest:
            index = self.index[self.layers[layer]]
            used, own = torch.unique(index[index >= 0], return_inverse=True)
            places = torch.full_like(index, -1).masked_scatter(index >= 0, own)
            embeddings = self.unique[used]
            if self.scores.manifest["config"]["center"]:
                centre = torch.stack([part.double().sum(0) for part in embeddings.split(AT_ONCE)]).sum(0) / len(used)
                for part in embeddings.split(AT_ONCE):  # a copy of the run's own
                    part.copy_(without(part, centre))
            self._latest.clear()
            self._latest[layer] = embeddings, places
        return self._latest[layer]

    @cached_property
    def _classes(self) -> list[str]:
        """The classes of the patches, by name."""
        assert self.scores.patches is not None, "a run folder has patches"
        return sorted(self.scores.patches["label"].dropna().unique())

    @cached_property
    def _class_of(self) -> np.ndarray:
        """Number of each patch's class, [C, K] int64; -1 where it has none."""
        patches = self.scores.patches
        assert patches is not None, "a run folder has patches"
        keys = ["layer", "channel"]
        row = pd.MultiIndex.from_frame(self.scores.table[keys]).get_indexer(pd.MultiIndex.from_frame(patches[keys]))
        found = np.full(self.index.shape, -1, dtype=np.int64)
        found[row, patches["rank"].to_numpy()] = pd.Index(self._classes).get_indexer(pd.Index(patches["label"]))
        return found

    def _scored(self, rows: np.ndarray) -> Iterator[Part]:
        """As `_parts`, of the rows that have a score alone."""
        scored = np.flatnonzero(self.scores.table["k"].to_numpy()[rows] > 0)
        for place, columns, embeddings in self._parts(rows[scored]):
            yield Part(torch.from_numpy(scored)[place], columns, embeddings)

    def _parts(self, rows: np.ndarray) -> Iterator[Part]:
        """The rows that have patches, in parts that fit into memory."""
        layer = self.scores.table["layer"].to_numpy()[rows]
        for name in dict.fromkeys(layer):
            places = np.flatnonzero(layer == name)
            unique, index = self._patches_of(name)
            own = torch.from_numpy(places)
            held = PatchEmbeddings(unique, index[np.searchsorted(self.layers[name], rows[places])], own)
            for group in held.groups(at_least=1):
                per_row = 8 * unique.shape[1] * group.columns.shape[1] + 8 * self._k_max * len(self.text)
                step = rows_per_chunk(per_row, budget_bytes=BUDGET)
                for part, columns in zip(group.rows.split(step), group.columns.split(step), strict=True):
                    yield Part(own[part], columns, unique[held.index[part[:, None], columns]])


def open_details(folder: str | Path) -> Details:
    """The finished run in `folder` with what lies behind its scores.

    Raises
    ------
    StoreError
        There is no finished run, or one of an earlier version without null draws, or a file of it cannot be read.
    """
    scores, distributions = store.load(folder), store.load_distributions(folder)
    tensors, concepts = store.load_embeddings(folder)
    unique, index, text = (tensors[name] for name in ("unique", "index", "text"))
    return Details(Path(folder), scores, unique, index, text, concepts, distributions)
