"""Series over draws, channels, samples and restarts: their ranges, cut where a device would take too long, and slopes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from harness import Measured, Row, free_bytes, say
from workloads import Case, measure

RANGES = {
    "draws": (100, 300, 1000, 3000, 10_000, 30_000, 100_000),
    "channels": (64, 256, 1024, 4096, 16_384),
    "samples": (25, 50, 100, 200, 400),
    "n_init": (1, 2, 4, 8),
}
# what stays the same in a series; `score_embeddings` is all three nulls, the channels' own clustering and the null on the sphere
START = {
    "score_embeddings": {"draws": {"channels": 4}, "channels": {"draws": 100}, "samples": {}, "n_init": {}},
    "rotation_null": {"draws": {"channels": 4}, "channels": {"draws": 100}, "samples": {}, "n_init": {}},
    "permutation_null": {"draws": {"channels": 1024}, "channels": {"draws": 1000}, "samples": {"draws": 1000}},
    "text_null": {"draws": {"channels": 2048}, "channels": {"draws": 1000}},
}
GROWTH = {"draws": 1, "channels": 1, "samples": 3, "n_init": 1}  # expected power of the time, at most
SLOPE_FROM_MS = 100.0  # shorter runs hold fixed costs that say nothing about growth


def cases(op: str, varies: str) -> list[Case]:
    """The cases of one series, ascending."""
    start = Case(op=op, **START[op][varies])
    return [replace(start, **{varies: value}) for value in RANGES[varies]]


def series(
    op: str, varies: str, device: torch.device, threads: int, *, seconds: float, points: int
) -> Iterator[tuple[Case, Measured]]:
    """Measure the first points of a series in about `seconds`; one that would take longer, by the one before, ends it aloud."""
    planned, left, last = cases(op, varies)[:points], seconds, None
    for case in planned:
        value = getattr(case, varies)
        if last is not None:
            before, found = last
            expected = min(found.times_ms) / 1e3 * (value / before) ** GROWTH[varies]
            needed, free = embedded_bytes(case), free_bytes(device)
            if expected > left or needed > free / 2:
                reason = (
                    f"about {expected:.0f} s of {left:.0f} s left" if expected > left else f"{needed / 2**30:.0f} GiB"
                )
                rest = ", ".join(str(getattr(c, varies)) for c in planned[planned.index(case) :])
                say(f"  {op}: {varies} = {rest} left out ({reason})")
                return
        found = measure(case, device, threads, repeats=5, seconds=left / 20)  # most of the time is for the largest
        left -= sum(found.times_ms) / 1e3
        last = (value, found)
        yield case, found


def embedded_bytes(case: Case) -> int:
    """Bytes of a case's embeddings while they are made, read and normalised."""
    return 12 * case.channels * case.samples * case.width


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of log y over log x; nan for fewer than two points."""
    if len(points) < 2:
        return math.nan
    x, y = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - centre_x) ** 2 for a in x)


def time_slope(rows: Sequence[Row], op: str, varies: str) -> float:
    """Slope of log time over log size in a series, from the runs that take at least SLOPE_FROM_MS."""
    return slope([(row.value, row.time_ms_p50) for row in long_runs(rows, op, varies)])


def long_runs(rows: Sequence[Row], op: str, varies: str) -> list[Row]:
    """The runs of a series that take at least SLOPE_FROM_MS."""
    series = [row for row in rows if (row.op, row.varies, row.peer) == (op, varies, "")]
    return [row for row in series if row.time_ms_p50 >= SLOPE_FROM_MS]


def memory_growth(rows: Sequence[Row], op: str, varies: str) -> tuple[float, float]:
    """Smallest and largest peak memory in MiB in a series, over the same runs as `time_slope`."""
    peaks = [row.peak_mem_mib for row in long_runs(rows, op, varies)]
    return (min(peaks), max(peaks)) if peaks else (math.nan, math.nan)
