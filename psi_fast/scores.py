"""The scores of a run: one table row per channel, and the cluster of every patch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from psi_fast.calibration import Calibrated, calibrate, combine, discovery_rate, percentile
from psi_fast.results import (
    COMPONENTS,
    Bank,
    Clusters,
    Components,
    NullMoments,
    PatchEmbeddings,
    PeerScores,
    TopPatches,
)

FLAGS = {
    "dead": "the activation is the same everywhere: no score",
    "few_patches": "too few patches: no score",
    "unselective": "the patches are no more active than random images: any patch would have done as well",
    "degenerate:S": "S's null does not vary, so S says nothing",
    "degenerate:Q": "Q's null does not vary (labels all alike or all different): p is 1 and PSI cannot exceed .5",
    "degenerate:D": "D's null does not vary, so D says nothing",
}
"""What is said of a channel, and what it means."""


@dataclass(frozen=True, repr=False)
class Scores:
    """Calibrated polysemanticity of each channel.

    Attributes
    ----------
    table : pandas.DataFrame
        A row a channel: layer (where a network was read), channel, psi in [0, 1], log_psi, p and q in (0, 1], k,
        cluster_sizes, concepts, max_activation, selectivity, random_percentile in [0, 100], flags, components, for each X
        of S, Q, D: X, X_null_mean, X_null_sd, X_z, X_hat, X_p; S_z_independent; and what others score: clarity,
        polysemanticity, monosemanticity, class_selectivity. nan where a channel is not scored or a component is absent. q and
        random_percentile are within a layer. selectivity: how far the patches' mean activation lies above that of all images,
        in standard deviations of the images' maxima.
    labels : [C, K] int64
        Cluster of each patch, 0 the largest; -1 where there is none.
    manifest : dict
        Settings, versions, fingerprints and timings of the run; empty for `score_embeddings`.
    patches : pandas.DataFrame or None
        A row a patch: layer, channel, rank, image, box (x0, y0, x1, y1 in image pixels), activation, label, cluster.
    """

    table: pd.DataFrame
    labels: np.ndarray
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    patches: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"Scores({len(self.table)} channels, {self.significant()} significant at q < .05, columns {list(self.table)})"

    def to_parquet(self, path: str | Path) -> None:
        """Write `table` to a parquet file."""
        self.table.to_parquet(path, index=False)

    def top(self, count: int = 15) -> pd.DataFrame:
        """The `count` most polysemantic channels, by log_psi."""
        return self.table.dropna(subset="log_psi").nlargest(count, "log_psi")

    def flag_counts(self) -> dict[str, int]:
        """How many channels carry each flag."""
        counts = self.table["flags"].explode().dropna().value_counts()
        return {str(name): int(count) for name, count in counts.items()}

    def significant(self, q: float = 0.05) -> int:
        """How many channels are polysemantic at false discovery rate `q`."""
        return int((self.table["q"] < q).sum())


def cautions(table: pd.DataFrame, draws: int) -> list[str]:
    """What about a run keeps its channels from being significant, whatever they do."""
    found: list[str] = []
    if draws < 20:
        found.append(
            f"{draws} draws give p >= {1 / (draws + 1):.3f}, so no channel can be significant; use at least 20"
        )
    parts = table["components"].iloc[0] if len(table) else "SQD"
    if parts != "SQD":
        found.append(
            f"PSI is made of {' and '.join(parts)} alone, as there are no {'labels' if 'Q' not in parts else 'concepts'}; it "
            "cannot be compared with that of runs that have all three"
        )
    for name in COMPONENTS:
        count = sum(f"degenerate:{name}" in own for own in table["flags"])
        if count:
            found.append(
                f"{name} is degenerate in {count} of {len(table)} channels (its null does not vary"
                + (", as when a channel's labels are all alike or all different" if name == "Q" else "")
                + "): p = 1 there, and PSI cannot exceed .5"
            )
    return found


def few_draws(table: pd.DataFrame, draws: int) -> list[str]:
    """Of each layer without a significant channel: that some have the smallest p that so few draws can give, if they do.

    Corrected for the layer's other channels, that p is too large; more draws could tell.
    """
    found: list[str] = []
    for layer, own in table.groupby("layer", sort=False):
        scored, lowest = int(own["p"].notna().sum()), int((own["p"] <= 1 / (draws + 1) * (1 + 1e-9)).sum())
        if draws < 20 or not lowest or (own["q"] < 0.05).any():  # below 20, `cautions` says so
            continue
        found.append(
            f"no channel of {layer} is significant with {draws} draws: {lowest} of {scored} have the smallest p there is, "
            f"1/{draws + 1}, which is q = {scored / lowest / (draws + 1):.2g} among so many; take at least "
            f"{20 * scored // lowest} draws"
        )
    return found


def tabulate(
    patches: PatchEmbeddings,
    clusters: Clusters,
    components: Components,
    nulls: dict[str, NullMoments],
    bank: Bank | None,
    peers: PeerScores,
    *,
    dead: np.ndarray,
    max_activation: np.ndarray,
    selectivity: np.ndarray,
    unselective: np.ndarray,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The score tables of the layer's own channels and of the random-patch channels, the baseline of `random_percentile`.

    Parameters
    ----------
    dead, max_activation, selectivity, unselective : [real] bool, float32, float32 and bool
    """
    real = patches.real
    parts: dict[str, tuple[np.ndarray, NullMoments, Calibrated]] = {}
    for name, observed in components.present().items():
        null = nulls[name]
        parts[name] = (
            observed.cpu().numpy(),
            null,
            calibrate(observed.cpu().numpy(), *(x.cpu().numpy() for x in (null.mean, null.sd, null.p))),
        )
    log_psi, p = combine([part for _, _, part in parts.values()])
    independent = nulls["S_independent"]
    beside = calibrate(*(x.cpu().numpy() for x in (components.S, independent.mean, independent.sd, independent.p)))
    k = clusters.k.cpu().numpy()
    labels, concepts = clusters.labels.cpu().numpy(), components.concepts.cpu().numpy()

    unknown = np.full(patches.random, np.nan, dtype=np.float32)
    dead, unselective = (np.append(part, np.zeros(patches.random, dtype=bool)) for part in (dead, unselective))
    flags: list[list[str]] = []
    for i in range(len(k)):
        own = ["dead"] if dead[i] else ["few_patches"] if k[i] == 0 else []
        own += ["unselective"] if unselective[i] else []
        own += [f"degenerate:{name}" for name, (_, _, part) in parts.items() if part.degenerate[i]]
        flags.append(own)
    columns: dict[str, Any] = {
        "channel": patches.channel.cpu().numpy(),
        "psi": np.exp(log_psi),
        "log_psi": log_psi,
        "p": p,
        "q": np.concatenate([discovery_rate(p[:real]), discovery_rate(p[real:])]),
        "k": k,
        "cluster_sizes": [np.bincount(row[row >= 0], minlength=n).tolist() for row, n in zip(labels, k, strict=True)],
        "concepts": [[bank.names[t] for t in row[row >= 0]] if bank else [] for row in concepts],
        "max_activation": np.append(max_activation, unknown),
        "selectivity": np.append(selectivity, unknown),
        "random_percentile": percentile(log_psi, log_psi[real:]),
        "flags": flags,
        "components": "".join(parts),
    }
    for name in COMPONENTS:
        fields = ("", "_null_mean", "_null_sd", "_z", "_hat", "_p")
        if name in parts:
            observed, null, part = parts[name]
            values = (observed, null.mean.cpu().numpy(), null.sd.cpu().numpy(), part.z, part.hat, part.p)
        else:
            values = (np.full(len(k), np.nan),) * len(fields)
        columns |= {name + suffix: value for suffix, value in zip(fields, values, strict=True)}
    columns["S_z_independent"] = beside.z
    columns |= {name: value.cpu().numpy() for name, value in vars(peers).items()}
    table = pd.DataFrame(columns)
    return table[:real], table[real:].reset_index(drop=True)


def patch_table(
    top: TopPatches,
    box: np.ndarray,
    clusters: np.ndarray,
    names: Sequence[str],
    labels: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> pd.DataFrame:
    """A row a patch, by channel and rank: box [C, K, 4] in px of its image, clusters [C, K]; names, labels [N] of the images."""
    row, rank = np.nonzero(top.valid)
    image = top.images[row, rank]
    return pd.DataFrame(
        {
            "channel": top.channels[row],
            "rank": rank,
            "image": np.array([printable(name) for name in names], dtype=object)[image],
            "box": list(box[row, rank].astype(np.float32)),
            "activation": top.values[row, rank],
            "label": None if labels is None else np.asarray(class_names, object)[labels[image]],
            "cluster": clusters[row, rank],
        }
    )


def printable(name: str) -> str:
    """An image's name as `patches` has it: as it is, or with its bytes escaped where they are no text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
