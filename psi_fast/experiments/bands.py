"""Is PSI the same for moderate activations? The paper's second open question."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from psi_fast.config import PSIConfig
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import Evaluation
from psi_fast.experiments.comparisons import top_overlap
from psi_fast.experiments.figures import COLOURS, GREY, PART_COLOURS, legend_above, panels
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, mean, paired, rank_correlation, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.results import COMPONENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = "top K"
SHARES = (0.1, 0.25, 0.5)
LINES = {
    1: {f"mean {name}_z": name for name in COMPONENTS},
    2: {
        "rank correlation with the top": "rank correlation",
        "overlap with the top's list": "overlap of lists",
        "unselective channels": "share unselective",
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
                colours = (*PART_COLOURS.values(),) if kind == 1 else (COLOURS[0], COLOURS[1], GREY)
                for (what, label), colour in zip(LINES[kind].items(), colours, strict=True):
                    _draw_line(panel, [known.get(f"{layer}: {what}, {name}") for name in names], label, colour)
                panel.set(title=("mean z, 95 % interval", "each band and the top")[kind - 1])
                panel.set(ylabel=("z", "correlation or share")[kind - 1])
                panel.set_ylim(min(0, panel.get_ylim()[0]), None if kind == 1 else 1.05)
            panel.set_xticks(range(len(names)), names)
            panel.set(xlabel="images from", xlim=(-0.45, len(names) - 0.55))
            legend_above(panel, columns=(2, 3, 2)[kind])
    return figure


@experiment(draw)
def bands(study: Study, *, channel_count: int = 200, shares: tuple[float, ...] = SHARES) -> Finding:
    """PSI from the top K images and from K random ones of the top 10, 25 and 50 % of each channel's own activations.

    The same channels every time, so that all comparisons are paired.

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
                found[name] = study.evaluation(layer, config, channels=ids)
                bar.update()
        rows = _scored_in_all([_rows(one, layer, name) for name, one in found.items()])
        if rows["channel"].nunique() < 4:
            raise InputError(
                f"fewer than 4 of {len(ids)} channels of {layer} are scored in every band (the others are dead or have too few "
                "patches); choose another layer or raise channel_count"
            )
        random = found[TOP].random["psi"].to_numpy()
        own = _claims(rows, layer, study.config.seed)
        own.append(mean(f"{layer}: mean PSI of random patches", random, seed=study.config.seed))
        tables.append(rows)
        claims += own
        told.append(_told(layer, list(found), {one.name.removeprefix(f"{layer}: "): one for one in own}))
    text = (
        f"Is PSI the same for moderate activations? Each channel was scored by its top {study.config.top_k} images, and by as "
        f"many random images out of the {', '.join(_percent(share) for share in shares)} of all images that activate it most. "
        "An *unselective* channel's patches activate it no more than random images would. The bands overlap: all of them "
        "reach up to the largest activation. *Rank correlation with the top* and *overlap with the top's list*, of the channels "
        "of largest PSI, hold a band's ranking against the top K's; *less the top's* is the mean difference, channel by channel."
        "\n\n" + "\n\n".join(told)
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


def _rows(evaluation: Evaluation, layer: str, band: str) -> pd.DataFrame:
    """A row a channel with what is compared."""
    table = evaluation.table
    columns = ["channel", "psi", "log_psi", *(f"{name}_z" for name in evaluation.draws), "k", "selectivity"]
    own = table[columns].assign(unselective=["unselective" in flags for flags in table["flags"]])
    return led_by(own.assign(layer=layer, band=band), "layer", "band")


def _scored_in_all(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of the channels that have a PSI in every part, so that every comparison is of the same ones."""
    scored = pd.concat(parts, ignore_index=True).dropna(subset="log_psi")
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
        f"{name}: rank correlation {own[f'rank correlation with the top, {name}'].value:.3f}, difference "
        f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}, p {one.p:.2g}), "
        f"{own[f'unselective channels, {name}'].value:.1%} unselective"
        for name in names[1:]
        for one in [own[f"PSI less the top's, {name}"]]
    ]
    return (
        f"In {layer}, the mean PSI is {means}, and {own['mean PSI of random patches'].value:.3f} of random patches. Against "
        f"the top K, {'; '.join(each)}."
    )


def _draw_psi(panel: "Axes", values: Sequence[np.ndarray]) -> None:
    """The middle half of the channels' PSI in each band, and their median."""
    look = {"color": GREY, "lw": 0.8}
    panel.boxplot(
        list(values), positions=range(len(values)), widths=0.5, showfliers=False, showcaps=False, boxprops=look,
        whiskerprops=look, medianprops=look,
    )  # fmt: skip


def _draw_line(panel: "Axes", own: Sequence[Claim | None], label: str, colour: str) -> None:
    """Values with intervals, each at its band's place; nothing for a band without one."""
    points = [(place, one.value, one.low, one.high) for place, one in enumerate(own) if one is not None]
    if points:
        place, value, low, high = np.array(points).T
        panel.vlines(place, low, high, color=colour, lw=1.2)
        panel.plot(place, value, "o-", ms=3.5, lw=1, color=colour, label=label)
