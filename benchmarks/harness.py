"""What every benchmark shares: rows and their file, rates measured in the same run, times and peak memory.

A row is one measurement. Figures and tables are made from the file alone, so every row says on what it was measured.
"""

import csv
import ctypes
import fcntl
import io
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import NamedTuple

import torch

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = RESULTS.parents[1]
PACKAGES = ("torch", "triton", "numba", "numpy", "scikit-learn", "flash-kmeans", "fastkmeans", "cuml-cu12", "cuml-cu13")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what a run was measured: the first columns of each of its rows.

    run : start of the run in UTC
    commit : of the code measured, with "+" where psi_fast or the kernels had changes
    product_gflops, operation_gflops, copy_gb : rates per second, see `Rates`; GB are 10^9 bytes read and written
    """

    run: str
    commit: str
    device: str
    threads: int
    versions: str
    product_gflops: float
    operation_gflops: float
    copy_gb: float


@dataclass(frozen=True, kw_only=True)
class Row(Machine):
    """One measurement.

    peer : what was measured in psi_fast's place, empty for psi_fast itself
    varies, value : the size that a series of rows differs in, and its value; empty and 0 outside a series
    rotation : of the null of S, empty where there is none
    time_ms_* : quantiles of `repeats` runs after a warm-up
    draws_per_s : channels * draws in a second; for clusterings alone, problems
    peak_mem_mib : largest memory beyond what was there before: allocated on a GPU, resident on a CPU
    floor_ms, percent_of_floor : time the operation's work takes at the run's rates, and its share of the median; 0 for peers
    silhouette : mean S of what was clustered (draws for a null, channels for all of psi_fast), nan where nothing was
    inertia_ratio : mean inertia over the lowest that 16 float64 restarts find, nan where not measured
    """

    backend: str
    op: str
    peer: str
    varies: str
    value: int
    rotation: str
    channels: int
    draws: int
    samples: int
    width: int
    k_max: int
    n_init: int
    repeats: int
    time_ms_p20: float
    time_ms_p50: float
    time_ms_p80: float
    draws_per_s: float
    peak_mem_mib: float
    floor_ms: float
    percent_of_floor: float
    silhouette: float
    inertia_ratio: float


COLUMNS = [field.name for field in fields(Row)]


class Work(NamedTuple):
    """Operations inside products of matrices, all others, and bytes moved."""

    products: int
    operations: int
    bytes: int


class Rates(NamedTuple):
    """What the device reaches, per second: operations in a large product (float16 on a GPU, float32 on a CPU), operations in a
    float32 product without matrix units, which bounds work that is no product, and bytes read and written by a copy."""

    products: float
    operations: float
    bytes: float

    def floor_ms(self, work: Work) -> float:
        """Time for `work` when nothing else costs anything and copies hide behind arithmetic, or the other way round."""
        return 1e3 * max(work.products / self.products + work.operations / self.operations, work.bytes / self.bytes)


class Measured(NamedTuple):
    """Times of the repeats in milliseconds, peak memory in MiB, quality."""

    times_ms: list[float]
    peak_mem_mib: float
    silhouette: float = float("nan")
    inertia_ratio: float = float("nan")


def say(text: str) -> None:
    """A line on the terminal, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---- the file


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file. It is replaced in one step under a lock, so neither a crash nor a second run loses a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = path.read_text(encoding="utf-8") if path.exists() else ",".join(COLUMNS) + "\n"
        if text.splitlines()[0].split(",") != COLUMNS:
            raise ValueError(f"{path} has other columns than these rows; give another file or move it away")
        added = io.StringIO()
        csv.writer(added, lineterminator="\n").writerows([_cell(x) for x in asdict(row).values()] for row in rows)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text + added.getvalue(), encoding="utf-8")
        temporary.replace(path)
    finally:
        os.close(folder)


def read(path: Path) -> list[Row]:
    """All rows of a file."""
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{name: kinds[name](cell) for name, cell in line.items()}) for line in csv.DictReader(file)]


def latest(rows: list[Row]) -> list[Row]:
    """The rows of the last run."""
    last = max(row.run for row in rows)
    return [row for row in rows if row.run == last]


def result_files() -> list[Path]:
    """The files of rows among the results."""
    header = ",".join(COLUMNS)
    return sorted(path for path in RESULTS.glob("*.csv") if path.read_text(encoding="utf-8").startswith(header + "\n"))


def _cell(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---- the machine


def machine(device: torch.device, threads: int, rates: Rates) -> Machine:
    """What this run is measured on."""
    return Machine(
        run=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit(),
        device=device_name(device),
        threads=threads,
        versions=versions(),
        product_gflops=rates.products / 1e9,
        operation_gflops=rates.operations / 1e9,
        copy_gb=rates.bytes / 1e9,
    )


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200" or "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1].strip() if found else platform.machine()


def default_path(device: torch.device, threads: int) -> Path:
    """The file of a device: its name, for a CPU with the number of threads."""
    name = device_name(device) + ("" if device.type == "cuda" else f" {threads} threads")
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def commit() -> str:
    """Short name of the checkout's commit, with "+" when the code measured has changes; "unknown" outside a checkout."""
    given = os.environ.get("BENCH_COMMIT")
    if given or which("git") is None:
        return given or "unknown"
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "psi_fast", "kernels"]
    status = subprocess.run(changed, cwd=ROOT, capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("+" if status.stdout else "")


def versions() -> str:
    """Python and the packages that a measurement depends on."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def rates(device: torch.device, *, tiny: bool = False) -> Rates:
    """Measure the device's rates, each the best of a few tries."""
    size, dtype = (8192, torch.float16) if device.type == "cuda" else (64 if tiny else 2048, torch.float32)
    a, single = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device)
    amount = 2**31 if device.type == "cuda" else 2**16 if tiny else 2**28
    source = torch.empty(amount, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)

    def best(run: Callable[[], object], count: int) -> float:
        # a shared machine gives its best only now and then
        return 1e3 * count / min(times_ms(run, device, repeats=6 if tiny else 40, seconds=5))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        plain = best(lambda: torch.mm(single, single), 2 * size**3)
        products = plain if device.type == "cpu" else best(lambda: torch.mm(a, a), 2 * size**3)
        return Rates(products, plain, best(lambda: target.copy_(source), 2 * len(source)))
    finally:
        torch.set_float32_matmul_precision(before)


# ---- measuring


def times_ms(run: Callable[[], object], device: torch.device, *, repeats: int, seconds: float) -> list[float]:
    """Times of up to `repeats` runs, as many as start within `seconds`, but at least two; one when the first takes so long."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats and (len(times) < 2 or time.perf_counter() - begin < seconds):
        times.append(_time_ms(run, device))
        if len(times) == 1 and times[0] > 1e3 * seconds:
            break
    return times


def _time_ms(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    run()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after)


def measured(run: Callable[[], object], device: torch.device, *, repeats: int, seconds: float) -> Measured:
    """Times of `run`, already warmed up, and the memory it takes beyond what there is now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        times = times_ms(run, device, repeats=repeats, seconds=seconds)
        return Measured(times, (torch.cuda.max_memory_allocated(device) - before) / 2**20)
    if platform.libc_ver()[0] == "glibc":  # pages freed already would hide what the run takes
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again from here
    before = _resident_mib("VmRSS")
    times = times_ms(run, device, repeats=repeats, seconds=seconds)
    return Measured(times, max(0.0, _resident_mib("VmHWM") - before))


def _resident_mib(name: str) -> float:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else float("nan")


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that can still be taken on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    return 1024 * int(found[1]) if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile; of fewer than two values that value."""
    if len(times) < 2:
        return times[0], times[0], times[0]
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def with_times(row: Row, found: Measured, draws: int, floor_ms: float) -> Row:
    """`row` with what was measured of `draws` draws."""
    p20, p50, p80 = quantiles(found.times_ms)
    return replace(
        row,
        repeats=len(found.times_ms),
        time_ms_p20=p20,
        time_ms_p50=p50,
        time_ms_p80=p80,
        draws_per_s=1e3 * draws / p50,
        peak_mem_mib=found.peak_mem_mib,
        floor_ms=floor_ms,
        percent_of_floor=100 * floor_ms / p50,
        silhouette=found.silhouette,
        inertia_ratio=found.inertia_ratio,
    )
