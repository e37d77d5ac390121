"""How often does each null raise a false alarm on data shaped like the run's own without structure, and what does it find?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from psi_fast.config import PSIConfig, Rotation
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import centred_bank, without
from psi_fast.experiments.null_shapes import FREEDOM, Family, families, turned
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.planted_units import merged_units
from psi_fast.experiments.statistics import SIGNIFICANT, Claim, rate
from psi_fast.experiments.study import Study
from psi_fast.figures.style import COLOURS, GREY, error_bars, panels
from psi_fast.pipeline import used_rows
from psi_fast.progress import Progress
from psi_fast.results import Bank, PatchEmbeddings
from psi_fast.shelf import content

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND = (0.01, 0.06)
"""Where a false-alarm rate at SIGNIFICANT should lie."""
PART = 25
"""Data sets that share the random numbers of their draws, and of one file on the shelf."""
POOL = 2000
"""Patches that stand for all of them."""
ROTATIONS: tuple[str, ...] = get_args(Rotation)
MERGED = "merged channels"


@dataclass(frozen=True)
class Shape:
    """Embeddings [C, K, d] float32 of channels, centred as a run centres them, with classes [C, K] int64 or None."""

    rows: torch.Tensor
    labels: np.ndarray | None


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """False-alarm rates of the nulls by family, and what they find, a row of dots a family."""
    layer = table["layer"].iloc[0]
    own = table[table["layer"] == layer]
    head = str(layer) if table["layer"].nunique() > 1 else ""
    held = {one.name: one for one in claims}
    with panels(2, width=5.0, height=4.2) as (figure, axes):
        for panel, structured in zip(axes, (False, True), strict=True):
            rows = own[own["structured"] == structured]
            kinds = list(dict.fromkeys(rows["family"]))
            nulls = list(dict.fromkeys(own["null"]))
            for number, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
                names = [claim_name(head, kind, null, structured) for null in nulls]
                places = np.array([place for place, name in enumerate(names) if name in held])
                value, reach = error_bars([held[name] for name in names if name in held])
                places = places + (number - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
                panel.errorbar(value, places, xerr=reach, fmt="o", color=colour, ms=3, lw=1, label=kind)
            panel.set_yticks(range(len(nulls)), nulls)
            panel.set(xlim=(-0.03, 1.03), ylim=(len(nulls) - 0.5, -0.5), xlabel="share of data sets, 95 % interval")
            panel.hlines(np.arange(1, len(nulls)) - 0.5, -0.03, 1.03, color="#cccccc", lw=0.6, zorder=1)
            panel.grid(axis="y", visible=False)
            panel.axvline(SIGNIFICANT, color=GREY, linewidth=0.8, linestyle="--")
            panel.set_title(
                "clusters: share found at p ≤ .05" if structured else "no clusters: false alarms at p ≤ .05"
            )
            panel.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3, columnspacing=1, handlelength=1.4)
    return figure


@experiment(draw)
def null_size(
    study: Study,
    *,
    data_sets: int = 200,
    null_draws: int = 199,
    clouds: tuple[int, ...] = (2, 3),
    distances: tuple[float, ...] = (0.6, 0.8),
) -> Finding:
    """False-alarm rate and power of every null at 5 %, on data shaped like the study's own embeddings.

    A data set takes mean, spectrum and K from a channel's patches (or from all patches) and no structure: S has no clusters
    to find, the labels are shuffled among the patches, and the whole is turned at random against the text. For power,
    several clouds, or the patches of two channels merged, stand in the place of one.

    Parameters
    ----------
    study : Study
    data_sets : int
        Of every family, each shaped like another channel while there are enough.
    null_draws : int
        Of every data set; 199 give p in steps of .005.
    clouds : sequence of int
        Numbers of planted clusters.
    distances : sequence of float
        Distances of their centres, in units of a cloud's root mean square radius.
    """
    if data_sets < 2 or null_draws < 19:
        raise ConfigError(
            f"null-size takes at least 2 data sets and 19 draws (fewer reach no p of .05), got {data_sets} and {null_draws}"
        )
    if min(clouds, default=2) < 2 or min(distances, default=1.0) <= 0:
        raise ConfigError(f"clouds are at least 2 and distances above 0, got {tuple(clouds)} and {tuple(distances)}")
    config = replace(study.config, draws=null_draws, center=False, band=None)
    bank = centred_bank(study.text) if study.config.center else study.text
    tables = []
    for layer in study.layers:
        shape, pool, centre = _shape(study, layer, data_sets)
        one, several = families(pool, tuple(clouds), tuple(distances))
        merged = _merged(study, layer, data_sets, centre)
        with study.bars.bar("null size", (len(one) + len(several)) * data_sets + len(merged.rows), "data set") as bar:
            for name, family in (one | several).items():
                made = _data_sets(shape, family, data_sets, [study.config.seed, crc32(name.encode())])
                # of clusters without classes and text S alone can be told
                found = _measured(study, made, bank if name in one else None, config, f"{layer} {name}", bar.update)
                tables.append(found.assign(layer=layer, family=name, structured=name in several))
            if len(merged.rows):
                parts = ((first, _rows(merged, first)) for first in range(0, len(merged.rows), PART))
                found = _measured(study, parts, bank, config, f"{layer} {MERGED}", bar.update)
                tables.append(found.assign(layer=layer, family=MERGED, structured=True))
    table = pd.concat(tables, ignore_index=True)
    claims = _claims(table)
    table = table[["layer", "family", "structured", "null", "data_set", "z", "p"]]
    return Finding(table, claims, _text(table, claims, study.config, null_draws))


def _shape(study: Study, layer: str, count: int) -> tuple[Shape, np.ndarray, torch.Tensor | None]:
    """Embeddings of up to `count` channels with all their patches, a pool [M, d] of them, and the mean that was subtracted."""
    top, patches, _ = study.patches(layer, channels=study.spread(layer, count))
    whole = (patches.index >= 0).all(1)
    if not whole.any():
        raise InputError(f"no channel of {layer} has {study.config.top_k} patches; lower top_k or give more images")
    centre = patches.unique.double().mean(0) if study.config.center else None
    unique = patches.unique if centre is None else without(patches.unique, centre)
    chosen = np.random.default_rng(study.config.seed).permutation(len(unique))[:POOL]
    labels = study.subject.images.labels
    own = Shape(unique[patches.index[whole]], None if labels is None else labels[top.images[whole.numpy()]])
    return own, unique[torch.from_numpy(chosen)].double().numpy(), centre


def _merged(study: Study, layer: str, count: int, centre: torch.Tensor | None) -> Shape:
    """Half of each of two channels' top patches, for up to `count` pairs."""
    rng = np.random.default_rng(study.config.seed)
    units = merged_units(study, layer, count, study.config.top_k // 2 * 2, rng)
    chosen = [row for row, kind in enumerate(units.kind) if kind == "merged"]
    rows, index = study.embed(units.images[chosen], units.boxes[chosen])
    unique, place = used_rows(rows, index)
    labels = study.subject.images.labels
    return Shape(
        (unique if centre is None else without(unique, centre))[place],
        None if labels is None else labels[units.images[chosen]],
    )


def _rows(shape: Shape, first: int) -> Shape:
    labels = None if shape.labels is None else shape.labels[first : first + PART]
    return Shape(shape.rows[first : first + PART], labels)


def _data_sets(shape: Shape, family: Family, count: int, seed: list[int]) -> Iterator[tuple[int, Shape]]:
    """Data sets of a family in parts of PART, each with the number of its first; labels shuffled, turned against the text."""
    for first in range(0, count, PART):
        numbers = range(first, min(first + PART, count))
        rows, labels = [], []
        for number in numbers:
            rng = np.random.default_rng([*seed, number])
            own = number % len(shape.rows)
            rows.append(turned(family(shape.rows[own].double().numpy(), rng), rng))
            labels.append(None if shape.labels is None else rng.permutation(shape.labels[own]))
        made = torch.from_numpy(np.stack(rows)).float()
        yield first, Shape(made, None if shape.labels is None else np.stack(labels))


def _measured(
    study: Study,
    parts: Iterator[tuple[int, Shape]],
    bank: Bank | None,
    config: PSIConfig,
    name: str,
    update: Callable[[int], object],
) -> pd.DataFrame:
    """A row a data set and null: z and p. Without a bank of the nulls of S alone."""
    found = []
    for first, own in parts:
        labels = own.labels if bank is not None else None
        held = {"rows": own.rows} | ({} if labels is None else {"labels": torch.from_numpy(labels)})
        text = {} if bank is None else {"text": bank.embeddings} | ({} if bank.head is None else {"head": bank.head})
        about = {
            "data": content(held | text),
            "name": name,
            "config": config.to_dict(),
            "code": study.subject.fingerprints["code"],
            "device": study.subject.device.type,
        }
        seeded = replace(config, seed=(config.seed + 1 + first) % 2**64)

        def make(own: Shape = own, labels: np.ndarray | None = labels, seeded: PSIConfig = seeded) -> pd.DataFrame:
            return _nulls(study, own.rows, labels, bank, seeded)

        table = study.shelf.table("null-size", about, make)
        found.append(table.assign(data_set=table["data_set"] + first))
        update(len(own.rows))
    return pd.concat(found, ignore_index=True)


def _nulls(
    study: Study, rows: torch.Tensor, labels: np.ndarray | None, bank: Bank | None, config: PSIConfig
) -> pd.DataFrame:
    """Every null's z and p of data sets [n, K, d]; Q, D and the joint p beside the settings' own null of S."""
    own = _evaluated(study, rows, labels, bank, config)
    columns = {"S": f"S {config.rotation}", "Q": "Q permuted", "D": f"D {config.text_null}"}
    found = {columns[name]: (own[f"{name}_z"], own[f"{name}_p"]) for name in own["components"].iloc[0]}
    if bank is not None:
        found["joint"] = (own["log_psi"], own["p"])
    for rotation in ROTATIONS:
        if rotation == config.rotation:
            continue
        # the text's other null rides on the cheapest of S
        asked = bank if rotation == ROTATIONS[-1 - (config.rotation == ROTATIONS[-1])] else None
        text_null = "rotated" if config.text_null == "shuffled" else "shuffled"
        other = _evaluated(study, rows, None, asked, replace(config, rotation=rotation, text_null=text_null))
        found[f"S {rotation}"] = (other["S_z"], other["S_p"])
        if asked is not None:
            found[f"D {text_null}"] = (other["D_z"], other["D_p"])
    order = [*(f"S {rotation}" for rotation in ROTATIONS), "Q permuted", "D shuffled", "D rotated", "joint"]
    parts = [
        pd.DataFrame({"null": name, "data_set": np.arange(len(rows)), "z": z.to_numpy(), "p": p.to_numpy()})
        for name, (z, p) in sorted(found.items(), key=lambda pair: order.index(pair[0]))
    ]
    return pd.concat(parts, ignore_index=True)


def _evaluated(
    study: Study, rows: torch.Tensor, labels: np.ndarray | None, bank: Bank | None, config: PSIConfig
) -> pd.DataFrame:
    count, places, width = rows.shape
    index = torch.arange(count * places).reshape(count, places)
    patches = PatchEmbeddings(rows.reshape(-1, width), index, torch.arange(count))
    return study.scored(patches, labels, bank, config, Progress(False)).table


def _claims(table: pd.DataFrame) -> list[Claim]:
    """A rate of p <= .05 for each family and null; the families without clusters first."""
    several = table["layer"].nunique() > 1
    return [
        rate(
            claim_name(str(layer) if several else "", str(family), str(null), structured),
            int((rows["p"].to_numpy() <= SIGNIFICANT + 1e-9).sum()),
            int(rows["p"].notna().sum()),
        )
        for structured in (False, True)
        for (layer, family, null), rows in table[table["structured"] == structured].groupby(
            ["layer", "family", "null"], sort=False
        )
    ]


def claim_name(layer: str, family: str, null: str, structured: bool) -> str:
    """What a rate is called; `layer` is empty where there is one alone."""
    return f"{layer}: " * bool(layer) + f"{'found' if structured else 'false alarms'}, {family}: {null}"


def _text(table: pd.DataFrame, claims: Sequence[Claim], config: PSIConfig, null_draws: int) -> str:
    own = (f"S {config.rotation}", "Q permuted", f"D {config.text_null}")
    alarms = {
        null: [one for one in claims if "false alarms" in one.name and one.name.endswith(f": {null}")] for null in own
    }
    told = []
    for null, found in alarms.items():
        if not found:
            continue
        rates = ", ".join(
            f"{one.value:.3f} ({one.name.split(': ')[-2].removeprefix('false alarms, ')})" for one in found
        )
        outside = [one for one in found if not BAND[0] <= one.value <= BAND[1]]
        verdict = "all within" if not outside else f"{len(outside)} of {len(found)} outside"
        told.append(f"- **{null}**: {rates}; {verdict} {BAND[0]:g} to {BAND[1]:g}.")
    lines = "\n".join(told)
    return (
        "How often does each null call data significant at 5 % that has no structure, and how often does it find structure that "
        "is there? Every data set is shaped like a channel of this study: as many patches, the mean direction and the covariance "
        "in the tangent space there. *gaussian* is a normal cloud; in *own angles* the angles to the mean are the channel's; "
        f"*Student t, {FREEDOM}* has the heavy tails of {FREEDOM} degrees of freedom, though no sample lies more than a right "
        "angle (or the channel's largest angle) from the mean; *all patches* takes mean and covariance of all patches at once. "
        "Labels are a channel's, shuffled, and each data set is turned at random against the text, so that Q and D have nothing "
        "to find either.\n\n"
        "*S marginal* and so on are the kinds of null that S can have (`rotation`).\n\n"
        f"False alarms of the nulls that this study uses:\n\n{lines}\n\n"
        "*D shuffled* asks whether a cluster's own concept is better than a random one; the nearest of many is, whatever the "
        "clusters are, so on turned data it alarms by construction. *D rotated* has the choice in its null.\n\n"
        "*joint* is the largest p of the three: where none of them has anything to find it is far below its level, as all must "
        f"agree. For power, *clouds* are normal clouds whose centres lie so many cloud radii apart, and *{MERGED}* have half of "
        "each of two channels' top patches, with their labels and against the text as it is. Of the clouds only S can be told. "
        f"p comes from {null_draws} draws; {PART} data sets share the random numbers of their draws, which correlates their p a "
        "little, so the intervals are somewhat narrow."
    )
