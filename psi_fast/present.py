"""Results as tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from psi_fast.activation_tap import LayerInfo
from psi_fast.environment import device_info, packages
from psi_fast.errors import printable, spelled
from psi_fast.receptive_field import Field
from psi_fast.scores import Scores, few_draws

if TYPE_CHECKING:
    from psi_fast.experiments.outcome import Outcome

REMARKABLE = 95  # random-patch channels are clustered too: a channel is remarkable above most of them, in percent
NARROWEST = 120  # columns a table takes where the output is no terminal


def show_scores(scores: Scores, folder: Path, count: int = 15) -> None:
    """Print the `count` most polysemantic channels, the counts of flags, the time per stage and where the results lie."""
    console = terminal()
    manifest = scores.manifest
    table = Table(
        box=box.SIMPLE_HEAD,
        title=escape(f"{manifest['network']}  {', '.join(manifest['layers'])}: most polysemantic channels"),
        title_justify="left",
    )
    several = len(manifest["layers"]) > 1
    if several:
        table.add_column("layer", no_wrap=True)
    for name in ("channel", "PSI", "S z", "Q z", "D z", "q", "random %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("clusters: concept (patches)")
    for _, row in scores.top(count).iterrows():
        clusters = "  |  ".join(_cluster_names(row))
        z = [_number(row[f"{name}_z"], 1) for name in "SQD"]
        numbers = [
            *([escape(row["layer"])] if several else []),
            str(row["channel"]),
            _number(row["psi"], 4),
            *z,
            _number(row["q"], 3),
            _number(row["random_percentile"], 0),
        ]
        table.add_row(*numbers, escape(clusters))
    console.print(table)
    flags = scores.flag_counts()
    degenerate = sum(any(flag.startswith("degenerate:") for flag in own) for own in scores.table["flags"])
    above = int((scores.table["random_percentile"] > REMARKABLE).sum())
    console.print(
        f"{len(scores.table)} channel{'s' * (len(scores.table) != 1)}: {scores.significant()} significant (q < .05), "
        f"{above} above {REMARKABLE} % of random ones, {flags.get('dead', 0)} dead, "
        f"{flags.get('unselective', 0)} unselective, {flags.get('few_patches', 0)} with too few patches, "
        f"{degenerate} degenerate; "
        f"median PSI {_number(scores.table['psi'].median(), 3)}"
    )
    seconds = manifest["seconds"]
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    console.print(f"time: {stages}; total {sum(seconds.values()):.1f} s")
    patches = [
        f"{patch['size_px'][0]:g} px ({': '.join(filter(None, (patch['mode'], patch['note'])))})"
        + f" in {name}" * several
        for name, patch in manifest["patch"].items()
    ]
    console.print(
        f"{manifest['images']} images{_pace(manifest['images_per_second'])}, {manifest['distinct_crops']} distinct crops"
        f"{_pace(manifest['crops_per_second'])}, patches of {escape(', '.join(patches))}"
    )
    for warning in manifest["warnings"]:
        console.print(f"warning: {escape(warning)}")
    for hint in few_draws(scores.table, manifest["config"]["draws"]):
        console.print(f"hint: {escape(hint)}")
    console.print(f"results: {escape(str(folder))}")


def show_jobs(jobs: pd.DataFrame, place: Path) -> None:
    """Print a row a job: state, time and what varies; the errors of failed ones; and where the results lie."""
    console = terminal()
    table = Table(box=box.SIMPLE_HEAD)
    names = [str(name) for name in jobs if name != "error"]
    for name in names:
        table.add_column(escape(name), overflow="fold", justify="right" if name == "seconds" else "left")
    for _, row in jobs.iterrows():
        table.add_row(*(_number(row[name], 1) if name == "seconds" else escape(_said(row[name])) for name in names))
    console.print(table)
    for name, error in zip(jobs["job"], jobs["error"], strict=True):
        if error:
            console.print(escape(f"{name}: {_said(error)}"), soft_wrap=True)
    counts = jobs["state"].value_counts()
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    console.print(f"results: {escape(str(place))}", soft_wrap=True)


def _pace(rate: float) -> str:
    return f" at {rate}/s" if rate else " of earlier runs"


def _said(value: object) -> str:
    """A cell as text; nothing for one that a job leaves at its default."""
    return "" if value is None or value != value else printable(str(value))


def show_report(page: Path) -> None:
    """Print where a report lies; a browser opens it from there."""
    terminal().print(f"report: {escape(str(page))}", soft_wrap=True)


def show_outcome(outcome: "Outcome") -> None:
    """Print what an experiment found: its text, its claims and where the files lie."""
    from psi_fast.experiments.outcome import claim_cells

    console = terminal()
    console.print(Markdown("\n".join(map(spelled, outcome.text.split("\n")))))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what", overflow="fold")
    for name in ("value", "95 % interval", "p", "paper"):
        table.add_column(name, justify="right")
    for claim in outcome.claims:
        table.add_row(*map(escape, claim_cells(claim)))
    console.print(table)
    for warning in outcome.manifest["warnings"]:
        console.print(f"warning: {escape(warning)}")
    console.print(f"results: {escape(str(outcome.folder))}")


def show_layers(
    layers: Sequence[LayerInfo],
    fields: Mapping[str, tuple[Field | None, Field | None]] | None = None,
    units: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Print name, type, output shape and channels (or why there are none) of each layer, in the order of execution.

    Its fields are added where given. Below stands why theoretical ones are the whole image, which layers hold each kind of
    unit, as `unit_layers` finds them, and what it means that some run more than once.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("layer", "type", "output"):
        table.add_column(name, overflow="fold")
    for name in ("channels", "calls", *(() if fields is None else ("theoretical px", "effective px"))):
        table.add_column(name, justify="right", overflow="fold")
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        measured = () if fields is None else map(_field, fields[layer.name])
        channels = escape(layer.refused) if layer.refused else str(layer.channels)
        table.add_row(escape(layer.name), layer.type, shape, channels, str(layer.calls), *measured)
    console = terminal()
    console.print(table)
    for note, names in _notes(fields or {}).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(escape(f"theoretical px of {names[0]}{more}: {note}"))
    for kind, names in (units or {}).items():
        console.print(escape(f"{kind}: {names[0]}" + f" to {names[-1]} ({len(names)} layers)" * (len(names) > 1)))
    if several := [layer.name for layer in layers if layer.calls > 1]:
        console.print(escape(_run_again(several)))


def _notes(fields: Mapping[str, tuple[Field | None, Field | None]]) -> dict[str, list[str]]:
    """What is said of theoretical fields, and of which layers."""
    notes: dict[str, list[str]] = {}
    for name, (theoretical, _) in fields.items():
        if theoretical is not None and theoretical.note:
            notes.setdefault(theoretical.note, []).append(name)
    return notes


def _run_again(layers: Sequence[str]) -> str:
    """What to do about layers that run more than once."""
    who, them = f"{layers[0]} runs", "it"
    if len(layers) > 1:
        who, them = f"{layers[0]} and {len(layers) - 1} more run", "them"
    return (
        f"calls: {who} several times in one forward pass, at different places of the network, and so cannot be scored; take "
        f"the layer that runs before {them}, or the block around {them}"
    )


def show_environment() -> None:
    """Print versions, of optional packages also which are missing, and devices."""
    console = terminal()
    for package, version in packages().items():
        console.print(f"{package} {version or 'not installed'}")
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        console.print(", ".join(f"{name} {value}" for name, value in device_info(device).items()))


class Terminal(Console):
    """A console to which no text that it shows, as of a file, can give commands."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(spelled(text), **options)


def terminal() -> Console:
    """The terminal, or a page of NARROWEST columns where there is none."""
    console = Terminal(highlight=False)
    return console if console.is_terminal else Terminal(highlight=False, width=max(NARROWEST, console.width))


def _field(field: Field | None) -> str:
    if field is None:
        return "-"
    return "whole image" if field.whole_image else f"{field.size[1]:.0f} x {field.size[0]:.0f}"


def _cluster_names(row: pd.Series) -> list[str]:
    concepts = list(row["concepts"]) or ["cluster"] * len(row["cluster_sizes"])
    return [f"{concept} ({size})" for concept, size in zip(concepts, row["cluster_sizes"], strict=True)]


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}f}"
