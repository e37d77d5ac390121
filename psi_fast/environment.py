"""What the run stands on: versions, processor, accelerators."""

import platform
from importlib import metadata
from typing import Any

import torch

from psi_fast.errors import ConfigError

_PACKAGES = (
    "psi-fast",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pillow",
    "open_clip_torch",
    "timm",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_info(device: torch.device) -> dict[str, Any]:
    """Name and size of a device."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def pick_device(name: str) -> torch.device:
    """The device `name` stands for: 'auto' is the first GPU, or the CPU where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda was asked for, but torch sees no GPU; use --device cpu, or check the driver with nvidia-smi"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
