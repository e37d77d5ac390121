"""Checks every Triton op on this GPU, then times everything, and ends with a short table: one go, from a bare checkout.

    PYTHONPATH=.:kernels python benchmarks/device.py
    PYTHONPATH=.:kernels python benchmarks/device.py --commit 1234abc --out results.csv

Each part is a process with its own time limit, so that one that hangs or breaks the device's context stops no other; all
together end within nine minutes. The exit status is 1 when a check fails or a part does not end well. Rows go to the file
one by one. On a machine without a GPU, `--tiny` shows that it runs: checks in Triton's interpreter, timings on the CPU.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from checks import CHECKS, failures
from harness import Row, default_path, read, say
from run import PARTS, TARGETS, arguments, session
from table import speed_up

TOTAL = 520.0  # seconds of all parts
LIMITS = dict.fromkeys(CHECKS, 60.0) | {"cluster": 80.0, "rotation_null": 100.0}
LIMITS |= {"targets": 90.0, "peers": 90.0, "ops": 60.0, "scaling": 150.0}
TARGET_SECONDS = {1: 2.0, 4: 6.0}  # by n_init, for 2048 channels x 1000 draws of all three nulls on an H200
TARGET_MIB = 4096
TARGET_PEERS = 10.0  # times the best other library's clusterings per second


def part(name: str, limit: float) -> str:
    """Run one part in a process of its own; what became of it."""
    environment = os.environ | ({} if torch.cuda.is_available() or name in PARTS else {"TRITON_INTERPRET": "1"})
    begin = time.monotonic()
    try:
        status = subprocess.run(
            [*sys.orig_argv, "--only", name], env=environment, timeout=limit, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    seconds = time.monotonic() - begin
    return f"ok, {seconds:.0f} s" if status == 0 else f"FAILED with status {status}, {seconds:.0f} s"


def summary(outcomes: dict[str, str], out: Path, run: str) -> list[str]:
    """The lines that are said last."""
    lines = [f"{name:18s}{outcome}" for name, outcome in outcomes.items()]
    rows = [row for row in read(out) if row.run == run] if out.exists() else []
    if not rows:
        return [*lines, "no timings"]
    lines.append(f"{rows[0].device}, commit {rows[0].commit}, {rows[0].versions}")
    lines += [_line(row) for row in rows if not row.varies]
    for n_init in TARGETS:
        for row in rows:
            if (row.op, row.channels, row.draws, row.n_init) == ("score_embeddings", 2048, 1000, n_init):
                lines.append(
                    f"target: n_init={n_init} in {TARGET_SECONDS[n_init]:.0f} s and {TARGET_MIB} MiB: "
                    f"{row.time_ms_p50 / 1e3:.2f} s, {row.peak_mem_mib:.0f} MiB"
                )
    others = [row for row in rows if row.op == "kmeans" and row.peer and row.peer != "naive torch"]
    if others:
        best = max(others, key=lambda row: row.draws_per_s)
        lines.append(f"target: {TARGET_PEERS:.0f} x the best other library, {best.peer}: {speed_up(best, rows):.1f} x")
    return lines


def _line(row: Row) -> str:
    by = row.peer or row.backend
    sizes = f"C={row.channels} B={row.draws} n_init={row.n_init}"
    share = "" if row.peer else f"{row.percent_of_floor:8.1f} % of floor"
    return f"{row.op:18s}{by:24s}{sizes:28s}{row.time_ms_p50:11.1f} ms{row.draws_per_s:13.0f}/s{row.peak_mem_mib:8.0f} MiB{share}"


def main() -> None:
    """Run all parts, or inside a part's process that part."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--commit", help="of the code, where there is no checkout to ask")
    parser.add_argument("--only", choices=[*CHECKS, *PARTS], help="one part, in this process")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.commit:
        os.environ["BENCH_COMMIT"] = options.commit
    if options.only in CHECKS:
        raise SystemExit(int(failures(options.only, device, tiny=options.tiny) > 0))
    if options.only:
        PARTS[options.only](session(options))
        return
    if device.type != "cuda" and not options.tiny:
        raise SystemExit("there is no GPU here; --tiny shows that the script runs, `make bench` measures the CPU")
    started = options.run or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.orig_argv += ["--run", started, "--seconds", str(min(options.seconds, 15.0))]
    outcomes, begin = {}, time.monotonic()
    for name in (*CHECKS, *PARTS):
        left = TOTAL - (time.monotonic() - begin)
        say(name)
        outcomes[name] = part(name, min(LIMITS[name], left)) if left > 5 else "not started: no time left"
    out = options.out or default_path(device, options.threads or len(os.sched_getaffinity(0)))
    say("\n" + "\n".join(summary(outcomes, out, started)))
    raise SystemExit(int(any(not outcome.startswith("ok") for outcome in outcomes.values())))


if __name__ == "__main__":
    main()
