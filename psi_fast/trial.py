"""How fast a network's forward passes are in each way of running them: tried once a machine, and kept in the cache folder."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.cache import cache_folder
from psi_fast.environment import device_info, versions
from psi_fast.forward import Pace, channels_last, fast_precision
from psi_fast.store import fingerprint, write_shared

SIZES = (4, 8, 16)
"""Images at once that are tried."""
ROUNDS = 3
CLEARLY = 1.1
"""How much faster another pace has to be than the default size and memory format of its dtype: less is a machine's noise."""


def choose_pace(taps: Sequence[ActivationTap], precision: str, mark: str) -> Pace:
    """How the forward passes to the taps' layers run.

    A named precision stands for itself, so that it decides a result's bits on its own. For "auto" a GPU takes float16, and a
    CPU what a trial of some seconds found fastest: float32 or, where the processor has it, bfloat16, how many images stay in
    its cache, and whether channels lie last in memory.

    Parameters
    ----------
    taps
        Of one network, as `JointTap` takes them.
    precision
        As `PSIConfig.precision`.
    mark
        The network's fingerprint, which takes a while to compute.
    """
    device = taps[0].device
    if precision != "auto":
        return Pace(getattr(torch, precision))
    if device.type != "cpu":
        return Pace(fast_precision(device))
    about = {
        "network": mark,
        "layers": sorted(tap.layer for tap in taps),
        "device": device_info(device),
        "torch": versions()["torch"],
        "sizes": SIZES,
        "formats": "both",
    }
    path = cache_folder() / "paces" / f"{fingerprint(about)}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    other = other_format(taps)
    for pace in paces(device):
        for own in (pace, replace(pace, memory_format=other)):
            if kept == str(own):
                return own
    found = fastest(taps, paces(device))
    # where the layout is not the usual one it is tried at the precision and size found, which spares half of the trial
    found = fastest(taps, [found, replace(found, memory_format=other)])
    with contextlib.suppress(OSError):  # the next run tries again
        write_shared(path, lambda place: place.write_text(json.dumps(str(found)), encoding="utf-8"))
    return found


def paces(device: torch.device) -> list[Pace]:
    """The paces that are tried on a CPU."""
    return [Pace(dtype, size) for dtype in dict.fromkeys((torch.float32, fast_precision(device))) for size in SIZES]


def other_format(taps: Sequence[ActivationTap]) -> torch.memory_format:
    """The memory format that the taps' network is not given by default."""
    usual = channels_last(taps[0].network.module)
    return torch.contiguous_format if usual == torch.channels_last else torch.channels_last


def fastest(taps: Sequence[ActivationTap], tried: Sequence[Pace]) -> Pace:
    """The pace with most images a second, tried in turns on noise; one that is usual, unless clearly slower.

    Usual is the best one's dtype in the default size and memory format, or else in the default memory format.
    """
    side, device = taps[0].network.preprocess.size, taps[0].device
    noise = torch.randn(max(pace.size for pace in tried), 3, side, side, generator=torch.Generator().manual_seed(0))
    noise = noise.to(device)
    times: dict[Pace, list[float]] = {pace: [] for pace in tried}
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for pace, own in times.items():
                with JointTap(taps, pace) as joint:
                    start = time.perf_counter()
                    joint(noise[: pace.size])
                    own.append((time.perf_counter() - start) / pace.size)
    seconds = {pace: min(own[1:]) for pace, own in times.items()}  # the first pass warms up
    best = min(seconds, key=seconds.__getitem__)
    for usual in (Pace(best.dtype), replace(best, memory_format=None)):
        if usual in seconds and seconds[usual] < CLEARLY * seconds[best]:
            return usual
    return best
