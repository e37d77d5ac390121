"""A figure of two runs."""

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from psi_fast.errors import InputError
from psi_fast.figures.overview import CHANNELS, SPREADS, draw_spreads, layer_title
from psi_fast.figures.style import panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from psi_fast.details import Details

RHO = "\N{GREEK SMALL LETTER RHO}"
DIRECTION = "(1: most polysemantic)"
FEWEST = 3
"""Channels that ranks are compared of."""


def compare(first: "Details", second: "Details") -> "Figure":
    """Ranks by PSI of the channels that two runs of a layer have in common, and the odds of PSI in both."""
    common = [layer for layer in first.layers if layer in second.layers]
    if not common:
        raise InputError(
            f"compare takes two runs of one layer, and these have none in common: {', '.join(first.layers)} in "
            f"{first.folder}, {', '.join(second.layers)} in {second.folder}"
        )
    names = [plain(run.name) for run in (first, second)]
    with panels(2 * len(common), rows=len(common), width=3, height=3) as (figure, axes):
        for panel, beside, layer in zip(axes[::2], axes[1::2], common, strict=True):
            ranks = shared_ranks(first, second, layer)
            panel.scatter(*ranks, s=8, color=CHANNELS, alpha=0.4, linewidths=0, rasterized=True)
            panel.plot([1, len(ranks[0])], [1, len(ranks[0])], color="black", linewidth=0.6, zorder=1)
            rho, _ = spearmanr(*ranks)
            title = f"{layer_title(layer)}\nSpearman's {RHO} = {rho:.3f}, {len(ranks[0])} channels"
            panel.set(title=title, aspect="equal")
            panel.set(xlabel=f"rank in {names[0]}\n{DIRECTION}", ylabel=f"rank in {names[1]}\n{DIRECTION}")
            panel.locator_params(nbins=5, integer=True)
            found = [run.scores.table["log_psi"].iloc[run.layers[layer]].dropna().to_numpy() for run in (first, second)]
            draw_spreads(beside, found)
            beside.set_xticks([1, 2], [f"{name}\n{len(own)} channels" for name, own in zip(names, found, strict=True)])
            beside.set(title=f"PSI: {SPREADS}")
    return figure


def shared_ranks(first: "Details", second: "Details", layer: str) -> np.ndarray:
    """Ranks [2, n] by ln PSI, 1 the most polysemantic, of the layer's channels that both runs scored; equal ones share theirs.

    Raises
    ------
    InputError
        There are fewer than three.
    """
    own, other = (
        run.scores.table.iloc[run.layers[layer]].set_index("channel")["log_psi"].dropna() for run in (first, second)
    )
    both = own.index.intersection(other.index)
    if len(both) < FEWEST:
        raise InputError(
            f"{len(both)} of the channels of {layer} are scored in both {first.folder} and {second.folder}; ranks take at least "
            f"{FEWEST}"
        )
    return np.stack([values.loc[both].rank(ascending=False).to_numpy() for values in (own, other)])
