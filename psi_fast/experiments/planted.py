"""Are units found whose meanings are known, and their clusters? Ground truth from any classifier, and from merged channels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from psi_fast.errors import ConfigError
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.planted_units import (
    PURE,
    Units,
    adjusted_rand,
    class_logits,
    classifier_units,
    merged_units,
    pure_logits,
)
from psi_fast.experiments.shared_classes import JOIN, class_auroc, class_mean, class_rate, incidence
from psi_fast.experiments.statistics import SIGNIFICANT, Claim, effect_size, paired
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import numbers
from psi_fast.figures.style import COLOURS, GREY, error_bars, panels
from psi_fast.pipeline import used_rows
from psi_fast.results import PatchEmbeddings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = {"PSI": "log_psi", "S": "S_z", "Q": "Q_z", "D": "D_z"}
"""What is held against the kinds, and its column."""


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """By the number of meanings: AUROC, share of units found, adjusted Rand index, and the number of clusters found."""
    with panels(4, rows=2, width=3.8, height=2.7) as (figure, axes):
        _draw_auroc(axes[0], table, claims)
        _draw_power(axes[1], table, claims)
        _draw_overlap(axes[2], table, claims)
        _draw_clusters(axes[3], table)
    return figure


@experiment(draw)
def planted(
    study: Study,
    *,
    classifier: str | None = None,
    members: tuple[int, ...] = (2, 3, 4, 5, 6),
    units: int = 400,
    unit_patches: int | None = None,
) -> Finding:
    """PSI of units whose meanings are known, and the clusters found in them.

    From a classifier's logits over the images: *mono* is one class logit, *poly m* the maximum of m class logits' ranks,
    *random* a set of random images. From the layer: *merged* is half of each of two channels' top patches, *channel* as
    many of one of the two.

    Parameters
    ----------
    study : Study
    classifier : str, optional
        Network whose logits are taken; default: the study's own.
    members : sequence of int
        Numbers of classes of the poly units.
    units : int
        Units of each kind, or as many different ones as there are.
    unit_patches : int, optional
        Patches of a unit; default: four fifths of the images that a class has, at most the study's `top_k`. With more, a
        unit of one class could not consist of that class.
    """
    if not members or min(members) < 2:
        raise ConfigError(f"members are numbers of classes of at least 2, got {tuple(members)}")
    if units < 2:
        raise ConfigError(f"units must be at least 2, got {units}")
    logits = class_logits(study, classifier)
    labels = study.subject.images.labels
    classes = logits.values.argmax(1) if labels is None else labels
    patches = _patches(study, classes, unit_patches)
    chosen, purity = pure_logits(logits.values, classes, patches)
    rng = np.random.default_rng(study.config.seed)
    table = [
        _scored(study, classifier_units(logits, chosen, members, units, patches, rng)).assign(layer=logits.layer),
        *(
            _scored(study, merged_units(study, layer, units, patches, rng)).assign(layer=layer)
            for layer in study.layers
        ),
    ]
    table = pd.concat(table, ignore_index=True)
    claims = _claims(table, members, study)
    text = _text(table, claims, members, patches, purity, labels is None)
    return Finding(table, claims, text)


def _patches(study: Study, classes: np.ndarray, asked: int | None) -> int:
    """Patches of a unit, an even number."""
    each = int(np.median(np.bincount(classes)[np.unique(classes)]))
    patches = min(study.config.top_k, max(4 * each // 5, 2 * study.config.k_max)) if asked is None else asked
    patches -= patches % 2
    if not 2 * study.config.k_max <= patches <= len(classes):
        raise ConfigError(
            f"unit_patches must be from 2 * k_max = {2 * study.config.k_max} to the {len(classes)} images, got {patches}"
        )
    return patches


def _scored(study: Study, units: Units) -> pd.DataFrame:
    """A row a unit: kind, meaning, how many are planted, PSI and its parts, and how the clusters fit the planted ones."""
    rows, index = study.embed(units.images, units.boxes)
    labels = study.subject.images.labels
    patches = PatchEmbeddings(*used_rows(rows, index), torch.arange(len(units.images)))
    found = study.scored(patches, None if labels is None else labels[units.images], study.text, study.config)
    meanings = units.planted.max(1) + 1
    own = zip(units.planted, found.clusters.labels.numpy(), meanings, strict=True)
    fit = [adjusted_rand(a, b) if several > 1 else np.nan for a, b, several in own]
    kept = ["psi", "log_psi", "p", "q", "k", "S_z", "Q_z", "D_z"]
    about = {"kind": units.kind, "meaning": units.meaning, "planted": meanings}
    scores = {name: found.table[name].to_numpy() for name in kept}
    return pd.DataFrame(about | scores | {"rand_index": fit})


def _claims(table: pd.DataFrame, members: Sequence[int], study: Study) -> list[Claim]:
    """AUROC of each poly kind, what is found of every kind, and how its clusters fit."""
    seed = study.config.seed
    by = {str(kind): rows for kind, rows in table.groupby("kind", sort=False) if kind not in ("merged", "channel")}
    alone = [rows["meaning"] for kind, rows in by.items() if kind != "random"]
    names = sorted({name for meanings in alone for meaning in meanings for name in meaning.split(JOIN)})
    made_of = {kind: incidence(list(rows["meaning"]), names) for kind, rows in by.items()}
    claims = [
        class_auroc(
            f"AUROC {name}, poly{m} / {other}",
            numbers(by[f"poly{m}"], column),
            numbers(by[other], column),
            (made_of[f"poly{m}"], made_of[other]),
            seed=seed,
        )
        for name, column in SCORES.items()
        for m in (members if name == "PSI" else sorted(members)[:2])
        for other in ("mono", "random")
        if np.isfinite(numbers(table, column)).any()
    ]
    for layer in study.layers:
        head = f"{layer}: " if len(study.layers) > 1 else ""
        own = {kind: table[(table["layer"] == layer) & (table["kind"] == kind)] for kind in ("merged", "channel")}
        by |= {head + kind: rows for kind, rows in own.items()}  # no channel is in two of them
        made_of |= {head + kind: np.zeros((len(rows), len(names)), dtype=bool) for kind, rows in own.items()}
        gain = numbers(own["merged"], "psi") - numbers(own["channel"], "psi")
        claims.append(paired(f"{head}PSI, merged less its first channel", gain, seed=seed))
        claims.append(effect_size(f"{head}PSI, merged less its first channel, effect size", gain, seed=seed))
    for column in ("p", "q"):
        for kind, rows in by.items():
            held = np.isfinite(numbers(rows, column))
            found = numbers(rows, column)[held] <= SIGNIFICANT
            claims.append(class_rate(f"{column} <= .05, {kind}", found, made_of[kind][held]))
    several = {kind: rows for kind, rows in by.items() if "poly" in kind or "merged" in kind}
    for kind, rows in several.items():
        claims.append(class_mean(f"adjusted Rand index, {kind}", numbers(rows, "rand_index"), made_of[kind]))
    for kind, rows in several.items():
        right = numbers(rows, "k") == numbers(rows, "planted")
        claims.append(class_rate(f"k as planted, {kind}", right, made_of[kind]))
    return claims


def _text(
    table: pd.DataFrame, claims: Sequence[Claim], members: Sequence[int], patches: int, purity: np.ndarray, own: bool
) -> str:
    values = {one.name: one.value for one in claims}
    whose = "that the classifier itself gives" if own else "given"
    counts = ", ".join(f"{number} {kind}" for kind, number in table["kind"].value_counts(sort=False).items())
    told = "; ".join(
        f"poly{m} from mono {values[f'AUROC PSI, poly{m} / mono']:.3f}, from random "
        f"{values[f'AUROC PSI, poly{m} / random']:.3f}, adjusted Rand index {values[f'adjusted Rand index, poly{m}']:.2f}"
        for m in members
    )
    return (
        "Are units found whose number of meanings is known, and are their clusters the meanings? *Mono* is one class logit of "
        "a classifier, *poly m* the maximum of m class logits' ranks over the images, *random* a set of random images; each "
        f"unit has the {patches} images where it is largest. A logit takes part when at least {PURE:.0%} of its top {patches} "
        f"images are of one class (as {whose}), one logit a class: {len(purity)} do, with a mean share of {purity.mean():.2f}. "
        "*Merged* units have half of each of two channels' top patches, *channel* is the first of the two alone: a real "
        f"channel, which may mean several things itself. There are {counts}.\n\n"
        f"AUROC of PSI: {told}. Dotted in the figure are the aims, an AUROC of .995 and an index of .8, and the 5 % that p <= "
        ".05 has by chance. Units of several classes share classes: AUROCs are resampled over classes, a unit as often as all of "
        "its classes together, which errs on the wide side; shares and mean indices of such units have intervals that count "
        "units with a class in common as correlated. A merged unit has half of its first channel's patches, so the two are "
        "compared in pairs.\n\n"
        "The planted clusters are the class whose rank put an image into a poly unit, or the channel a patch was taken from. "
        "q is Benjamini and Hochberg's over the units of one classifier, or over those of one layer. S, Q and D are held "
        "against the kinds as z. `p <= .05` and `q <= .05` are shares of units. `k as planted` is the share of units in which as "
        "many clusters were found as were planted; at least two are found in every unit, so for a mono unit this says nothing. "
        "Where the two channels of a merged unit mean several things each, the clusters are those meanings and not the channels, "
        "and the index is low."
    )


def _draw_auroc(panel: "Axes", table: pd.DataFrame, claims: Sequence[Claim]) -> None:
    sizes = _sizes(table)
    held = {one.name: one for one in claims}
    for shift, other, colour in ((-0.06, "mono", COLOURS[0]), (0.06, "random", COLOURS[1])):
        own = [held[f"AUROC PSI, poly{m} / {other}"] for m in sizes]
        _intervals(panel, np.array(sizes) + shift, own, colour, f"from {other}")
    panel.set(title="poly units told from others (dotted: .995)", ylabel="AUROC of PSI", xticks=sizes)
    panel.set_xlabel("classes of a poly unit")
    panel.axhline(0.995, color=GREY, linewidth=0.8, linestyle=":")
    panel.legend(loc="center right")


def _draw_power(panel: "Axes", table: pd.DataFrame, claims: Sequence[Claim]) -> None:
    sizes = [0, 1, *_sizes(table)]
    held = {one.name: one for one in claims}
    kinds = ["random", "mono", *(f"poly{m}" for m in sizes[2:])]
    for shift, column, colour in ((-0.08, "p", COLOURS[0]), (0.08, "q", COLOURS[2])):
        own = [held[f"{column} <= .05, {kind}"] for kind in kinds]
        _intervals(panel, np.array(sizes) + shift, own, colour, f"{column} ≤ .05", line=False)
    panel.axhline(SIGNIFICANT, color=GREY, linewidth=0.8, linestyle=":")
    panel.set(title="units found polysemantic (dotted: .05)", ylabel="share of units", ylim=(-0.02, 1.05))
    panel.set(xticks=sizes, xlabel="classes of a unit")
    panel.set_xticklabels(["random", *map(str, sizes[1:])])
    panel.legend(loc="center right")


def _draw_overlap(panel: "Axes", table: pd.DataFrame, claims: Sequence[Claim]) -> None:
    held = {one.name: one for one in claims}
    kinds = [*(f"poly{m}" for m in _sizes(table)), "merged"]
    names = {kind: str(kind).removeprefix("poly") for kind in kinds}
    for place, kind in enumerate(kinds):
        values = numbers(table[table["kind"] == kind], "rand_index")
        if len(values):
            spread = np.random.default_rng(place).uniform(-0.22, 0.22, len(values))
            panel.plot(place + spread, values, ".", color=COLOURS[5], markersize=2.5, alpha=0.6, rasterized=True)
    own = {
        place: held[f"adjusted Rand index, {kind}"]
        for place, kind in enumerate(kinds)
        if f"adjusted Rand index, {kind}" in held  # of several layers' merged units there is no mean over all
    }
    _intervals(panel, np.array([*own]), [*own.values()], COLOURS[0], "mean", line=False)
    panel.axhline(0.8, color=GREY, linewidth=0.8, linestyle=":")
    panel.set(title="found and planted clusters (dotted: .8)", ylabel="adjusted Rand index", ylim=(-0.1, 1.05))
    panel.set_xlabel("classes of a poly unit")
    panel.set_xticks(range(len(kinds)), [names[kind] for kind in kinds])


def _draw_clusters(panel: "Axes", table: pd.DataFrame) -> None:
    import matplotlib

    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind != "channel"]
    ks = sorted(table["k"].unique())
    left = np.zeros(len(kinds))
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.05, 0.95, len(ks)))
    for k, colour in zip(ks, shades, strict=True):
        share = np.array([(table[table["kind"] == kind]["k"] == k).mean() for kind in kinds])
        panel.barh(range(len(kinds)), share, left=left, color=colour, label=str(k), height=0.75)
        left += share
    panel.set_yticks(range(len(kinds)), kinds)
    panel.invert_yaxis()
    panel.grid(visible=False)
    panel.set(title="number k of clusters found", xlabel="share of units", xlim=(0, 1))
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), title="k", handlelength=0.8)


def _sizes(table: pd.DataFrame) -> list[int]:
    kinds = [kind for kind in dict.fromkeys(table["kind"]) if kind.startswith("poly")]
    return sorted(int(kind.removeprefix("poly")) for kind in kinds)


def _intervals(
    panel: "Axes", x: np.ndarray, claims: Sequence[Claim], colour: str, label: str, *, line: bool = True
) -> None:
    """Values with their intervals."""
    value, reach = error_bars(claims)
    panel.errorbar(
        x, value, reach, fmt="o-" if line else "o", color=colour, markersize=3.5, linewidth=1, capsize=2, label=label
    )
