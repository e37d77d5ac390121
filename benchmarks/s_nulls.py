"""Are the nulls of S calibrated, and do they find clusters? False alarms and power on data sets whose clusters are known.

    python benchmarks/s_nulls.py --data-sets 300 --samples 25 50 100      # appends to benchmarks/results/s_nulls.csv
    python benchmarks/s_nulls.py --table                                  # the tables of docs/s_nulls.md

A cell is a family, a number of samples K and a null; cells that the file has with the same settings are not run again, so a
run may be stopped and continued. Every PER_POOL data sets share their draws' random numbers, which correlates their p-values a
little (the variance of a rate grows by less than a tenth); no two such groups do. `independent` has one set of draws for all
data sets of a K and a width, as in psi_fast.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from families import NULLS, POWER
from rich.console import Console
from torch import Tensor

from psi_fast.calibration import calibrate
from psi_fast.clustering import unit_gram
from psi_fast.moments import moments
from psi_fast_kernels._streams import Stream
from psi_fast_kernels.cluster import cluster
from psi_fast_kernels.rotation_null import ROTATIONS, rotation_null, rotation_pool, sphere_null, tangent_space

FAMILIES = NULLS | POWER
NULL_NAMES = (*ROTATIONS, "independent")
# a prototype of `marginal` with four strata and other random numbers, which the file has from an earlier version
EARLIER = ("marginal-4",)
PER_POOL = 10
LEVELS = (0.01, 0.05, 0.10)
RESULTS = Path(__file__).parent / "results" / "s_nulls.csv"
KEY = ("family", "samples", "null", "data_sets", "draws", "k_max", "n_init", "seed")
MEASURED = ("silhouette", *(f"rate_{level:.2f}" for level in LEVELS), *(f"se_{level:.2f}" for level in LEVELS))
COLUMNS = (*KEY, *MEASURED, "z_mean", "z_sd", "seconds")


def groups(family: str, samples: int, options: argparse.Namespace) -> Iterator[tuple[int, Tensor]]:
    """Embeddings [PER_POOL, K, d] of the data sets that share a pool, with the pool's seed."""
    for first in range(0, options.data_sets, PER_POOL):
        numbers = range(first, min(first + PER_POOL, options.data_sets))
        keys = [[options.seed, crc32(family.encode()), samples, number] for number in numbers]
        rows = [FAMILIES[family](samples, np.random.default_rng(key)) for key in keys]
        yield options.seed + 1 + first, torch.from_numpy(np.stack(rows)).float()


class Pools:
    """Random numbers of the draws for one number of samples, kept while that number is at work."""

    def __init__(self, draws: int):
        self.draws = draws
        self.kept: dict[tuple, object] = {}

    def get(self, samples: int, width: int, null: str, seed: int, starts: dict[str, int]):
        """The rotations of a pool, or for `independent` the draws themselves."""
        kind = "radial" if null == "tangent" else null  # these two use the same numbers
        key = (samples, width if kind == "independent" else min(width, 16), kind, 0 if kind == "independent" else seed)
        if key not in self.kept:
            if kind == "independent":
                self.kept[key] = sphere_null(samples, width, draws=range(self.draws), seed=0, **starts)
            else:
                self.kept[key] = rotation_pool(samples, width, rotation=kind, draws=range(self.draws), seed=seed)
        return self.kept[key]


def null_draws(null: str, gram: Tensor, width: int, seed: int, pools: Pools, starts: dict[str, int]) -> Tensor:
    """Silhouettes [C, B] of the draws of each data set."""
    samples, channel = gram.shape[1], torch.arange(len(gram))
    pool = pools.get(samples, width, null, seed, starts)
    if null == "independent":
        return pool.expand(len(gram), -1)
    tangent = tangent_space(gram, width, rotation=null)
    return rotation_null(tangent, pool, rotation=null, seed=seed, channel=channel, **starts)


def measure(family: str, samples: int, nulls: list[str], pools: Pools, options: argparse.Namespace) -> list[dict]:
    """The cells of one family and number of samples."""
    starts = {"k_max": options.k_max, "n_init": options.n_init}
    found: dict[str, list] = {null: [] for null in nulls}
    seconds = dict.fromkeys(nulls, 0.0)
    silhouettes = []
    for seed, x in groups(family, samples, options):
        gram, none = unit_gram(x), torch.zeros(len(x), dtype=torch.int64)
        observed = cluster(
            gram, seed=seed, stream=Stream.OBSERVED_STARTS, channel=torch.arange(len(x)), draw=none, **starts
        ).silhouette
        silhouettes.append(observed.numpy())
        for null in nulls:
            started = time.perf_counter()
            drawn = moments(observed, null_draws(null, gram, x.shape[2], seed, pools, starts))
            result = calibrate(*(part.double().numpy() for part in (observed, drawn.mean, drawn.sd, drawn.p)))
            found[null].append((result.z, result.p))
            seconds[null] += time.perf_counter() - started
    cells = []
    for null in nulls:
        z, p = np.concatenate(found[null], axis=1)
        rates = [float((p <= level + 1e-9).mean()) for level in LEVELS]
        errors = [(rate * (1 - rate) / len(p)) ** 0.5 for rate in rates]
        values = (float(np.concatenate(silhouettes).mean()), *rates, *errors, z.mean(), z.std(ddof=1), seconds[null])
        settings = (
            family,
            samples,
            null,
            options.data_sets,
            options.draws,
            options.k_max,
            options.n_init,
            options.seed,
        )
        cells.append(dict(zip(COLUMNS, (*settings, *(f"{value:.4f}" for value in values)), strict=True)))
    return cells


def read(path: Path) -> list[dict]:
    """The cells of the file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, cells: list[dict]) -> None:
    """Write the cells behind those the file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(cells)


def run(options: argparse.Namespace, say) -> None:
    """Measure the cells that the file lacks."""
    shared = (options.data_sets, options.draws, options.k_max, options.n_init, options.seed)
    done = {tuple(cell[column] for column in KEY) for cell in read(options.results)}
    for samples in options.samples:
        pools = Pools(options.draws)
        for family in options.families:
            missing = [null for null in options.nulls if tuple(map(str, (family, samples, null, *shared))) not in done]
            if missing:
                cells = measure(family, samples, missing, pools, options)
                append(options.results, cells)
                say(f"{family:14s} K={samples:<4d}" + "".join(f" {c['null']} {c['rate_0.05']}" for c in cells))


def table(cells: list[dict], families: dict, level: float) -> Iterator[str]:
    """Lines of a Markdown table: rejections at `level` in percent by family and null, for each K."""
    sizes = sorted({int(cell["samples"]) for cell in cells})
    nulls = [null for null in (*NULL_NAMES, *EARLIER) if any(cell["null"] == null for cell in cells)]
    rates = {(c["family"], c["null"], int(c["samples"])): float(c[f"rate_{level:.2f}"]) for c in cells}
    yield "| family | " + " | ".join(f"`{null}`" for null in nulls) + " |"
    yield "|---" * (len(nulls) + 1) + "|"
    for family in families:
        texts = []
        for null in nulls:
            values = [rates.get((family, null, size)) for size in sizes]
            texts.append(" ".join("-" if value is None else _rate(value) for value in values))
        if any(text.strip("- ") for text in texts):
            yield f"| {family} | " + " | ".join(texts) + " |"


def _rate(value: float) -> str:
    """Two digits without the leading zero."""
    text = f"{value:.2f}"
    return "1" if text == "1.00" else text[1:]


def main() -> None:
    """Run the missing cells, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--nulls", nargs="+", choices=NULL_NAMES, default=["marginal", "unimodal"])
    parser.add_argument("--samples", nargs="+", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--data-sets", type=int, default=300, help="of every family")
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--k-max", type=int, default=6)
    parser.add_argument("--n-init", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the file and run nothing")
    parser.add_argument("--level", type=float, choices=LEVELS, default=0.05, help="of the tables")
    options = parser.parse_args()
    say = Console(highlight=False, soft_wrap=True, markup=False).print
    if options.table:
        for families in (NULLS, POWER):
            say("\n".join(table(read(options.results), families, options.level)) + "\n")
    else:
        run(options, say)


if __name__ == "__main__":
    main()
