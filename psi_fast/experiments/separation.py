"""Are real channels told from channels without structure? The paper's figure 2a, and its missing control."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from psi_fast.experiments.null_channels import null_channels
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, auroc, median
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, GREY, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"real": COLOURS[0], "random patches": COLOURS[1], "rotated null": GREY}


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A panel a layer: histograms of ln PSI of the three kinds of channels."""
    layers = list(dict.fromkeys(table["layer"]))
    with panels(len(layers), width=4.2) as (figure, axes):
        edges = np.linspace(table["log_psi"].min(), 0, 41).tolist()
        for panel, layer in zip(axes, layers, strict=True):
            for kind, colour in KINDS.items():
                rows = table[(table["layer"] == layer) & (table["kind"] == kind)]
                panel.hist(
                    rows["log_psi"], bins=edges, weights=np.full(len(rows), 1 / max(len(rows), 1)), histtype="stepfilled",
                    facecolor=(colour, 0.25), edgecolor=colour, linewidth=1.2, label=f"{kind} ({len(rows)})",
                )  # fmt: skip
            own = [
                f"{one.name.partition('AUROC ')[2]} {one.value:.3f}"
                for one in claims
                if one.name.startswith(f"{layer}: AUROC")
            ]
            panel.set(
                title="\n".join([layer, "AUROC " + ", ".join(own[:2])]), xlabel="ln PSI", ylabel="share of channels"
            )
            panel.legend(loc="upper left")
    return figure


@experiment(draw)
def separation(study: Study) -> Finding:
    """PSI of real channels, of rotated-null channels and of random-patch channels, and how well it tells them apart.

    A rotated-null channel has one null draw of each component in place of its values, a random-patch channel the patches of
    random images. The paper compares with the first alone (figure 2a, AUROC .987).

    Parameters
    ----------
    study : Study
    """
    tables, claims, told = [], [], []
    seed = study.config.seed
    for layer in study.layers:
        found = study.evaluation(layer)
        kinds = {"real": found.table, "random patches": found.random, "rotated null": null_channels(found)}
        columns = ["channel", "psi", "log_psi", *(f"{name}_z" for name in found.draws)]
        tables += [rows[columns].dropna().assign(layer=layer, kind=kind) for kind, rows in kinds.items()]
        real, random, null = (rows["log_psi"].to_numpy() for rows in kinds.values())
        claims += [
            auroc(f"{layer}: AUROC real / rotated null", real, null, seed=seed, paper=".987"),
            auroc(f"{layer}: AUROC real / random patches", real, random, seed=seed),
            auroc(f"{layer}: AUROC random patches / rotated null", random, null, seed=seed),
            *(
                median(f"{layer}: median PSI, {kind}", rows["psi"].to_numpy(), seed=seed)
                for kind, rows in kinds.items()
            ),
        ]
        told.append(
            f"In {layer}, PSI ranks {claims[-6].value:.1%} of pairs of a real and a rotated-null channel rightly, and "
            f"{claims[-5].value:.1%} of pairs of a real and a random-patch channel; random-patch channels come before "
            f"rotated-null ones in {claims[-4].value:.1%}."
        )
    text = (
        "Does PSI tell a network's channels from channels without structure? *Rotated-null* channels have one draw of each null "
        "in place of their own values; *random-patch* channels are made of random images, which do form clusters that can be "
        f"named.\n\n{' '.join(told)}\n\nThe second comparison says how much of PSI is the channels' own: whatever random patches "
        "reach is owed to the images and the encoder."
    )
    return Finding(led_by(pd.concat(tables, ignore_index=True), "layer", "kind"), claims, text)
