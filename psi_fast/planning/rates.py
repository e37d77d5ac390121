"""How fast stages run: measured in a trial or by a run, kept in a file; and what a GPU's maker says that it reaches."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from psi_fast import store
from psi_fast.checkpoints import one_line
from psi_fast.errors import ConfigError, InputError, PsiFastError, nearest
from psi_fast.paths import require_path
from psi_fast.planning.costs import Cost, Sizes, costs
from psi_fast.planning.distinct import Curve, distinct_curve
from psi_fast.planning.workload import Workload
from psi_fast.scores import Scores

SAME = ("network", "layers", "encoder", "patch", "per_image", "band", "precision", "rotation", "text_null", "bank")
"""What a rate depends on in ways that no formula knows; sizes such as top_k or draws are in the formulas."""


LARGEST = 1e15
"""Number in a file of rates, and among what a plan is made for; what larger ones come to would be infinite."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds a unit of each stage, on one worker; a stage that was not measured is not there, and not counted.

    source : where they come from, in words
    device : type, name and threads or memory
    about : what they were measured of, by the names of SAME
    seconds : by stage, for one of what its Cost.share counts: an image, a crop, an operation, a byte
    pool_seconds : for one of `Cost.pool`
    distinct : how many crops patches come to
    host_bytes : of a process with libraries, network and encoder; 0 where it is not known
    """

    source: str
    device: Mapping[str, Any]
    about: Mapping[str, Any]
    seconds: Mapping[str, float]
    pool_seconds: float = 0.0
    distinct: Curve = ()
    host_bytes: float = 0.0

    def of(self, stage: str, cost: Cost) -> float | None:
        """Seconds that the busiest worker needs for a stage; None where it was not measured."""
        if not cost.share and not cost.pool:
            return 0.0
        # what was mined and cut from a stream was decoded in the same seconds
        decoded = 0 if self.about.get("bank") == "stream" and stage != "open images" else cost.decoded
        if stage not in self.seconds or (decoded and "decoding" not in self.seconds):
            return None
        own = self.seconds[stage] * cost.share + self.pool_seconds * cost.pool
        return own + self.seconds.get("decoding", 0.0) * decoded

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return dataclasses.asdict(self)


def about(work: Workload) -> dict[str, Any]:
    """What rates of this workload hold for, by the names of SAME."""
    config = work.config.to_dict()
    sizes = {
        "network": work.network.name,
        "layers": sorted(own.name for own in work.layers),
        "encoder": work.encoder.name,
        "bank": work.bank_side or "stream",
    }
    found = {name: sizes[name] if name in sizes else config[name] for name in SAME}
    return json.loads(json.dumps(found))  # as they come back from a file


def read_rates(path: str | Path, work: Workload) -> Rates:
    """The rates in a file that `psi-fast plan --json` wrote, or those of a finished run, by its folder or its manifest.

    Raises
    ------
    InputError
        There is no such file, or it holds no rates.
    ConfigError
        They are rates of something else than `work`.
    """
    path = require_rates(path)
    try:
        if path.name == store.MANIFEST:
            found = _require_sound(_from_run(store.load(path.parent), path.parent, work))
        else:
            found = _require_sound(_from_plan(json.loads(path.read_text(encoding="utf-8"))))
    except PsiFastError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"{path} holds no rates ({one_line(error)}); expected a finished run's folder or its manifest.json, or a file of "
            "`psi-fast plan --json`"
        ) from error
    wanted = about(work)
    if different := [name for name in SAME if found.about.get(name) != wanted[name]]:
        first = different[0]
        raise ConfigError(
            f"the rates in {path} are of {first} {found.about.get(first)!r}, expected {wanted[first]!r}; measure a trial "
            "(--images) or give a run of the same"
        )
    return found


def require_rates(path: str | Path) -> Path:
    """The file that `read_rates` reads, which is there."""
    path = Path(path)
    require_path("rates", path, InputError)
    file = path / store.MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"no rates at {str(path)!r}; expected a finished run's folder or its manifest.json, or a file of `psi-fast plan "
            "--json`"
        )
    return file


def _from_plan(held: Any) -> Rates:
    given = held.get("rates", held) if isinstance(held, dict) else held
    if not isinstance(given, dict):
        raise ValueError(f"they are a {type(given).__name__}, no dict")
    given["distinct"] = tuple((share, crops) for share, crops in given.get("distinct", ()))
    return Rates(**given)


def _require_sound(rates: Rates) -> Rates:
    """The rates, of which every field is of its kind; ValueError where one is not."""
    kinds = {"source": str, "device": dict, "about": dict, "seconds": dict}
    for name, kind in kinds.items():
        if not isinstance(found := getattr(rates, name), kind):
            raise ValueError(f"{name} is a {type(found).__name__}, no {kind.__name__}")
    if not isinstance(rates.device.get("type"), str):
        raise ValueError("device has no type")
    numbers = [
        *rates.seconds.values(),
        rates.pool_seconds,
        rates.host_bytes,
        *(own for pair in rates.distinct for own in pair),
    ]
    if not all(type(own) in (int, float) and 0 <= own <= LARGEST for own in numbers):
        raise ValueError(f"a rate is no number of at least 0 and at most {LARGEST:g}")
    if any(share < 1 / LARGEST or not crops for share, crops in rates.distinct):
        raise ValueError("a share or number of distinct crops is 0")
    logs = [math.log(share) for share, _ in rates.distinct]  # between which crops are interpolated
    if any(after <= before for before, after in pairwise(logs)):
        raise ValueError("the shares of distinct crops do not ascend")
    return rates


def _from_run(scores: Scores, folder: Path, work: Workload) -> Rates:
    """What a finished run took, stage by stage; of its null draws no part is told from another, so all run at one rate."""
    held, patches = scores.manifest, scores.patches
    config, seconds, images = held["config"], held["seconds"], held["images"]
    if held["channels"] != work.channels:
        raise ConfigError(
            f"the run in {folder} scored {held['channels']} channels, expected {work.channels} as asked for here; give a "
            "run of the same --channels"
        )
    if held.get("workers", 1) != 1:
        raise ConfigError(
            f"the run in {folder} was made by {held['workers']} workers, and its rates are of all of them together; give a run "
            "of one process"
        )
    side = 0 if held["bank"]["folder"].startswith("none") else held["bank"]["side_px"]
    then = dataclasses.replace(
        work, config=type(work.config).from_dict(config), bank_side=side, concepts=held["concepts"]
    )
    crops = held["distinct_crops"]
    sizes = Sizes(images=images, workers=1, crops=crops, kept=crops, products=held["device"]["type"] == "cuda")
    made = costs(then, sizes)
    found = {
        name: seconds[name] / (made[name].share + made[name].pool)
        for name in ("open images", "clusters", "nulls", "concepts")
    }
    for name, rate in (("mining", held["images_per_second"]), ("embedding", held["crops_per_second"])):
        if rate:  # 0: an earlier run had done it
            found[name] = 1 / rate
    if side and seconds.get("decoding", 0) / images > 1e-5:  # faster than any decoder: the squares were there already
        found["decoding"] = seconds["decoding"] / images
    found["load"] = seconds["load encoder"] + seconds["patch size"]
    assert patches is not None, "a run that was saved has patches"
    names = patches["image"].astype("category").cat.codes.to_numpy(dtype="int64")
    boxes = pd.DataFrame(patches["box"].to_list()).to_numpy(dtype="float64")
    return Rates(
        source=f"the run in {folder}, made {held['made']}",
        device=held["device"],
        about=about(then) | {"network": held["network"], "encoder": held["encoder"], "layers": sorted(held["layers"])},
        seconds=found,
        pool_seconds=found["nulls"],
        distinct=distinct_curve(names, boxes, patches["rank"].to_numpy(dtype="int64"), images),
    )


@dataclass(frozen=True)
class Peak:
    """What the maker of a GPU says of one: dense half-precision operations and bytes of its memory, a second."""

    name: str
    flops: float
    bytes: float
    said_in: str = field(repr=False)


PEAKS = {
    "a100": Peak("A100 SXM 80 GB", 312e12, 2.039e12, "NVIDIA's data sheet of the A100"),
    "h100": Peak("H100 SXM", 989.5e12, 3.35e12, "NVIDIA's data sheet of the H100"),
    "h200": Peak("H200 SXM", 989.5e12, 4.8e12, "NVIDIA's data sheet of the H200"),
    "b200": Peak("B200 SXM", 2250e12, 8e12, "NVIDIA's data sheet of the B200"),
}
"""Published peaks. No program reaches them: they bound a time from below, and are no estimate of it."""


def peak_of(name: str) -> Peak:
    """The peak that `--floor NAME` stands for."""
    if name not in PEAKS:
        raise ConfigError(f"floor must be one of {', '.join(PEAKS)}, got {name!r}{nearest(name, PEAKS)}")
    return PEAKS[name]


def floor_seconds(cost: Cost, workers: int, peak: Peak) -> float:
    """Seconds below which no GPU of that peak does a stage's operations, or moves its bytes, shared out evenly."""
    return max(cost.flops / peak.flops, cost.moved / peak.bytes) / workers
