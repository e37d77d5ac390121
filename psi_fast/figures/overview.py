"""Figures of a whole run, layer by layer."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from psi_fast.calibration import log_odds as log_odds_of
from psi_fast.errors import InputError
from psi_fast.figures.style import COLOURS, GREY, PANEL, heading, legend_above, panels, plain
from psi_fast.scores import FLAGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from psi_fast.details import Details

CHANNELS, RANDOM, NULL = COLOURS[0], COLOURS[1], GREY
"""Colours of the run's channels, of its random-patch channels and of its null draws."""
NEAREST_TO_ZERO = 1e-12
"""ln PSI is drawn on a logarithmic axis, which a channel that leaves nothing to doubt would fall off."""
MINUS = "\N{MINUS SIGN}"
BINS = 40
ACROSS = 3
"""Panels beside each other at most."""
HATS = (0, 0.25, 0.5, 0.75, 1)
MARKS = (5, 25, 50, 75, 95)
"""Percentiles of a box and its whiskers."""
SPREADS = "median, quartiles, 5 % and 95 %"
LINE = 0.2
"""Inches that a row of bars takes."""
LETTER = 0.065
"""Inches that a letter of a name takes."""
BEYOND = 0.005
"""Share of the channels, of the null draws or of the random-patch channels that the first and the last bin gather, at most."""
ODDS = "log\N{SUBSCRIPT ONE}\N{SUBSCRIPT ZERO} of PSI / (1 \N{MINUS SIGN} PSI)"


def log_psi(details: "Details", layers: Sequence[str]) -> "Figure":
    """Histogram of ln PSI, with that of random-patch channels and of null draws."""
    with panels(len(layers), rows=-(-len(layers) // ACROSS)) as (figure, axes):
        for panel, layer in zip(axes, layers, strict=True):
            series = {
                name: (np.maximum(-values, NEAREST_TO_ZERO), colour)
                for name, (values, colour) in _series(details, layer).items()
            }
            every = np.concatenate([values for values, _ in series.values()])
            _histograms(panel, series, np.geomspace(every.min(), every.max() * (1 + 1e-9), BINS + 1))
            panel.set(title=layer_title(layer))
            _as_log_psi(panel)
            legend_above(panel, columns=1)
    return figure


def log_odds(details: "Details", layers: Sequence[str]) -> "Figure":
    """Histogram of the odds of PSI, with that of random-patch channels and of null draws."""
    with panels(len(layers), rows=-(-len(layers) // ACROSS)) as (figure, axes):
        for panel, layer in zip(axes, layers, strict=True):
            series = {name: (log_odds_of(values), colour) for name, (values, colour) in _series(details, layer).items()}
            ends = [np.quantile(values, [BEYOND, 1 - BEYOND]) for values, _ in series.values() if len(values)]
            low, high = np.min(ends), max(np.max(ends), np.min(ends) + 0.1)
            inside = {name: (values.clip(low, high), colour) for name, (values, colour) in series.items()}
            _histograms(panel, inside, np.linspace(low, high, BINS + 1))
            panel.set(title=layer_title(layer), xlabel=ODDS)
            legend_above(panel, columns=1)
    return figure


def components(details: "Details", layers: Sequence[str]) -> "Figure":
    """S^, Q^ and D^ of each channel against each other."""
    pairs, table = list(combinations(details.present, 2)), details.scores.table
    with panels(len(layers) * len(pairs), rows=len(layers), width=2.5, height=2.5) as (figure, axes):
        places = iter(axes)
        for layer in layers:
            own = table.iloc[details.layers[layer]].dropna(subset="psi")
            clear = (own["q"] < 0.05).to_numpy()
            for across, up in pairs:
                panel = next(places)
                x, y = own[f"{across}_hat"].to_numpy(), own[f"{up}_hat"].to_numpy()
                for which, colour, name in ((~clear, GREY, "q ≥ .05"), (clear, CHANNELS, "q < .05")):
                    how = {"s": 6, "alpha": 0.4, "linewidths": 0, "color": colour, "rasterized": True, "clip_on": False}
                    panel.scatter(x[which], y[which], label=f"{name} ({which.sum()})", **how)
                panel.axhline(0.5, color="black", linewidth=0.6)
                panel.axvline(0.5, color="black", linewidth=0.6)
                panel.set(xlabel=f"{across}^", ylabel=f"{up}^", xlim=(0, 1), ylim=(0, 1), aspect="equal")
                panel.set(xticks=HATS, yticks=HATS)
                if (across, up) == pairs[0]:
                    panel.set_title(layer_title(layer), pad=9)  # points at 1 reach above the panel
        handles, labels = axes[0].get_legend_handles_labels()
        if len(layers) > 1:  # their numbers are one layer's
            labels = [label.partition(" (")[0] for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=2)
    return figure


def layers(details: "Details", layers: Sequence[str]) -> "Figure":
    """Odds of PSI by layer: median, quartiles, 5 % and 95 % of its channels, with the medians of the baselines."""
    names = [plain(layer, 26, end=True) for layer in layers]
    width = max(PANEL[0], 0.45 * len(layers) + 0.8)
    beside = sum(map(len, names)) < 12 * width  # letters that fit
    height = PANEL[1] + (0 if beside else LETTER * max(map(len, names)))
    with panels(1, width=width, height=height) as (figure, (panel,)):
        found = [_series(details, layer) for layer in layers]
        draw_spreads(panel, [own["channels"][0] for own in found])
        for name in ("random-patch channels", "null draws"):
            medians = [np.median(log_odds_of(own[name][0])) if len(own[name][0]) else np.nan for own in found]
            marker = "D" if name == "null draws" else "s"
            places = np.arange(1, len(layers) + 1)
            panel.plot(places, medians, marker, color=found[0][name][1], markersize=4, label=f"median of {name}")
        panel.set_xticks(np.arange(1, len(layers) + 1), names, rotation=0 if beside else 90)
        panel.set(title=SPREADS, xlabel="layer")
        figure.legend(loc="outside lower center", fontsize=7)
    return figure


def flags(details: "Details", layers: Sequence[str]) -> "Figure":
    """How many channels carry each flag."""
    with panels(len(layers), rows=-(-len(layers) // ACROSS), height=1.8) as (figure, axes):
        for panel, layer in zip(axes, layers, strict=True):
            own = details.scores.table["flags"].iloc[details.layers[layer]]
            names = [name for name in FLAGS if ":" not in name or name[-1] in details.present]
            counts = [sum(name in flagged for flagged in own) for name in names]
            bars = panel.barh(names, counts, color=CHANNELS, height=0.6)
            panel.bar_label(bars, [f"{count} ({100 * count / len(own):.1f} %)" for count in counts], padding=3)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            panel.set(title=layer_title(layer), xlabel=f"channels with the flag, of {len(own)}")
            panel.set_xlim(0, 1.45 * max(1, *counts))
            panel.locator_params(axis="x", integer=True)
    return figure


def seconds(details: "Details") -> "Figure":
    """Time of each stage of the run."""
    found: dict[str, float] = details.scores.manifest["seconds"]
    with panels(1, height=LINE * len(found) + 0.8) as (figure, (panel,)):
        names = [plain(name) for name in found]
        bars = panel.barh(np.arange(len(found)), list(found.values()), color=CHANNELS, height=0.7)
        panel.set_yticks(np.arange(len(found)), names)
        panel.bar_label(bars, [f"{value:.1f} s" for value in found.values()], padding=3, fontsize=7)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.2)
        panel.set(xlabel="seconds")
        heading(figure, f"time by stage of {plain(details.name)}")
    return figure


def draw_spreads(panel: "Axes", found: Sequence[np.ndarray]) -> None:
    """For each of `found`, ln PSI of channels, a box of their odds: median, quartiles, 5 % and 95 %; the first at 1."""
    names = ("whislo", "q1", "med", "q3", "whishi")
    at = [np.percentile(log_odds_of(own), MARKS) if len(own) else np.full(len(MARKS), np.nan) for own in found]
    boxes = panel.bxp(
        [dict(zip(names, own, strict=True)) for own in at],
        showfliers=False, widths=0.5, patch_artist=True, medianprops={"color": "black"},
    )  # fmt: skip
    for box in boxes["boxes"]:
        box.set(facecolor=CHANNELS, alpha=0.45)
    panel.set_xlim(0.4, len(found) + 0.6)
    panel.set(ylabel=ODDS)


def layer_title(layer: str) -> str:
    """A layer as the title of a panel."""
    return f"layer {plain(layer, 26, end=True)}"


def _series(details: "Details", layer: str) -> dict[str, tuple[np.ndarray, str]]:
    """ln PSI and colour of a layer's scored channels, of its random-patch channels and of its null draws."""
    found = {
        "channels": (details.scores.table["log_psi"].to_numpy()[details.layers[layer]], CHANNELS),
        "random-patch channels": (details.random_log_psi(layer), RANDOM),
        "null draws": (details.null_log_psi(layer), NULL),
    }
    found = {name: (values[np.isfinite(values)], colour) for name, (values, colour) in found.items()}
    if not any(len(values) for values, _ in found.values()):
        raise InputError(f"nothing in {layer} has a PSI, neither channels nor baselines; name other layers by --layer")
    return found


def _histograms(panel: "Axes", series: dict[str, tuple[np.ndarray, str]], bins: np.ndarray) -> None:
    """Values and colour of each part as shares of it, that of the channels filled."""
    for name, (values, colour) in series.items():
        filled = name == "channels"
        panel.hist(
            values, bins.tolist(), weights=np.full(len(values), 100 / max(1, len(values))), color=colour,
            histtype="stepfilled" if filled else "step", alpha=0.45 if filled else 1, label=f"{name} ({len(values)})",
        )  # fmt: skip
    panel.set(ylabel="share in each bin (%)")
    panel.locator_params(axis="y", nbins=5)


def _as_log_psi(panel: "Axes") -> None:
    """Make the horizontal axis of -ln PSI one of ln PSI: logarithmic, with 0 far to the right."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set(xscale="log", xlabel="ln PSI (PSI = 1 far to the right)")
    axis = panel.xaxis
    axis.set_inverted(True)
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{MINUS}{x:g}" if x > 5e-4 else f"$-10^{{{np.log10(x):.0f}}}$")
