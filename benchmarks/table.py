"""The README's table of measurements, made from benchmarks/results/*.csv: the last run of each device.

python benchmarks/table.py            # on the terminal
python benchmarks/table.py --write    # between the markers in README.md
"""

import argparse
import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from harness import ROOT, Row, latest, read, result_files, say
from scaling import SLOPE_FROM_MS, long_runs, memory_growth, time_slope

README = ROOT / "README.md"
BEGIN, END = "<!-- table.py: begin -->", "<!-- table.py: end -->"
NAMES = {
    "score_embeddings": "all three nulls (`score_embeddings`)",
    "rotation_null": "null of S (`rotation_null`)",
    "permutation_null": "null of Q (`permutation_null`)",
    "text_null": "null of D (`text_shuffle_null`)",
    "cluster": "clusterings (`cluster`)",
    "kmeans": "k-means, k = 2..6, from embeddings",
}


def markdown(files: list[Path]) -> str:
    """A table and the figures of each file's last run."""
    return "\n\n".join(_device(latest(read(file)), file.stem) for file in files) or "No measurement yet."


def _device(rows: list[Row], name: str) -> str:
    first = rows[0]
    where = f"{first.device}, {first.threads} thread{'s' if first.threads > 1 else ''}, commit `{first.commit}`, {first.run[:10]}"
    lines = [
        f"{where}; {first.versions}.",
        "",
        "| what | by | size | ms (p20, p80) | draws/s | psi_fast is faster by | peak MiB | % of floor | S | inertia |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row, rows) for row in rows if not row.varies),
    ]
    figures = [f"![{kind} on {first.device}](docs/{kind}-{name}.svg)" for kind in ("scaling", "peers")]
    return "\n".join([*lines, "", *(f"- {line}" for line in growth(rows)), "", *figures])


def _line(row: Row, rows: list[Row]) -> str:
    size = f"C={row.channels}, B={row.draws}" if row.op != "kmeans" else f"N={row.channels}"
    cells = (
        NAMES[row.op],
        row.peer or f"psi_fast, {row.backend}",
        f"{size}, n_init={row.n_init}" + f", {row.rotation}" * bool(row.rotation),
        _number(row.time_ms_p50)
        + (f" ({_number(row.time_ms_p20)}, {_number(row.time_ms_p80)})" if row.repeats > 1 else " (once)"),
        f"{_number(row.draws_per_s)}",
        f"{_number(speed_up(row, rows))} x" if row.peer else "",
        _mib(row.peak_mem_mib),
        "" if row.peer else f"{row.percent_of_floor:.2g}",
        _number(row.silhouette, 3),
        _number(row.inertia_ratio, 3),
    )
    return "| " + " | ".join(cells) + " |"


def speed_up(row: Row, rows: list[Row]) -> float:
    """How many times as many draws per second psi_fast does as the peer of `row`, same settings, same run."""
    same = attrgetter("op", "varies", "rotation", "samples", "width", "k_max", "n_init")
    own = [other.draws_per_s for other in rows if not other.peer and same(other) == same(row)]
    return max(own, default=math.nan) / row.draws_per_s


def growth(rows: list[Row]) -> Iterator[str]:
    """How time and memory grow along each series, from the runs that are long enough to tell."""
    for op, varies in dict.fromkeys((row.op, row.varies) for row in rows if row.varies in ("draws", "channels")):
        sizes = [row.value for row in long_runs(rows, op, varies)]
        if len(sizes) > 1:
            low, high = memory_growth(rows, op, varies)
            yield (
                f"{NAMES[op]}: from {min(sizes):,} to {max(sizes):,} {varies} (runs of {SLOPE_FROM_MS:.0f} ms and more) time "
                f"grows with power {time_slope(rows, op, varies):.2f}, peak memory lies within {_mib(low)} to {_mib(high)} MiB"
            )


def _mib(value: float) -> str:
    return "" if math.isnan(value) else "<1" if value < 1 else _number(value)


def _number(value: float, digits: int = 0) -> str:
    """Three digits, thousands apart; nothing for nan."""
    if math.isnan(value):
        return ""
    if digits:
        return f"{value:.{digits}f}"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    table = markdown(result_files())
    if not parser.parse_args().write:
        say(table)
        return
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
