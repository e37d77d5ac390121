"""Does polysemanticity rise with depth? The paper finds layer4 far above layer3."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from psi_fast.activation_tap import list_layers
from psi_fast.errors import InputError
from psi_fast.experiments.comparisons import difference, trend
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import SIGNIFICANT, Claim, auroc, mean, median, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, GREY, PART_COLOURS, error_bars, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, RANDOM = "real", "random patches"


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """By layer: PSI of real and of random-patch channels, the components' z, and how well the two are told apart."""
    found = {one.name: one for one in claims}
    layers = list(dict.fromkeys(table["layer"]))
    sides = table.groupby("layer")["patch_px"].first()
    with panels(3, width=max(3.6, 0.42 * len(layers)), height=3.6) as (figure, axes):
        rng = np.random.default_rng(0)
        for place, layer in enumerate(layers):
            psi = table.loc[(table["layer"] == layer) & (table["kind"] == REAL), "psi"]
            axes[0].scatter(place + rng.uniform(-0.25, 0.25, len(psi)), psi, s=4, color=COLOURS[0], alpha=0.25, lw=0)
        _line(axes[0], layers, found, "mean PSI", COLOURS[0], "real channels, mean")
        _line(axes[0], layers, found, "mean PSI of random patches", COLOURS[1], "random patches, mean")
        tau = found["trend of PSI"]
        axes[0].set(title=f"PSI of each channel (trend: tau {tau.value:.2f}, {tau.low:.2f} to {tau.high:.2f})")
        axes[0].set(ylabel="PSI", ylim=(0, 1.02))
        for number, (part, colour) in enumerate(PART_COLOURS.items()):
            if f"{layers[0]}: mean {part}_z" in found:
                _line(axes[1], layers, found, f"mean {part}_z", colour, part, shift=0.08 * (number - 1))
        axes[1].axhline(0, color=GREY, lw=0.8, ls=":")
        axes[1].set(title="components, mean over channels", ylabel="z")
        _line(axes[2], layers, found, "AUROC real / random patches", COLOURS[0], "AUROC")
        axes[2].axhline(0.5, color=GREY, lw=0.8, ls=":")
        axes[2].set(title="real channels told from random patches", ylabel="AUROC", ylim=(None, 1.02))
        many = len(layers) > 4
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if many else {}
        between = ", " if many else "\n"
        names = [f"{layer}{between}{sides[layer]:.0f} px" for layer in layers]
        for panel in axes:
            panel.set_xticks(range(len(layers)), names, fontsize=7, **slanted)
            panel.set_xlabel("layer, side of its patches")
        for panel, columns in zip(axes, (2, 3), strict=False):
            legend_above(panel, columns=columns)
    return figure


def _line(
    panel: "Axes", layers: list[str], found: dict[str, Claim], what: str, colour: str, label: str, shift: float = 0
) -> None:
    """A value with its interval at each layer, `shift` beside its place."""
    value, reach = error_bars([found[f"{layer}: {what}"] for layer in layers])
    panel.errorbar(np.arange(len(layers)) + shift, value, reach, color=colour, marker="o", ms=3, lw=1.2, label=label)


@experiment(draw)
def depth(study: Study, *, channel_count: int = 50) -> Finding:
    """PSI layer by layer, in the order of the forward pass, and whether it rises.

    Patches have the size that each layer's units see, unless the settings say otherwise, and what random patches of that size
    score changes with it; so each layer's channels are compared with its own random-patch channels as well.

    Parameters
    ----------
    study : Study
        Of at least two layers.
    channel_count : int
        Channels of each layer, evenly spread over it. Most of the time goes into embedding their patches: eight layers of
        50 channels with 100 patches each are about 40,000 crops, a quarter of an hour on two cores at 50 crops/s.
    """
    if len(study.layers) < 2:
        raise InputError(f"depth compares layers, got {study.layers[0]} alone; give --layer several times")
    if channel_count < 3:
        raise InputError(f"channel_count must be at least 3, got {channel_count}")
    table = _scored(study, channel_count)
    layers = list(dict.fromkeys(table["layer"]))
    seed = study.config.seed
    trends, steps = _trends(table, seed), _steps(table, layers, seed)
    claims = [*trends, *steps, *(claim for layer in layers for claim in _of_layer(table, layer, seed))]
    return Finding(table, claims, _text(layers, claims, steps))


def _scored(study: Study, count: int) -> pd.DataFrame:
    """A row a channel, real or of random patches, by layer in the order of execution."""
    executed = [info.name for info in list_layers(study.subject.network)]
    tables = []
    with study.bars.bar("layers", len(study.layers), "layer") as bar:
        for place, layer in enumerate(sorted(study.layers, key=executed.index)):
            found = study.evaluation(layer, channels=study.spread(layer, count))
            field = study.fields[layer]
            about = {"layer": layer, "depth": place, "patch_px": float(np.sqrt(np.prod(field.size)))}
            columns = ["channel", "psi", "log_psi", "p", "q", "k", *(f"{name}_z" for name in found.draws)]
            for kind, rows in ((REAL, found.table), (RANDOM, found.random)):
                tables.append(rows[[*columns, "random_percentile"]].assign(**about, kind=kind))
            bar.update()
    table = pd.concat(tables, ignore_index=True)
    return led_by(table, "layer", "depth", "patch_px", "kind")


def _trends(table: pd.DataFrame, seed: int) -> list[Claim]:
    real, random = (table[table["kind"] == kind] for kind in (REAL, RANDOM))
    paper = "layer4 far above layer3"
    return [
        trend("trend of PSI", real["depth"].to_numpy(), real["log_psi"].to_numpy(), seed=seed, paper=paper),
        trend("trend of PSI of random patches", random["depth"].to_numpy(), random["log_psi"].to_numpy(), seed=seed),
        trend("trend of the percentile among random patches", real["depth"].to_numpy(),
              real["random_percentile"].to_numpy(), seed=seed),
        *(trend(f"trend of {z}", real["depth"].to_numpy(), real[z].to_numpy(), seed=seed) for z in _z(table)),
    ]  # fmt: skip


def _steps(table: pd.DataFrame, layers: list[str], seed: int) -> list[Claim]:
    """Each layer against the one before it."""
    psi = {layer: _of(table, layer, REAL)["psi"].to_numpy() for layer in layers}
    return [
        difference(f"mean PSI, {after} less {before}", psi[after], psi[before], seed=seed)
        for before, after in pairwise(layers)
    ]


def _of_layer(table: pd.DataFrame, layer: str, seed: int) -> list[Claim]:
    own, random = _of(table, layer, REAL), _of(table, layer, RANDOM)
    psi = own["psi"].to_numpy()
    scored = own["q"].dropna()
    return [
        mean(f"{layer}: mean PSI", psi, seed=seed),
        median(f"{layer}: median PSI", psi, seed=seed),
        rate(f"{layer}: share with q <= .05", int((scored <= SIGNIFICANT).sum()), len(scored)),
        *(mean(f"{layer}: mean {z}", own[z].to_numpy(), seed=seed) for z in _z(table)),
        mean(f"{layer}: mean PSI of random patches", random["psi"].to_numpy(), seed=seed),
        auroc(
            f"{layer}: AUROC real / random patches", own["log_psi"].to_numpy(), random["log_psi"].to_numpy(), seed=seed
        ),
        mean(f"{layer}: mean percentile among random patches", own["random_percentile"].to_numpy(), seed=seed),
        Claim(f"{layer}: side of a patch in px of the network's input", float(own["patch_px"].iloc[0])),
    ]


def _of(table: pd.DataFrame, layer: str, kind: str) -> pd.DataFrame:
    return table[(table["layer"] == layer) & (table["kind"] == kind)]


def _z(table: pd.DataFrame) -> list[str]:
    return [f"{part}_z" for part in PART_COLOURS if f"{part}_z" in table]


def _text(layers: list[str], claims: Sequence[Claim], steps: Sequence[Claim]) -> str:
    found = {one.name: one for one in claims}
    psi, random, above = (
        found[f"trend of {what}"] for what in ("PSI", "PSI of random patches", "the percentile among random patches")
    )
    sure = _discoveries(steps)
    up, down = (sum(one.value * sign > 0 for one in sure) for sign in (1, -1))
    first, last = (found[f"{layer}: mean PSI"] for layer in (layers[0], layers[-1]))
    reading = (
        "*Trends* are Kendall's tau-b with the layer's place; a channel's *percentile among random patches* is the share of its "
        "layer's random-patch channels that have its PSI or less."
    )
    return (
        f"Does PSI rise with depth? The {len(layers)} layers are in the order of the forward pass. {_moves('PSI', psi)}; its "
        f"mean is {first.value:.3f} in {layers[0]} and {last.value:.3f} in {layers[-1]}. Of {len(steps)} steps from one "
        f"layer to the next, {up} go up and {down} go down at a false discovery rate of .05 (Mann-Whitney).\n\n"
        "Patches grow with depth, and so may whatever random patches score: "
        f"{_moves('the PSI of random-patch channels', random)}. {_moves('The percentile of real channels among them', above)}: "
        f"that is the part that is the channels' own. {_against_random(layers, found)}\n\n"
        f"{reading} Channels are the units of all intervals and tests; they belong to one network, so the numbers say "
        "nothing about other networks."
    )


def _discoveries(claims: Sequence[Claim]) -> list[Claim]:
    """Those that hold at a false discovery rate of SIGNIFICANT."""
    tested = [one for one in claims if np.isfinite(one.p)]
    q = stats.false_discovery_control([one.p for one in tested]) if tested else []
    return [one for one, own in zip(tested, q, strict=True) if own <= SIGNIFICANT]


def _against_random(layers: Sequence[str], found: dict[str, Claim]) -> str:
    """In which layers real channels are told from random patches, in words."""
    each = {f"{layer}: AUROC real / random patches": layer for layer in layers}
    sure = _discoveries([found[name] for name in each])
    above, below = ([each[one.name] for one in sure if (one.value > 0.5) == up] for up in (True, False))
    open_ = len(layers) - len(above) - len(below)
    return (
        f"Layer by layer, real channels score above random patches in {', '.join(above) or 'no layer'} and below them in "
        f"{', '.join(below) or 'no layer'} at a false discovery rate of .05 (Mann-Whitney); {open_} leave it open."
    )


def _moves(what: str, claim: Claim) -> str:
    """What a trend comes to, in words."""
    if np.isnan(claim.value):
        return f"{what} does not vary"
    way = "shows no clear trend" if claim.p > SIGNIFICANT else "rises" if claim.value > 0 else "falls"
    return f"{what} {way} (Kendall's tau {claim.value:.2f}, {claim.low:.2f} to {claim.high:.2f}, p = {claim.p:.2g})"
