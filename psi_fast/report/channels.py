"""What the page of each channel shows, a part of a layer's channels at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from psi_fast.calibration import NO_VARIATION
from psi_fast.neighbours import Neighbours
from psi_fast.report.scripts import histogram, rounded
from psi_fast.report.summary import Shown
from psi_fast.results import COMPONENTS

BINS = 32


def channel_data(shown: Shown, part: slice, neighbours: Sequence[Neighbours]) -> dict[str, Any]:
    """The channels `part` of a layer: patches, clusters, null histograms, activations, neighbours, swaps."""
    rows, details = shown.rows[part], shown.details
    patches = _patches(shown, part)
    images, labels = _names(patches["image"]), _names(patches["label"].dropna())
    silhouettes = details.silhouettes(rows)
    points, explained = details.principal(rows)
    concepts, classes = details.cluster_concepts(rows), details.cluster_classes(rows)
    held = {name: group for name, group in patches.groupby("row")}
    channels = []
    for i, row in enumerate(rows):
        own = held.get(i, patches.iloc[:0])
        rank, place = own["rank"].to_numpy(), part.start + i
        found: dict[str, Any] = {
            "image": [images[name] for name in own["image"]],
            "label": [-1 if pd.isna(name) else labels[name] for name in own["label"]],
            "activation": rounded(own["activation"]),
            "cluster": own["cluster"].tolist(),
            "silhouette": rounded(silhouettes[i, rank], 3),
            "x": rounded(points[i, rank, 0], 3),
            "y": rounded(points[i, rank, 1], 3),
        }
        if shown.patches is not None and shown.places is not None and shown.boxes is not None:
            found["tile"] = shown.patches.numbers[place, rank].tolist()
            found["whole"] = shown.places[place, rank].tolist()
            found["box"] = shown.boxes[place, rank].round(3).tolist()
        channels.append(
            {
                "patches": found,
                "explained": rounded(explained[i], 3),
                "clusters": _clusters(details.scores.table.iloc[row], concepts[i], classes[i]),
                "nulls": _nulls(shown, int(row)),
                "activations": _activations(details.image_maxima[row], own["activation"].to_numpy()),
                "neighbours": _neighbours(shown, neighbours[row]),
                "swaps": _swaps(shown, int(row)),
            }
        )
    return {"first": part.start, "images": list(images), "labels": list(labels), "channels": channels}


def _patches(shown: Shown, part: slice) -> pd.DataFrame:
    """The patches of the channels `part`, with the column `row`: their channel's place in the part."""
    patches = shown.details.scores.patches
    assert patches is not None, "a run folder has patches"
    channels = shown.table["channel"].iloc[part]
    own = patches.loc[(patches["layer"] == shown.layer) & patches["channel"].isin(channels)]
    place = pd.Series(np.arange(len(channels)), channels.to_numpy())
    return own.assign(row=place.loc[own["channel"]].to_numpy())


def _names(column: pd.Series) -> dict[str, int]:
    """The distinct names, each with its number."""
    return {str(name): i for i, name in enumerate(column.unique())}


def _clusters(row: pd.Series, concepts: list[Any], classes: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "size": int(size),
            "concepts": [[name, round(cosine, 3)] for name, cosine in (concepts[i] if concepts else [])],
            "classes": [list(one) for one in (classes[i] if classes else [])],
        }
        for i, size in enumerate(row["cluster_sizes"])
    ]


def _nulls(shown: Shown, row: int) -> dict[str, Any]:
    """By component the histogram of its null draws, and the observed value; without those of channels that have no score."""
    table, found = shown.details.scores.table.iloc[row], {}
    for name in COMPONENTS:
        draws = shown.details.null_draws(name)
        if draws is None or not np.isfinite(table[name]):
            continue
        own = draws[row]
        low, high = float(own.min()), float(own.max())
        numbers = ("", "_null_mean", "_null_sd", "_z", "_p")
        observed, mean, sd, z, p = rounded(table[[f"{name}{of}" for of in numbers]].to_numpy(dtype=float), 5)
        found[name] = {
            **dict(zip(("low", "high"), rounded((low, high), 5), strict=True)),
            "counts": histogram(own, low, high, BINS),
            "varies": bool(table[f"{name}_null_sd"] >= NO_VARIATION),
            "observed": observed,
            "mean": mean,
            "sd": sd,
            "z": z,
            "p": p,
        }
    return found


def _activations(maxima: np.ndarray, patches: np.ndarray) -> dict[str, Any] | None:
    """Histogram of the images' maxima, and the band that the patches' activations lie in."""
    if not len(patches):
        return None
    low, high = float(min(maxima.min(), patches.min())), float(max(maxima.max(), patches.max()))
    return {
        **dict(zip(("low", "high"), rounded((low, high)), strict=True)),
        "counts": histogram(maxima, low, high, BINS),
        "band": rounded((patches.min(), patches.max())),
    }


def _neighbours(shown: Shown, found: Neighbours) -> dict[str, Any]:
    """The neighbours by their rows among all of the report's channels."""
    offset = shown.first - int(shown.rows[0])
    return {
        "patches": [[row + offset, count, round(jaccard, 3)] for row, count, jaccard in found.patches],
        "concepts": [[row + offset, round(share, 3)] for row, share in found.concepts],
    }


def _swaps(shown: Shown, row: int) -> list[dict[str, Any]] | None:
    """What patch-swap found of the channel, by condition; None where it was not run on it."""
    table = shown.details.swaps
    if table is None:
        return None
    channel = shown.details.scores.table["channel"].iloc[row]
    own = table.loc[(table["layer"] == shown.layer) & (table["channel"] == channel)]
    columns = {"change_sd": "value", "low": "low", "high": "high"}
    return [
        {"condition": one["condition"], **dict(zip(columns.values(), rounded(one[[*columns]], 3), strict=True))}
        for _, one in own.iterrows()
    ] or None
