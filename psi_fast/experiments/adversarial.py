"""Can patches be made to look polysemantic, with pixels hardly changed and the channel's activation kept?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from psi_fast.activation_tap import JointTap
from psi_fast.crops import embed, whole_pixels
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import Evaluation, evaluate, without
from psi_fast.experiments.attack import Attack, smooth_encoder
from psi_fast.experiments.figures import COLOURS, GREY, panels
from psi_fast.experiments.outcome import Finding, experiment
from psi_fast.experiments.statistics import SIGNIFICANT, Claim, mean, median, paired, rate
from psi_fast.experiments.study import Study
from psi_fast.experiments.tables import led_by
from psi_fast.image_bank import ImageBank
from psi_fast.results import PatchEmbeddings, TopPatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONDITIONS = {"before": GREY, "noise": COLOURS[4], "mixed": COLOURS[0], "by class": COLOURS[1]}
"""Random pixels; halves that each hold a share of every class; halves that share no class."""
NEAREST = 10
"""Concepts nearest to a channel, of which the two least alike pull its halves apart."""
PART = 24
"""Patches of one file on the shelf."""
MEASURES = ("psi", "S_hat", "Q_hat", "D_hat")


def draw(table: pd.DataFrame, claims: Sequence[Claim]) -> "Figure":
    """PSI of each channel under each condition; the components; the activation's change. One row of panels, all layers."""
    held = [name for name in CONDITIONS if name in set(table["condition"])]
    values = [table[table["condition"] == name] for name in held]
    ticks = {"xticks": range(len(held)), "xticklabels": held}
    with panels(3) as (figure, (left, middle, right)):
        wide = table.pivot(index=["layer", "channel"], columns="condition", values="psi")[held].to_numpy()
        left.plot(wide.T, color="#bbbbbb", linewidth=0.6, zorder=1)
        for place, (name, rows) in enumerate(zip(held, values, strict=True)):
            left.scatter(np.full(len(rows), place), rows["psi"], s=10, color=CONDITIONS[name], zorder=2)
            left.hlines(rows["psi"].mean(), place - 0.3, place + 0.3, color=CONDITIONS[name], linewidth=2.5, zorder=3)
        left.set(title="PSI of each channel, bar: mean", ylim=(-0.03, 1.03), xlim=(-0.5, len(held) - 0.5), **ticks)
        parts = [part for part in ("S", "Q", "D") if np.isfinite(table[f"{part}_hat"]).any()]
        for place, (name, rows) in enumerate(zip(held, values, strict=True)):
            means = [rows[f"{part}_hat"].mean() for part in parts]
            spread = [rows[f"{part}_hat"].std() / len(rows) ** 0.5 for part in parts]
            at = np.arange(len(parts)) + (place - (len(held) - 1) / 2) * 0.8 / len(held)
            middle.bar(
                at, means, 0.72 / len(held), yerr=spread, color=CONDITIONS[name], label=name, error_kw={"lw": 0.7}
            )
        middle.axhline(0.5, color="black", linewidth=0.7, linestyle=":")
        middle.set(title="calibrated components, mean and its error", ylim=(0, 1.35), yticks=np.linspace(0, 1, 6))
        middle.set_xticks(range(len(parts)), [f"{part}^" for part in parts])
        middle.legend(ncols=2, loc="upper left")
        shown = held[1:]
        boxes = [table.loc[table["condition"] == name, "activation_change"] for name in shown]
        drawn = right.boxplot(boxes, patch_artist=True, medianprops={"color": "black"}, flierprops={"markersize": 3})
        for box, name in zip(drawn["boxes"], shown, strict=True):
            box.set_facecolor(CONDITIONS[name])
        right.set_xticks(range(1, len(shown) + 1), shown)
        right.set(title="activation's change, mean over patches", ylabel="of the activation", ylim=(0, None))
        right.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    return figure


@experiment(draw)
def adversarial(study: Study, *, channel_count: int = 10, budget: float = 8.0, steps: int = 4) -> Finding:
    """Patches of the most monosemantic channels changed so that they split in the encoder's space: does PSI stay low?

    Half of a channel's patches are moved along, half against the difference of two concepts, by changes of at most `budget` in
    a pixel, while the channel's activation is held where it is. The halves are mixed (each has its share of every class) or
    by class (they share none). Controls: the patches as they are, and random noise of the same size.

    Parameters
    ----------
    study : Study
    channel_count : int
        Channels of each layer, from the lowest PSI up.
    budget : float
        Largest change of a pixel's value, of 255.
    steps : int
        Gradients of each image.
    """
    if channel_count < 1 or not 0 < budget <= 255 or steps < 1:
        raise ConfigError(
            f"adversarial takes channel_count >= 1, 0 < budget <= 255 and steps >= 1, got {channel_count}, {budget} and {steps}"
        )
    smooth_encoder(study.subject.encoder)
    tables, claims, told = [], [], []
    for layer in study.layers:
        table = _layer(study, layer, channel_count, budget, steps).assign(layer=layer)
        own = _claims(table, layer, study.config.seed)
        tables.append(led_by(table, "layer"))
        claims += own
        told.append(_told(own, table, layer))
    text = (
        "Can patches be made to look polysemantic? The patches of the most monosemantic channels are changed by at most "
        f"{budget:g} of 255 in a pixel, so that one half moves along and one half against the difference of two concepts in the "
        "encoder's space, while the channel's activation is held. *mixed*: each half has its share of every class; *by class*: "
        f"the halves share no class, the stronger attack. Everything is scored with one centre. {' '.join(told)}"
    )
    return Finding(pd.concat(tables, ignore_index=True), claims, text)


def _layer(study: Study, layer: str, count: int, budget: float, steps: int) -> pd.DataFrame:
    """A row for each chosen channel under each condition."""
    found = study.evaluation(layer)
    selective = np.array(["unselective" not in flags for flags in found.table["flags"]])
    own = pd.DataFrame(found.table[np.isfinite(found.table["log_psi"]) & selective])
    channels = np.array(
        own.sort_values("log_psi", kind="stable")["channel"][:count]
    )  # a copy: a table's own column cannot be written
    top, patches, background = study.patches(layer, channels=channels)
    if not top.valid.all():
        raise InputError(
            f"adversarial needs {study.config.top_k} patches of every channel, and the band holds fewer; give more images"
        )
    labels = study.subject.images.labels
    classes = None if labels is None else labels[top.images]
    names = [name for name in CONDITIONS if name != "by class" or classes is not None]
    embedded, changes = [patches.unique[patches.index]], [np.zeros(top.images.shape)]
    with study.bars.bar("attacks", len(channels) * (len(names) - 1), "channel") as bar:
        for name in names[1:]:
            rows = []
            for row in range(len(channels)):
                rows.append(_perturbed(study, layer, found, row, top, embedded[0][row], name, budget, steps))
                bar.update()
            embedded.append(torch.stack([part["rows"] for part in rows]))
            changes.append(torch.stack([part["change"] for part in rows]).numpy())
    # one call for all conditions: one centre, the same random patches, and for a channel the same draws under each
    places = len(names) * len(channels)
    scored = evaluate(
        PatchEmbeddings(
            torch.cat([part.flatten(0, 1) for part in embedded]),
            torch.arange(places * top.images.shape[1]).reshape(places, -1),
            torch.from_numpy(channels).repeat(len(names)),
        ),
        None if classes is None else torch.from_numpy(classes).repeat(len(names), 1),
        study.text,
        background,
        study.config,
        study.subject.device,
        study.bars,
        dead=np.zeros(places, bool),
        max_activation=np.tile(top.highest, len(names)),
        selectivity=np.tile(top.selectivity, len(names)),
        unselective=np.zeros(places, bool),
        centre=found.centre,
    )
    kept = ["channel", "psi", "log_psi", "p", "k", "random_percentile"]
    kept += [f"{part}{suffix}" for part in "SQD" for suffix in ("", "_z", "_hat", "_p")]
    similarity = [(part * embedded[0]).sum(-1).mean(1).numpy() for part in embedded]
    return scored.table[kept].assign(
        condition=np.repeat(names, len(channels)),
        activation_change=np.concatenate([np.abs(part).mean(1) for part in changes]),
        largest_activation_change=np.concatenate([np.abs(part).max(1) for part in changes]),
        cosine_to_before=np.concatenate(similarity),
    )


def _perturbed(
    study: Study,
    layer: str,
    found: Evaluation,
    row: int,
    top: TopPatches,
    own: torch.Tensor,
    name: str,
    budget: float,
    steps: int,
) -> dict[str, torch.Tensor]:
    """Embeddings `rows` [K, d] of a channel's patches, now `own` [K, d], changed; `change` [K] of its activation, relative."""
    boxes = whole_pixels(study.boxes(layer, top.positions[row]), study.squares.side)
    labels = study.subject.images.labels
    classes = np.zeros(len(boxes), np.int64) if labels is None else labels[top.images[row]]
    aims = halves(classes, by_class=name == "by class")
    centre = torch.zeros(found.clusters.prototypes.shape[2]) if found.centre is None else found.centre.float()
    attack = Attack(
        study.tap(layer),
        int(top.channels[row]),
        smooth_encoder(study.subject.encoder),
        study.subject.encoder.preprocess,
        centre,
        concept_axis(own, study.text.embeddings, found.centre),
        budget,
        steps,
    )
    parts = []
    for start in range(0, len(boxes), PART):
        part = slice(start, start + PART)
        images, places = top.images[row, part], top.positions[row, part]

        def make(
            part: slice = part, images: np.ndarray = images, places: np.ndarray = places
        ) -> dict[str, torch.Tensor]:
            clean = study.squares.read(images, torch.device("cpu")).cpu()
            if name == "noise":
                changed = noised(clean, boxes[part], budget, [study.config.seed, attack.channel, part.start])
            else:
                changed = attack(clean, boxes[part], places, aims[part])
            return _measured(study, layer, clean, changed, boxes[part], places, attack.channel)

        about = {
            "subject": study.about["fingerprints"],
            "pace": str(study.survey(layer).pace),
            "side": study.squares.side,
            "what": [layer, attack.channel, name, budget, steps, study.config.seed, study.config.center],
            "patches": [images.tolist(), boxes[part].tolist(), places.tolist(), aims[part].tolist()],
            "direction": [round(float(value), 5) for value in attack.direction],
        }
        parts.append(study.shelf.tensors("attack", about, make))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _measured(
    study: Study,
    layer: str,
    clean: torch.Tensor,
    changed: torch.Tensor,
    boxes: np.ndarray,
    places: np.ndarray,
    channel: int,
) -> dict[str, torch.Tensor]:
    """As `_perturbed`, of changed images: whole numbers as pixels, seen by network and encoder as in any run."""
    device, network = study.subject.device, study.subject.network
    bank = ImageBank(changed.numpy(), np.full((len(changed), 2), study.squares.side), Path())
    crops = np.column_stack((np.arange(len(changed)), boxes)).astype(np.float64)
    names = [f"changed image {number}" for number in range(len(changed))]
    rows = embed(crops, bank, names, study.subject.encoder, device, study.config, study.bars)
    with JointTap([study.tap(layer)], study.survey(layer).pace) as tap, torch.inference_mode():
        before, after = (
            tap(network.preprocess(pixels.to(device)))[0][
                torch.arange(len(places)), channel, torch.from_numpy(places)
            ].cpu()
            for pixels in (clean, changed)
        )
    return {"rows": rows, "change": (after - before) / before.abs().clamp_min(1e-12)}


def halves(classes: np.ndarray, *, by_class: bool) -> np.ndarray:
    """1 or -1 for each patch [K], float32: halves of equal size that hold the same classes, or as nearly none in common.

    The patches of a class take turns, or all go to the half that is smaller so far, the largest class first.
    """
    names, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if not by_class:
        aims = np.empty(len(classes), np.float32)
        aims[np.argsort(inverse, kind="stable")] = np.where(np.arange(len(classes)) % 2, -1, 1)
        return aims
    side, size = np.zeros(len(names), np.float32), {1: 0, -1: 0}
    for own in np.argsort(-counts, kind="stable"):
        side[own] = 1 if size[1] <= size[-1] else -1
        size[int(side[own])] += int(counts[own])
    return side[inverse]


def concept_axis(
    rows: torch.Tensor, text: torch.Tensor, centre: torch.Tensor | None, count: int = NEAREST
) -> torch.Tensor:
    """The unit difference [d] of the two least alike of the `count` concepts nearest to the patches' mean.

    Parameters
    ----------
    rows : [K, d] float32 unit embeddings of the patches
    text : [P, d] float32 unit embeddings of the concepts
    centre : [d] float64 that patches are centred by; concepts then are by their own mean
    """
    if centre is not None and len(text) > 1:
        rows, text = without(rows, centre), without(text, text.double().mean(0))
    near = text[(text @ rows.mean(0)).topk(min(count, len(text))).indices]
    first, second = divmod(int((near @ near.T).argmin()), len(near))
    return normalize(near[first] - near[second], dim=0)


def noised(pixels: torch.Tensor, boxes: np.ndarray, budget: float, seed: Sequence[int]) -> torch.Tensor:
    """The images [K, S, S, 3] uint8 with `budget` added to or taken from every value in its box [K, 4]."""
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), size=pixels.shape)
    found = pixels.clone()
    for image, sign, (x0, y0, x1, y1) in zip(found, torch.from_numpy(signs), boxes.tolist(), strict=True):
        own = image[y0:y1, x0:x1]
        own.copy_((own + budget * sign[y0:y1, x0:x1]).clamp(0, 255).round())
    return found


def _claims(table: pd.DataFrame, layer: str, seed: int) -> list[Claim]:
    """The numbers of one layer."""
    held: dict[str, pd.DataFrame] = {
        name: pd.DataFrame(table[table["condition"] == name]) for name in CONDITIONS if name in set(table["condition"])
    }
    before, noise = held["before"], held["noise"]
    claims = [mean(f"{layer}: PSI, {name}", rows["psi"].to_numpy(), seed=seed) for name, rows in held.items()]
    for name, rows in list(held.items())[1:]:
        for measure in MEASURES:
            if np.isfinite(before[measure]).any():
                gap = rows[measure].to_numpy() - before[measure].to_numpy()
                claims.append(paired(f"{layer}: {measure}, {name} - before", gap, seed=seed))
        if name != "noise":
            gap = rows["psi"].to_numpy() - noise["psi"].to_numpy()
            claims.append(paired(f"{layer}: psi, {name} - noise", gap, seed=seed))
        claims += [
            rate(f"{layer}: PSI >= .5, {name}", int(np.sum(rows["psi"] >= 0.5)), len(rows)),
            rate(f"{layer}: p <= .05, {name}", int(np.sum(rows["p"] <= SIGNIFICANT)), len(rows)),
            median(f"{layer}: change of the activation, {name}", rows["activation_change"].to_numpy(), seed=seed),
            median(f"{layer}: cosine to the patch before, {name}", rows["cosine_to_before"].to_numpy(), seed=seed),
        ]
    return claims


def _told(claims: Sequence[Claim], table: pd.DataFrame, layer: str) -> str:
    """What came out in a layer, in words."""
    value = {one.name.removeprefix(f"{layer}: "): one.value for one in claims}
    told = [
        f"In {layer}, PSI is {value['PSI, before']:.2f} on average before and {value['PSI, noise']:.2f} under noise."
    ]
    for name in ("mixed", "by class"):
        if f"PSI, {name}" not in value:
            continue
        hats = {part: table.loc[table["condition"] == name, f"{part}_hat"].mean() for part in "SQD"}
        hats = {part: hat for part, hat in hats.items() if np.isfinite(hat)}
        least = min(hats, key=hats.__getitem__)
        parts = ", ".join(
            f"{part}^ {hat:.2f} ({value[f'{part}_hat, {name} - before']:+.2f})" for part, hat in hats.items()
        )
        told.append(
            f"Split {name}, it is {value[f'PSI, {name}']:.2f}; {value[f'PSI >= .5, {name}']:.0%} of channels reach .5, "
            f"{value[f'p <= .05, {name}']:.0%} p <= .05 ({parts}; {least} is lowest), with the activation changed by "
            f"{value[f'change of the activation, {name}']:.1%}."
        )
    return " ".join(told)
