"""The report's one page of markup: what stands in it, and how it is filled in."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from psi_fast.cache import cache_folder
from psi_fast.details import Details
from psi_fast.errors import StoreError
from psi_fast.experiments.outcome import CSV, Outcome, claim_cells
from psi_fast.report.summary import Shown
from psi_fast.scores import FLAGS
from psi_fast.store import now, write_whole

SCRIPTS = ("core", "theme", "charts", "address", "table", "overview", "channel", "compare", "main")
"""In the order in which they run."""
MEANINGS = {
    "S": ("lie clearly apart (S)", "S^ separation"),
    "Q": ("agree with the images' classes (Q)", "Q^ agreement with classes"),
    "D": ("have different names (D)", "D^ distinct concepts"),
}
"""By component what it says of clusters, and its calibrated form."""
CHANCE = {1: (".5", ".91"), 2: (".25", ".67"), 3: (".125", ".45")}
"""Mean and 99 % point of PSI from so many components whose z are normal: what the nulls give."""
VEGA = "vega.js"
"""Loaded by the first chart."""


def run_facts(name: str, details: Details, warnings: Sequence[str]) -> dict[str, Any]:
    """What the page says of a run; `warnings` are added to the run's own."""
    about = details.scores.manifest
    device = ", ".join(f"{key} {value}" for key, value in about["device"].items())
    facts = {
        **{
            key.replace("_", " "): about[key]
            for key in ("network", "encoder", "vocabulary", "source", "images", "concepts")
        },
        **({"text head": about["text_head"]} if about["text_head"] else {}),
        "distinct patches": about["distinct_crops"],
        "patch": "; ".join(_patch(layer, own) for layer, own in about["patch"].items()),
        "device": device,
        "forward passes": about["forward_passes"],
        "encoder precision": about["encoder_precision"],
        "made": about["made"],
        "identity": about["identity"],
    }
    return {
        "name": name,
        "network": about["network"],
        "images": about["images"],
        "made": about["made"],
        "layer_names": about["layers"],
        "seconds": about["seconds"],
        "warnings": [*about["warnings"], *warnings],
        "facts": list(facts.items()),
        "settings": list(about["config"].items()),
        "versions": list(about["versions"].items()),
    }


def write_page(
    folder: Path,
    runs: Sequence[Mapping[str, Any]],
    layers: Sequence[Shown],
    experiments: Sequence[tuple[str, Outcome]],
) -> None:
    """Write index.html with its styles and scripts, and the experiments' files, to `folder`.

    Parameters
    ----------
    experiments
        Name of the run that each was made on, and what it found.
    """
    assets = folder / "assets"
    assets.mkdir()
    (assets / VEGA).write_text(_vega(), encoding="utf-8")
    own = resources.files("psi_fast.report") / "assets"
    for name in ("report.css", "vega-license.txt", *(f"{script}.js" for script in SCRIPTS)):
        (assets / name).write_text((own / name).read_text(encoding="utf-8"), encoding="utf-8")
    several = len({name for name, _ in experiments}) > 1
    shown = [_experiment(folder, i, name, one, several) for i, (name, one) in enumerate(experiments)]
    templates = Environment(
        loader=PackageLoader("psi_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = templates.get_template("index.html.jinja").render(
        title=_title(runs, layers),
        runs=runs,
        layers=layers,
        experiments=shown,
        scripts=[f"{name}.js" for name in SCRIPTS],
        made=now(),
        version=metadata.version("psi-fast"),
        flags=FLAGS,
        **_meaning(layers),
    )
    (folder / "index.html").write_text(text, encoding="utf-8")


def _vega() -> str:
    """Vega, Vega-Lite and what embeds them as one script; kept in psi_fast's cache, as putting them together takes seconds."""
    from vl_convert import javascript_bundle

    kept = cache_folder() / f"vega-{metadata.version('vl-convert-python')}.js"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    bundle = javascript_bundle()  # pyright: ignore[reportCallIssue]  # its stub asks for what may be left out
    text = f"(() => {{\n{bundle}\n}})();\n"  # in a scope of its own, where its many names stay
    with contextlib.suppress(OSError):  # the next report takes the seconds again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, lambda path: path.write_text(text, encoding="utf-8"))
    return text


def _meaning(layers: Sequence[Shown]) -> dict[str, Any]:
    """What PSI is made of in all of the layers, and what chance alone gives of so many components."""
    present = [name for name in MEANINGS if all(name in own.details.present for own in layers)] or ["S"]
    said = [MEANINGS[name][0] for name in present]
    return {
        "parts": len(present),
        "meaning": " and ".join(filter(None, (", ".join(said[:-1]), said[-1]))),
        "component_names": ", ".join(MEANINGS[name][1] for name in present),
        "chance": CHANCE[len(present)],
    }


def _title(runs: Sequence[Mapping[str, Any]], layers: Sequence[Shown]) -> str:
    networks = list(dict.fromkeys(str(run["network"]) for run in runs))
    names = list(dict.fromkeys(own.layer for own in layers))
    return f"Polysemanticity of {', '.join(networks)}: {', '.join(names)}"


def _experiment(folder: Path, number: int, run: str, outcome: Outcome, several: bool) -> dict[str, Any]:
    """What the page says of an experiment, whose figure and table are copied into the report."""
    place = folder / "data" / f"e{number}"
    place.mkdir(parents=True)
    for name in ("figure.svg", CSV):
        if not (outcome.folder / name).exists():
            raise StoreError(f"the experiment in {outcome.folder} lacks {name}; remove it and run it again")
        shutil.copyfile(outcome.folder / name, place / name)
    text = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    return {
        "id": f"e{number}",
        "title": f"{outcome.name} ({run})" if several else outcome.name,
        "text": Markup(text.render(outcome.text)),
        "figure": f"data/e{number}/figure.svg",
        "table": f"data/e{number}/{CSV}",
        "rows": len(outcome.table),
        "claims": [(*claim_cells(one), str(one.count or ""), one.how) for one in outcome.claims],
        "warnings": outcome.manifest["warnings"],
    }


def _patch(layer: str, own: Mapping[str, Any]) -> str:
    height, width = own["size_px"]
    return f"{layer}: {width:g} x {height:g} px ({', '.join(filter(None, (own['mode'], own['note'])))})"
