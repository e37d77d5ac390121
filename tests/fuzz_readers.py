"""A fuzzer of what reads images, archives, data sets and checkpoints: `python tests/fuzz_readers.py --inputs 12000`.

Each input is a valid file that a seed spoils. It must be read, or end in a PsiFastError of one line, within a time limit and
without a write anywhere but in the caches. Inputs run in processes of their own, so that one that kills its process is a
result too. Prints what came of them, and ends with code 1 if one did otherwise; those lie in the folder of `--keep`.
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_inputs
import numpy as np

READERS = ("image", "zip", "tar", "parquet", "arrow", "checkpoint")
SECONDS = 60.0
"""For an input, on a machine that does other work too; of a process's first, with its start, twice as many."""
GOOD = ("read", "in part", "refused")
"""All images were read; some, and of another one was said that it cannot be decoded; the file was refused."""


# ---- in a process of its own


def make(reader: str) -> list[tuple[str, bytes, list[bytes], object]]:
    """Valid files of a reader: the ending of the name, the bytes, those of others, and what spoils such a structure."""
    if reader == "image":
        every = [held for kind in fuzz_inputs.images().values() for held in kind]
        ways = {"png": fuzz_inputs.spoil_png, "tif": fuzz_inputs.spoil_tif}
        endings = {"gif": "png", "jp2": "png"}  # found by their content alone
        return [
            (endings.get(ending, ending), held, every, ways.get(ending, fuzz_inputs.spoil_head))
            for ending, kind in fuzz_inputs.images().items()
            for held in kind
        ]
    if reader == "checkpoint":
        held = fuzz_inputs.checkpoints()
        return [("safetensors" if i == 0 else "pth", one, held, fuzz_inputs.spoil_head) for i, one in enumerate(held)]
    files, way = {
        "zip": (fuzz_inputs.zips, fuzz_inputs.spoil_zip),
        "tar": (fuzz_inputs.tars, fuzz_inputs.spoil_tar),
        "parquet": (lambda: fuzz_inputs.tables(arrow=False), fuzz_inputs.spoil_tail),
        "arrow": (lambda: fuzz_inputs.tables(arrow=True), fuzz_inputs.spoil_head),
    }[reader]
    held = files()
    return [(reader, one, held, way) for one in held]


def input_of(reader: str, files: list, seed: int, index: int) -> tuple[str, bytes]:
    """Ending and bytes of an input; the same for the same numbers."""
    rng = np.random.default_rng([seed, READERS.index(reader), index])
    ending, held, others, way = files[rng.integers(len(files))]
    return ending, fuzz_inputs.spoiled(rng, held, others, way)


def outcome_of(path: Path, reader: str) -> str:
    """What comes of reading a file."""
    from psi_fast.checkpoints import read_weights
    from psi_fast.errors import PsiFastError
    from psi_fast.images import open_images

    refused = "refused"
    try:
        if reader == "checkpoint":
            read_weights(path)
            return "read"
        images = open_images(path.parent if reader == "image" else path)
        refused = "in part"
        said = []
        for index in {*range(min(4, len(images))), len(images) - 1}:
            try:
                images.load(index)
            except PsiFastError as error:
                said.append(error)
        if said:
            raise said[0]
        return "read"
    except PsiFastError as error:
        if len(str(error).splitlines()) != 1:
            return f"several lines: {str(error)!r}"
        return refused
    except Exception as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())[:120]} ({Path(last.filename).name}:{last.lineno})"
        )


def watch(allowed: Path) -> list[str]:
    """A list that from now on gets every file that is opened to be written, moved, made or removed, every process and address
    that is asked for, where that is not below `allowed`."""
    found: list[str] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    # of each event, where in what it is given paths lie, and the folders that these are relative to
    places = {
        "os.mkdir": ((0, 2),),
        "os.remove": ((0, 1),),
        "os.rmdir": ((0, 1),),
        "os.rename": ((0, 2), (1, 3)),
        "os.symlink": ((1, 2),),
        "os.link": ((1, 3),),
        "os.truncate": ((0, 0),),
    }

    calls = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

    def outside(path: object, folder: object = -1) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor that is open already
            return False
        there = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
        place = Path(os.path.abspath(os.path.join(there, os.fsdecode(path))))
        return allowed not in place.parents and place not in (allowed, Path(os.devnull))

    def hook(event: str, given: tuple) -> None:
        if event == "open":
            wrong = given[2] is not None and given[2] & writing and outside(given[0])
        else:
            wrong = any(outside(given[at], given[of]) for at, of in places.get(event, ())) or event in calls
        if wrong:
            found.append(f"{event} {given}")

    sys.addaudithook(hook)
    return found


def contents(root: Path) -> dict[str, tuple[int, int]]:
    """Files and folders below `root`, but for the caches, with size and time of change."""
    held = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != root / "caches"]
        for name in (*folders, *files):
            status = os.lstat(Path(folder, name))
            held[f"{folder}/{name}"] = (status.st_size, status.st_mtime_ns if name in files else 0)
    return held


def work(root: Path, reader: str, seed: int, first: int, step: int, count: int) -> None:
    """Reads inputs first, first + step, ... below `count`, and prints a line of JSON for each."""
    warnings.simplefilter("ignore")
    files = make(reader)
    inputs = root / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)  # what the process before left
    inputs.mkdir()
    outcome_of(inputs / "none.png", reader)  # imports what reading takes
    found = watch(root / "caches")
    for index in range(first, count, step):
        ending, held = input_of(reader, files, seed, index)
        path = inputs / f"x.{ending}"
        path.write_bytes(held)
        before = contents(root)
        found.clear()
        begun = time.perf_counter()
        outcome = outcome_of(path, reader)
        seconds = time.perf_counter() - begun
        wrote = [*found, *sorted(before.items() ^ contents(root).items())]
        outcome = f"wrote: {wrote[0]}" if wrote else outcome
        path.unlink()
        shutil.rmtree(root / "caches" / "hf", ignore_errors=True)
        print(json.dumps([index, outcome, round(seconds, 3)]), flush=True)  # noqa: T201


# ---- over the processes


def run(reader: str, seed: int, count: int, first: int = 0, step: int = 1) -> list[tuple[int, str, float]]:
    """What came of each of a reader's inputs: its number, the outcome and the seconds it took."""
    results: list[tuple[int, str, float]] = []
    with tempfile.TemporaryDirectory(prefix="psi-fast-fuzz-") as place:
        root = Path(place)
        (root / "caches").mkdir()
        while first < count:
            results += _until_it_ends(root, reader, seed, first, step, count)
            first = results[-1][0] + step
    return results


def _until_it_ends(
    root: Path, reader: str, seed: int, first: int, step: int, count: int
) -> list[tuple[int, str, float]]:
    """The results of one process; the last is "hang" or "killed" where it did not reach the end."""
    caches = str(root / "caches")
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # the child is elsewhere, and imports the same
    own = {"PYTHONPATH": paths, "PSI_FAST_CACHE": caches, "HF_HOME": f"{caches}/hf", "TMPDIR": caches, "HOME": caches}
    command = [sys.executable, __file__, "--child", str(root), reader, *map(str, (seed, first, step, count))]
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **own, "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # else lines would wait in a buffer, where `select` does not see them
    )
    assert process.stdout is not None
    results: list[tuple[int, str, float]] = []
    wait = 2 * SECONDS
    try:
        while len(results) < len(range(first, count, step)):
            ready, _, _ = select.select([process.stdout], [], [], wait)
            line = process.stdout.readline() if ready else b""
            if not line:
                what = "hang" if not ready else _how_it_ended(process)
                results.append((first + step * len(results), what, wait if not ready else 0.0))
                break
            results.append(tuple(json.loads(line)))
            wait = SECONDS
    finally:
        process.kill()
        process.communicate()
    return results


def _how_it_ended(process: subprocess.Popen) -> str:
    """The signal that ended a process, and the place in psi_fast where it was."""
    said = process.communicate()[1].decode(errors="replace")
    if process.returncode == 1:
        raise RuntimeError(f"the fuzzer itself failed: {said}")
    places = [line.strip() for line in said.splitlines() if line.strip().startswith("File")]
    own = [place for place in places if "/psi_fast/" in place]
    return f"killed: code {process.returncode} at {' < '.join([*places[:2], *own[:1]])}"


def fuzz(inputs: int, seed: int, processes: int = 1) -> dict[str, list[tuple[int, str, float]]]:
    """What came of `inputs` inputs, spread evenly over the readers."""
    share = -(-inputs // len(READERS))
    parts = [(reader, first) for reader in READERS for first in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda part: run(part[0], seed, share, part[1], processes), parts)
        results: dict[str, list[tuple[int, str, float]]] = {reader: [] for reader in READERS}
        for (reader, _), held in zip(parts, found, strict=True):
            results[reader] += held
    return results


def faults(results: dict[str, list[tuple[int, str, float]]]) -> list[tuple[str, int, str]]:
    """The inputs that were neither read nor refused in one line."""
    return [(reader, index, said) for reader, held in results.items() for index, said, _ in held if said not in GOOD]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were neither read nor refused")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        root, reader, *numbers = given.child
        work(Path(root), reader, *map(int, numbers))
        return
    begun = time.perf_counter()
    results = fuzz(given.inputs, given.seed, given.processes)
    print(f"{'reader':<12}{'inputs':>8}{''.join(f'{name:>10}' for name in GOOD)}{'faults':>8}{'longest s':>11}")  # noqa: T201
    for reader, held in results.items():
        often = Counter(said for _, said, _ in held)
        wrong = len(held) - sum(often[name] for name in GOOD)
        counts = "".join(f"{often[name]:>10}" for name in GOOD)
        print(f"{reader:<12}{len(held):>8}{counts}{wrong:>8}{max(own for *_, own in held):>11.2f}")  # noqa: T201
    found = faults(results)
    print(f"{sum(map(len, results.values()))} inputs, {len(found)} faults, {time.perf_counter() - begun:.0f} s")  # noqa: T201
    for reader, index, said in found:
        print(f"{reader} {index}: {said}")  # noqa: T201
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            ending, held = input_of(reader, make(reader), given.seed, index)
            (given.keep / f"{reader}-{index}.{ending}").write_bytes(held)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
