"""A figure of a channel's patches themselves."""

from typing import TYPE_CHECKING, Any

import numpy as np

from psi_fast.figures.channel import CLUSTER, clusters_of, colour_of, named, require_score
from psi_fast.figures.style import heading, panels
from psi_fast.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from psi_fast.details import Details

SHOWN = 8
"""Patches of a cluster."""
SIDE = 160
"""Px of a patch: at its size on paper, 200 to the inch."""
INCHES = 0.8
NAME = 0.22
"""Inches above a row for the name of its cluster."""


def clusters(details: "Details", row: int, images: Any = None) -> "Figure":
    """Patches of each cluster, those with the largest activations first; takes the images that were scored.

    `images` says where these are now, as `psi_fast.score` takes them; by default where the run found them.
    """
    from psi_fast.report.pictures import open_pictures

    require_score(details, row)
    shown = details.patches(row).groupby("cluster", sort=True).head(SHOWN)
    pictures = open_pictures(details.scores.manifest, shown, images, bars=Progress(False))
    names = clusters_of(details, row)
    with panels(len(names) * SHOWN, rows=len(names), width=INCHES, height=INCHES + NAME) as (figure, axes):
        figure.set_size_inches(INCHES * SHOWN, (INCHES + NAME) * len(names) + NAME)
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.035, wspace=0, hspace=0)
        heading(figure, f"{named(details, row)}; {CLUSTER}")
        for panel in axes:
            panel.set_axis_off()
        for cluster, name in enumerate(names):
            line = axes[cluster * SHOWN : (cluster + 1) * SHOWN]
            line[0].set_title(name, color=colour_of(cluster))
            own = shown.loc[shown["cluster"] == cluster]
            boxes = np.stack(own["box"].to_list())
            for panel, tile in zip(line, pictures.tiles(pictures.rows(own["image"]), boxes, SIDE), strict=False):
                panel.imshow(tile, interpolation="none")
    return figure
