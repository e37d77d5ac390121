"""Can patches be made to look polysemantic, with pixels hardly changed and the channel's activation kept?"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from psi_fast.config import PSIConfig
from psi_fast.crops import whole_pixels
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import evaluate
from psi_fast.experiments.attack import Attack, Sight, smooth_encoder
from psi_fast.experiments.attack_plan import concept_axis, halves, most_monosemantic, noised
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import SIGNIFICANT, Claim, mean, median, paired, quantile, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, GREY, legend_above, panels
from psi_fast.results import PatchEmbeddings, TopPatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONDITIONS = {"before": GREY, "noise": COLOURS[4], "mixed": COLOURS[0], "by class": COLOURS[1]}
"""Random pixels; halves that each hold a share of every class; halves that share no class."""
SEEDS = 2
"""Draws, by as many seeds, whose mean PSI chooses the channels; the next seed scores them under each condition."""
PART = 24
"""Patches of one file on the shelf."""
SMALLEST = 1e-7
"""Change of an activation, relative, below which a figure does not tell."""
CHANGES = {"change of the activation": "activation", "change at the place where it peaked": "place"}
"""Of the largest value of a channel's map, and of its value where the largest one was before."""
MEASURES = ("psi", "S_hat", "Q_hat", "D_hat")


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """PSI of each channel under each condition; the components; the activation's change. One row of panels, all layers."""
    held = [name for name in CONDITIONS if name in set(table["condition"])]
    values = [table[table["condition"] == name] for name in held]
    ticks = {"xticks": range(len(held)), "xticklabels": held}
    with panels(3) as (figure, (left, middle, right)):
        wide = table.pivot(index=["layer", "channel"], columns="condition", values="psi")[held].to_numpy()
        left.plot(wide.T, color="#bbbbbb", linewidth=0.6, zorder=1)
        for place, (name, rows) in enumerate(zip(held, values, strict=True)):
            left.scatter(np.full(len(rows), place), rows["psi"], s=10, color=CONDITIONS[name], zorder=2)
            left.hlines(rows["psi"].mean(), place - 0.3, place + 0.3, color=CONDITIONS[name], linewidth=2.5, zorder=3)
        left.set(
            title="PSI of each channel, bar: mean",
            ylabel="PSI",
            ylim=(-0.03, 1.03),
            xlim=(-0.5, len(held) - 0.5),
            **ticks,
        )
        parts = [part for part in ("S", "Q", "D") if np.isfinite(table[f"{part}_hat"]).any()]
        for place, (name, rows) in enumerate(zip(held, values, strict=True)):
            means = [rows[f"{part}_hat"].mean() for part in parts]
            spread = [rows[f"{part}_hat"].std() / len(rows) ** 0.5 for part in parts]
            at = np.arange(len(parts)) + (place - (len(held) - 1) / 2) * 0.8 / len(held)
            middle.bar(
                at, means, 0.72 / len(held), yerr=spread, color=CONDITIONS[name], label=name, error_kw={"lw": 0.7}
            )
        middle.axhline(0.5, color="black", linewidth=0.7, linestyle=":")
        middle.set(title="components, mean and its standard error", ylabel="calibrated component", ylim=(0, 1.03))
        middle.set_xticks(range(len(parts)), [f"{part}^" for part in parts])
        legend_above(middle, columns=2)
        shown = held[1:]
        boxes = [table.loc[table["condition"] == name, "activation_change"].clip(lower=SMALLEST) for name in shown]
        drawn = right.boxplot(boxes, patch_artist=True, medianprops={"color": "black"}, flierprops={"markersize": 3})
        for box, name in zip(drawn["boxes"], shown, strict=True):
            box.set_facecolor(CONDITIONS[name])
        right.set_xticks(range(1, len(shown) + 1), shown)
        right.set(title="change of the activation", ylabel="of the activation, median over patches", yscale="log")
        right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    return figure


@experiment(draw)
def adversarial(
    study: Study, *, channel_count: int = 8, patch_count: int = 40, budget: float = 8.0, steps: int = 4
) -> Finding:
    """Patches of the most monosemantic channels changed so that they split in the encoder's space: does PSI stay low?

    Half of a channel's patches are moved along, half against the difference of two concepts, by changes of at most `budget` in
    a pixel, while the channel's activation, the largest value of its map, is held. The halves are mixed (each has its share of
    every class) or by class (they share none). Controls: the patches as they are, and random noise of the same size. The
    channels are chosen by their mean PSI in two draws from as many patches as are attacked; `before` is a third draw.

    Parameters
    ----------
    study : Study
    channel_count : int
        Channels of each layer, from the lowest PSI up.
    patch_count : int
        Top patches of each channel that take part; all of the study's where it has fewer.
    budget : float
        Largest change of a pixel's value, of 255.
    steps : int
        Gradients of each image.
    """
    _check(study, channel_count, patch_count, budget, steps)
    tables, claims, told = [], [], []
    for layer in study.layers:
        table, changes = _layer(study, layer, channel_count, patch_count, budget, steps)
        own = _claims(table, changes, layer, study.config.seed)
        tables.append(led_by(table.assign(layer=layer), "layer"))
        claims += own
        told.append(_told(own, table, layer))
    text = (
        "Can patches be made to look polysemantic? The top patches of the most monosemantic channels are changed by at most "
        f"{budget:g} of 255 in a pixel, so that one half moves along and one half against the difference of two concepts in the "
        "encoder's space, while the channel's activation, the largest value of its map, is held; where in the map that is may "
        "change, and so may the value *at the place where it peaked*. *mixed*: each half has its share of every class; *by "
        "class*: the halves share no class, the stronger attack. Changed pixels are not rounded to whole numbers, which would "
        "move the activation. *before*: the patches as they are; *noise*: random changes of the same size. Under every "
        "condition, before as well, network and encoder see the patches on one path, in float32, and everything is scored with "
        f"one centre. Channels are chosen by the mean of {SEEDS} draws from as many patches as are attacked, and then scored by "
        "another seed, so that luck in a draw does not make them look monosemantic. Numbers are means over channels; behind a "
        "component's mean is its change since before. *Cosine to the patch before* is that of the embeddings.\n\n"
        + "\n\n".join(told)
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, text)


def _check(study: Study, channel_count: int, patch_count: int, budget: float, steps: int) -> None:
    if channel_count < 1 or not 0 < budget <= 255 or steps < 1:
        raise ConfigError(
            f"adversarial takes channel_count >= 1, 0 < budget <= 255 and steps >= 1, got {channel_count}, {budget} and {steps}"
        )
    if patch_count < 2 * study.config.k_max:
        raise ConfigError(
            f"patch_count must be at least 2 * k_max = {2 * study.config.k_max}, got {patch_count}: raise it or lower k_max"
        )
    smooth_encoder(study.subject.encoder)


def _layer(
    study: Study, layer: str, count: int, patch_count: int, budget: float, steps: int
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """A row for each chosen channel under each condition, and each condition's patches as [C, K] numbers (see `changed`)."""
    seeds = range(study.config.seed, study.config.seed + SEEDS + 1)
    *choosing, scoring = (study.with_changes(top_k=min(patch_count, study.config.top_k), seed=seed) for seed in seeds)
    draws = [study.evaluation(layer, config) for config in choosing]
    chosen, centre = most_monosemantic([one.table for one in draws], count), draws[0].centre
    top = study.top(layer, scoring, np.array(chosen.index))
    if not top.valid.all():
        raise InputError(
            f"adversarial needs {scoring.top_k} patches of every channel, and it has fewer; give more images"
        )
    labels = study.subject.images.labels
    names = [name for name in CONDITIONS if name != "by class" or labels is not None]
    with study.bars.bar("attacks", top.images.size * len(names), "patch") as bar:
        rows = [
            _seen(study, layer, centre, top, row, names, budget, steps, bar.update) for row in range(len(top.channels))
        ]
    embedded, maps = (
        {name: torch.stack([own[name][part] for own in rows]) for name in names} for part in ("rows", "map")
    )
    changes = {name: changed(maps["before"], own) for name, own in maps.items()}
    table = _scored(study, top, embedded, centre, scoring).assign(
        condition=np.repeat(names, len(top.channels)),
        psi_chosen_by=np.tile(chosen.to_numpy(), len(names)),
        activation_change=np.concatenate([np.median(own["activation"], axis=1) for own in changes.values()]),
        largest_activation_change=np.concatenate([own["activation"].max(1) for own in changes.values()]),
        place_change=np.concatenate([np.median(own["place"], axis=1) for own in changes.values()]),
        peak_moved=np.concatenate([own["moved"].mean(1) for own in changes.values()]),
        cosine_to_before=torch.cat([(own * embedded["before"]).sum(-1).mean(1) for own in embedded.values()]).numpy(),
    )
    return table, changes


def changed(before: torch.Tensor, after: torch.Tensor) -> dict[str, np.ndarray]:
    """How a channel's maps [C, K, P] differ, [C, K] each.

    `activation`: relative change of the largest value; `place`: of the value where it was before; `moved`: whether it is
    elsewhere now.
    """
    value, place = before.max(-1)
    size = value.abs().clamp_min(1e-12)
    there = after.gather(-1, place[..., None])[..., 0]
    return {
        "activation": ((after.amax(-1) - value).abs() / size).numpy(),
        "place": ((there - value).abs() / size).numpy(),
        "moved": (after.argmax(-1) != place).numpy(),
    }


def _scored(
    study: Study, top: TopPatches, embedded: Mapping[str, torch.Tensor], centre: torch.Tensor | None, config: PSIConfig
) -> pd.DataFrame:
    """The scores of the channels under each condition, whose patches are embedded as [C, K, d].

    One call for all conditions: one centre, and for a channel the same draws under each.
    """
    labels, count = study.subject.images.labels, len(embedded)
    places = count * len(top.channels)
    found = evaluate(
        PatchEmbeddings(
            torch.cat([own.flatten(0, 1) for own in embedded.values()]),
            torch.arange(places * config.top_k).reshape(places, -1),
            torch.from_numpy(top.channels).repeat(count),
        ),
        None if labels is None else torch.from_numpy(labels[top.images]).repeat(count, 1),
        study.text,
        None,
        config,
        study.subject.device,
        study.bars,
        dead=np.zeros(places, bool),
        max_activation=np.tile(top.highest, count),
        selectivity=np.tile(top.selectivity, count),
        unselective=np.zeros(places, bool),
        centre=centre,
    )
    kept = ["channel", "psi", "log_psi", "p", "k"]
    return found.table[kept + [f"{part}{suffix}" for part in "SQD" for suffix in ("", "_z", "_hat", "_p")]]


def _seen(
    study: Study,
    layer: str,
    centre: torch.Tensor | None,
    top: TopPatches,
    row: int,
    names: Sequence[str],
    budget: float,
    steps: int,
    advance: Callable[[int], object],
) -> dict[str, dict[str, torch.Tensor]]:
    """What `Sight.measured` gives of a channel's K patches under each condition; `advance` hears of patches done."""
    encoder, labels = study.subject.encoder.to(study.subject.device), study.subject.images.labels
    channel, images = int(top.channels[row]), top.images[row]
    sight = Sight(study.tap(layer), channel, smooth_encoder(encoder), encoder.preprocess)
    boxes = whole_pixels(study.boxes(layer, top.positions[row]), study.squares.side)
    shared = {
        "subject": study.about["fingerprints"],
        "device": study.subject.device.type,
        "side": study.squares.side,
        "unit": [layer, channel],
    }

    def under(change: Callable[[torch.Tensor, slice], torch.Tensor], *what: object) -> dict[str, torch.Tensor]:
        parts = []
        for start in range(0, len(images), PART):
            part = slice(start, start + PART)

            def make(part: slice = part) -> dict[str, torch.Tensor]:
                clean = study.squares.read(images[part], torch.device("cpu")).cpu().float()
                return sight.measured(change(clean, part), boxes[part])

            patches = [own[part].tolist() for own in (images, boxes)]
            parts.append(study.shelf.tensors("attacked", {**shared, "what": what, "patches": patches}, make))
            advance(len(patches[0]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def noisy(clean: torch.Tensor, part: slice) -> torch.Tensor:
        return noised(clean, boxes[part], budget, [study.config.seed, channel, part.start])

    before = under(lambda clean, _: clean, "before")
    held = before["map"].amax(1)
    found = {"before": before, "noise": under(noisy, "noise", budget, study.config.seed)}
    axis = concept_axis(before["rows"], study.text.embeddings, centre)
    middle = torch.zeros_like(axis) if centre is None else centre.float()
    attack = Attack(sight, middle, axis, budget, steps)
    classes = np.zeros(len(images), np.int64) if labels is None else labels[images]
    about = [budget, steps, *([round(float(value), 5) for value in own] for own in (axis, middle))]
    for name in names[2:]:
        aims = halves(classes, by_class=name == "by class")

        def attacked(clean: torch.Tensor, part: slice, aims: np.ndarray = aims) -> torch.Tensor:
            return attack(clean, boxes[part], aims[part], held[part])

        found[name] = under(attacked, "attack", aims.tolist(), *about)
    return found


def _claims(table: pd.DataFrame, changes: Mapping[str, Mapping[str, np.ndarray]], layer: str, seed: int) -> list[Claim]:
    """The numbers of one layer."""
    held: dict[str, pd.DataFrame] = {
        name: pd.DataFrame(table[table["condition"] == name]) for name in CONDITIONS if name in set(table["condition"])
    }
    before, noise = held["before"], held["noise"]
    claims = [mean(f"{layer}: PSI that chose the channels", before["psi_chosen_by"].to_numpy(), seed=seed)]
    claims += [mean(f"{layer}: PSI, {name}", rows["psi"].to_numpy(), seed=seed) for name, rows in held.items()]
    for name, rows in list(held.items())[1:]:
        for measure in MEASURES:
            if np.isfinite(before[measure]).any():
                gap = rows[measure].to_numpy() - before[measure].to_numpy()
                claims.append(paired(f"{layer}: {measure}, {name} - before", gap, seed=seed))
        if name != "noise":
            gap = rows["psi"].to_numpy() - noise["psi"].to_numpy()
            claims.append(paired(f"{layer}: psi, {name} - noise", gap, seed=seed))
        claims += [
            rate(f"{layer}: PSI >= .5, {name}", int(np.sum(rows["psi"] >= 0.5)), len(rows)),
            rate(f"{layer}: p <= .05, {name}", int(np.sum(rows["p"] <= SIGNIFICANT)), len(rows)),
            *(
                quantile(f"{layer}: {what}, {name}, {label}", changes[name][which], level, seed=seed)
                for what, which in CHANGES.items()
                for label, level in (("median", 0.5), ("95 % quantile", 0.95))
            ),
            mean(f"{layer}: patches whose peak moved, {name}", rows["peak_moved"].to_numpy(), seed=seed),
            median(f"{layer}: cosine to the patch before, {name}", rows["cosine_to_before"].to_numpy(), seed=seed),
        ]
    return claims


def _told(claims: Sequence[Claim], table: pd.DataFrame, layer: str) -> str:
    """What came out in a layer, in words."""
    own = {one.name.removeprefix(f"{layer}: "): one for one in claims}
    value = {name: one.value for name, one in own.items()}
    told = [
        f"In {layer}, the channels were chosen by a PSI of {value['PSI that chose the channels']:.2f} on average. Scored anew "
        f"and seen as in an attack it is {value['PSI, before']:.2f} before, and {value['PSI, noise']:.2f} under noise, which "
        f"changes the activation by {_moved(value, 'noise')}."
    ]
    for name in ("mixed", "by class"):
        if f"PSI, {name}" not in value:
            continue
        hats = {part: table.loc[table["condition"] == name, f"{part}_hat"].mean() for part in "SQD"}
        hats = {part: hat for part, hat in hats.items() if np.isfinite(hat)}
        parts = ", ".join(
            f"{part}^ {hat:.2f} ({value[f'{part}_hat, {name} - before']:+.2f})" for part, hat in hats.items()
        )
        mean_psi = own[f"PSI, {name}"]
        verdict = (
            "stays below .5"
            if mean_psi.high < 0.5
            else "rises above .5"
            if mean_psi.low > 0.5
            else "is not told from .5"
        )
        holding = [f"{part}^" for part, hat in hats.items() if hat < 0.5]
        told.append(
            f"Split {name}, PSI {verdict}: {mean_psi.value:.2f} on average; {value[f'PSI >= .5, {name}']:.0%} of channels reach "
            f".5, {value[f'p <= .05, {name}']:.0%} p <= .05. On average "
            f"{' and '.join(holding) or 'no component'} stay{'s' * (len(holding) < 2)} below .5"
            f"{' and so hold' + 's' * (len(holding) < 2) + ' PSI down' if holding else ''} ({parts}); "
            f"the activation changes by {_moved(value, name)}."
        )
    return " ".join(told)


def _moved(value: Mapping[str, float], name: str) -> str:
    (middle, most), (place, farthest) = (
        [100 * value[f"{what}, {name}, {part}"] for part in ("median", "95 % quantile")] for what in CHANGES
    )
    return (
        f"{middle:.2g} % (median over patches; 95 % by less than {most:.2g} %), and by {place:.2g} % (95 % by less than "
        f"{farthest:.2g} %) at the place where it peaked; {value[f'patches whose peak moved, {name}']:.0%} of patches peak "
        "elsewhere"
    )
