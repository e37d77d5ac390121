"""Data as scripts that a page loads from disk, where it may fetch nothing."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write_script(folder: Path, name: str, data: Any) -> None:
    """Write `data` to `folder`/data/`name`.js, which hands it to the page under `name`; ASCII, without "<"."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(f'psiFast.receive("{name}",{text});\n', encoding="ascii")


def rounded(values: Iterable[float] | np.ndarray, digits: int = 4) -> list[float | None]:
    """The values with so many significant digits; None for one that is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]


def histogram(values: np.ndarray, low: float, high: float, bins: int) -> list[int]:
    """How many of the finite values lie in each of `bins` equal parts of low..high; those beyond count at the ends."""
    held = values[np.isfinite(values)].astype(np.float64)
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6
    return np.histogram(held.clip(low, high), bins, (low, high))[0].tolist()
