"""Loops that Numba compiles for the CPU, and the threads they run on."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
import numba.core.config
import torch

_settings: Any = numba.core.config  # which makes its names when it is imported

PARTS = 4  # per thread, so that a slow part does not hold the others up


def compiled(function: Callable | None = None, *, in_order: bool = False, inline: bool = False) -> Any:
    """`function` compiled at its first call, free of Python's lock and kept on disk; also `@compiled(...)` with options.

    Sums are taken in any (but always the same) order, with `in_order` as they are written. A function becomes a part of each
    compiled function that calls it; with `inline` before types are known. Linked on its own it would be optimised once in
    the process that compiles it and twice in one that loads its caller from disk, and so sum in another order. The same
    holds for Numba's own sums, means, minima and whole-array arithmetic, so floating-point work is written as loops.

    The machine code is kept under a name made from the package's sources, because Numba checks one file only and would
    not notice a change in a function, a constant or an option that comes from another file.
    """
    if function is None:
        return partial(compiled, in_order=in_order, inline=inline)
    given = _settings.CACHE_DIR
    _settings.CACHE_DIR = given or str(_cache_folder())
    try:
        return numba.njit(
            cache=True,
            nogil=True,
            error_model="numpy",
            fastmath=False if in_order else {"reassoc", "contract", "arcp", "nsz"},
            inline="always" if inline else "never",
            forceinline=True,
        )(function)
    finally:
        _settings.CACHE_DIR = given


def over_threads(work: Callable[[slice], None], total: int) -> None:
    """Call `work` on slices that cover 0..total on as many threads as torch uses; each writes its own part of the result."""
    threads = torch.get_num_threads()
    step = max(1, -(-total // (threads * PARTS)))
    slices = [slice(start, min(start + step, total)) for start in range(0, total, step)]
    if threads == 1 or len(slices) == 1:
        for part in slices:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass


@cache
def _cache_folder() -> Path:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if not path.name.startswith("triton_"):
            digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "psi_fast_kernels" / digest.hexdigest()[:16]
