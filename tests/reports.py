"""Reports made from small stored runs, for a browser to open."""

import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from tiny_stored import seal
from torch import nn

import psi_fast
from psi_fast import Network
from psi_fast.experiments import patch_swap, separation
from psi_fast.experiments.outcome import MANIFEST
from psi_fast.experiments.study import Study
from psi_fast.image_set import ImageSet
from psi_fast.report.folder import build_report

CHANNELS = 60
"""More than the table shows at once."""
DEAD = 1
IMAGES = 60
SWAPPED = 4
"""Channels that patches are swapped for."""
CONFIG = replace(tiny.CONFIG, top_k=40, draws=29)
CONCEPTS = ("red", "=green", 'dark, "very" dark', "deep blue", "light")
ATTACKS = (
    "<script>hit('script')</script>",
    "</script><script>hit('end')</script>",
    "<img src=x onerror=hit('img')>",
    "\"><svg onload=hit('svg')>",
    "' onmouseover='hit(1)' x='",
    "`${hit('template')}` {{ 7*7 }} {% raw %}",
    '=HYPERLINK("http://example.invalid/")',
    "![x](http://example.invalid/x.png) [y](javascript:hit('link')) <http://example.invalid>",
    "\u05e9\u05dc\u05d5\u05dd \u202etrid\u202c e\u0301\u0327 \U0001f436\u200d\U0001f9ba 100% #a/b?c=d&e;f",
    "x" * 300,
)
"""Names that are markup, a formula, a script or long; a page that runs one calls `hit`."""
LAYER_NAME = "<img src=x onerror=hit('layer')> \"q' `${hit(2)}` 50%/3?a#b"
RUN_NAME = "=1 <img src=x onerror=hit('run')> 'q' \"`${hit(3)}` =1 \u05e9\U0001f436"


def wide_network(name="tiny"):
    """CHANNELS channels, one of them dead; scored at layer "3"."""
    return tiny.conv_network(tiny.Kill(DEAD, 0.5), name=name, width=CHANNELS)


def hostile_network():
    """A layer and a network whose names are attacks."""
    layers = OrderedDict([(LAYER_NAME, nn.Conv2d(3, 8, 3, stride=2, padding=1)), ("relu", nn.ReLU())])
    return Network(tiny.seeded(lambda: nn.Sequential(layers)), tiny.PREPROCESS, ATTACKS[2])


def hostile_images():
    """Pictures whose names and classes are attacks."""
    names = [f"{attack}{i}.png" for i in range(IMAGES // len(ATTACKS)) for attack in ATTACKS]
    return ImageSet(
        names, lambda name: tiny.picture(names.index(name)), names,
        labels=[i % len(ATTACKS) for i in range(len(names))], class_names=list(ATTACKS),
    )  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A report; `scores` are those of its runs."""

    index: Path
    scores: list[psi_fast.Scores]

    @property
    def table(self) -> pd.DataFrame:
        """The score table of the first run."""
        return self.scores[0].table

    def data(self, name: str) -> Any:
        """What the script data/`name`.js hands to the page."""
        text = (self.index.parent / "data" / f"{name}.js").read_text(encoding="ascii")
        return json.loads(text.removeprefix(f'psiFast.receive("{name}",').removesuffix(");\n"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs of one layer; the first has the experiments separation and patch-swap."""
    root = tmp_path_factory.mktemp("report")
    images, folders = tiny.write_pictures(root / "pictures", IMAGES), [root / "first", root / "second"]
    for seed, folder in enumerate(folders):
        encoder = tiny.TinyEncoder(names=CONCEPTS)
        tiny.score(wide_network(), "3", images, encoder=encoder, config=replace(CONFIG, seed=seed), out=folder)
    study = _study(wide_network(), "3", str(images), folders[0], tiny.TinyEncoder(names=CONCEPTS))
    separation(study)
    patch_swap(study, channel_count=SWAPPED, host_count=2)
    _mark(folders[0])
    return folders


@pytest.fixture(scope="session")
def single(runs) -> Built:
    """The report of the first run."""
    return _built(runs[:1])


@pytest.fixture(scope="session")
def pair(runs) -> Built:
    """The report of both runs."""
    return _built(runs)


@pytest.fixture(scope="session")
def bare(runs) -> Built:
    """The report of the first run without pictures."""
    return _built(runs[:1], out=runs[0].parent / "bare", pictures=False)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> Built:
    """The report of a run all of whose names are attacks, with an experiment of such a text."""
    folder = tmp_path_factory.mktemp("hostile") / RUN_NAME
    encoder, images = tiny.TinyEncoder(names=ATTACKS), hostile_images()
    encoder.warnings = list(ATTACKS)
    tiny.score(hostile_network(), LAYER_NAME, images, encoder=encoder, config=CONFIG, out=folder)
    about = separation(_study(hostile_network(), LAYER_NAME, images, folder, encoder)).folder / MANIFEST
    text = "\n\n".join(ATTACKS)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"text": text}))
    return _built([folder], images=images)


def _mark(folder: Path) -> None:
    """Make some channels significant and give some flags, which so small a run does not: filters need both kinds."""
    path = folder / "scores.parquet"
    table = pd.read_parquet(path)
    table.loc[table["channel"] % 3 == 0, "q"] = 0.01
    for flag, every in (("unselective", 10), ("degenerate:Q", 15)):
        for row in table.index[table["channel"] % every == 4]:
            table.at[row, "flags"] = [*table.at[row, "flags"], flag]
    table.to_parquet(path)
    seal(folder)


def _study(network: Network, layer: str, images: Any, folder: Path, encoder: Any) -> Study:
    return Study(network, layer, images, out=folder, encoder=encoder, config=CONFIG, device="cpu", progress=False)


def _built(folders: list[Path], **options: Any) -> Built:
    index = build_report(folders, progress=False, **options)
    return Built(index, [psi_fast.load(folder) for folder in folders])
