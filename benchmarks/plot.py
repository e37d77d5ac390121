"""Figures of the last run of each device, from benchmarks/results/*.csv alone: docs/{scaling,peers}-<device>.svg.

python benchmarks/plot.py
python benchmarks/plot.py --folder /tmp/figures --kind png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from harness import ROOT, Row, latest, read, result_files, say
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    "grid.color": "#e4e4e4",
    "svg.fonttype": "none",
    "svg.hashsalt": "psi_fast",
    "legend.frameon": False,
}


def scaling(rows: list[Row]) -> Figure:
    """Time over each size, with its slope where there are enough points; peak memory over draws."""
    figure, panels = plt.subplots(1, 5, figsize=(11, 2.7), layout="constrained")
    for axes, (varies, label) in zip(panels, AXES.items(), strict=False):
        for op, (name, colour) in OPS.items():
            points = _points(rows, op, varies)
            if points:
                slope = time_slope(rows, op, varies)
                text = f"{name}, slope {slope:.2f}" if varies in ("draws", "channels") and slope == slope else name
                axes.plot(
                    *zip(*[(x, row.time_ms_p50 / 1e3) for x, row in points], strict=True),
                    "o-",
                    ms=3,
                    color=colour,
                    label=text,
                )
        _logarithmic(axes, label, "seconds")
        if axes.has_data():
            axes.legend(fontsize=6)
    for op, (name, colour) in OPS.items():
        points = _points(rows, op, "draws")
        if points:
            panels[-1].plot(
                *zip(*[(x, row.peak_mem_mib) for x, row in points], strict=True), "o-", ms=3, color=colour, label=name
            )
    panels[-1].set_ylim(bottom=0)
    _logarithmic(panels[-1], AXES["draws"], "peak memory, MiB", both=False)
    return _titled(figure, rows)


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
        names = [row.peer or f"psi_fast ({row.backend})" for row in own]
        bars = axes.barh(
            names, [row.draws_per_s for row in own], color=["#8a8a8a" if row.peer else "#0f6fb4" for row in own]
        )
        axes.bar_label(
            bars,
            [f"{row.draws_per_s:,.0f}" if row.draws_per_s >= 10 else f"{row.draws_per_s:.1f}" for row in own],
            padding=2,
        )
        axes.set(xscale="log", title=title)
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
    return _titled(figure, rows)


def _points(rows: list[Row], op: str, varies: str) -> list[tuple[int, Row]]:
    return sorted(
        ((row.value, row) for row in rows if (row.op, row.varies, row.peer) == (op, varies, "")), key=lambda p: p[0]
    )


def _distinct(rows: list[Row]) -> list[Row]:
    """One row per implementation, the last, fastest first."""
    return sorted({(row.peer, row.backend): row for row in rows}.values(), key=lambda row: -row.draws_per_s)


def _logarithmic(axes: Axes, x: str, y: str, *, both: bool = True) -> None:
    axes.set(xscale="log", xlabel=x, ylabel=y)
    if both:
        axes.set_yscale("log")
    axes.minorticks_off()


def _titled(figure: Figure, rows: list[Row]) -> Figure:
    first = rows[0]
    figure.suptitle(
        f"{first.device}, {first.threads} threads, commit {first.commit}, {first.run[:10]}", fontsize=8, color="#555555"
    )
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
