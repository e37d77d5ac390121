"""Figures in one style: those of experiments, and for papers those of a finished run.

`style.py` is the look of all; `overview.py`, `channel.py`, `thumbnails.py` and `comparison.py` draw a run's
`psi_fast.details.Details`; `commands.py` makes the commands.
"""

from psi_fast.figures.channel import activations, classes, concepts, nulls, patch_map, silhouettes, swaps
from psi_fast.figures.comparison import compare
from psi_fast.figures.overview import components, flags, layers, log_odds, log_psi, seconds
from psi_fast.figures.thumbnails import clusters

OVERVIEWS = {"log-psi": log_psi, "log-odds": log_odds, "components": components, "layers": layers, "flags": flags}
"""Of a run's layers: functions of its details and of the names of layers."""
RUNS = {"seconds": seconds}
"""Of a run as a whole: functions of its details."""
CHANNELS = {
    "nulls": nulls,
    "silhouettes": silhouettes,
    "activations": activations,
    "map": patch_map,
    "classes": classes,
    "concepts": concepts,
    "swaps": swaps,
}
"""Of a channel: functions of the run's details and of a row of its table."""
PICTURES = {"clusters": clusters}
"""Of a channel and of images: functions of the run's details, of a row of its table and of where the images are."""
COMPARISONS = {"compare": compare}
"""Of two runs: functions of the details of both."""

__all__ = ["CHANNELS", "COMPARISONS", "OVERVIEWS", "PICTURES", "RUNS"]
