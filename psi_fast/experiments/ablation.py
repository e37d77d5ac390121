"""What does each of S, Q and D add to PSI, and each way of combining them? The paper's table 1."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import expit

from psi_fast.experiments.null_channels import null_channels
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, aurocs, contrast
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import numbers
from psi_fast.figures.style import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = {
    "product": lambda z, p: -np.logaddexp(0, -z).sum(1),  # its logarithm, which still ranks what rounds to 1
    "minimum": lambda z, p: z.min(1),  # ranks as the smallest hat
    "mean": lambda z, p: expit(z).mean(1),
    "largest p": lambda z, p: -p.max(1),
}
"""Values of channels from z and p [n, c] of c components: products of hats, their minimum, their mean, intersection-union."""
AGAINST = ("rotated null", "random patches")
PAPER = {("product", "SQD", "rotated null"): ".987"}


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row of panels a layer: the AUROCs against either kind of channel, a line a subset, a colour a way."""
    layers = list(dict.fromkeys(table["layer"]))
    subsets = list(dict.fromkeys(table["components"]))[::-1]
    with panels(len(AGAINST) * len(layers), rows=len(layers), width=3.6, height=3.4) as (figure, axes):
        for panel, (layer, against) in zip(axes, ((a, b) for a in layers for b in AGAINST), strict=True):
            rows = table[(table["layer"] == layer) & (table["against"] == against)]
            for number, (way, colour) in enumerate(zip(WAYS, COLOURS, strict=False)):
                own = rows[rows["way"] == way].set_index("components").loc[subsets]
                places = np.arange(len(subsets)) + 0.27 - 0.18 * number
                panel.hlines(places, own["low"], own["high"], color=colour, lw=1.2)
                panel.plot(own["auroc"], places, "o", ms=3.2, color=colour, label=way)
            panel.axvline(0.5, color="#999999", lw=0.8, ls=":")
            panel.set_yticks(range(len(subsets)), [", ".join(subset) for subset in subsets])
            panel.grid(axis="y", visible=False)
            panel.set(title=f"{layer}: real / {against}", xlabel="AUROC, 95 % interval")
            panel.set_xlim(min(0.48, table["low"].min() - 0.02), 1.02)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(WAYS), handletextpad=0.2)
    return figure


@experiment(draw)
def ablation(study: Study) -> Finding:
    """How well every subset of S, Q and D, combined in four ways, tells real channels from those without structure.

    Against rotated-null channels (the paper's table 1) and random-patch channels. The ways: the product of the hats, which is
    PSI, their minimum, their mean, and the largest p (intersection-union). Of one component alone the first three rank alike.

    Parameters
    ----------
    study : Study
    """
    tables, claims, told = [], [], []
    for layer in study.layers:
        found = study.evaluation(layer)
        parts = "".join(found.draws)
        others = {"rotated null": null_channels(found), "random patches": found.random}
        for against in AGAINST:
            table, samples = _compared(found.table, others[against], layer, against, parts, study.config.seed)
            differences = _differences(table, samples, parts)
            # the minimum and mean of one component rank as its product does
            told_twice = (table["components"].str.len() == 1) & table["way"].isin(["minimum", "mean"])
            claims += [*table["claim"][~told_twice], *differences]
            tables.append(table.drop(columns="claim"))
            told.append(_told(layer, against, table, differences))
    text = (
        "Which of S, Q and D tell real channels from channels without structure, and does it matter how they are combined? "
        "Channels were ranked by every subset of the components (*SQ*: S and Q), combined in four ways: the *product* of the "
        "calibrated components (PSI), their *minimum*, their *mean*, and the *largest p* (an intersection-union test). All "
        "AUROCs of a comparison share their bootstrap samples, and so the differences have intervals of their own.\n\n"
        + "\n\n".join(told)
        + "\n\nOne draw of each null stands for all of a rotated-null channel, so that any component that lies far from its "
        "null tells it from real channels. Random patches share the images and the encoder with the real ones: what remains "
        "there is owed to the channels."
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, text)


def values(table: pd.DataFrame, subset: str, way: str) -> np.ndarray:
    """Each channel's value [n] by one way of combining the components in `subset`, larger for more polysemantic ones."""
    z, p = (table[[f"{name}_{kind}" for name in subset]].to_numpy(np.float64) for kind in "zp")
    return WAYS[way](z, p)


def _compared(
    real: pd.DataFrame, other: pd.DataFrame, layer: str, against: str, parts: str, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each subset and way with its claim, and the samples [r, rows] of their AUROCs."""
    cells = [(subset, way) for subset in subsets_of(parts) for way in WAYS]
    first, second = (np.stack([values(table, *cell) for cell in cells], axis=1) for table in (real, other))
    names = [f"{layer}: AUROC real / {against}, {subset}, {way}" for subset, way in cells]
    papers = [PAPER.get((way, subset, against), "") for subset, way in cells]
    claims, samples = aurocs(names, first, second, seed=seed, papers=papers)
    rows = [
        {"layer": layer, "against": against, "components": subset, "way": way, "auroc": claim.value, "low": claim.low}
        | {"high": claim.high, "count": claim.count, "claim": claim}
        for (subset, way), claim in zip(cells, claims, strict=True)
    ]
    return pd.DataFrame(rows), samples


def subsets_of(parts: str) -> list[str]:
    """All subsets of the components but the empty one, small ones first."""
    return ["".join(own) for size in range(1, len(parts) + 1) for own in combinations(parts, size)]


def _differences(table: pd.DataFrame, samples: np.ndarray, parts: str) -> list[Claim]:
    """What each component adds to the product of the others, and what the other ways give away against the product."""
    places = {cell: row for row, cell in enumerate(zip(table["components"], table["way"], strict=True))}
    layer, against = table["layer"][0], table["against"][0]
    whole = (parts, "product")
    pairs = {
        f"{layer}: AUROC real / {against}, what {name} adds to {parts.replace(name, '')}": (
            whole, (parts.replace(name, ""), "product"),
        )
        for name in parts
        if len(parts) > 1
    } | {
        f"{layer}: AUROC real / {against}, {parts}, {way} less product": ((parts, way), whole)
        for way in WAYS
        if way != "product"
    }  # fmt: skip
    found = []
    for name, (first, second) in pairs.items():
        a, b = places[first], places[second]
        value = float(table["auroc"][a] - table["auroc"][b])
        found.append(contrast(name, value, samples[:, a] - samples[:, b], int(table["count"][a])))
    return found


def _told(layer: str, against: str, table: pd.DataFrame, differences: Sequence[Claim]) -> str:
    """A paragraph on one comparison."""
    product = table[table["way"] == "product"].set_index("components")["auroc"]
    auroc = numbers(table, "auroc")
    best = table.iloc[int(np.nanargmax(auroc)) if np.isfinite(auroc).any() else -1]
    added = "; ".join(
        f"{one.name.rpartition('what ')[2]} {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
        for one in differences
        if ", what " in one.name
    )
    return (
        f"In {layer}, against {against}: {', '.join(f'{subset} {value:.3f}' for subset, value in product.items())} by the "
        f"product; the largest AUROC is {best['auroc']:.3f}, of {best['components']} by {best['way']}."
        + f" {added}."
        * bool(added)
    )
