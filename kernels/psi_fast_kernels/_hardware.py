"""What the device offers, asked for when it is needed."""

import os

import torch


def architecture_of(device: torch.device) -> int:
    """CUDA architecture such as 90; 90 on a CPU, where kernels are interpreted."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that can still be taken on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
