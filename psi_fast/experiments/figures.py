"""One look for every figure: colours that colour-blind readers tell apart, and panels without ornament."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from psi_fast.experiments.statistics import Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe and Ito's, blue first, without yellow (too light on white), with grey."""
GREY = COLOURS[-1]
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "psi_fast",
}
PANEL = (3.2, 2.6)
"""Width and height of a panel in inches."""


@contextmanager
def panels(
    count: int, *, rows: int = 1, width: float = PANEL[0], height: float = PANEL[1]
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A figure with `count` panels in one or more rows, drawn in the project's style and without a screen."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        columns = -(-count // rows)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def error_bars(claims: Sequence[Claim]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] of claims, and how far their intervals reach below and above them [2, n], as error bars take it.

    An interval that is not there has no length, as one has that ends on the wrong side of its value.
    """
    value, low, high = np.array([(one.value, one.low, one.high) for one in claims]).T
    return value, np.nan_to_num([value - low, high - value]).clip(0)
