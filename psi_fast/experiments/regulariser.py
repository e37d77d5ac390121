"""Can PSI be lowered by training, and at what cost in accuracy? The paper's first open question."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments.figures import COLOURS, GREY, error_bars, panels
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, mean, paired, rank_correlation, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by, numbers
from psi_fast.experiments.tuning import BATCH, RATE, Course, lesson
from psi_fast.surrogate import soft_polysemanticity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDY, UNTUNED = "study", "untuned"
"""Conditions of the table beside the strengths: all of the study's images, and the network as it is on those held out."""
MEASURES = {"psi": "PSI", "S": "S", "S_z": "S_z", "Q_z": "Q_z", "D_z": "D_z", "soft": "soft polysemanticity"}


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row of panels a layer: the stand-in against PSI, accuracy against PSI, and what fell with the strength."""
    layers = list(dict.fromkeys(table["layer"]))
    known = {one.name: one for one in claims}
    with panels(3 * len(layers), rows=len(layers), width=3.3, height=2.8) as (figure, axes):
        for row, layer in enumerate(layers):
            own = table[table["layer"] == layer]
            names = [name for name in dict.fromkeys(own["condition"]) if name != STUDY]
            _draw_scatter(axes[3 * row], pd.DataFrame(own[own["condition"] == STUDY]), layer, known)
            _draw_curve(axes[3 * row + 1], layer, names, known)
            _draw_changes(axes[3 * row + 2], layer, names[1:], known)
    return figure


def _draw_scatter(panel: "Axes", rows: pd.DataFrame, layer: str, known: dict[str, Claim]) -> None:
    panel.plot(rows["soft"], rows["log_psi"], "o", ms=3, alpha=0.6, mew=0, color=COLOURS[0])
    rho = known[f"{layer}: rank correlation of soft polysemanticity with PSI"]
    panel.set(
        title=f"{layer}: {len(rows)} channels, rank correlation {rho.value:.2f}", xlabel="soft polysemanticity",
        ylabel="ln PSI",
    )  # fmt: skip


def _draw_curve(panel: "Axes", layer: str, names: Sequence[str], known: dict[str, Claim]) -> None:
    points = {name: (known[f"{layer}: mean PSI, {name}"], known[f"{layer}: accuracy, {name}"]) for name in names}
    tuned = [points[name] for name in names if name != UNTUNED]
    panel.plot([x.value for x, _ in tuned], [y.value for _, y in tuned], lw=1, color=COLOURS[0])
    for name, (x, y) in points.items():
        colour = GREY if name == UNTUNED else COLOURS[0]
        (across, up) = (error_bars([one])[1] for one in (x, y))
        panel.errorbar(x.value, y.value, xerr=across, yerr=up, fmt="o", ms=4, lw=0.8, color=colour, alpha=0.8)
        place = (-5, 5) if name == UNTUNED else (5, 5)
        panel.annotate(
            name, (x.value, y.value), xytext=place, textcoords="offset points", fontsize=7,
            ha="right" if name == UNTUNED else "left", color=colour,
        )  # fmt: skip
    panel.set(title="tuned at each strength, images held out", xlabel="mean PSI", ylabel="accuracy")


def _draw_changes(panel: "Axes", layer: str, names: Sequence[str], known: dict[str, Claim]) -> None:
    for (column, label), colour in zip(
        [("S_z", "z of S"), ("Q_z", "z of Q"), ("D_z", "z of D")], COLOURS[1:4], strict=True
    ):
        own = [known.get(f"{layer}: mean {MEASURES[column]}, {name}") for name in names]
        held = [(place, one) for place, one in enumerate(own) if one is not None]
        if held:
            values, reach = error_bars([one for _, one in held])
            places = [place for place, _ in held]
            panel.errorbar(places, values, yerr=reach, fmt="o-", ms=3.5, lw=1, color=colour, label=label)
    panel.axhline(0, color="black", lw=0.8)
    panel.set_xticks(range(len(names)), names)
    panel.set(title="mean of the channels' z", xlabel="strength", xlim=(-0.4, len(names) - 0.6))
    panel.legend(fontsize=7)


@experiment(draw)
def regulariser(
    study: Study,
    *,
    strengths: tuple[float, ...] = (0.0, 10.0, 100.0, 1000.0),
    steps: int = 100,
    channel_count: int = 200,
    image_count: int = 4000,
) -> Finding:
    """Accuracy against PSI when a layer and what follows it are tuned to lower a differentiable stand-in for PSI.

    The stand-in is `psi_fast.surrogate.soft_polysemanticity`, first compared with PSI over the channels. Then copies of the
    network are tuned on half of the images, from the layer on, by cross-entropy plus strength times the stand-in's mean over
    the layer's channels, and scored on the other half.

    Parameters
    ----------
    study : Study
        Of a classifier that names its outputs, and images of classes it knows. The study's network is left as it is.
    strengths : sequence of float
        Of the penalty, ascending, the first 0: tuning without it, which the others are compared with.
    steps : int
        Batches of 256 images at each strength.
    channel_count : int
        Channels of each layer that are scored, evenly over it; the penalty is on all.
    image_count : int
        Images to tune and test on, half each.
    """
    _check(strengths, steps, channel_count, image_count)
    own = lesson(study, image_count)
    tables, claims, told = [], [], []
    for layer in study.layers:
        course = Course(study, layer, own, steps)
        ids = study.spread(layer, channel_count)
        parts = {STUDY: compared(study, course, ids)}
        correct = {}
        conditions = {UNTUNED: None} | {f"{strength:g}": strength for strength in strengths}
        for name, strength in conditions.items():
            with study.bars.stage(f"tuning {layer}"):
                correct[name] = course.tuned(strength).correct
            parts[name] = course.scores(strength, ids)
        rows = pd.concat([part.assign(layer=layer, condition=name) for name, part in parts.items()], ignore_index=True)
        rows = _scored_in_all(rows.dropna(subset="log_psi"), len(parts))
        if rows["channel"].nunique() < 4:
            raise InputError(
                f"fewer than 4 of {len(ids)} channels of {layer} are scored at every strength (the others are dead or have too "
                "few patches); choose another layer, lower the strengths or raise channel_count"
            )
        made = _claims(rows, correct, layer, study.config.seed)
        tables.append(led_by(rows, "layer", "condition"))
        claims += made
        told.append(_told(layer, list(conditions), {one.name.removeprefix(f"{layer}: "): one for one in made}))
    asked = (
        "Can PSI be lowered by training, and at what cost? *Soft polysemanticity* stands in for PSI: the share of the variance "
        "among a channel's softly chosen top images that lies between two soft clusters of them. Copies of the network were "
        f"tuned from the layer on: {steps} steps of Adam (rate {RATE:g}, {min(BATCH, len(own.train))} images each) on "
        f"{len(own.train)} images, cross-entropy over the {len(own.outputs)} classes plus *strength* times the mean soft "
        f"polysemanticity of the layer's channels, batch norms in eval mode. Accuracy and PSI are of {len(own.held)} images held "
        "out, PSI with whole images as patches and one centre for all strengths; *untuned* is the network as it is. "
        "Differences are paired, by channel or image, with tuning at strength 0."
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, "\n\n".join([asked, *told]))


def compared(study: Study, course: Course, channels: np.ndarray) -> pd.DataFrame:
    """PSI of the channels in the study beside soft polysemanticity of all images (`soft`), and of batches (`soft_batches`).

    All images: those that `course` has embeddings of, with top_k of the study's images as the share that counts as top.
    """
    table = study.evaluation(course.layer, channels=channels).table
    images = np.concatenate([course.own.train, course.own.held])
    order = np.argsort(study.channels(course.layer))
    columns = order[np.searchsorted(study.channels(course.layer), channels, sorter=order)]
    maxima = study.survey(course.layer).maxima[torch.from_numpy(images)][:, columns]
    share = min(max(study.config.top_k / len(images), 2 / len(images)), 0.5)
    with torch.no_grad():
        soft = soft_polysemanticity(maxima, course.embeddings(images), share=share)
    kept = ["channel", "psi", "log_psi", "S", *(name for name in ("S_z", "Q_z", "D_z") if name in table)]
    return (
        table[kept].assign(soft=soft.numpy(), soft_batches=course.soft(maxima, images).numpy()).reset_index(drop=True)
    )


def _check(strengths: Sequence[float], steps: int, channel_count: int, image_count: int) -> None:
    rising = all(low < high for low, high in pairwise(strengths))
    if len(strengths) < 2 or strengths[0] != 0 or not rising or not np.isfinite(strengths).all():
        raise ConfigError(
            f"strengths must ascend from 0, which the others are compared with, such as 0 10 100; got {tuple(strengths)}"
        )
    if steps < 1 or channel_count < 4 or image_count < 2:
        raise ConfigError(
            "regulariser takes steps >= 1, channel_count >= 4 and image_count >= 2, got "
            f"{steps}, {channel_count} and {image_count}"
        )


def _scored_in_all(rows: pd.DataFrame, parts: int) -> pd.DataFrame:
    """The rows of the channels that have a PSI in every part, so that every comparison is of the same ones."""
    return rows[rows.groupby("channel")["condition"].transform("size") == parts].reset_index(drop=True)


def _claims(rows: pd.DataFrame, correct: dict[str, np.ndarray], layer: str, seed: int) -> list[Claim]:
    """The numbers of one layer."""
    parts = {str(name): own.set_index("channel") for name, own in rows.groupby("condition", sort=False)}
    held = {name: label for name, label in MEASURES.items() if name in rows}
    whole = parts.pop(STUDY)
    compared = {"soft": "soft polysemanticity", "soft_batches": "that of batches", "S": "S"}
    found = [
        rank_correlation(
            f"{layer}: rank correlation of {what} with {label}", numbers(whole, one), numbers(whole, other), seed=seed
        )
        for one, what in compared.items()
        for other, label in {"log_psi": "PSI", "S_z": "S_z", "S": "S"}.items()
        if one != other and other in whole
    ]
    base, *others = [name for name in parts if name != UNTUNED]
    for name, own in parts.items():
        found.append(rate(f"{layer}: accuracy, {name}", int(correct[name].sum()), len(correct[name])))
        found += [mean(f"{layer}: mean {label}, {name}", own[m].to_numpy(), seed=seed) for m, label in held.items()]
    for name in (UNTUNED, *others):
        gap = correct[name].astype(np.float64) - correct[base]
        found.append(paired(f"{layer}: accuracy less strength 0's, {name}", gap, seed=seed))
        found += [
            paired(
                f"{layer}: {label} less strength 0's, {name}", (parts[name][m] - parts[base][m]).to_numpy(), seed=seed
            )
            for m, label in held.items()
        ]
    last, first = parts[others[-1]], parts[base]
    change = f"{layer}: rank correlation of the changes of soft polysemanticity and PSI, {others[-1]}"
    soft, log_psi = ((last[m] - first[m]).to_numpy() for m in ("soft", "log_psi"))
    found.append(rank_correlation(change, soft, log_psi, seed=seed))
    return found


def _told(layer: str, names: Sequence[str], own: dict[str, Claim]) -> str:
    """A paragraph on one layer."""
    rho, batches, of_s = (
        own[f"rank correlation of {one} with PSI"] for one in ("soft polysemanticity", "that of batches", "S")
    )
    with_z, with_s = (own[f"rank correlation of soft polysemanticity with {one}"] for one in ("S_z", "S"))
    verdict = "follows" if rho.low > 0 else "runs against" if rho.high < 0 else "does not follow"
    base, *others = names[1:]
    each = [
        f"at strength {name} accuracy is {own[f'accuracy, {name}'].value:.1%} ({accuracy.value:+.1%}, p {accuracy.p:.2g}), mean "
        f"PSI {own[f'mean PSI, {name}'].value:.3f} ({psi.value:+.3f}, {psi.low:+.3f} to {psi.high:+.3f}, p {psi.p:.2g}), soft "
        f"polysemanticity {own[f'mean soft polysemanticity, {name}'].value:.3f} ({soft.value:+.3f})"
        for name in others
        for accuracy, psi, soft in [
            [own[f"{what} less strength 0's, {name}"] for what in ("accuracy", "PSI", "soft polysemanticity")]
        ]
    ]
    last = own[f"rank correlation of the changes of soft polysemanticity and PSI, {others[-1]}"]
    return (
        f"In {layer}, soft polysemanticity {verdict} PSI over channels: its rank correlation with PSI is {rho.value:.2f} "
        f"({rho.low:.2f} to {rho.high:.2f}), with S {with_s.value:.2f}, with the z of S {with_z.value:.2f}; S itself has one of "
        f"{of_s.value:.2f} with PSI, which calibrates it; the mean of batches, as in training, has one of {batches.value:.2f} "
        f"with PSI. The untuned network has an accuracy of {own[f'accuracy, {UNTUNED}'].value:.1%} and a mean PSI of "
        f"{own[f'mean PSI, {UNTUNED}'].value:.3f}; tuned without a penalty, {own[f'accuracy, {base}'].value:.1%} and "
        f"{own[f'mean PSI, {base}'].value:.3f}; {'; '.join(each)}. Over channels, changes of soft polysemanticity and of ln "
        f"PSI at strength {others[-1]} have a rank correlation of {last.value:.2f} (p {last.p:.2g})."
    )
