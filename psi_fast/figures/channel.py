"""Figures of one channel, `row` of the run's table."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from psi_fast.calibration import NO_VARIATION
from psi_fast.errors import InputError
from psi_fast.figures.style import COLOURS, GREY, PANEL, PART_COLOURS, heading, legend_above, panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from psi_fast.details import Details

MARKERS = "osD^vP*"
"""With COLOURS, so that no cluster is told apart by its colour alone."""
MEANING = {"S": "mean silhouette", "Q": "agreement with classes", "D": "distinctness of concepts"}
HALF = 22
"""Letters of a name that takes half of a panel's width."""
CLUSTER = "cluster: nearest concept (patches)"
ITEMS = 3
"""Classes or concepts of a cluster."""
LINE = 0.17
"""Inches that a row of bars takes."""


def nulls(details: "Details", row: int) -> "Figure":
    """Null draws of S, Q and D, with the observed value."""
    require_score(details, row)
    own = details.scores.table.iloc[row]
    with panels(len(details.present), width=2.4, height=2.3) as (figure, axes):
        for panel, name in zip(axes, details.present, strict=True):
            drawn = details.null_draws(name)
            assert drawn is not None, "a component that is present has draws"
            observed = own[name]
            panel.hist(
                drawn[row],
                int(np.clip(drawn.shape[1] // 8, 10, 30)),
                color=GREY,
                alpha=0.45,
                label=f"{drawn.shape[1]} null draws",
            )
            panel.margins(x=0.08)
            top = panel.get_ylim()[1]
            colour = PART_COLOURS[name]
            panel.vlines(observed, 0, top, color=colour, linewidth=2, label=f"observed: {observed:.3f}")
            panel.set_ylim(0, top)
            varies = own[f"{name}_null_sd"] >= NO_VARIATION
            z = f"z = {own[f'{name}_z']:.1f}, p = {own[f'{name}_p']:.2g}" if varies else "its null does not vary"
            panel.set(title=f"{name}: {z}", xlabel=MEANING[name], ylabel="draws")
            panel.locator_params(axis="x", nbins=5)
            legend_above(panel, columns=1)
        heading(figure, named(details, row))
    return figure


def silhouettes(details: "Details", row: int) -> "Figure":
    """Silhouette of each patch, sorted within its cluster."""
    require_score(details, row)
    values, labels = details.silhouettes([row])[0], details.scores.labels[row]
    clusters, s = clusters_of(details, row), details.scores.table["S"].iloc[row]
    with panels(1, width=3.6) as (figure, (panel,)):
        top, ticks = 0, []
        for cluster in range(len(clusters)):
            own = np.sort(values[labels == cluster])[::-1]
            panel.barh(top + np.arange(len(own)), own, height=1, color=colour_of(cluster), linewidth=0)
            ticks.append(top + (len(own) - 1) / 2)
            top += len(own) + 2
        panel.axvline(s, color="black", linestyle="--", linewidth=1)
        panel.set_yticks(ticks, clusters)
        panel.grid(axis="y", visible=False)
        panel.set_ylim(top - 1.5, -1)
        panel.set(xlabel="silhouette of each patch", ylabel=CLUSTER)
        heading(figure, f"{named(details, row)}: S = {s:.3f} (dashed)")
    return figure


def activations(details: "Details", row: int) -> "Figure":
    """Largest activation in each image, with the range of the channel's patches."""
    patches, maxima = details.patches(row)["activation"], details.image_maxima[row]
    low, high = float(patches.min()), float(patches.max())
    with panels(1) as (figure, (panel,)):
        panel.axvspan(low, high, color=COLOURS[1], alpha=0.25, label=f"{len(patches)} patches: {low:.3g} to {high:.3g}")
        panel.hist(maxima, 40, color=COLOURS[0], alpha=0.7, label=f"{len(maxima)} images of the set")
        panel.locator_params(axis="y", integer=True)
        panel.set(xlabel="largest activation, unit of the network", ylabel="images")
        heading(figure, named(details, row))
        figure.legend(loc="outside lower center", fontsize=7)
    return figure


def patch_map(details: "Details", row: int) -> "Figure":
    """Patches on their first two principal axes, by cluster."""
    require_score(details, row)
    (places,), (shares,) = details.principal([row])
    labels = details.scores.labels[row]
    with panels(1, width=3.3, height=3.3) as (figure, (panel,)):
        for cluster, name in enumerate(clusters_of(details, row)):
            own = places[labels == cluster]
            panel.scatter(
                *own.T, s=16, color=colour_of(cluster), marker=_marker(cluster), alpha=0.8, linewidths=0, label=name
            )
        panel.set(aspect="equal", adjustable="datalim")
        heading(figure, named(details, row))
        panel.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of the variance)")
        panel.set_ylabel(f"second ({100 * shares[1]:.0f} %)")
        _name_clusters(figure, panel)
    return figure


def classes(details: "Details", row: int) -> "Figure":
    """Most frequent classes of each cluster."""
    require_score(details, row)
    (found,) = details.cluster_classes([row], ITEMS)
    if not any(found):
        raise InputError(f"{details.folder} has no classes: its images have no labels; see `psi-fast figure concepts`")
    return _bars(details, row, found, "patches of the class", lambda count: f"{count:.0f}")


def concepts(details: "Details", row: int) -> "Figure":
    """Concepts nearest to each cluster, with their cosines."""
    require_score(details, row)
    (found,) = details.cluster_concepts([row], ITEMS)
    return _bars(details, row, found, "cosine to the mean of the cluster", lambda cosine: f"{cosine:.2f}")


def swaps(details: "Details", row: int) -> "Figure":
    """What patches put into other images do to the activation; takes the experiment patch-swap."""
    own, told = details.scores.table.iloc[row], f"`psi-fast experiment patch-swap ... --out {details.folder}`"
    if (table := details.swaps) is None:
        raise InputError(f"{details.folder} has no patch swaps; run {told} with the flags of the run")
    found = table.loc[(table["layer"] == own["layer"]) & (table["channel"] == own["channel"])]
    if not len(found):
        count = len(table.groupby(["layer", "channel"]))
        raise InputError(
            f"patch-swap was run on {count} of the channels, and {details.address(row)} is none of them; take one of those in "
            f"its table, or run {told} with a larger --channel-count"
        )
    with panels(1, width=3.6, height=2.2) as (figure, (panel,)):
        value, low, high = (found[name].to_numpy() for name in ("change_sd", "low", "high"))
        reach = np.clip([value - low, high - value], 0, None)
        names = found["condition"].tolist()
        for place in range(len(names)):
            panel.errorbar(
                value[place], -place, xerr=reach[:, place : place + 1], fmt="o", color=colour_of(place), capsize=3
            )
            panel.text(
                1.02, -place, f"{value[place]:+.2f}", transform=panel.get_yaxis_transform(), va="center", fontsize=7
            )
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(-np.arange(len(names)), names)
        panel.set_ylim(0.5 - len(names), 0.5)
        panel.set(xlabel="change in activation, sd of the channel")
        heading(figure, f"{named(details, row)}: {found['hosts'].iloc[0]} hosts, 95 % intervals")
    return figure


def _name_clusters(figure: "Figure", panel: "Axes") -> None:
    """A legend of the clusters below the panel, in two columns where their names are short enough."""
    names = panel.get_legend_handles_labels()[1]
    columns = 1 if max(map(len, names)) > HALF else 2
    figure.legend(loc="outside lower center", ncols=columns, fontsize=7, title=CLUSTER, title_fontsize=7)


def require_score(details: "Details", row: int) -> None:
    """See that the channel has clusters."""
    own = details.scores.table.iloc[row]
    if not own["k"]:
        flags = ", ".join(own["flags"]) or "no flags"
        raise InputError(
            f"channel {details.address(row)} has no score ({flags}), so there are no clusters to draw; take another"
        )


def named(details: "Details", row: int) -> str:
    """The channel as a title."""
    return f"channel {plain(details.address(row), 30, end=True)}"


def clusters_of(details: "Details", row: int) -> list[str]:
    """A label for each cluster: its concept and its number of patches."""
    own = details.scores.table.iloc[row]
    return [
        f"{plain(concept, 24)} ({size})" for concept, size in zip(own["concepts"], own["cluster_sizes"], strict=True)
    ]


def colour_of(number: int) -> str:
    """Colour of a cluster."""
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _bars(
    details: "Details",
    row: int,
    found: Sequence[Sequence[tuple[str, float]]],
    what: str,
    written: Callable[[float], str],
) -> "Figure":
    """A bar an item, cluster below cluster."""
    lines = sum(map(len, found)) + len(found)
    with panels(1, width=3.6, height=max(PANEL[1], LINE * lines + 0.8)) as (figure, (panel,)):
        place, ticks, names = 0.0, [], []
        for cluster, (items, name) in enumerate(zip(found, clusters_of(details, row), strict=True)):
            places = place + np.arange(len(items))
            bars = panel.barh(places, [value for _, value in items], height=0.75, color=colour_of(cluster), label=name)
            panel.bar_label(bars, [written(value) for _, value in items], padding=2, fontsize=7)
            ticks += places.tolist()
            names += [plain(text, 28) for text, _ in items]
            place += len(items) + 0.8
        panel.set_yticks(ticks, names)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.12, y=0.02)
        panel.set(xlabel=what)
        heading(figure, named(details, row))
        _name_clusters(figure, panel)
    return figure
