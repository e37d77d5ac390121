"""One definition of every setting, shared by Python, the command line and TOML files."""

import dataclasses
import math
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args, get_origin, get_type_hints

from psi_fast.errors import ConfigError, nearest, printable

Rotation = Literal["marginal", "unimodal", "radial", "tangent", "gaussian", "independent"]

_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The paper's literal reading: every embedding turned on its own, no removal of the embedding cone.
    "paper": {"rotation": "independent", "center": False},
}


@dataclass(frozen=True, kw_only=True)
class PSIConfig:
    """Settings of a run; every default is the value docs/method.md argues for."""

    # Mining
    top_k: int = 100
    """Patches kept per channel (K)."""
    per_image: int = 1
    """Positions kept per image; more than 1 lets one image fill several places, and goes without `band`."""
    band: tuple[float, float] | None = None
    """Draw the K images from this quantile range (low, high) of the channel's per-image maxima instead of the very top."""
    patch: Literal["effective", "theoretical", "cell", "image"] | float = "effective"
    """Box cut around the position: a receptive field, the stride cell, the whole image, or a fraction of the image's side."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the network's forward passes: 'auto' is what a short trial finds fastest on a CPU, and float16 on a GPU."""

    # Embedding
    center: bool = True
    """Subtract the mean patch embedding (and the mean concept embedding), then normalise again."""

    # Clustering
    k_max: int = 6
    """Numbers of clusters tried: 2..k_max."""
    n_init: int = 4
    """k-means++ restarts per number of clusters."""

    # Distinctness
    distinctness: Literal["gap", "pairwise"] = "gap"
    """D: how much better a cluster fits its own concept than its siblings' (gap), or how far apart concepts are (pairwise)."""

    # Null draws
    rotation: Rotation = "marginal"
    """Null of S: how the samples are rotated."""
    text_null: Literal["shuffled", "rotated"] = "shuffled"
    """Null of D: random concepts per cluster, or concepts chosen again after turning the concept bank."""
    text_pool: Literal["bank", "layer"] = "bank"
    """Where shuffled concepts are drawn from: the whole bank, or the concepts the layer's clusters got."""
    draws: int = 1000
    """Null draws per channel and component (B)."""
    exact: bool = False
    """Closed-form mean and variance for the nulls of Q and shuffled D; p-values still count draws."""
    seed: int = 0
    """Seed of every random number of the run."""

    # Machine
    batch_size: int = 32
    """Images or crops per step on a GPU; a CPU takes as many as stay in its cache. Changes speed and memory alone."""
    backend: Literal["auto", "triton", "numba", "torch", "cuml"] = "auto"
    """Implementation of the numerics; 'auto' takes the fastest that runs on the device."""

    def __post_init__(self) -> None:
        if isinstance(self.band, list):  # TOML and JSON bring lists
            object.__setattr__(self, "band", tuple(self.band))
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        at_least = {"top_k": 4, "per_image": 1, "k_max": 2, "n_init": 1, "draws": 2, "seed": 0, "batch_size": 1}
        for name, low in at_least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.seed >= 2**64:
            raise ConfigError(f"seed must be below 2**64, got {self.seed}")
        if self.k_max > 16:
            raise ConfigError(f"k_max must be at most 16, got {self.k_max}")
        if self.top_k < 2 * self.k_max:
            raise ConfigError(
                f"top_k must be at least 2 * k_max = {2 * self.k_max}, got {self.top_k}: raise top_k or lower k_max"
            )
        if self.band is not None and not 0 <= self.band[0] < self.band[1] <= 1:
            raise ConfigError(f"band must be two quantiles with 0 <= low < high <= 1, got {self.band}")
        if self.band is not None and self.per_image > 1:
            raise ConfigError(
                f"band takes one position an image, got per_image {self.per_image}: set per_image to 1 or leave out band"
            )
        if not isinstance(self.patch, str) and not 0 < self.patch <= 1:
            raise ConfigError(f"patch as a fraction must lie in (0, 1], got {self.patch}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The settings published under `name` ('default' or 'paper'), with `changes` applied on top."""
        if name not in _PRESETS:
            raise ConfigError(
                f"unknown preset {name!r}; there are {', '.join(sorted(_PRESETS))}{nearest(name, _PRESETS)}"
            )
        return cls.from_dict({**_PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from a mapping of field names, as stored in a manifest; unknown names are an error."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ConfigError(f"unknown setting {key!r}{nearest(key, names)}; see `psi-fast score --help`")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Settings from a TOML file of `field = value` lines; fields left out keep their defaults."""
        values = read_toml(path)
        with naming(path):
            return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return dataclasses.asdict(self)


@contextmanager
def naming(path: str | Path) -> Generator[None]:
    """Puts the name of a settings file in front of what is wrong with a setting in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"in {path}: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """What a TOML file holds; ConfigError when it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no unicode, no TOML, numbers too long, tables too deep
        raise ConfigError(f"cannot read settings from {path}: {printable(str(error))}") from error


def _check_type(name: str, value: Any) -> None:
    """Refuse what a TOML file or a caller can get wrong before it fails somewhere deep."""
    kind = get_type_hints(PSIConfig)[name]
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest(str(value), choices)}")
    if name == "patch" and value not in ("effective", "theoretical", "cell", "image") and not _is_number(value):
        raise ConfigError(f"patch must be effective, theoretical, cell, image or a fraction, got {value!r}")
    pair = cast(tuple[Any, ...], value)
    if (
        name == "band"
        and value is not None
        and not (isinstance(value, tuple) and len(pair) == 2 and all(map(_is_number, pair)))
    ):
        raise ConfigError(f"band must be two quantiles (low, high), got {value!r}")


def _is_number(value: Any) -> bool:
    # by comparison, since an int may be too large for a float
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
