"""`psi-fast plan` as a command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from psi_fast.job import Job
from psi_fast.planning.plan import plan
from psi_fast.planning.view import show_plan

LEFT_OUT = ("out", "share", "max_images")
"""What a job has and a plan has not: `--config FILE` may have it all the same."""


@dataclass(frozen=True, kw_only=True)
class Draft(Job):
    """The inputs of `psi_fast.plan`, as the command line has them: those of a job, of which images may be a sample or absent."""

    images: str = ""
    """A sample of the images, as for `psi-fast score`: a trial on some of them gives the rates. Without it --rates or --floor."""
    out: Path = field(init=False, default=Path())
    share: str | None = field(init=False, default=None)
    max_images: int | None = field(init=False, default=None)
    images_count: tuple[float, ...]
    """Numbers of images to plan for, such as 1e5 1e7."""
    workers: Annotated[tuple[float, ...], tyro.conf.arg(aliases=["--gpus"])] = (1,)
    """Numbers of GPUs, or of machines without one, that share the work."""
    price_per_hour: float | None = None
    """Of one worker, in any currency; without it no cost is told."""
    rates: str | None = None
    """Rates measured before, in place of a trial: a finished run's folder or manifest.json, or a file of --json."""
    floor: str | None = None
    """a100, h100, h200 or b200: also tell the time below which that GPU cannot be, by its maker's peaks. No estimate."""
    image_bytes: float | None = None
    """Of an image's file on average; default: as in the sample."""
    classes: int = 1000
    """Of the images' labels, 0 for none, where there is no sample."""
    wire_gbit: float | None = None
    """Gigabits a second between workers; default: nobody waits for them."""
    storage_mb: float | None = None
    """10^6 bytes a second from storage to each worker; default: as fast as where the rates were measured."""
    trial_images: int = 512
    """Images of the trial."""
    json: Path | None = None
    """File to write all of it to, with the rates."""
    stages: bool = False
    """Show each stage too."""

    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of `psi_fast.plan`."""
        (network, layer, images), options = self.arguments()
        for name in (*LEFT_OUT, "json", "stages", "images_count"):
            options.pop(name)
        return (network, layer, self.images_count), options | {"images": images or None}


def run_plan(draft: Annotated[Draft, tyro.conf.arg(name="")]) -> None:
    """Say what a run would take: bytes, operations, memory, time and cost, for any number of images and workers.

    Takes the flags of `psi-fast score`, also --config and --preset. Rates come from a trial on a sample of the images, of about a
    minute, or from a file; what was not measured is not told, or as a floor.
    """
    first, others = draft.given()
    made = plan(*first, **others)
    if draft.json is not None:
        made.to_json(draft.json)
    show_plan(made, draft.stages)
