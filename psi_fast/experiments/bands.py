"""Is PSI the same for moderate activations? The paper's second open question."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import Evaluation
from psi_fast.experiments.comparisons import top_overlap
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, mean, paired, rank_correlation, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, GREY, PART_COLOURS, legend_above, panels
from psi_fast.results import COMPONENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = "top K"
SHARES = (0.1, 0.25, 0.5)
REPEATED = 0.5
"""Rank correlation of two draws from which on a ranking is one of the channels rather than of the draw."""
LINES = {
    1: {f"mean {name}_z": name for name in COMPONENTS},
    2: {
        "rank correlation of two draws": "rho of two draws",
        "rank correlation with the top": "rho with the top",
        "overlap with the top's list": "overlap of lists",
        "unselective channels": "unselective",
    },
}
"""The second and third panel's claims, by their label."""


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row of panels a layer: PSI by band, its components by band, and how far each band agrees with the top."""
    layers, names = (list(dict.fromkeys(table[name])) for name in ("layer", "band"))
    known = {one.name: one for one in claims}
    with panels(3 * len(layers), rows=len(layers), width=2.9) as (figure, axes):
        for (layer, kind), panel in zip(product(layers, range(3)), axes, strict=True):
            if kind == 0:
                rows = table[table["layer"] == layer]
                _draw_psi(panel, [rows.loc[rows["band"] == name, "psi"].to_numpy() for name in names])
                _draw_line(panel, [known.get(f"{layer}: mean PSI, {name}") for name in names], "mean", COLOURS[0])
                random = known[f"{layer}: mean PSI of random patches"]
                panel.axhline(random.value, color=COLOURS[1], lw=1, ls="--", label="random patches, mean")
                panel.set(title=f"{layer}: {rows['channel'].nunique()} channels", ylabel="PSI", ylim=(-0.03, 1.03))
            else:
                colours = (*PART_COLOURS.values(),) if kind == 1 else (COLOURS[5], COLOURS[0], COLOURS[1], GREY)
                for number, ((what, label), colour) in enumerate(zip(LINES[kind].items(), colours, strict=True)):
                    shift = 0.07 * (number - (len(colours) - 1) / 2)
                    _draw_line(panel, [known.get(f"{layer}: {what}, {name}") for name in names], label, colour, shift)
                panel.set(title=("mean z, 95 % interval", "each band's ranking, drawn twice")[kind - 1])
                panel.set(ylabel=("z", "rank correlation or share")[kind - 1])
                panel.set_ylim(min(0, panel.get_ylim()[0]), None if kind == 1 else 1.05)
            panel.set_xticks(range(len(names)), names)
            panel.set(xlabel="images from", xlim=(-0.45, len(names) - 0.55))
            legend_above(panel, columns=(2, 3, 2)[kind])
    return figure


@experiment(draw)
def bands(study: Study, *, channel_count: int = 200, shares: tuple[float, ...] = SHARES) -> Finding:
    """PSI from the top K images and from K random ones of the top 10, 25 and 50 % of each channel's own activations.

    The same channels every time, so that all comparisons are paired. Each band is scored twice, with the study's seed and the
    next: other images of the band, and other draws of the nulls. The claims of PSI are of the first.

    Parameters
    ----------
    study : Study
    channel_count : int
        Channels of each layer, evenly spread over it.
    shares : sequence of float
        Of the images by activation, each in (0, 1] and with at least K images.
    """
    if channel_count < 4:
        raise ConfigError(f"channel_count must be at least 4 to compare bands over channels, got {channel_count}")
    configs = _configs(study, shares)
    tables, claims, told = [], [], []
    for layer in study.layers:
        ids = study.spread(layer, channel_count)
        found = {}
        with study.bars.bar(f"bands of {layer}", len(configs), "band") as bar:
            for name, config in configs.items():
                again = replace(config, seed=config.seed + 1)
                found[name] = (
                    study.evaluation(layer, config, channels=ids),
                    study.evaluation(layer, again, channels=ids),
                )
                bar.update()
        rows = _scored_in_all([_rows(first, second, layer, name) for name, (first, second) in found.items()])
        if rows["channel"].nunique() < 4:
            raise InputError(
                f"fewer than 4 of {len(ids)} channels of {layer} are scored in every band (the others are dead or have too few "
                "patches); choose another layer or raise channel_count"
            )
        random = found[TOP][0].random["psi"].to_numpy()
        own = _claims(rows, layer, study.config.seed)
        own.append(mean(f"{layer}: mean PSI of random patches", random, seed=study.config.seed))
        tables.append(rows)
        claims += own
        told.append(_told(layer, list(found), {one.name.removeprefix(f"{layer}: "): one for one in own}))
    text = (
        f"Is PSI the same for moderate activations? Each channel was scored by its top {study.config.top_k} images, and by as "
        f"many random images out of the {', '.join(_percent(share) for share in shares)} of all images that activate it most. "
        "An *unselective* channel's patches activate it no more than random images would. The bands overlap: all of them "
        "reach up to the largest activation. Each is centred on the mean of its own patches. *Rank correlation with the top* and "
        "*overlap with the top's list*, of the channels of largest PSI, hold a band's ranking against the top K's; *less the "
        "top's* is the mean difference, channel by channel. *Rank correlation of two draws* holds a ranking against itself, by "
        "another seed: other random images of a band and other draws of the nulls (the top K's images stay the same). It is the "
        "measure of the other two, because a ranking that does not agree with itself cannot agree with another, whatever the "
        "channels are like.\n\n" + "\n\n".join(told)
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, text)


def _configs(study: Study, shares: Sequence[float]) -> dict[str, PSIConfig]:
    """The settings of each band, the very top first."""
    if not shares or not all(0 < share <= 1 for share in shares) or len(set(shares)) < len(shares):
        raise ConfigError(f"shares must be different numbers in (0, 1], such as {SHARES}, got {tuple(shares)}")
    images, top_k = len(study.subject.images), study.config.top_k
    for share in shares:
        if round(share * images) < top_k:
            raise InputError(
                f"the top {_percent(share)} of {images} images are {round(share * images)}, fewer than top_k {top_k}; give "
                "more images or larger shares, or lower top_k"
            )
    ranges = {f"top {_percent(share)}": (round(1 - share, 12), 1.0) for share in shares}
    return {TOP: study.with_changes(band=None)} | {name: study.with_changes(band=own) for name, own in ranges.items()}


def _rows(evaluation: Evaluation, again: Evaluation, layer: str, band: str) -> pd.DataFrame:
    """A row a channel with what is compared; `log_psi_again` is that of the second draw."""
    table = evaluation.table
    columns = ["channel", "psi", "log_psi", *(f"{name}_z" for name in evaluation.draws), "k", "selectivity"]
    own = table[columns].assign(unselective=["unselective" in flags for flags in table["flags"]])
    own["log_psi_again"] = again.table["log_psi"].to_numpy()
    return led_by(own.assign(layer=layer, band=band), "layer", "band")


def _scored_in_all(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of the channels that have a PSI in both draws of every part, so that every comparison is of the same ones."""
    scored = pd.concat(parts, ignore_index=True).dropna(subset=["log_psi", "log_psi_again"])
    return scored[scored.groupby("channel")["band"].transform("size") == len(parts)].reset_index(drop=True)


def _claims(rows: pd.DataFrame, layer: str, seed: int) -> list[Claim]:
    """Of one layer: each band's means, and how it compares with the top, channel by channel."""
    parts = {str(band): own.set_index("channel") for band, own in rows.groupby("band", sort=False)}
    values = {"PSI": "psi"} | {f"{name}_z": f"{name}_z" for name in COMPONENTS if f"{name}_z" in rows}
    top = parts[TOP]
    found = []
    for band, own in parts.items():
        found += [
            mean(f"{layer}: mean {name}, {band}", own[column].to_numpy(), seed=seed) for name, column in values.items()
        ]
        found.append(rate(f"{layer}: unselective channels, {band}", int(own["unselective"].sum()), len(own)))
        draws = (own[column].to_numpy() for column in ("log_psi", "log_psi_again"))
        found.append(rank_correlation(f"{layer}: rank correlation of two draws, {band}", *draws, seed=seed))
        if band == TOP:
            continue
        ranked = (one.loc[top.index, "log_psi"].to_numpy() for one in (own, top))
        found.append(rank_correlation(f"{layer}: rank correlation with the top, {band}", *ranked, seed=seed))
        found.append(_common(f"{layer}: overlap with the top's list, {band}", own, top))
        found += [
            paired(f"{layer}: {name} less the top's, {band}", (own[column] - top[column]).to_numpy(), seed=seed)
            for name, column in values.items()
        ]
    return found


def _common(name: str, own: pd.DataFrame, top: pd.DataFrame) -> Claim:
    """The share of the most polysemantic channels that two bands have in common, and what chance would give."""
    value, length = top_overlap(*(one.loc[top.index, "log_psi"].to_numpy() for one in (own, top)))
    how = f"the {length} channels of largest PSI out of {len(own)}; {length / len(own):.2f} by chance"
    return Claim(name, value, count=length, how=how)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _told(layer: str, names: Sequence[str], own: dict[str, Claim]) -> str:
    """A paragraph on one layer."""
    means = ", ".join(f"{own[f'mean PSI, {name}'].value:.3f} ({name})" for name in names)
    each = [
        f"{name}: difference {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}, p {one.p:.2g}), "
        f"{own[f'unselective channels, {name}'].value:.1%} unselective, rank correlation "
        f"{own[f'rank correlation with the top, {name}'].value:.3f}"
        for name in names[1:]
        for one in [own[f"PSI less the top's, {name}"]]
    ]
    return (
        f"In {layer}, the mean PSI is {means}, and {own['mean PSI of random patches'].value:.3f} of random patches. Against "
        f"the top K, {'; '.join(each)}. {repeated({name: own[f'rank correlation of two draws, {name}'] for name in names})}"
    )


def repeated(draws: dict[str, Claim]) -> str:
    """How far each band's ranking agrees with itself, and which of them can be held against the top's."""
    listed = ", ".join(f"{one.value:.3f} ({name}, {one.low:.3f} to {one.high:.3f})" for name, one in draws.items())
    known = [name for name, one in draws.items() if one.low >= REPEATED]
    loose = [name for name in draws if name not in known]
    told = f"Two draws rank the channels alike with a correlation of {listed}."
    if TOP in loose:
        return f"{told} Not even the top K's ranking is known to agree with itself, so no band can be held against it."
    if not loose:
        return f"{told} So every band's ranking can be held against the top's."
    listed = " and ".join([", ".join(loose[:-1])] * (len(loose) > 1) + loose[-1:])
    return (
        f"{told} The ranking of {listed} is not known to agree with itself with {REPEATED:g} or more, so a low "
        "correlation with the top does not show that other channels are polysemantic there: one draw hardly tells which of them "
        "have the larger PSI."
    )


def _draw_psi(panel: "Axes", values: Sequence[np.ndarray]) -> None:
    """The middle half of the channels' PSI in each band, and their median."""
    look = {"color": GREY, "lw": 0.8}
    panel.boxplot(
        list(values), positions=range(len(values)), widths=0.5, showfliers=False, showcaps=False, boxprops=look,
        whiskerprops=look, medianprops=look,
    )  # fmt: skip


def _draw_line(panel: "Axes", own: Sequence[Claim | None], label: str, colour: str, shift: float = 0.0) -> None:
    """Values with intervals, each at its band's place or `shift` beside it; nothing for a band without one."""
    points = [(place + shift, one.value, one.low, one.high) for place, one in enumerate(own) if one is not None]
    if points:
        place, value, low, high = np.array(points).T
        panel.vlines(place, low, high, color=colour, lw=1.2)
        panel.plot(place, value, "o-", ms=3.5, lw=1, color=colour, label=label)
