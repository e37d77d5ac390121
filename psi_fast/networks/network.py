"""A network, and what loading one takes in every family."""

import importlib
import importlib.util
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psi_fast.checkpoints import state_fingerprint
from psi_fast.environment import outdated
from psi_fast.errors import ModelError
from psi_fast.module_identity import computation
from psi_fast.preprocess import Preprocess


@dataclass(eq=False)
class Network:
    """A module and how to feed it."""

    module: nn.Module
    preprocess: Preprocess
    name: str
    """The spec it was loaded from, or the module's class."""
    class_names: list[str] | None = None
    """Names of its outputs when it is a classifier whose classes are known, else None."""
    warnings: list[str] = field(default_factory=list[str])
    """What a reader of the results must know, such as random weights."""

    def fingerprint(self) -> str:
        """sha256 (hex) over the state_dict (names, shapes, dtypes, bytes), what the module does with it, and the preprocess."""
        return state_fingerprint(self.module, computation(self.module), repr(self.preprocess))


def named(spec: str, module: nn.Module, preprocess: Preprocess, weights_name: str, classes: int) -> Network:
    """The Network with ImageNet's class names where they apply; random weights have no classes, and say so."""
    if weights_name == "none":
        return Network(module, preprocess, spec, warnings=[f"random weights ({spec})"])
    return Network(module, preprocess, spec, imagenet_names() if classes == 1000 else None)


def imagenet_names() -> list[str]:
    from psi_fast.vocabulary import imagenet_names

    return imagenet_names()


def triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def split_weights(rest: str) -> tuple[str, str]:
    """(name, weights) of "name@weights"; weights is empty when none are given."""
    name, at, weights = rest.partition("@")
    if at and not weights:
        raise ModelError(f"{rest!r} names no weights after '@'; give @none, @/path or leave '@' out")
    return name, weights


def is_path(weights: str) -> bool:
    return "/" in weights or Path(weights).suffix in (".pth", ".pt", ".bin", ".safetensors")


@contextmanager
def seeded() -> Generator[None]:
    """Random weights are the same in every run, and the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]  # torch gives its arguments no types
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        yield


_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}
"""Packages that install under another name than they are imported by."""


def require(package: str, install: str, spec: str) -> Any:
    """The imported optional `package`; a ModelError says what to `install` for `spec` when it is missing or too old."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{spec} needs the package {package.replace('_', '-')}: pip install {install}")
    if said := outdated(_DISTRIBUTIONS.get(package, package)):
        raise ModelError(f"{spec} needs {said}: pip install --upgrade {install}")
    return importlib.import_module(package)
