"""Measures what this machine can, in parts, and adds a row per measurement to benchmarks/results/<device>.csv.

    python benchmarks/run.py                                # every part
    python benchmarks/run.py --part peers --part scaling    # some
    python benchmarks/run.py --baseline COMMIT              # the commit measured beside this code (default: the first version)

Parts: `ops`, every op on every backend at the default size; `peers`, other libraries on the same problems, the null draws
without psi_fast and the baseline; `scaling`, the series of scaling.py; `targets`, 2048 channels x 1000 draws (GPU only).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from harness import (
    RESULTS,
    ROOT,
    Machine,
    Measured,
    Rates,
    Row,
    append,
    default_path,
    machine,
    measured,
    rates,
    say,
    with_times,
)  # fmt: skip
from peers import (
    GPU_PEERS,
    absent,
    cluster_with,
    inertia_ratio,
    lowest_inertia,
    naive_loop,
    naive_torch,
    processes,
    scikit_learn,
    scikit_learn_loop,
    scikit_learn_silhouette,
)  # fmt: skip
from scaling import START, series
from workloads import FIRST, OPS, ROTATED, Case, concepts, embeddings, grams, measure, work

from psi_fast_kernels._backend import select_backend

FIRST_VERSION = "0f5f788"
BASELINE_ROTATION = "unimodal"  # the first version's default, with as much work as today's
LOOP_ROTATION = "tangent"  # what the loops without psi_fast do; the defaults do more
BACKENDS = {"cpu": ("numba", "torch"), "cuda": ("triton", "torch")}


class Sizes(NamedTuple):
    """How large the parts are.

    whole : all of psi_fast, and the size of every op
    problems : of k-means against peers
    few : channels and draws of a null loop without psi_fast
    target : channels and draws of the target
    points : how many points of a series, at most
    """

    whole: Case
    problems: int
    few: tuple[int, int]
    target: tuple[int, int]
    points: int = 99


SIZES = {
    "cpu": Sizes(Case(op="score_embeddings", channels=64, draws=200), 256, (8, 6), (2048, 1000)),
    "cuda": Sizes(Case(op="score_embeddings", channels=512, draws=1000), 4096, (4, 4), (2048, 1000)),
    "tiny": Sizes(
        whole=Case(op="score_embeddings", channels=3, draws=5, samples=20, width=12, k_max=3, n_init=2, concepts=7),
        problems=8,
        few=(2, 1),
        target=(4, 6),
        points=1,
    ),
}
TARGETS = (1, 4)  # n_init


@dataclass(frozen=True)
class Session:
    """One run: the device, the columns that all its rows share, and where they go."""

    device: torch.device
    machine: Machine
    rates: Rates
    out: Path
    seconds: float
    baseline: str
    sizes: Sizes

    def write(self, case: Case, found: Measured, *, backend: str = "", peer: str = "", varies: str = "") -> Row:
        """Add a measurement to the file and say it."""
        empty = dict.fromkeys(("repeats", "time_ms_p20", "time_ms_p50", "time_ms_p80", "draws_per_s"), 0)
        empty |= dict.fromkeys(("peak_mem_mib", "floor_ms", "percent_of_floor", "silhouette", "inertia_ratio"), 0)
        sizes = {
            name: getattr(case, name) for name in ("op", "channels", "draws", "samples", "width", "k_max", "n_init")
        }
        ran = backend or select_backend(case.backend, self.device, offers=("triton", "numba", "torch"))
        row = Row(
            **asdict(self.machine), **sizes, **empty, backend=ran, peer=peer, varies=varies,
            value=getattr(case, varies) if varies else 0, rotation=case.rotation if case.op in ROTATED else "",
        )  # fmt: skip
        floor = 0.0 if peer else self.rates.floor_ms(work(case, self.device))
        row = with_times(row, found, case.pairs, floor)
        append(self.out, [row])
        what = (
            f"{varies}={row.value}"
            if varies
            else f"C={case.channels} B={case.draws} K={case.samples} n_init={case.n_init} {row.rotation}"
        )
        say(
            f"  {case.op:18s}{peer or row.backend:26s}{what:43s}{row.time_ms_p50:11.1f} ms{row.draws_per_s:12.0f}/s"
            f"{row.peak_mem_mib:9.0f} MiB" + ("" if peer else f"{row.percent_of_floor:7.1f} % of floor")
        )
        return row


# ---- parts


def part_ops(session: Session) -> None:
    """Every op on every backend that runs here."""
    for op in OPS:
        for backend in BACKENDS[session.device.type]:
            case = replace(session.sizes.whole, op=op, backend=backend)
            if op == "score_embeddings" and backend == BACKENDS[session.device.type][0]:
                continue  # measured beside the peers
            if op == "cluster":
                case = replace(case, draws=16)
            session.write(case, measure(case, session.device, session.machine.threads, seconds=5))


def part_targets(session: Session) -> None:
    """All three nulls of 2048 channels x 1000 draws."""
    channels, draws = session.sizes.target
    if session.device.type != "cuda" and session.sizes.points > 1:
        say(f"  {channels} channels x {draws} draws: needs a GPU")
        return
    plain = replace(session.sizes.whole, channels=channels, draws=draws, n_init=TARGETS[0])
    cases = [replace(plain, op=op) for op in ("permutation_null", "text_null")]
    cases += [replace(plain, op=op, n_init=n) for op in ("rotation_null", "score_embeddings") for n in TARGETS]
    for case in cases:
        session.write(case, measure(case, session.device, session.machine.threads, repeats=3))


def part_scaling(session: Session) -> None:
    """The series over draws, channels, samples and restarts."""
    for op, starts in START.items():
        for varies in starts:
            given = {"seconds": session.seconds, "points": session.sizes.points}
            for case, found in series(op, varies, session.device, session.machine.threads, **given):
                session.write(case, found, varies=varies)


def part_peers(session: Session) -> None:
    """The null draws without psi_fast, by the baseline commit, and k-means on the same problems by other libraries."""
    whole = session.sizes.whole
    for rotation in dict.fromkeys((whole.rotation, BASELINE_ROTATION, LOOP_ROTATION)):
        case = replace(whole, rotation=rotation)
        session.write(case, measure(case, session.device, session.machine.threads))
    if session.device.type == "cpu":
        _baseline(session, replace(whole, rotation=BASELINE_ROTATION))
    _null_loops(session, replace(whole, rotation=LOOP_ROTATION))
    _clusterings(session)


def _baseline(session: Session, case: Case) -> None:
    """The same case by the code of the baseline commit, in this run."""
    archive = subprocess.run(["git", "archive", session.baseline], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        say(f"  no commit {session.baseline} here: the baseline is not measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        environment = os.environ | {"PYTHONPATH": f"{folder}:{folder}/kernels:{Path(__file__).parent}"}
        code = (
            "import psi_fast, torch, workloads as w; from harness import Measured\n"
            f"assert psi_fast.__file__.startswith({folder!r}), psi_fast.__file__\n"
            f"case = w.Case(**{asdict(replace(case, backend='torch'))!r})\n"
            f"print(repr(tuple(w.measure_case(case, 'cpu', {session.machine.threads}, 3, 10.0))))"
        )
        run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        say(f"  the baseline {session.baseline} does not run: {run.stderr.strip().splitlines()[-1]}")
        return
    found = Measured(*eval(run.stdout.splitlines()[-1], {"nan": float("nan")}))
    session.write(case, found, backend="torch", peer=f"psi_fast {session.baseline}")


def _null_loops(session: Session, whole: Case) -> None:
    """scikit-learn in one process per core and torch, both a channel at a time, on a few channels and draws."""
    channels, draws = session.sizes.few
    few = replace(whole, channels=channels, draws=draws)
    x = embeddings(channels, few.samples, few.width, device=session.device)
    text = concepts(few.concepts, few.width, device=session.device)
    given = (draws, few.k_max, few.n_init)
    if absent(("sklearn",)):
        say("  scikit-learn is not installed: neither its loop nor the naive one is measured")
        return
    own = sum(scikit_learn_silhouette(rows.cpu().double(), few.k_max, few.n_init) for rows in x[:FIRST]) / len(
        x[:FIRST]
    )
    for count in sorted({1, os.cpu_count() or 1}):
        with processes(count) as pool:
            found = measured(lambda: scikit_learn_loop(pool, x, text, *given), session.device, repeats=3, seconds=15)
        name = f"scikit-learn, {count} process{'es' if count > 1 else ''}"
        session.write(few, found._replace(silhouette=own, peak_mem_mib=float("nan")), backend="cpu", peer=name)
    found = measured(lambda: naive_loop(x, text, *given), session.device, repeats=3, seconds=15)
    value = cluster_with(naive_torch, x[:FIRST], few.k_max, few.n_init)[0]
    session.write(few, found._replace(silhouette=float(value.mean())), backend="torch", peer="naive torch")


def _clusterings(session: Session) -> None:
    """k-means for k = 2..6 from embeddings to the choice of k, on the same problems."""
    from psi_fast_kernels.cluster import cluster

    device, problems = session.device, session.sizes.problems
    case = replace(session.sizes.whole, op="kmeans", channels=problems, draws=1)
    x = embeddings(problems, case.samples, case.width, device=device)
    lowest = lowest_inertia(x[:64], case.k_max)
    ids = torch.arange(problems, device=device)

    def ours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(x)
        return cluster(
            grams(x),
            k_max=case.k_max,
            n_init=case.n_init,
            seed=0,
            stream=1,
            channel=ids[:n],
            draw=torch.zeros_like(ids[:n]),
        )

    def compare(name: str, fit: Callable, count: int) -> None:
        few, kept = x[:count], []
        fit(x[:2])
        found = measured(lambda: kept.append(fit(few)), device, repeats=3, seconds=10)
        value, labels, ks = (part[:64] for part in kept[-1])
        ratio = inertia_ratio(few[:64], labels, ks, lowest[: len(ks)])
        found = found._replace(silhouette=float(value[:FIRST].mean()), inertia_ratio=ratio)
        session.write(replace(case, channels=count), found, peer=name, backend="" if not name else "library")

    compare("", ours, problems)
    few, several = min(problems, 16), min(problems, 32)
    compare("naive torch", lambda x: cluster_with(naive_torch, x, case.k_max, case.n_init), few)
    if device.type == "cpu":
        count = os.cpu_count() or 1
        with processes(count) as pool:
            name = f"scikit-learn, {count} processes"
            compare(
                name, lambda x: cluster_with(lambda *a: scikit_learn(pool, *a), x, case.k_max, case.n_init), several
            )
        return
    for name, (modules, fit) in GPU_PEERS.items():
        missing = absent(modules)
        if missing:
            say(f"  {name} is not measured: {' and '.join(missing)} not installed")
            continue
        count = problems if name == "flash-kmeans" else several
        compare(name, lambda x, fit=fit: cluster_with(fit, x, case.k_max, case.n_init), count)


PARTS = {"targets": part_targets, "peers": part_peers, "ops": part_ops, "scaling": part_scaling}


def session(options: argparse.Namespace) -> Session:
    """The session the options ask for."""
    device = torch.device(options.device)
    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    found = rates(device, tiny=options.tiny)
    where = machine(device, threads, found)
    if options.run:
        where = replace(where, run=options.run)
    out = options.out or default_path(device, threads)
    say(f"{where.device}, {threads} threads, {where.versions}, commit {where.commit}; rows go to {out}")
    say(
        f"rates: products {where.product_gflops:.0f} GFLOP/s, float32 without matrix units {where.operation_gflops:.0f} GFLOP/s, "
        f"copy {where.copy_gb:.1f} GB/s"
    )
    return Session(
        device, where, found, out, options.seconds, options.baseline, SIZES["tiny" if options.tiny else device.type]
    )


def arguments() -> argparse.ArgumentParser:
    """The options of this script and of device.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help=f"file of the rows (default: by the device's name in {RESULTS.name}/)")
    parser.add_argument("--threads", type=int, help="of torch and numba (default: all cores)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of one series at most; points beyond are left out, and named"
    )
    parser.add_argument(
        "--baseline", default=FIRST_VERSION, metavar="COMMIT", help="measured beside this code, on a CPU"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--run", help="start of the run that the rows belong to (default: now)")
    return parser


def main() -> None:
    """Run the parts asked for."""
    parser = arguments()
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="again for more; default: all")
    options = parser.parse_args()
    given = session(options)
    for name in options.part or PARTS:
        say(name)
        PARTS[name](given)


if __name__ == "__main__":
    main()
