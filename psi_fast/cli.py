"""The command psi-fast."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import psi_fast
from psi_fast.config import PSIConfig, naming, read_toml
from psi_fast.crew import Crew
from psi_fast.environment import keep_freed_memory
from psi_fast.errors import ConfigError, ModelError, PsiFastError, nearest, printable
from psi_fast.flags import read_flags
from psi_fast.job import Job, check_values
from psi_fast.progress import tell, unhindered
from psi_fast.stopping import EXIT_CODE, Stopped, stoppable
from psi_fast.workers import OthersMissing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; any PsiFastError ends in one line on stderr and exit code 2, SIGTERM in one line and 143."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"psi-fast {metadata.version('psi-fast')}")  # noqa: T201
        return
    try:
        commands, prog, about = COMMANDS, "psi-fast", psi_fast.__doc__
        if arguments[:1] == ["experiment"]:
            from psi_fast.experiments.commands import experiment_commands

            commands, prog, about = experiment_commands(), "psi-fast experiment", inspect.getdoc(experiment)
            arguments = _with_defaults(arguments[1:])
        elif arguments[:1] == ["figure"]:
            from psi_fast.figures.commands import figure_commands

            commands, prog, about = figure_commands(), "psi-fast figure", inspect.getdoc(figure)
            arguments = arguments[1:]
        elif arguments[:1] == ["jobs"]:
            from psi_fast.batch_commands import batch_commands

            commands, prog, about = batch_commands(), "psi-fast jobs", inspect.getdoc(jobs)
            arguments = arguments[1:]
        elif arguments[:1] == ["plan"]:
            from psi_fast.planning.commands import LEFT_OUT, run_plan

            commands, arguments = COMMANDS | {"plan": run_plan}, _with_defaults(arguments, LEFT_OUT)
        elif arguments[:1] == ["score"]:
            arguments = _with_defaults(arguments)
        command = read_flags(commands, arguments, prog=prog, about=about)
        with stoppable(), unhindered():
            command()
    except OthersMissing as done:  # a task of an array has done its share
        tell(f"psi-fast: {done}")
    except PsiFastError as error:
        tell(f"psi-fast: error: {error}")
        raise SystemExit(2) from error
    except Stopped:
        tell("psi-fast: stopped by SIGTERM; the same command goes on from what is done")
        raise SystemExit(EXIT_CODE) from None
    except BrokenPipeError:  # the reader, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # of a path or a disk that nobody has looked at yet
        told = "" if error.filename is None else f": {str(error.filename)!r}"
        tell(f"psi-fast: error: {printable(f'{error.strerror or error}{told}')}; check the path and its disk")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        tell("psi-fast: stopped by Ctrl-C; the same command goes on from what was last kept")
        raise SystemExit(130) from None


def _with_defaults(arguments: list[str], without: Sequence[str] = ()) -> list[str]:
    """The arguments of a job with --preset or --config FILE.toml as flags in front of the others, which override them.

    The file's `without` are left out, as what does not concern the command.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--config")
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name} needs a value, got fewer; see `psi-fast score --help`") from error
    if found.preset and found.config:
        raise ConfigError("give either --preset or --config, not both")
    values = _from_file(found.config) if found.config else {}
    if found.preset:
        values = PSIConfig.preset(found.preset).to_dict()
    values = {name: value for name, value in values.items() if name not in without}
    if any(argument.partition("=")[0] == "--layer" for argument in rest):  # it would be added to the file's layers
        values.pop("layer", None)
    flags = [flag for name, value in values.items() if value is not None for flag in _flags(name, value)]
    return [*rest[:1], *flags, *rest[1:]]


def _from_file(path: str) -> dict[str, Any]:
    """What a TOML file says of a job, checked."""
    values = read_toml(path)
    with naming(path):
        check_values(values)
    return values


def _flags(name: str, value: Any) -> list[str]:
    """The flags that say the same as `name = value` in a TOML file."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if name == "band":
        return [flag, *map(str, value)]
    values = value if name == "layer" and isinstance(value, list) else [value]
    return [part for one in values for part in (flag, str(one))]


def score(
    job: Annotated[Job, tyro.conf.arg(name="")],
    crew: Annotated[Crew, tyro.conf.arg(name="")] = Crew(),  # noqa: B008  # frozen
    *,
    report: bool = False,
    array_task: str | None = None,
) -> None:
    """Score a layer's channels from images and write a run folder.

    Besides the flags below, --preset {default,paper} or --config FILE.toml set the defaults: lines such as `top_k = 50` for
    settings, and `network = "timm:resnet50"` or `layer = ["layer3", "layer4"]` for the rest.

    Args:
        report: Also write OUT/report, as `psi-fast report OUT` does.
        array_task: i/n: do the i-th of n shares of the first stage that is not done, mining, embedding or null draws, keep
            it in OUT and end; `psi-fast merge OUT` does the rest.
    """
    from psi_fast.crew import run_task
    from psi_fast.present import show_report, show_scores
    from psi_fast.report.folder import require_packages

    if array_task is not None and (crew.ray or report):
        raise ConfigError(
            "--array-task goes neither with --ray nor with --report; give these to `psi-fast merge`'s folder"
        )

    if report:  # before hours of work
        require_packages()
    if array_task is not None:
        show_scores(run_task(job, array_task), job.out)
        return
    first, others = job.arguments()
    with crew.workers(job.device) as workers:
        show_scores(psi_fast.score(*first, **others, workers=workers), job.out)
    if report:
        show_report(psi_fast.build_report(job.out, images=job.images, progress=job.progress))


def merge(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    complete: bool = False,
    allow_code: bool = False,
    progress: bool = True,
) -> None:
    """Finish the run that the tasks of an array have worked on, each with `psi-fast score --array-task i/n`.

    Args:
        folder: Their --out.
        complete: Also mine here what no task has mined.
        allow_code: Let the job noted there name a network as package.module:function, and set trust_checkpoint.
        progress: Show progress on stderr: bars on a terminal, else a line a stage.
    """
    from psi_fast.crew import merge
    from psi_fast.present import show_scores

    show_scores(merge(folder, complete=complete, allow_code=allow_code, progress=progress), folder)


def report(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path | None = None,
    images: str | None = None,
    pictures: bool = True,
    progress: bool = True,
) -> None:
    """Write finished runs as a folder of pages that a browser opens from disk: an overview, all channels, each channel.

    Args:
        folders: Run folders; several layers or networks in one report.
        out: Folder to write, which holds nothing or an earlier report. Default: `report` in the run folder, or of several
            runs in the folder that holds them all.
        images: Where the runs' images are now, as for `psi-fast score`; default: where each run found them, unless it is the hub.
        pictures: Show the patches; --no-pictures needs no images.
        progress: Show progress on stderr: bars on a terminal, else a line a stage.
    """
    from psi_fast.present import show_report

    show_report(psi_fast.build_report(folders, out, images=images, pictures=pictures, progress=progress))


def plan() -> None:
    """Say what a run would take: bytes, operations, memory, time and cost, for any number of images and workers."""


def experiment() -> None:
    """Run one of the experiments on a layer; each takes the flags of `psi-fast score`, and writes below the run folder.

    A table, a figure, a page of text and numbers with intervals and tests go to OUT/experiments/NAME. What experiments share,
    mined patches, embeddings and scores, goes to OUT/shared and is not computed again. `psi-fast experiment NAME --help` has
    the options of one.
    """


def jobs() -> None:
    """Run a file of jobs, such as all combinations of networks, layers and seeds, into one folder; exit code 1 if one failed.

    What jobs have in common is computed once. `psi-fast jobs run FILE` runs those that have not ended, `status` shows how far
    they are, `retry` runs the failed ones again. The scores of all lie in `results.parquet`.
    """


def figure() -> None:
    """Draw one chart of a finished run for a paper, as .pdf, .svg or .png; the same run gives the same bytes.

    `psi-fast figure NAME --help` has the options of one.
    """


def layers(
    *,
    network: str,
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    fields: bool = False,
    trust_checkpoint: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool = True,
) -> None:
    """List a network's layers: name, type, output shape, channels, and how often each runs in one forward pass.

    Of a network with MLPs or attention it says below which of them hold the neurons, the residual stream and the heads.

    Args:
        network: As for `psi-fast score`.
        layer: List this layer alone; give it again for more.
        fields: Measure each layer's receptive field (width x height in px of the network's input): theoretical, what can
            change a unit at all, and effective, the square that holds 90 % of the squared gradient. Takes seconds a layer.
        trust_checkpoint: As for `psi-fast score`.
        device: Where to measure.
        progress: Show progress on stderr: a bar on a terminal, else a line.
    """
    from psi_fast.activation_tap import list_layers
    from psi_fast.environment import pick_device
    from psi_fast.networks import load_network
    from psi_fast.present import show_layers
    from psi_fast.progress import Progress
    from psi_fast.receptive_field import measure_fields
    from psi_fast.unit_names import unit_layers

    where = pick_device(device)
    loaded = load_network(network, trust_checkpoint)
    listed = list_layers(loaded)
    units = None if layer else unit_layers(loaded.module, listed)
    if layer:
        held = {one.name: one for one in listed}
        if unknown := [name for name in layer if name not in held]:
            raise ModelError(
                f"layer {unknown[0]!r} is not listed for {loaded.name}{nearest(unknown[0], held)}; leave --layer out for all"
            )
        listed = [one for one in listed if one.name in layer]
    names = [one.name for one in listed]
    show_layers(listed, measure_fields(loaded, names, where, Progress(progress)) if fields else None, units)


def show(folder: Annotated[Path, tyro.conf.Positional], *, count: int = 15) -> None:
    """Show a finished run: its most polysemantic channels, counts and timings.

    Args:
        folder: Run folder.
        count: Channels to show.
    """
    from psi_fast.present import show_scores

    show_scores(psi_fast.load(folder), folder, count)


def demo(*, out: Path = Path("runs/demo"), progress: bool = True) -> None:
    """Score EfficientNet-Lite0's last convolution on scikit-image's photographs, with its report; needs only packages.

    Args:
        out: Run folder to write; a finished demo in it is shown instead.
        progress: Show progress on stderr: bars on a terminal, else a line a stage.
    """
    from psi_fast.demo import run_demo
    from psi_fast.present import show_report, show_scores
    from psi_fast.report.folder import require_packages

    require_packages()
    show_scores(run_demo(out, progress=progress), out)
    show_report(psi_fast.build_report(out, progress=progress))


def env() -> None:
    """Show versions, also of the optional packages, and devices, for a bug report."""
    from psi_fast.present import show_environment

    show_environment()


COMMANDS: dict[str, Callable[..., Any]] = {
    "score": score,
    "merge": merge,
    "jobs": jobs,
    "plan": plan,
    "experiment": experiment,
    "layers": layers,
    "show": show,
    "report": report,
    "figure": figure,
    "demo": demo,
    "env": env,
}
