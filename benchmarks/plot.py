"""Figures of the last run of each device, from benchmarks/results/*.csv alone: docs/{scaling,peers}-<device>.svg.

python benchmarks/plot.py
python benchmarks/plot.py --folder /tmp/figures --kind png
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from harness import ROOT, Row, latest, read, result_files, say
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scaling import time_slope

AXES = {"draws": "draws B", "channels": "channels C", "samples": "samples K", "n_init": "restarts n_init"}
OPS = {
    "score_embeddings": ("all three nulls", "#1b1b1b"),
    "rotation_null": ("null of S", "#0f6fb4"),
    "permutation_null": ("null of Q", "#c8553d"),
    "text_null": ("null of D", "#3a8a4d"),
}
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",
    "svg.hashsalt": "psi_fast",
    "legend.frameon": False,
}


def scaling(rows: list[Row]) -> Figure:
    """Time over each size, with the slope where it should be 1; peak memory over draws."""
    figure, panels = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
    for axes, (varies, label) in zip(panels, AXES.items(), strict=False):
        for op in OPS:
            slope = time_slope(rows, op, varies) if varies in ("draws", "channels") else math.nan
            _line(
                axes, rows, op, varies, lambda row: row.time_ms_p50 / 1e3, "" if math.isnan(slope) else f"{slope:.2f}"
            )
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
        axes.minorticks_off()
        if varies in ("samples", "n_init"):
            values = sorted({row.value for row in rows if row.varies == varies})
            axes.set_xticks(values, [str(value) for value in values])
    for op in OPS:
        _line(panels[-1], rows, op, "draws", lambda row: row.peak_mem_mib)
    panels[-1].set(xscale="log", xlabel=AXES["draws"], ylabel="peak memory, MiB", ylim=(0, None))
    handles = [Line2D([], [], color=colour, marker="o", ms=3, label=name) for name, colour in OPS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return _titled(figure, rows, "; numbers are slopes")


def _line(axes: Axes, rows: list[Row], op: str, varies: str, value: Callable[[Row], float], text: str = "") -> None:
    """One op's series, with `text` at its end."""
    own = sorted((row for row in rows if (row.op, row.varies, row.peer) == (op, varies, "")), key=lambda row: row.value)
    if own:
        x, y = [row.value for row in own], [value(row) for row in own]
        axes.plot(x, y, "o-", ms=3, color=OPS[op][1])
        above = 4 if list(OPS).index(op) % 2 == 0 else -5  # neighbouring lines end close together
        axes.annotate(text, (x[-1], y[-1]), (3, above), textcoords="offset points", fontsize=7, color=OPS[op][1])


def peers(rows: list[Row]) -> Figure:
    """Draws per second of psi_fast and of its peers; problems per second for k-means alone."""
    groups = [
        (title, [row for row in rows if row.op == op and not row.varies])
        for op, title in (
            ("score_embeddings", "all three nulls: draws per second"),
            ("kmeans", "k-means: problems per second"),
        )
    ]
    groups = [(title, _distinct(own)) for title, own in groups if any(row.peer for row in own)]
    figure, panels = plt.subplots(1, len(groups), figsize=(9, 2.4), layout="constrained", squeeze=False)
    for axes, (title, own) in zip(panels[0], groups, strict=True):
        names = [_by(row) for row in own]
        bars = axes.barh(
            names, [row.draws_per_s for row in own], color=["#8a8a8a" if row.peer else "#0f6fb4" for row in own]
        )
        axes.bar_label(
            bars,
            [f"{row.draws_per_s:,.0f}" if row.draws_per_s >= 10 else f"{row.draws_per_s:.1f}" for row in own],
            padding=2,
        )
        axes.set(xscale="log", title=title, xlim=(1, None))
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
    return _titled(figure, rows)


def _distinct(rows: list[Row]) -> list[Row]:
    """One row per implementation and rotation, the last, fastest first."""
    return sorted({_by(row): row for row in rows}.values(), key=lambda row: -row.draws_per_s)


def _by(row: Row) -> str:
    return (row.peer or f"psi_fast ({row.backend})") + f", {row.rotation}" * bool(row.rotation)


def _titled(figure: Figure, rows: list[Row], more: str = "") -> Figure:
    first = rows[0]
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    text = f"{first.device}, {threads}, commit {first.commit}, {first.run[:10]}{more}"
    figure.suptitle(text, fontsize=8, color="#555555")
    return figure


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    parser.add_argument("--kind", choices=("svg", "png"), default="svg")
    parser.add_argument("files", nargs="*", type=Path, help="default: all results")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for file in options.files or result_files():
        rows = latest(read(file))
        for name, draw in (("scaling", scaling), ("peers", peers)):
            path = options.folder / f"{name}-{file.stem}.{options.kind}"
            # without the date of drawing the same rows give the same file
            draw(rows).savefig(path, dpi=130, metadata={"Date": None} if options.kind == "svg" else None)
            say(str(path))


if __name__ == "__main__":
    main()
