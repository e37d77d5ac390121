"""Which implementation runs an op. The choice is a pure function of names, so it is tested without the hardware."""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

import torch

from psi_fast_kernels._hardware import architecture_of

BACKENDS = ("auto", "triton", "numba", "torch", "cuml")
FILES = {"triton": "triton_impl", "numba": "numba_impl", "torch": "reference", "cuml": "cuml_impl"}
BLACKWELL = "3.9"  # the triton that compiles every kernel for sm_100; the compiler of 3.6 fails on some
PREFERRED = {"cuda": ("triton", "torch"), "cpu": ("numba", "torch")}


class BackendError(RuntimeError):
    """The backend asked for by name cannot run here; the message says what is missing."""


def implementation(op: str, backend: str, device: torch.device, *, offers: Sequence[str]) -> ModuleType:
    """The module of an op's package that `backend` stands for on `device`; imported only now.

    Parameters
    ----------
    op : str
        `__name__` of a module of the op's package.
    backend : str
        One of BACKENDS.
    device : torch.device
        Where the op's tensors are.
    offers : sequence of str
        The backends that the op has.

    Raises
    ------
    ValueError
        No such backend, or the op does not have it.
    BackendError
        An explicit backend misses its package or its device.
    """
    return import_module(f"{op.rpartition('.')[0]}.{FILES[select_backend(backend, device, offers=offers)]}")


def offered(op: str, name: str) -> str:
    """`name` where the op of that name has such a backend, else "auto": cuML clusters only, and the top-K has no Numba."""
    return name if name in import_module(f"psi_fast_kernels.{op}.op").OFFERS else "auto"


def select_backend(
    name: str,
    device: torch.device,
    *,
    offers: Sequence[str],
    missing: Callable[[str, torch.device], str | None] | None = None,
) -> str:
    """The backend that `name` stands for: 'auto' takes the first preferred one that can run, another name runs or raises."""
    missing = missing or missing_for
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    if name != "auto":
        if name not in offers:
            raise ValueError(f"this op has no {name!r} backend; it has auto, {', '.join(offers)}")
        lacking = missing(name, device)
        if lacking:
            raise BackendError(f"backend {name!r} cannot run here: {lacking}; 'auto' takes the best one that can")
        return name
    for candidate in PREFERRED.get(device.type, ()):
        if candidate in offers and missing(candidate, device) is None:
            return candidate
    return "torch"


def missing_for(name: str, device: torch.device) -> str | None:
    """What `name` lacks to run on tensors of `device`, or None."""
    packages = {"triton": ("triton",), "numba": ("numba",), "cuml": ("cuml", "cupy"), "torch": ()}[name]
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        return f"it needs the package {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed"
    if name == "numba" and device.type != "cpu":
        return f"it runs on a CPU, and the data are on {device}"
    if name == "cuml" and device.type != "cuda":
        return f"it needs a CUDA device, and the data are on {device}"
    if (
        name == "triton"
        and device.type == "cuda"
        and architecture_of(device) >= 100
        and not _recent("triton", BLACKWELL)
    ):
        return f"its kernels compile for this GPU from triton {BLACKWELL} on, and {version('triton')} is installed"
    if name == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs a CUDA device (or TRITON_INTERPRET=1, set before the start), and the data are on {device}"
    return None


def _recent(package: str, least: str) -> bool:
    """Whether the installed version is `least` or a later one."""
    installed, wanted = (tuple(int(part) for part in text.split(".")[:2]) for text in (version(package), least))
    return installed >= wanted
