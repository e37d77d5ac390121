"""Class names only, or an open vocabulary: does the choice of concepts change PSI, and what clusters are called?"""

import re
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from psi_fast.errors import InputError
from psi_fast.evaluation import Evaluation
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import Claim, paired, pooled, rank_correlation
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, panels
from psi_fast.results import Bank
from psi_fast.vocabulary import is_numbered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = {
    "clusters named outside the classes, open vocabulary": "named outside\nthe classes, open",
    "clusters named as their class, open vocabulary": "named as their\nclass, open",
    "clusters named as their class, class names": "named as their\nclass, class names",
}
WNID = re.compile(r"n\d{8}")


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row of panels a layer: D's z and PSI under either bank, a point a channel, and how clusters are named."""
    layers = list(dict.fromkeys(table["layer"]))
    known = {one.name: one for one in claims}
    with panels(3 * len(layers), rows=len(layers), width=2.9) as (figure, axes):
        for (layer, kind), panel in zip(product(layers, range(3)), axes, strict=True):
            rows = table[table["layer"] == layer]
            if kind < 2:
                what, column = (("z of D", "D_z"), ("PSI", "psi"))[kind]
                x, y = rows[f"{column}_classes"], rows[f"{column}_open"]
                panel.plot(x, y, "o", ms=2.5, alpha=0.5, mew=0, color=COLOURS[0], rasterized=True)
                ends = [min(x.min(), y.min()), max(x.max(), y.max())]
                panel.plot(ends, ends, color="#999999", lw=0.8, ls=":", zorder=1.5)
                rho = known[f"{layer}: rank correlation of {('D_z', 'PSI')[kind]}"].value
                panel.set(title=f"{layer}: {what}, rho {rho:.3f}")
                panel.set(xlabel=f"{what}, class names", ylabel=f"{what}, open vocabulary")
                continue
            own = [known[f"{layer}: {name}"] for name in SHARES]
            places = np.arange(len(own))[::-1]
            panel.hlines(places, [one.low for one in own], [one.high for one in own], color=COLOURS[1], lw=1.5)
            panel.plot([one.value for one in own], places, "o", ms=4.5, color=COLOURS[1])
            panel.set_yticks(places, list(SHARES.values()))
            panel.set(title="shares of clusters, 95 % interval", xlim=(-0.02, 1.02), ylim=(-0.5, len(own) - 0.5))
            panel.set_xlabel("share")
    return figure


@experiment(draw)
def breadth(study: Study) -> Finding:
    """PSI and the clusters' names with the data set's classes as the only concepts, and with all concepts of the study.

    A concept is a class where it is called like the class, like one of its synonyms (between commas) or its key (such as a
    WordNet id). A cluster is named as its class where its concept is the class that most of its images have.

    Parameters
    ----------
    study : Study
    """
    labels, images, bank = study.labels, study.subject.images, study.text
    class_names = images.class_names or []
    matches = class_concepts(class_names, images.class_keys or class_names, bank.names)
    matched = sum(map(bool, matches))
    words = class_bank(bank, matches, class_names)
    tables, claims, told = [], [], []
    for layer in study.layers:
        classes = labels[study.top(layer).images]
        names = [{bank.names[concept] for concept in own} for own in matches]
        found = {"open": study.evaluation(layer), "classes": study.evaluation(layer, text=words)}
        rows = _rows(found, classes, names).assign(layer=layer)
        own = _claims(rows, layer, study.config.seed)
        tables.append(led_by(rows, "layer"))
        claims += own
        told.append(_told(layer, own))
    matching = f"{matched} of {len(class_names)} classes are among the {len(bank.names)} concepts"
    claims.append(Claim("classes found among the concepts", matched, count=len(class_names), how=matching))
    text = (
        f"Does it matter which concepts clusters may be named by? {matching}; PSI was computed with these "
        f"{len(words.names)} *class names* alone and with all {len(bank.names)}, the *open vocabulary*. Only D reads concepts: S "
        "and Q are the same. A cluster is *named as its class* where its concept is the class that most of its images have; "
        "clusters whose class is no concept are left out there.\n\n" + "\n\n".join(told)
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, text)


def class_concepts(names: Sequence[str], keys: Sequence[str], concepts: Sequence[str]) -> list[list[int]]:
    """Which of the concepts [P] each class is, by its name, else its key, else its synonyms; empty for none.

    Case, spaces, hyphens, underscores and other marks do not count. A class of which only the number is known is none of them.
    """
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for number, concept in enumerate(concepts):
        for held, spellings in ((whole, [_plain(concept)]), (parts, _synonyms(concept))):
            for spelling in filter(None, spellings):
                held.setdefault(spelling, []).append(number)
    found = []
    for name, key in zip(names, keys, strict=True):
        if is_numbered(name):
            found.append([])
            continue
        exact = whole.get(_plain(name)) or parts.get(_plain(key)) or []
        found.append(exact or sorted({number for own in _synonyms(name) for number in parts.get(own, [])}))
    return found


def class_bank(bank: Bank, matches: Sequence[Sequence[int]], class_names: Sequence[str]) -> Bank:
    """The concepts that are classes.

    Raises
    ------
    InputError
        There are fewer than two, or no others.
    """
    chosen = sorted({concept for own in matches for concept in own})
    if sum(map(bool, matches)) < 2 or len(chosen) < 2:
        raise InputError(
            f"breadth needs at least two classes among the concepts, found {sum(map(bool, matches))}: classes such as "
            f"{', '.join(map(repr, class_names[:3]))}, concepts such as {', '.join(map(repr, bank.names[:3]))}; name the classes "
            "as the concepts are, or give a vocabulary that holds them"
        )
    if len(chosen) == len(bank.names):
        raise InputError(
            f"all {len(chosen)} concepts are classes of the images, so no vocabulary is wider than they; give one with "
            "--vocabulary, such as open-1602, or an encoder with more classes"
        )
    head = None if bank.head is None else bank.head[chosen]
    return Bank(tuple(bank.names[concept] for concept in chosen), bank.embeddings[chosen], head)


def _plain(name: str) -> str:
    """A name without case and marks."""
    return " ".join(re.sub(r"[^\w]|_", " ", name.casefold().replace("'", "")).split())


def _synonyms(name: str) -> list[str]:
    """What a name offers besides itself: its parts between commas, and a WordNet id in front of it."""
    held = WNID.match(name)
    rest = name[held.end() :] if held else name
    return [part for part in map(_plain, [*([held[0]] if held else []), *rest.split(",")]) if part]


def _rows(found: dict[str, Evaluation], classes: np.ndarray, names: Sequence[set[str]]) -> pd.DataFrame:
    """A row a scored channel: its scores under each bank, and how many of its clusters are named how.

    classes : [C, K] class of each patch; names : concepts of each class
    """
    known = set().union(*names)
    columns = ("psi", "log_psi", "D", "D_z")
    tables = {bank: one.table for bank, one in found.items()}
    rows = pd.DataFrame(
        {"channel": tables["open"]["channel"]}
        | {f"{name}_{bank}": table[name] for bank, table in tables.items() for name in columns}
    )
    counts = {name: np.zeros(len(rows), dtype=np.int64) for name in ("clusters", "outside", "of_a_known_class")}
    counts |= {f"named_as_class_{bank}": np.zeros(len(rows), dtype=np.int64) for bank in found}
    labels = found["open"].clusters.labels.numpy()
    for row in range(len(rows)):
        concepts = {bank: table["concepts"].iloc[row] for bank, table in tables.items()}
        for cluster, concept in enumerate(concepts["open"]):
            own = names[int(np.bincount(classes[row, labels[row] == cluster]).argmax())]
            counts["clusters"][row] += 1
            counts["outside"][row] += concept not in known
            counts["of_a_known_class"][row] += bool(own)
            for bank, said in concepts.items():
                counts[f"named_as_class_{bank}"][row] += said[cluster] in own
    return rows.assign(**counts).dropna(subset=["log_psi_open", "log_psi_classes"]).reset_index(drop=True)


def _claims(rows: pd.DataFrame, layer: str, seed: int) -> list[Claim]:
    """Of one layer: how the two banks' scores compare, and how clusters are named."""
    open_, classes = (
        {name: rows[f"{name}_{bank}"].to_numpy() for name in ("psi", "log_psi", "D_z")} for bank in ("open", "classes")
    )
    counts = {name: rows[name].to_numpy() for name in rows if name not in ("layer", "channel")}
    outside, as_open, as_classes = SHARES
    return [
        rank_correlation(f"{layer}: rank correlation of PSI", open_["log_psi"], classes["log_psi"], seed=seed),
        rank_correlation(f"{layer}: rank correlation of D_z", open_["D_z"], classes["D_z"], seed=seed),
        paired(f"{layer}: PSI, open less class names", open_["psi"] - classes["psi"], seed=seed),
        paired(f"{layer}: D_z, open less class names", open_["D_z"] - classes["D_z"], seed=seed),
        pooled(f"{layer}: {outside}", counts["outside"], counts["clusters"], seed=seed),
        pooled(f"{layer}: {as_open}", counts["named_as_class_open"], counts["of_a_known_class"], seed=seed),
        pooled(f"{layer}: {as_classes}", counts["named_as_class_classes"], counts["of_a_known_class"], seed=seed),
    ]


def _told(layer: str, own: Sequence[Claim]) -> str:
    """A paragraph on one layer."""
    psi, gap, less, less_z, outside, as_open, as_classes = own
    return (
        f"In {layer}, PSI with either bank has a rank correlation of {psi.value:.3f} ({psi.low:.3f} to {psi.high:.3f}), and z of "
        f"D one of {gap.value:.3f}; the open vocabulary's PSI is {less.value:+.3f} ({less.low:+.3f} to {less.high:+.3f}) beside "
        f"that of class names, its z of D {less_z.value:+.2f} ({less_z.low:+.2f} to {less_z.high:+.2f}). It names "
        f"{outside.value:.1%} of clusters by concepts that are no class. {as_open.value:.1%} of clusters are named as their "
        f"class by the open vocabulary, {as_classes.value:.1%} by class names."
    )
