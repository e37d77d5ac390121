"""Figures as commands: each reads a finished run and writes one file."""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from psi_fast.details import open_details
from psi_fast.errors import ConfigError, InputError, ModelError, StoreError, nearest
from psi_fast.figures import CHANNELS, COMPARISONS, OVERVIEWS, PICTURES, RUNS
from psi_fast.figures.style import rendered
from psi_fast.store import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from psi_fast.details import Details

KINDS = ("pdf", "svg", "png")
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Folder of a finished run.")]
Channel = Annotated[
    str, tyro.conf.arg(help="Layer and number, such as layer4/1234; the number alone where the run has one layer.")
]
Images = Annotated[
    str | None,
    tyro.conf.arg(help="Where the images are now, as for `psi-fast score`; default: where the run found them."),
]
Out = Annotated[Path, tyro.conf.arg(help="File to write: .pdf, .svg or .png.")]


def figure_commands() -> dict[str, Callable[..., None]]:
    """A command for each figure, by its name."""
    found = {name: _told(_of_layers(draw), draw) for name, draw in OVERVIEWS.items()}
    found |= {name: _told(_of_run(draw), draw) for name, draw in RUNS.items()}
    found |= {name: _told(_of_channel(draw), draw) for name, draw in CHANNELS.items()}
    found |= {name: _told(_of_pictures(draw), draw) for name, draw in PICTURES.items()}
    return found | {name: _told(_of_two(draw), draw) for name, draw in COMPARISONS.items()}


def _of_layers(draw: "Callable[[Details, list[str]], Figure]") -> Callable[..., None]:
    def command(
        folder: RunFolder,
        *,
        out: Out,
        layer: Annotated[
            tyro.conf.UseAppendAction[tuple[str, ...]],
            tyro.conf.arg(help="Draw this layer alone; give it again for more."),
        ] = (),
    ) -> None:
        kind = _kind(out)
        details = open_details(folder)
        if unknown := [name for name in layer if name not in details.layers]:
            raise InputError(f"{folder} has no layer {unknown[0]!r}{nearest(unknown[0], details.layers)}")
        _write(draw(details, [name for name in details.layers if name in layer or not layer]), out, kind)

    return command


def _of_run(draw: "Callable[[Details], Figure]") -> Callable[..., None]:
    def command(folder: RunFolder, *, out: Out) -> None:
        kind = _kind(out)
        _write(draw(open_details(folder)), out, kind)

    return command


def _of_channel(draw: "Callable[[Details, int], Figure]") -> Callable[..., None]:
    def command(folder: RunFolder, *, channel: Channel, out: Out) -> None:
        kind = _kind(out)
        details = open_details(folder)
        _write(draw(details, details.row(channel)), out, kind)

    return command


def _of_pictures(draw: "Callable[[Details, int, str | None], Figure]") -> Callable[..., None]:
    def command(folder: RunFolder, *, channel: Channel, out: Out, images: Images = None) -> None:
        kind = _kind(out)
        details = open_details(folder)
        _write(draw(details, details.row(channel), images), out, kind)

    return command


def _of_two(draw: "Callable[[Details, Details], Figure]") -> Callable[..., None]:
    def command(first: RunFolder, second: RunFolder, *, out: Out) -> None:
        kind = _kind(out)
        _write(draw(open_details(first), open_details(second)), out, kind)

    return command


def _told(command: Callable[..., None], draw: Callable[..., "Figure"]) -> Callable[..., None]:
    """The command with the name of `draw` and its first line."""
    command.__doc__ = (inspect.getdoc(draw) or "").partition("\n")[0]
    command.__name__ = draw.__name__
    return command


def _kind(out: Path) -> str:
    """What kind of file `out` is to be, by its ending; also sees that it can be drawn at all, before a run is read."""
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ConfigError(f"--out must end in .{', .'.join(KINDS[:-1])} or .{KINDS[-1]}, got {str(out)!r}")
    if find_spec("matplotlib") is None:
        raise ModelError('figures need the package matplotlib: pip install "psi-fast[experiments]"')
    return kind


def _write(figure: "Figure", out: Path, kind: str) -> None:
    held = rendered(figure, kind)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, lambda path: path.write_bytes(held))
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}; choose another file for --out") from error
    print(f"figure: {out}")  # noqa: T201
