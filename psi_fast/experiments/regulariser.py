"""Can PSI be lowered by training, and at what cost in accuracy? The paper's first open question."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments.lesson import Lesson, lesson
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, auroc, mean, paired, rank_correlation, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by, numbers
from psi_fast.experiments.tuning import BATCH, CHANNEL, RATE, Course
from psi_fast.figures.style import COLOURS, GREY, error_bars, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARED, UNTUNED = "compared", "untuned"
"""Conditions of the table beside the strengths: units that the stand-in is compared on, and the network as it is."""
HELD, TRAINED = "held out", "trained on"
"""Images of the table's rows."""
MEASURES = {"psi": "PSI", "S_z": "S_z", "Q_z": "Q_z", "D_z": "D_z", "soft": "stand-in"}
PLANTED = {"mono": COLOURS[1], "poly2": COLOURS[2], "poly3": COLOURS[4], "random": COLOURS[6]}
ENDS = -4, 8
"""Of log-odds in the figure."""


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row of panels a layer: the stand-in against PSI, accuracy against PSI, and PSI of the images trained on and of others."""
    layers = list(dict.fromkeys(table["layer"]))
    known = {one.name: one for one in claims}
    with panels(3 * len(layers), rows=len(layers), width=3.4, height=2.9) as (figure, axes):
        for row, layer in enumerate(layers):
            own = table[table["layer"] == layer]
            names = [name for name in dict.fromkeys(own["condition"]) if name != COMPARED]
            _draw_scatter(axes[3 * row], pd.DataFrame(own[own["condition"] == COMPARED]), layer, known)
            _draw_curve(axes[3 * row + 1], layer, names, known)
            _draw_reach(axes[3 * row + 2], layer, names[1:], known)
    return figure


def _draw_scatter(panel: "Axes", rows: pd.DataFrame, layer: str, known: dict[str, Claim]) -> None:
    rows = pd.DataFrame(rows[~rows["fitted"].astype(bool)])
    for kind, colour in ({CHANNEL: COLOURS[0]} | PLANTED).items():
        own = rows[rows["kind"] == kind]
        if len(own):
            x, y = (_log_odds(numbers(own, name)).clip(*ENDS) for name in ("soft_log_psi", "log_psi"))
            size, alpha = (2, 0.35) if kind == CHANNEL else (3, 0.7)
            panel.plot(x, y, "o", ms=size, alpha=alpha, mew=0, color=colour, label=kind)
    rho = known[f"{layer}: rank correlation of the stand-in with PSI, channels"]
    panel.plot(ENDS, ENDS, lw=0.8, color="black")
    panel.set(
        title=f"{layer}: rank correlation {rho.value:.2f} over {rho.count} channels",
        xlabel="log-odds of the stand-in", ylabel="log-odds of PSI",
    )  # fmt: skip
    panel.legend(fontsize=7, markerscale=1.6, handletextpad=0.1, loc="upper left")


def _log_odds(log_psi: np.ndarray) -> np.ndarray:
    return log_psi - np.log(-np.expm1(np.minimum(log_psi, -1e-12)))


def _draw_curve(panel: "Axes", layer: str, names: Sequence[str], known: dict[str, Claim]) -> None:
    points = {name: (known[f"{layer}: mean PSI, {name}"], known[f"{layer}: accuracy, {name}"]) for name in names}
    tuned = [points[name] for name in names if name != UNTUNED]
    panel.plot([x.value for x, _ in tuned], [y.value for _, y in tuned], lw=1, color=COLOURS[0])
    for name, (x, y) in points.items():
        colour = GREY if name == UNTUNED else COLOURS[0]
        (across, up) = (error_bars([one])[1] for one in (x, y))
        panel.errorbar(x.value, y.value, xerr=across, yerr=up, fmt="o", ms=4, lw=0.8, color=colour, alpha=0.8)
        panel.annotate(
            name, (x.value, y.value), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour
        )  # fmt: skip
    panel.set(title="tuned at each strength, images held out", xlabel="mean PSI", ylabel="accuracy")


def _draw_reach(panel: "Axes", layer: str, names: Sequence[str], known: dict[str, Claim]) -> None:
    """What is lowered of the images trained on, and what of others."""
    for ending, colour, label in ((" of images trained on", COLOURS[1], TRAINED), ("", COLOURS[0], HELD)):
        for what, style in (("stand-in", "o:"), ("PSI", "o-")):
            values, reach = error_bars([known[f"{layer}: mean {what}{ending}, {name}"] for name in names])
            panel.errorbar(
                range(len(names)), values, yerr=reach, fmt=style, ms=3.5, lw=1, color=colour, label=f"{what}, {label}"
            )
    panel.set_xticks(range(len(names)), names)
    panel.set(title="mean of the channels", xlabel="strength", xlim=(-0.4, len(names) - 0.6))
    legend_above(panel, columns=2)


@experiment(draw)
def regulariser(
    study: Study,
    *,
    strengths: tuple[float, ...] = (0.0, 0.3, 3.0, 30.0),
    steps: int = 40,
    channel_count: int = 640,
    image_count: int = 2500,
) -> Finding:
    """Accuracy against PSI when a layer and what follows it are tuned to lower a differentiable stand-in for PSI.

    The stand-in (`psi_fast.surrogate`) is calibrated on half of the channels and of planted units, and compared with PSI on the
    other half. Then copies of the network are tuned on half of the images, from the layer on, by cross-entropy plus strength
    times the channels' mean penalty, and scored on the other half.

    Parameters
    ----------
    study : Study
        Of a classifier that names its outputs, and images of classes it knows. The study's network is left as it is.
    strengths : sequence of float
        Of the penalty, ascending, the first 0: tuning without it, which the others are compared with.
    steps : int
        Batches of 256 images at each strength.
    channel_count : int
        Channels of each layer that are scored after tuning, evenly over it; the penalty is on all.
    image_count : int
        Images to tune and test on, half each, in whole classes.
    """
    _check(strengths, steps, channel_count, image_count)
    own = lesson(study, image_count)
    tables, claims, told = [], [], []
    for layer in study.layers:
        course = Course(study, layer, own, steps)
        ids = study.spread(layer, channel_count)
        with study.bars.stage(f"comparing {layer}"):
            compared = course.stand_in
        parts, correct = [], {}
        conditions = {UNTUNED: None} | {f"{strength:g}": strength for strength in strengths}
        for name, strength in conditions.items():
            with study.bars.stage(f"tuning {layer}"):
                correct[name] = course.correct(strength)
            for images, trained in ((HELD, False), (TRAINED, True)):
                parts.append(course.scores(strength, ids, trained=trained).assign(condition=name, images=images))
        rows = pd.concat(parts, ignore_index=True).assign(kind=CHANNEL)
        rows = pd.DataFrame(rows[rows.groupby("channel")["condition"].transform("size") == len(parts)])
        if rows["channel"].nunique() < 4:
            raise InputError(
                f"fewer than 4 of {len(ids)} channels of {layer} are scored at every strength (the others are dead or have too "
                "few patches); choose another layer, lower the strengths or raise channel_count"
            )
        made = _stand_in_claims(compared, layer, study.config.seed)
        made += _tuning_claims(rows, correct, layer, study.config.seed)
        whole = pd.concat([compared.assign(condition=COMPARED, images=TRAINED), rows], ignore_index=True).assign(
            layer=layer
        )
        tables.append(led_by(whole, "layer", "condition", "images", "kind"))
        claims += made
        told += _told(layer, list(conditions), {one.name.removeprefix(f"{layer}: "): one for one in made})
    return Finding(pd.concat(tables, ignore_index=True), claims, "\n\n".join([_asked(own, steps), *told]))


def _check(strengths: Sequence[float], steps: int, channel_count: int, image_count: int) -> None:
    if len(strengths) < 2 or strengths[0] != 0 or any(a >= b for a, b in pairwise(strengths)):
        raise ConfigError(
            f"strengths must ascend from 0, the reference, and be two at least, got {', '.join(f'{own:g}' for own in strengths)}"
        )
    if steps < 1 or channel_count < 4 or image_count < 2:
        raise ConfigError(
            "regulariser takes steps >= 1, channel_count >= 4 and image_count >= 2, got "
            f"{steps}, {channel_count} and {image_count}"
        )


def _stand_in_claims(compared: pd.DataFrame, layer: str, seed: int) -> list[Claim]:
    """How the stand-in follows PSI, over the units that it was not calibrated on."""
    rest = pd.DataFrame(compared[~compared["fitted"].astype(bool)])
    kinds = {str(kind): pd.DataFrame(rows) for kind, rows in rest.groupby("kind", sort=False)}
    channels = kinds[CHANNEL]
    pairs = {"PSI": ("soft_log_psi", "log_psi"), "S_z": ("soft_S_z", "S_z"), "Q_z": ("soft_Q_z", "Q_z")}
    found = [
        rank_correlation(
            f"{layer}: rank correlation of the stand-in with {what}, channels", *(numbers(channels, own) for own in pair),
            seed=seed,
        )
        for what, pair in pairs.items()
    ]  # fmt: skip
    if len(kinds) > 1:
        whole = (numbers(rest, own) for own in pairs["PSI"])
        name = f"{layer}: rank correlation of the stand-in with PSI, channels and planted units"
        found.append(rank_correlation(name, *whole, seed=seed))
    for poly in (kind for kind in kinds if kind.startswith("poly")):
        for other in ("mono", "random"):
            for what, column in (("the stand-in", "soft_log_psi"), ("PSI", "log_psi")):
                own = (numbers(kinds[kind], column) for kind in (poly, other))
                found.append(auroc(f"{layer}: AUROC of {what}, {poly} / {other}", *own, seed=seed))
    return found


def _tuning_claims(rows: pd.DataFrame, correct: dict[str, np.ndarray], layer: str, seed: int) -> list[Claim]:
    """Accuracy and scores at each strength, and what they differ by from strength 0."""
    parts, seen = (
        {
            str(name): own.set_index("channel")
            for name, own in rows[rows["images"] == images].groupby("condition", sort=False)
        }
        for images in (HELD, TRAINED)
    )
    held = {name: label for name, label in MEASURES.items() if name in rows}
    base, *others = [name for name in parts if name != UNTUNED]
    found = []
    for name, own in parts.items():
        found.append(rate(f"{layer}: accuracy, {name}", int(correct[name].sum()), len(correct[name])))
        found += [mean(f"{layer}: mean {label}, {name}", own[m].to_numpy(), seed=seed) for m, label in held.items()]
        over = (own[m].to_numpy() for m in ("soft_log_psi", "log_psi"))
        found.append(rank_correlation(f"{layer}: rank correlation of the stand-in with PSI, {name}", *over, seed=seed))
    for name in (UNTUNED, *others):
        gap = correct[name].astype(np.float64) - correct[base]
        found.append(paired(f"{layer}: accuracy less strength 0's, {name}", gap, seed=seed))
        found += [
            paired(
                f"{layer}: {label} less strength 0's, {name}", (parts[name][m] - parts[base][m]).to_numpy(), seed=seed
            )
            for m, label in held.items()
        ]
    for name, own in seen.items():
        for m in ("psi", "soft"):
            what = f"{MEASURES[m]} of images trained on"
            found.append(mean(f"{layer}: mean {what}, {name}", own[m].to_numpy(), seed=seed))
            if name != base:
                gap = (own[m] - seen[base][m]).to_numpy()
                found.append(paired(f"{layer}: {what} less strength 0's, {name}", gap, seed=seed))
    for name in others:
        change = f"{layer}: rank correlation of the changes of stand-in and PSI, {name}"
        both = ((parts[name][m] - parts[base][m]).to_numpy() for m in ("soft_log_psi", "log_psi"))
        found.append(rank_correlation(change, *both, seed=seed))
    return found


def _asked(own: Lesson, steps: int) -> str:
    return (
        "Can PSI be lowered by training, and at what cost? The *stand-in* is differentiable in a channel's activations: its top "
        "images are weighted by a sigmoid around the border of the top and assigned softly to clusters in their Gram matrix; the "
        "clusters' silhouette, less what the matrix's spectrum lets expect of it without clusters, stands for the z of S, the "
        "clusters' dependence on the labels for the z of Q, and the product of both sigmoids for PSI (D is left out). It is "
        "calibrated on every second channel and planted unit (*mono*: one class logit, *poly m*: the maximum of m, *random* "
        "images), and compared with PSI on the others.\n\n"
        f"Copies of the network were tuned from the layer on: {steps} steps of Adam (rate {RATE:g}, "
        f"{min(BATCH, len(own.train))} images each) on {len(own.train)} images of {len(own.outputs)} classes, cross-entropy plus "
        "*strength* times the channels' mean of -ln(1 - sigmoid) of both z, batch norms in eval mode. Accuracy (among "
        f"these classes) and PSI are of {len(own.held)} other images of the same classes, with whole images as patches and tops "
        f"of {own.top}, four fifths of a class at most, so that a channel can be one of a single class; *untuned* is the network "
        "as it is. Differences are paired, by channel or image, with tuning at strength 0."
    )


def _told(layer: str, names: Sequence[str], own: dict[str, Claim]) -> list[str]:
    """Paragraphs on one layer."""
    rho, of_s, of_q = (own[f"rank correlation of the stand-in with {what}, channels"] for what in ("PSI", "S_z", "Q_z"))
    verdict = "follows" if rho.low > 0 else "runs against" if rho.high < 0 else "does not follow"
    told = (
        f"In {layer}, the stand-in {verdict} PSI over {rho.count} channels that it was not calibrated on: rank correlation "
        f"{rho.value:.2f} ({rho.low:.2f} to {rho.high:.2f}), of its parts with the z of S {of_s.value:.2f} and of Q "
        f"{of_q.value:.2f}"
    )
    both = own.get("rank correlation of the stand-in with PSI, channels and planted units")
    if both is not None:
        told += f"; with planted units among them {both.value:.2f} ({both.low:.2f} to {both.high:.2f})"
    apart = [
        f"{name.removeprefix('AUROC of the stand-in, ')} {one.value:.3f} ({one.low:.3f} to {one.high:.3f}; PSI "
        f"{own[name.replace('the stand-in', 'PSI')].value:.3f})"
        for name, one in own.items()
        if name.startswith("AUROC of the stand-in")
    ]
    told += f". It tells planted units apart with AUROC {'; '.join(apart)}." if apart else "."
    base, *others = names[1:]
    each = [
        f"at strength {name} accuracy is {own[f'accuracy, {name}'].value:.1%} ({accuracy.value:+.1%}, p {accuracy.p:.2g}), mean "
        f"PSI {own[f'mean PSI, {name}'].value:.3f} ({psi.value:+.3f}, {psi.low:+.3f} to {psi.high:+.3f}, p {psi.p:.2g}), the "
        f"stand-in {own[f'mean stand-in, {name}'].value:.3f} ({soft.value:+.3f}); over channels, both changes have a rank "
        f"correlation of {own[f'rank correlation of the changes of stand-in and PSI, {name}'].value:.2f}"
        for name in others
        for accuracy, psi, soft in [
            [own[f"{what} less strength 0's, {name}"] for what in ("accuracy", "PSI", "stand-in")]
        ]
    ]
    tuned = (
        f"The untuned network has an accuracy of {own[f'accuracy, {UNTUNED}'].value:.1%} and a mean PSI of "
        f"{own[f'mean PSI, {UNTUNED}'].value:.3f}; tuned without a penalty, {own[f'accuracy, {base}'].value:.1%} and "
        f"{own[f'mean PSI, {base}'].value:.3f}; {'; '.join(each)}."
    )
    on_train = "; ".join(
        f"{own[f'mean PSI of images trained on, {name}'].value:.3f} at strength {name} ({psi.value:+.3f}, {psi.low:+.3f} to "
        f"{psi.high:+.3f})"
        for name in others
        for psi in [own[f"PSI of images trained on less strength 0's, {name}"]]
    )
    trained = (
        f"On the images trained on, the mean PSI is {own[f'mean PSI of images trained on, {base}'].value:.3f} after tuning "
        f"without a penalty, {on_train}: what is lowered there and not on images held out is learnt of single images."
    )
    return [told, tuned, trained]
