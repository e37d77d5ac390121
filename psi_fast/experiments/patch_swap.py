"""Does a patch of the host's own cluster raise the activation more than four controls? Interventions on the paper's claim."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from psi_fast.calibration import discovery_rate
from psi_fast.errors import ConfigError, InputError, ModelError
from psi_fast.experiments.comparisons import difference
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import (
    ENDS,
    RESAMPLES,
    SIGNIFICANT,
    Claim,
    effect_size,
    mean,
    paired,
    rank_correlation,
    rate,
    sign_flip,
    standardised,
)
from psi_fast.experiments.study import Study, spread
from psi_fast.experiments.swap_plan import plan
from psi_fast.experiments.swaps import CONDITIONS, Places, Swaps, swapped
from psi_fast.experiments.tables import led_by, numbers
from psi_fast.figures.style import COLOURS, error_bars, panels
from psi_fast.pipeline import measured_fields

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALIGNED, *CONTROLS = CONDITIONS
BOX = 96 / 224
"""Share of the input's side that a box has where units see more than that."""
DECILES = 10
PALETTE: dict[str, str] = dict(zip(CONDITIONS, COLOURS, strict=False))


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """Three panels a layer: mean change by condition, aligned minus controls by decile of PSI, and channel by channel."""
    layers = list(dict.fromkeys(table["layer"]))
    named = {one.name: one for one in claims}
    with panels(3 * len(layers), rows=len(layers), width=3.6, height=3.0) as (figure, axes):
        for row, layer in enumerate(layers):
            own = table.loc[table["layer"] == layer]
            change, decile, channel = axes[3 * row : 3 * row + 3]
            _draw_changes(change, [named[f"{layer}: change, {one}"] for one in CONDITIONS])
            change.set(title=f"{layer}: mean change by condition")
            _draw_deciles(decile, by_decile(own))
            _draw_channels(channel, own)
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(CONTROLS), title="aligned minus")
    return figure


def _draw_changes(panel: "Axes", changes: Sequence[Claim]) -> None:
    for place, (one, condition) in enumerate(zip(changes, CONDITIONS, strict=True)):
        value, reach = error_bars([one])
        panel.errorbar(value, -place, xerr=reach, fmt="o", color=PALETTE[condition], capsize=3)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(
        yticks=-np.arange(len(CONDITIONS)), yticklabels=CONDITIONS, xlabel="change in activation, sd of the channel"
    )
    panel.set_ylim(0.5 - len(CONDITIONS), 0.5)
    panel.locator_params(axis="x", nbins=5)


def _draw_deciles(panel: "Axes", rows: pd.DataFrame) -> None:
    for place, control in enumerate(CONTROLS):
        own = rows.loc[rows["condition"] == control]
        margin, low, high = (numbers(own, name) for name in ("margin", "low", "high"))
        x, reach = numbers(own, "decile") + 0.12 * (place - 1.5), [margin - low, high - margin]
        panel.errorbar(x, margin, yerr=reach, fmt="o-", markersize=3, linewidth=1, color=PALETTE[control])
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set(
        title="aligned minus control, by PSI", xlabel="decile of PSI among the channels", ylabel="difference, sd",
        xticks=range(1, DECILES + 1),
    )  # fmt: skip


def _draw_channels(panel: "Axes", rows: pd.DataFrame) -> None:
    for control in CONTROLS:
        margins = np.sort(rows.loc[rows["condition"] == control, "margin_sd"].to_numpy())
        share = 100 * (np.arange(len(margins)) + 0.5) / len(margins)
        panel.plot(share, margins, color=PALETTE[control], label=control)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set(
        title="aligned minus control, channel by channel", xlabel="channels, each line sorted (%)",
        ylabel="difference, sd", xlim=(0, 100),
    )  # fmt: skip


@experiment(draw)
def patch_swap(
    study: Study,
    *,
    channel_count: int = 200,
    host_count: int = 16,
    hosts: Literal["middle", "top"] = "middle",
    box: float | None = None,
) -> Finding:
    """Put patches into host images where a channel peaks, and read the channel there: the paper's causal test.

    Five conditions share a host and a size of box: a patch of the host's own cluster (aligned), of another cluster of the
    channel, of the data set at random, the aligned patch elsewhere in the host, and a box of the host's mean colour there.

    Parameters
    ----------
    study : Study
    channel_count : int
        Channels of each layer, spread evenly over its ranks of PSI; all where it has fewer.
    host_count : int
        Hosts of each channel, at most. With n of them a channel's p is at least 2 / 2^n, and .0002.
    hosts : {"middle", "top"}
        From the 20-80 % range of the channel's own activations, never its top patches; or top patches of odd rank, with
        clusters and patches from those of even rank.
    box : float, optional
        Side of the box as a share of the network's input. Default: 96 of 224 px, or the layer's effective field where that is
        smaller.
    """
    _check(study, channel_count, host_count, hosts, box)
    tables, claims, told = [], [], []
    for layer in study.layers:
        side = _side(study, layer, box)
        rows = _spread_over_psi(study, layer, channel_count)
        swaps = plan(study, layer, Places(study.tap(layer), side), rows, host_count, hosts)
        own = _channel_table(study, layer, swaps, swapped(study, layer, swaps))
        made = list(_claims(own, layer, study.config.seed))
        tables.append(own)
        claims += made
        told.append(_told(study, layer, side, len(rows), swaps, own, {one.name: one for one in made}))
    return Finding(pd.concat(tables, ignore_index=True), claims, "\n\n".join([_asked(hosts), *told]))


def by_decile(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over channels of aligned minus each control in each decile of PSI, with interval, test and effect size.

    Columns decile, condition, margin, low, high, p (sign flips, not corrected), d_z, channels; of one layer's rows of the
    experiment's table.
    """
    rows = []
    for decile in sorted(set(table["decile"])):
        for control in CONTROLS:
            own = table.loc[(table["decile"] == decile) & (table["condition"] == control)]
            margins = numbers(own, "margin_sd")
            one = paired("", margins, seed=0)
            d_z = standardised(margins[None])[0] if len(margins) > 1 else np.nan
            rows.append((decile, control, one.value, one.low, one.high, one.p, d_z, one.count))
    return pd.DataFrame(rows, columns=["decile", "condition", "margin", "low", "high", "p", "d_z", "channels"])


def _check(study: Study, channel_count: int, host_count: int, hosts: str, box: float | None) -> None:
    if channel_count < 1 or host_count < 2:
        raise ConfigError(
            f"patch-swap takes channel_count of at least 1 and host_count of at least 2, got {channel_count} and {host_count}"
        )
    if hosts not in ("middle", "top"):
        raise ConfigError(f"hosts must be middle or top, got {hosts!r}")
    if box is not None and not 0 < box < 1:
        raise ConfigError(f"box must be a share of the input's side within 0 and 1, got {box}")
    for layer in study.layers:
        tap = study.tap(layer)
        if tap.grid is None or tap.positions - tap.prefix < 2:
            raise InputError(
                f"patch-swap puts a patch where a channel peaks, and {layer} has no map of positions (it gives a vector, or "
                "tokens that form no square); choose a layer in front of it"
            )


def _side(study: Study, layer: str, box: float | None) -> int:
    """Side of the layer's boxes in px of the network's input."""
    size = study.tap(layer).network.preprocess.size
    if box is None:
        subject = replace(study.subject, taps=[study.tap(layer)], config=replace(study.config, patch="effective"))
        try:
            with study.bars.stage("patch size"):
                (field,) = measured_fields(subject, study.squares)
        except ModelError as error:
            raise ConfigError(
                f"the size of the box follows a layer's effective field, and {layer} has none ({error}); give box"
            ) from error
        box = min(BOX, field.size[0] / size)
    return max(1, round(box * size))


def _spread_over_psi(study: Study, layer: str, count: int) -> np.ndarray:
    """Rows [count] of the layer's scored channels in the study, evenly over their ranks of PSI, in order of rank."""
    log_psi = study.evaluation(layer).table["log_psi"].to_numpy()
    order = np.argsort(log_psi, kind="stable")[: np.isfinite(log_psi).sum()]
    if not len(order):
        raise InputError(f"no channel of {layer} could be scored; see the flags of `psi-fast score`")
    return spread(order, count)


def _channel_table(study: Study, layer: str, swaps: Swaps, activations: np.ndarray) -> pd.DataFrame:
    """A row for each channel and condition, from activations [n, 6] of the swaps."""
    scores = study.evaluation(layer).table.set_index("channel")
    ids = study.channels(layer)
    spread = dict(zip(ids.tolist(), study.survey(layer).maxima.double().std(0, correction=0).tolist(), strict=True))
    changes = activations[:, 1:].astype(np.float64) - activations[:, :1]
    rng = np.random.default_rng(study.config.seed)
    parts = [
        _channel_rows(changes[swaps.channels == channel], spread[channel], rng).assign(channel=channel)
        for channel in dict.fromkeys(swaps.channels.tolist())
    ]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "layer", layer)
    for name in ("psi", "log_psi", "k"):
        table[name] = scores[name].loc[table["channel"]].to_numpy()
    ranks = scores["log_psi"].loc[table["channel"].unique()].rank(method="first")
    table["decile"] = (np.floor((ranks - 1) * DECILES / len(ranks)) + 1).astype(int).loc[table["channel"]].to_numpy()
    for control in CONTROLS:
        rows = table["condition"] == control
        table.loc[rows, "q"] = discovery_rate(table.loc[rows, "p"].to_numpy())
    return led_by(table, "layer", "channel", "psi", "log_psi", "k", "decile")


def _channel_rows(changes: np.ndarray, spread: float, rng: np.random.Generator) -> pd.DataFrame:
    """A row a condition, from the changes [hosts, 5] of one channel whose maxima have that standard deviation."""
    scaled = changes / spread
    margins = scaled[:, :1] - scaled
    drawn = rng.integers(len(changes), size=(RESAMPLES, len(changes)))
    (low, high), (margin_low, margin_high) = (
        np.quantile(own[drawn].mean(1), ENDS, axis=0) for own in (scaled, margins)
    )
    rows = pd.DataFrame(
        {
            "hosts": len(changes),
            "condition": CONDITIONS,
            "change": changes.mean(0),
            "change_sd": scaled.mean(0),
            "low": low,
            "high": high,
            "margin_sd": margins.mean(0),
            "margin_low": margin_low,
            "margin_high": margin_high,
            "d_z": [np.nan, *standardised(margins.T[1:])],
            "p": [np.nan, *(sign_flip(own, seed=0) for own in margins.T[1:])],
            "q": np.nan,
        }
    )
    rows.loc[0, ["margin_sd", "margin_low", "margin_high"]] = np.nan
    return rows


def _claims(table: pd.DataFrame, layer: str, seed: int) -> Iterator[Claim]:
    """The layer's numbers; its units are channels."""
    by = {condition: own for condition, own in table.groupby("condition", sort=False)}
    paper = {ALIGNED: "+.15, unit not stated"}
    for condition in CONDITIONS:
        yield paired(
            f"{layer}: change, {condition}",
            numbers(by[condition], "change_sd"),
            seed=seed,
            paper=paper.get(condition, ""),
        )
    for condition in CONDITIONS:
        yield mean(f"{layer}: change, {condition}, raw", numbers(by[condition], "change"), seed=seed)
    for control in CONTROLS:
        yield paired(f"{layer}: aligned minus {control}", numbers(by[control], "margin_sd"), seed=seed, paper="above 0")
    for control in CONTROLS:
        yield effect_size(
            f"{layer}: aligned minus {control}, effect size", numbers(by[control], "margin_sd"), seed=seed
        )
    for control in CONTROLS:
        clear = numbers(by[control], "q") <= SIGNIFICANT
        for word, sign in (("above", 1), ("below", -1)):
            hits = clear & (sign * numbers(by[control], "margin_sd") > 0)
            yield rate(
                f"{layer}: share of channels with aligned {word} {control}, q <= {SIGNIFICANT}",
                int(hits.sum()),
                len(hits),
            )
    log_psi = numbers(by[ALIGNED], "log_psi")
    yield rank_correlation(
        f"{layer}: rank correlation of aligned with PSI", log_psi, numbers(by[ALIGNED], "change_sd"), seed=seed
    )
    for control in CONTROLS:
        name = f"{layer}: rank correlation of aligned minus {control} with PSI"
        yield rank_correlation(name, log_psi, numbers(by[control], "margin_sd"), seed=seed)
    for control in CONTROLS:
        top = by[control]["decile"] == DECILES
        above, others = (numbers(by[control][rows], "margin_sd") for rows in (top, ~top))
        yield difference(
            f"{layer}: aligned minus {control}, top decile of PSI less the others", above, others, seed=seed
        )


def _asked(hosts: str) -> str:
    chosen = {
        "middle": "Hosts come from the 20-80 % range of the channel's own per-image maxima and are never its top patches",
        "top": "Hosts are top patches of odd rank, clusters and patches come from those of even rank, so activations fall back "
        "towards the mean whatever is put in",
    }
    return (
        "Does what the clusters stand for drive the channel? Into a host, where the channel peaks, goes a patch of the host's "
        "own cluster (*aligned*), of another cluster of the channel (*non-aligned*) or of the data set (*random*: a "
        "random image at a random position); elsewhere in the host, sharing no pixel with that box, goes the aligned patch "
        "(*shuffled-position*) or a box of its mean colour "
        f"(*ablate-elsewhere*). {chosen[hosts]}. A host's cluster has the prototype that its own patch's embedding is nearest "
        "to. The swap happens in the network's input, where the host's other pixels stay as they are bit for bit; the channel is "
        "read at the same position before and after. Changes are in standard deviations of the channel's per-image maxima. "
        "Units of the layer's numbers are channels; each channel has paired sign-flip tests over its hosts, corrected over "
        "channels after Benjamini and Hochberg (columns p and q of the run's table; d_z is its effect size), and percentile "
        "bootstrap intervals over its hosts. Channels belong to one network and are taken as independent, so the numbers say "
        "nothing about other networks. *Raw* changes are in the activation's own unit; an *effect size* is the mean over "
        "channels, divided by the standard deviation over channels. The top decile of PSI is held against the others because "
        "it stood out in the project's own run (docs/results), for which that comparison is post hoc."
    )


def _told(
    study: Study, layer: str, side: int, asked: int, swaps: Swaps, table: pd.DataFrame, claims: dict[str, Claim]
) -> str:
    """What came out for a layer, in words and by decile."""
    deciles = by_decile(table)
    size, count = study.tap(layer).network.preprocess.size, len(set(table["channel"]))
    left = f" ({asked - count} more had fewer than two hosts with room for the box)" if asked > count else ""
    gains = []
    for control in CONTROLS:
        one = claims[f"{layer}: aligned minus {control}"]
        clear = one.p <= SIGNIFICANT  # an interval of few channels may leave out 0 all the same
        verdict = "beats" if clear and one.low > 0 else "falls below" if clear and one.high < 0 else "is not told from"
        gains.append(f"{verdict} {control} ({one.value:+.3f}, p = {one.p:.2g})")
    growth = []
    for control in CONTROLS:
        one = claims[f"{layer}: rank correlation of aligned minus {control} with PSI"]
        growth.append(f"{one.value:+.2f} over {control} (p = {one.p:.2g})")
    single = [
        f"{claims[f'{layer}: share of channels with aligned above {control}, q <= {SIGNIFICANT}'].value:.1%} over {control}"
        for control in CONTROLS
    ]
    return (
        f"In {layer}, {count} channels{left} with {len(swaps)} hosts and boxes of {side} of {size} px: aligned patches change "
        f"the activation by {claims[f'{layer}: change, {ALIGNED}'].value:+.3f} sd. Aligned {', '.join(gains)}. Rank correlation "
        f"of the gain with PSI: {', '.join(growth)}. Channels whose own gain is sure (q <= {SIGNIFICANT}): "
        f"{', '.join(single)}. {_surest(deciles)}\n\n" + "\n".join(_decile_lines(deciles))
    )


def _surest(deciles: pd.DataFrame) -> str:
    """How many of the deciles' differences hold, in words."""
    tested = deciles[np.isfinite(deciles["p"])]
    sure = tested[discovery_rate(numbers(tested, "p")) <= SIGNIFICANT]
    counts = ", ".join(f"{(sure['condition'] == control).sum()} over {control}" for control in CONTROLS)
    return (
        f"Deciles of PSI whose difference is sure (q <= {SIGNIFICANT} over {len(tested)} differences): {counts}. Below are each "
        "decile's difference, its interval, the p of sign flips over channels (not corrected) and the effect size d."
    )


def _cell(margin: float, low: float, high: float, p: float, d_z: float) -> str:
    """A decile's difference, with what there is of interval, test and effect size."""
    reach = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    return f"{margin:+.3f}{reach}" + f", p {p:.2g}" * bool(np.isfinite(p)) + f", d {d_z:.2f}" * bool(np.isfinite(d_z))


def _decile_lines(rows: pd.DataFrame) -> list[str]:
    """Aligned minus each control by decile of PSI as a table of Markdown."""
    lines = [
        f"| decile of PSI | channels | {' | '.join(f'aligned - {one}' for one in CONTROLS)} |",
        "|---|---|" + "---|" * len(CONTROLS),
    ]
    for decile in sorted(set(rows["decile"])):
        own = rows.loc[rows["decile"] == decile]
        cells = [_cell(*row) for row in own[["margin", "low", "high", "p", "d_z"]].to_numpy()]
        lines.append(f"| {decile} | {own['channels'].to_numpy()[0]} | {' | '.join(cells)} |")
    return lines
