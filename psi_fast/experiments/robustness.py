"""Does the ranking of channels hold when a setting changes? One knob at a time, the others as in the study."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from scipy import stats

from psi_fast.config import Rotation
from psi_fast.errors import InputError
from psi_fast.experiments.comparisons import agreement, mean_correlation, top_overlap
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.settings import Setting, changed, encoded, scores_of, with_head, worded
from psi_fast.experiments.statistics import Claim, mean, rank_correlation
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.figures.style import COLOURS, GREY, error_bars, panels
from psi_fast.results import Bank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = (2, 4, 8)
"""Of the concepts, one in so many stays."""
QUARTERS = 4
ENOUGH = 4
"""Values of a knob that make a sweep."""
PAPER = {"text head": "rho .21 when the text head changes", "K": "stable", "k_max": "stable", "seed": "stable"}


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """A row a value of a knob: rank correlation with the base value, overlap of the top channels, mean PSI; base's alone."""
    values = table.drop_duplicates(["layer", "knob", "value"])
    first = values[values["layer"] == values["layer"].iloc[0]]
    rows = [
        (own["knob"], own["value"], "base" * own["base"] or "control" * own["control"])
        for own in first.to_dict("records")
    ]
    found = {one.name: one for one in claims}
    with panels(3, width=2.6, height=1 + 0.17 * len(rows)) as (figure, axes):
        for number, layer in enumerate(dict.fromkeys(values["layer"])):
            for place, (knob, value, role) in enumerate(rows):
                base = values[(values["layer"] == layer) & (values["knob"] == knob) & values["base"]]["value"].iloc[0]
                for panel, what in zip(axes, ("rank correlation", "overlap", "mean PSI"), strict=True):
                    if role == "base" and what != "mean PSI":
                        continue  # a value agrees with itself
                    claim = found[_name(layer, knob, value, base, what)]
                    colour = GREY if role == "control" else COLOURS[number % len(COLOURS)]
                    _dot(panel, place + 0.2 * number, claim, colour, "s" if role == "control" else "o")
            axes[0].plot([], [], "o", ms=4, color=COLOURS[number % len(COLOURS)], label=f"layer {layer}")
        _dress(axes, rows)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _dot(panel: "Axes", place: float, claim: Claim, colour: str, marker: str) -> None:
    value, reach = error_bars([claim])
    panel.errorbar(value, place, xerr=reach, color=colour, marker=marker, ms=4, lw=1)


def _dress(axes: Sequence["Axes"], rows: Sequence[tuple[str, str, str]]) -> None:
    """Names, limits, and lines between knobs."""
    titles = ("rank correlation with base", "overlap with base's top list", "PSI, mean over channels")
    labels = ("Spearman's rho, 95 % interval", "share of the list", "PSI, 95 % interval")
    for panel, title, label in zip(axes, titles, labels, strict=True):
        low = None if label is labels[0] else -0.02
        panel.set(title=title, xlabel=label, ylim=(len(rows) - 0.4, -0.6), xlim=(low, 1.03))
        panel.locator_params(axis="x", nbins=5)
        panel.set_yticks(range(len(rows)), [""] * len(rows))
        for place in range(1, len(rows)):
            if rows[place][0] != rows[place - 1][0]:
                panel.axhline(place - 0.5, color=GREY, lw=0.5)
    names = [f"{knob}: {_short(value)}" + f" ({role})" * bool(role) for knob, value, role in rows]
    axes[0].set_yticks(range(len(rows)), names, fontsize=7)


@experiment(draw)
def robustness(
    study: Study,
    *,
    channel_count: int = 200,
    patch_counts: tuple[int, ...] = (25, 50, 100, 200),
    cluster_limits: tuple[int, ...] = (3, 4, 6, 8),
    seeds: tuple[int, ...] = (0, 1, 2, 3),
    rotations: tuple[Rotation, ...] = get_args(Rotation),
    encoders: tuple[str, ...] = (),
    text_heads: tuple[str, ...] = (),
) -> Finding:
    """The ranking of channels when K, k_max, the seed, the null of S, the concepts, the encoder or the text head changes.

    One knob turns at a time. Concepts are cut to a half, a quarter and an eighth, split into disjoint quarters, and, as a
    control, replaced by random directions. Values that do not fit the images or the other settings are left out and named.

    Parameters
    ----------
    study : Study
    channel_count : int
        Channels of each layer, evenly spread over it. 200 of one layer take about 18 minutes on two cores with K = 100,
        1000 draws and three encoders, most of it null draws and embeddings.
    patch_counts, cluster_limits, seeds, rotations : tuple
        Values of `top_k`, `k_max`, `seed` and `rotation` beside the study's own.
    encoders : tuple of str
        Encoders beside the study's, as `--encoder` takes them; one with random weights is a control.
    text_heads : tuple of str
        Text heads as `--text-head` takes them, or encoders whose own text stands in for one. They are compared with the
        encoder's text under the pairwise D, the only one that text alone gives.
    """
    if channel_count < 8:
        raise InputError(f"channel_count must be at least 8, got {channel_count}")
    config = study.config
    left_out: list[str] = []
    sweeps = {
        "K": ("top_k", patch_counts, lambda value: 2 * config.k_max <= value <= len(study.subject.images)),
        "k_max": ("k_max", cluster_limits, lambda value: 2 <= value <= min(16, config.top_k // 2)),
        "seed": ("seed", seeds, lambda value: value >= 0),
        "null of S": ("rotation", rotations, lambda _: True),
    }
    tables, overall, single = [], [], []
    for layer in study.layers:
        channels = study.spread(layer, channel_count)
        settings: list[Setting] = []
        for knob, (field, asked, fits) in sweeps.items():
            own = getattr(config, field)
            values = list(dict.fromkeys((own, *asked)))
            left_out += [f"{knob} {value}" for value in values if not fits(value)]
            held = {str(value): {field: value} for value in values if fits(value)}
            with study.bars.bar(f"{layer}: {knob}", len(held), "value") as bar:
                for setting in changed(study, layer, channels, knob, held, str(own)):
                    settings.append(setting)
                    bar.update()
        settings += _concepts(study, layer, channels, left_out)
        settings += encoded(study, layer, channels, "encoder", encoders) if encoders else ()
        settings += _heads(study, layer, channels, text_heads) if text_heads else ()
        tables += [_rows(layer, one) for one in settings]
        for knob in dict.fromkeys(one.knob for one in settings):
            own = [one for one in settings if one.knob == knob]
            overall += _of_knob(layer, knob, own, config.seed)
            single += [claim for one in own for claim in _of_value(layer, one, own, config.seed)]
    table = pd.concat(tables, ignore_index=True)
    return Finding(table, [*overall, *single], _text(table, overall, single, list(dict.fromkeys(left_out))))


def _concepts(study: Study, layer: str, channels: np.ndarray, left_out: list[str]) -> Iterator[Setting]:
    """The bank cut smaller, in disjoint quarters, and with directions that mean nothing in place of its embeddings."""
    found, bank, config = study.evaluation(layer, channels=channels), study.text, study.config
    rng = np.random.default_rng(config.seed)
    order, other = (rng.permutation(len(bank.names)) for _ in range(2))  # so that no quarter is the fourth part as well
    parts = {("concepts", f"1/{part}"): order[: len(order) // part] for part in PARTS}
    quarters = np.array_split(other, QUARTERS)
    parts |= {("content", f"quarter {number + 1}"): own for number, own in enumerate(quarters)}
    for knob in ("concepts", "content"):
        yield Setting(knob, "all", scores_of(found), base=True)
        for value, rows in ((value, rows) for (own, value), rows in parts.items() if own == knob):
            if len(rows) < config.k_max:
                left_out.append(f"{knob} {value} (of {len(bank.names)})")
            else:
                yield Setting(knob, value, worded(study, found, _subset(bank, np.sort(rows)), config))
    generator = torch.Generator().manual_seed(config.seed)
    nothing = torch.nn.functional.normalize(torch.randn(bank.embeddings.shape, generator=generator), dim=1)
    yield Setting(
        "content", "random directions", worded(study, found, replace(bank, embeddings=nothing), config), control=True
    )


def _subset(bank: Bank, rows: np.ndarray) -> Bank:
    held = torch.from_numpy(rows)
    head = None if bank.head is None else bank.head[held]
    return Bank(tuple(bank.names[row] for row in rows), bank.embeddings[held], head)


def _heads(study: Study, layer: str, channels: np.ndarray, specs: tuple[str, ...]) -> Iterator[Setting]:
    """Distances among concepts by the encoder's own text and by each head."""
    found, config = study.evaluation(layer, channels=channels), study.with_changes(distinctness="pairwise")
    own = replace(study.text, head=None)
    yield Setting("text head", study.subject.encoder.name, worded(study, found, own, config), base=True)
    for spec in specs:
        name, bank = with_head(study, spec)
        yield Setting("text head", name, worded(study, found, bank, config))


def _rows(layer: str, one: Setting) -> pd.DataFrame:
    about = {"layer": layer, "knob": one.knob, "value": one.value, "base": one.base, "control": one.control}
    return led_by(one.scores.assign(**about), *about)


def _of_knob(layer: str, knob: str, settings: Sequence[Setting], seed: int) -> list[Claim]:
    """How far all values agree, without controls."""
    held = [one for one in settings if not one.control]
    psi, log_psi = (np.stack([one.scores[name] for one in held], 1) for name in ("psi", "log_psi"))
    values = f"{layer}: {knob}, {len(held)} values"
    return [
        mean_correlation(f"{values}: mean rank correlation", log_psi, seed=seed, paper=PAPER.get(knob, "")),
        agreement(f"{values}: intraclass correlation of PSI", psi, seed=seed),
    ]


def _of_value(layer: str, one: Setting, settings: Sequence[Setting], seed: int) -> list[Claim]:
    """A value against its knob's base value."""
    (base,) = (own for own in settings if own.base)
    found = [mean(_name(layer, one.knob, one.value, base.value, "mean PSI"), one.scores["psi"].to_numpy(), seed=seed)]
    if one is base:
        return found
    a, b = base.scores["log_psi"].to_numpy(), one.scores["log_psi"].to_numpy()
    name = _name(layer, one.knob, one.value, base.value, "rank correlation")
    return [
        rank_correlation(name, a, b, seed=seed),
        _shared(_name(layer, one.knob, one.value, base.value, "overlap"), a, b),
        *found,
    ]


def _shared(name: str, a: np.ndarray, b: np.ndarray) -> Claim:
    """The share of the top channels by `a` [n] that are also `b`'s [n], against chance; of those that both score."""
    held = np.isfinite(a) & np.isfinite(b)
    a, b = a[held], b[held]
    value, count = top_overlap(a, b)
    if not count:
        return Claim(name, value, count=len(a))
    p = stats.hypergeom.sf(round(value * count) - 1, len(a), count, count)
    how = f"the top {count} of {len(a)}; hypergeometric test of more than chance ({count / len(a):.2f})"
    return Claim(name, value, p=float(p), count=len(a), how=how)


def _name(layer: str, knob: str, value: str, base: str, what: str) -> str:
    against = "" if what == "mean PSI" else f" with {base}"
    return f"{layer}: {knob} {value}: {what}{against}"


def _short(value: str) -> str:
    """The last part of a spec."""
    return value if len(value) <= 24 else value.rpartition(":")[2]


def _text(table: pd.DataFrame, overall: Sequence[Claim], single: Sequence[Claim], left_out: list[str]) -> str:
    told = []
    for one, agreed in zip(overall[::2], overall[1::2], strict=True):
        told.append(
            f"- {one.name.removesuffix(': mean rank correlation')}: mean rank correlation {one.value:.2f} ({one.low:.2f} to "
            f"{one.high:.2f}), intraclass correlation of PSI {agreed.value:.2f} ({agreed.low:.2f} to {agreed.high:.2f})"
        )
    controls = table[table["control"]].drop_duplicates(["layer", "knob", "value"])
    for row in controls.to_dict("records"):
        start = f"{row['layer']}: {row['knob']} {row['value']}"
        claim = next(own for own in single if own.name.startswith(f"{start}: rank correlation"))
        told.append(f"- control, {start}: {claim.value:.2f} ({claim.low:.2f} to {claim.high:.2f})")
    counts = table[~table["control"]].groupby("knob")["value"].nunique()
    few = [f"{knob} ({count})" for knob, count in counts.items() if count < ENOUGH]
    missing = [f"{knob}s" for knob in ("encoder", "text head") if knob not in counts.index]
    notes = [f"Left out, as they do not fit images, concepts or other settings: {', '.join(left_out)}."] * bool(
        left_out
    )
    notes += [f"Fewer than {ENOUGH} values without controls: {', '.join(few)}; that is less than a sweep."] * bool(few)
    notes += [f"No other {' or '.join(missing)} were named, so nothing is said of them."] * bool(missing)
    return (
        "Does the ranking of channels hold when a setting changes? One knob turns at a time; each value is compared with the "
        "study's own. Rank correlations are of ln PSI, which still ranks channels whose PSI rounds to 1; the intraclass "
        "correlation is of PSI itself and falls also when all of it shifts. Encoders bring their own concepts; text heads are "
        "compared under the pairwise D, with the encoder's own text as their base. Controls mean nothing, so what they agree "
        "on is owed to what they leave alone (S and Q for concepts, the patches for encoders); they are not in a knob's "
        "figures.\n\n" + "\n".join(told) + "\n\n"
        "*K* is the number of patches of a channel, *k_max* the largest number of clusters, *null of S* its kind, *concepts* a "
        "share of the concepts drawn at random, *content* a quarter of them that shares none with the other quarters. *With* "
        "names the base value; *overlap* is the share of the channels of largest PSI there that are so here too.\n\n"
        + " ".join(notes)
    ).strip()
