"""One look for every figure: colours that colour-blind readers tell apart, and panels without ornament."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from psi_fast.experiments.statistics import Claim

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe and Ito's, blue first, without yellow (too light on white), with grey."""
GREY = COLOURS[-1]
PART_COLOURS = dict(zip("SQD", COLOURS[2:5], strict=True))
"""Colours of the components, wherever these are told apart."""
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.constrained_layout.w_pad": 0.08,  # inches on either side of a panel
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters as letters: journals refuse the other kind
    "svg.fonttype": "none",
    "svg.hashsalt": "psi_fast",
}
PANEL = (3.2, 2.6)
"""Width and height of a panel in inches."""
LEGEND_ROW = 0.16
"""Inches that a row of a legend takes."""


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


def error_bars(claims: Sequence["Claim"]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] of claims, and how far their intervals reach below and above them [2, n], as error bars take it.

    An interval that is not there has no length, as one has that ends on the wrong side of its value.
    """
    value, low, high = np.array([(one.value, one.low, one.high) for one in claims]).T
    return value, np.nan_to_num([value - low, high - value]).clip(0)


def legend_above(panel: "Axes", *, columns: int) -> None:
    """A legend over all that is drawn so far: the panel's upper limit rises until there is room, its ticks stay."""
    figure = panel.get_figure(root=True)
    assert figure is not None, "a panel is part of a figure"
    rows = -(-len(panel.get_legend_handles_labels()[1]) // columns)
    share = rows * LEGEND_ROW * figure.dpi / panel.bbox.height
    low, high = panel.get_ylim()
    panel.set_yticks([tick for tick in panel.get_yticks() if low <= tick <= high])
    panel.set_ylim(low, high + (high - low) * share / (1 - share))
    panel.legend(loc="upper left", ncols=columns, fontsize=7, handlelength=1.6, columnspacing=1.2)


def rendered(figure: "Figure", kind: str) -> bytes:
    """The bytes of a figure as "svg", "png" or "pdf"; the same figure gives the same bytes."""
    import matplotlib as mpl

    held = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            held, format=kind, dpi=200, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        )
    return held.getvalue()


def plain(text: str, limit: int = 32, *, end: bool = False) -> str:
    """Text from data as a label that says just that: on one line, no formula, and of more than `limit` characters the first,
    or with `end` the last."""
    label = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(label) > limit:
        label = "…" + label[1 - limit :].lstrip() if end else label[: limit - 1].rstrip() + "…"
    return label.replace("$", r"\$")


def heading(figure: "Figure", text: str) -> None:
    """A title over the whole width of the figure."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])
