"""What a report loads first: its runs and layers, and a row for every channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from psi_fast.calibration import log_odds
from psi_fast.details import Details
from psi_fast.report.scripts import histogram, rounded
from psi_fast.report.sheets import Plan
from psi_fast.scores import FLAGS

BINS = 48
LOWEST = 0.005
"""Share of the channels, of the null draws or of the random-patch channels that the first bin of ln PSI gathers, at most."""
NUMBERS = (
    *("psi", "log_psi", "p", "q", "k", "S_hat", "Q_hat", "D_hat", "S_z", "Q_z", "D_z"),
    *("max_activation", "selectivity", "random_percentile"),
)
"""Columns of the score table that a report shows."""


@dataclass(frozen=True)
class Shown:
    """A layer of a run, and where its pictures lie.

    key : its name in addresses
    folder : its files' folder below data/
    rows : [C] int64, its rows in the run's table
    first : its first row among all layers'
    firsts : first channel (of `rows`) of each of its data files
    places, boxes : [C, K] int64 and [C, K, 4], rows of the run's pictures (-1: none) and parts of their squares (0..1)
    patches, strip : sheets of its patches and of a thumbnail a cluster; None without pictures
    """

    details: Details
    run: int
    layer: str
    key: str
    folder: str
    rows: np.ndarray
    first: int
    firsts: Sequence[int]
    places: np.ndarray | None
    boxes: np.ndarray | None
    patches: Plan | None
    strip: Plan | None

    @property
    def table(self) -> pd.DataFrame:
        """The layer's own part of the score table."""
        return self.details.scores.table.iloc[self.rows]


def keys_of(runs: Sequence[Details]) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the runs, and by run the address of each layer: its name, with the run's in front where another has it too."""
    names: list[str] = []
    for run in runs:
        number, name = 1, run.name
        while name in names:
            number += 1
            name = f"{run.name}-{number}"
        names.append(name)
    layers = [layer for run in runs for layer in run.layers]
    keys = [
        {layer: layer if layers.count(layer) == 1 else f"{name}/{layer}" for layer in run.layers}
        for name, run in zip(names, runs, strict=True)
    ]
    return names, keys


def psi_series(details: Details, layer: str) -> dict[str, list[dict[str, Any]]]:
    """Histograms over common bins of the layer's channels, their null draws and random-patch channels.

    Those under "log_psi" are of ln PSI; those under "log_odds" of log10(PSI / (1 - PSI)), which spreads what crowds at 0 in the
    first. The outermost bins hold what lies beyond them.
    """
    own = details.scores.table["log_psi"].to_numpy()[details.layers[layer]]
    parts = {
        "channels": own,
        "null draws": details.null_log_psi(layer),
        "random patches": details.random_log_psi(layer),
    }
    parts = {name: values[np.isfinite(values)] for name, values in parts.items()}
    odds = {name: log_odds(values) for name, values in parts.items()}
    return {
        "log_psi": _series(parts, min(_edge(parts, LOWEST), -0.5), 0.0),
        "log_odds": _series(odds, _edge(odds, LOWEST), _edge(odds, 1 - LOWEST) + 0.5),
    }


def _edge(parts: Mapping[str, np.ndarray], share: float) -> float:
    """The smallest (or for a share above a half the largest) of the parts' quantiles, as a multiple of a half below it."""
    found = [float(np.quantile(values, share)) for values in parts.values() if len(values)]
    return float(np.floor((min if share < 0.5 else max)(found, default=-1.0) * 2) / 2)


def _series(parts: Mapping[str, np.ndarray], low: float, high: float) -> list[dict[str, Any]]:
    """Histograms as shares of each part."""
    return [
        {
            "name": name,
            "low": low,
            "high": high,
            "shares": rounded(np.array(histogram(values, low, high, BINS)) / max(1, len(values))),
        }
        for name, values in parts.items()
    ]


def index_data(
    layers: Sequence[Shown], runs: Sequence[Mapping[str, Any]], whole: Sequence[Plan | None], concepts: Sequence[str]
) -> dict[str, Any]:
    """The runs, the layers and the names that tables refer to by number."""
    return {
        "runs": [
            {
                **{name: run[name] for name in ("name", "network", "images", "seconds")},
                "folder": f"r{i}",
                "whole": _sheets(plan),
            }
            for i, (run, plan) in enumerate(zip(runs, whole, strict=True))
        ],
        "layers": [
            {
                "key": own.key,
                "run": own.run,
                "layer": own.layer,
                "first": own.first,
                "channels": len(own.rows),
                "components": own.details.present,
                "folder": own.folder,
                "shards": list(own.firsts),
                "patches": _sheets(own.patches),
                "strip": _sheets(own.strip),
                **psi_series(own.details, own.layer),
            }
            for own in layers
        ],
        "flags": list(FLAGS),
        "flag_notes": FLAGS,
        "concepts": list(concepts),
    }


def table_data(layers: Sequence[Shown], concepts: Sequence[str]) -> dict[str, Any]:
    """The score table by column, all layers one after the other."""
    number = {name: i for i, name in enumerate(concepts)}
    bit = {name: 1 << i for i, name in enumerate(FLAGS)}
    table = pd.concat([own.table for own in layers], ignore_index=True)
    found: dict[str, Any] = {
        "layer": [place for place, own in enumerate(layers) for _ in own.rows],
        "channel": table["channel"].tolist(),
        "flags": [sum(bit[name] for name in own) for own in table["flags"]],
        "sizes": [list(map(int, own)) for own in table["cluster_sizes"]],
        "concepts": [[number[name] for name in own] for own in table["concepts"]],
        "strip": [
            [] if own.strip is None else numbers[numbers >= 0].tolist()
            for own in layers
            for numbers in (own.strip.numbers if own.strip else np.empty((len(own.rows), 0)))
        ],
    }
    return found | {name: rounded(table[name].to_numpy(dtype=float), 6) for name in NUMBERS}


def named_concepts(layers: Sequence[Shown]) -> list[str]:
    """Every concept that a cluster has, in order."""
    return sorted({name for own in layers for names in own.table["concepts"] for name in names})


def first_of_clusters(labels: np.ndarray, k_max: int) -> np.ndarray:
    """Rank of the first patch of each cluster, [C, k_max] int64; -1 where a channel has no such cluster.

    Parameters
    ----------
    labels : [C, K] int64
    """
    members = labels[:, :, None] == np.arange(k_max)
    return np.where(members.any(1), members.argmax(1), -1)


def _sheets(plan: Plan | None) -> dict[str, Any] | None:
    """Side in px and columns of the tiles, and the first channel (or picture) of each sheet."""
    return (
        None if plan is None else {"tile": plan.tiles.side, "columns": plan.tiles.columns, "firsts": list(plan.firsts)}
    )
