"""Network, images and encoder -> scores: where channels are most active, what lies there, and the scores, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.crops import distinct_crops, lost_detail
from psi_fast.embedding import embedded_crops, shelved_crops
from psi_fast.environment import device_info, versions
from psi_fast.errors import NotFiniteError
from psi_fast.evaluation import Background, Evaluation, evaluate
from psi_fast.forward import Pace, name_of
from psi_fast.image_bank import ImageBank
from psi_fast.image_stream import ImageStream
from psi_fast.mining import random_patches, step_for
from psi_fast.null_parts import Spread
from psi_fast.progress import Progress
from psi_fast.receptive_field import Field, boxes, measure_field
from psi_fast.results import COMPONENTS, KEPT_DRAWS, Bank, PatchEmbeddings, TopPatches
from psi_fast.scores import Scores, cautions, patch_table
from psi_fast.shelf import Shelf
from psi_fast.sight import Sight, look, mined_part
from psi_fast.store import now
from psi_fast.subject import Subject
from psi_fast.workers import MINING, OthersMissing, Workers, require_all

OF_MINING = ("top_k", "per_image", "band")
"""Settings that decide the top patches; the seed does where they are drawn from a band."""
OF_DRAWS = ("code", "torch", "device", "backend")
"""Fingerprints that decide null draws, beside the patches."""
RANDOM_POOL = 1000
"""Random patches embedded for the random-patch channels of each layer."""
PROBE_IMAGES = 8
"""Images the effective receptive field is averaged over."""


@dataclass(frozen=True)
class Inputs:
    """A run's subject, its decoded images and its concepts.

    text_warnings : what a reader of the results must know about the concepts' embeddings
    shelf : where patches and embeddings are kept, for other runs or for this one when it is cut short; None: nowhere
    own : where parts of mining and null draws are kept, for this run alone when it is cut short; None: nowhere
    workers : who mines, encodes and draws; None: this process
    """

    subject: Subject
    bank: ImageBank | ImageStream
    text: Bank
    text_warnings: Sequence[str]
    shelf: Shelf | None = None
    own: Shelf | None = None
    workers: Workers | None = None


@dataclass(frozen=True)
class LayerPatches:
    """A layer's patches.

    box : [C, K, 4] float64 (x0, y0, x1, y1) in the bank's px of each patch of `top`
    random_images, random_box : [R] int64 and [R, 4] float64, patches no channel chose
    """

    layer: str
    field: Field
    top: TopPatches
    box: np.ndarray
    random_images: np.ndarray
    random_box: np.ndarray


Tensors = dict[str, torch.Tensor]


def run(inputs: Inputs, about: dict[str, Any], bars: Progress) -> tuple[Scores, Tensors, Tensors]:
    """The stages from images to scores; also the tensors worth keeping: the embeddings, and the distributions behind the scores.

    The first are unique [U, d], index [all channels, K], text [P, d], and with a text head text_head [P, e]; the second are
    those of `_distributions`.
    """
    retried: list[str] = []
    layers, pace = _patches(inputs, bars, retried)
    embedded, indices = _embeddings(layers, inputs, bars, retried)
    evaluations, tables, labels, patches, missing = [], [], [], [], None
    for found, (index, random_index) in zip(layers, indices, strict=True):
        with bars.within(found.layer if len(layers) > 1 else ""):
            try:
                evaluation = _evaluated(found, embedded, index, random_index, inputs, bars)
            except OthersMissing as error:  # of the other layers there may be a share to do, too
                missing = error
                continue
        evaluations.append(evaluation)
        table, clusters = evaluation.table, evaluation.clusters.labels.numpy()
        images, original = inputs.subject.images, inputs.bank.to_image(found.box, found.top.images)
        rows = patch_table(found.top, original, clusters, images.names, images.labels, images.class_names)
        tables.append(table.assign(layer=found.layer)[["layer", *table]])
        patches.append(rows.assign(layer=found.layer)[["layer", *rows]])
        labels.append(clusters)
    if missing:
        raise missing
    unique, index = used_rows(embedded, np.concatenate([index for index, _ in indices]))
    tensors = {"unique": unique, "index": index, "text": inputs.text.embeddings}
    if inputs.text.head is not None:
        tensors["text_head"] = inputs.text.head
    table = pd.concat(tables, ignore_index=True)
    manifest = about | _account(layers, pace, table, len(embedded), retried, inputs, bars)
    scores = Scores(table, np.concatenate(labels), manifest, pd.concat(patches, ignore_index=True))
    return scores, tensors, _distributions(layers, evaluations)


def _distributions(layers: Sequence[LayerPatches], evaluations: Sequence[Evaluation]) -> Tensors:
    """What the scores of all layers' C channels were held against, for charts.

    X_null [C, b] float32 for each component X there is, its first null draws; image_maxima [C, n] float32, as of TopPatches;
    random_log_psi [layers, RANDOM_CHANNELS] float64, of the random-patch channels.
    """
    nulls = {
        f"{name}_null": torch.cat([own.draws[name] for own in evaluations])
        for name in COMPONENTS
        if name in evaluations[0].draws  # there for all layers or for none
    }
    random = np.stack([own.random["log_psi"].to_numpy() for own in evaluations])
    maxima = torch.cat([own.top.image_maxima for own in layers])
    return nulls | {"image_maxima": maxima, "random_log_psi": torch.from_numpy(random)}


def _patches(inputs: Inputs, bars: Progress, retried: list[str]) -> tuple[list[LayerPatches], Pace]:
    """Where the channels are most active, as boxes in the bank; and how the network ran."""
    subject, bank = inputs.subject, inputs.bank
    with bars.stage("patch size"):
        fields = measured_fields(subject, bank)
    with bars.stage("mining"):
        tops, pace = _mined(inputs, bars, retried)
    found = []
    for tap, field, top in zip(subject.taps, fields, tops, strict=True):
        random_images, random_positions = random_patches(RANDOM_POOL, tap.positions, len(bank), subject.config.seed)
        box, random_box = (
            patch_boxes(tap, field, positions, bank.side) for positions in (top.positions, random_positions)
        )
        found.append(LayerPatches(tap.layer, field, top, box, random_images, random_box))
    return found, pace


def measured_fields(subject: Subject, bank: ImageBank | ImageStream) -> list[Field]:
    """What a unit of each layer sees, averaged over some of the images."""
    preprocess, config = subject.network.preprocess, subject.config
    spread = np.linspace(0, len(bank) - 1, PROBE_IMAGES, dtype=int)
    probes = preprocess(bank.read(spread, subject.device)).cpu()
    return [measure_field(tap, preprocess.size, config.patch, seed=config.seed, images=probes) for tap in subject.taps]


def patch_boxes(tap: ActivationTap, field: Field, positions: np.ndarray, side: int) -> np.ndarray:
    """Boxes [..., 4] float64 (x0, y0, x1, y1), in px of a bank of `side`, of the layer's positions [...]."""
    preprocess = tap.network.preprocess
    seen = boxes(field, positions, tap.grid, tap.prefix, preprocess.size)
    return preprocess.to_image(seen, np.full((*np.shape(positions), 2), side))


def _mined(inputs: Inputs, bars: Progress, retried: list[str]) -> tuple[list[TopPatches], Pace]:
    """The layers' top patches, and the pace of the run that gave them.

    A network that leaves the range of a half precision runs again in float32.
    """
    own = inputs.subject
    try:
        return _mined_at(own.pace, inputs, bars), own.pace
    except NotFiniteError as error:
        if own.pace.dtype == torch.float32:
            raise
        retried.append(f"the network ran again in float32, because in {name_of(own.pace.dtype)}: {error}")
    pace = replace(own.pace, dtype=torch.float32)
    return _mined_at(pace, inputs, bars), pace


def _mined_at(pace: Pace, inputs: Inputs, bars: Progress) -> list[TopPatches]:
    """The top patches as the shelf has them, or mined now; a pass that was cut short goes on."""
    own, shelf = inputs.subject, inputs.shelf
    sight = look(own, inputs.bank, inputs.own)
    about = {
        **{name: own.fingerprints[name] for name in ("network", "images", "code", "torch", "device")},
        "side": inputs.bank.side,
        "layers": [(tap.layer, ids.tolist()) for tap, ids in zip(own.taps, own.channels, strict=True)],
        "pace": str(pace),
        "config": {name: own.config.to_dict()[name] for name in OF_MINING}
        | {"seed": own.config.band and own.config.seed},
    }
    if shelf is None:
        return sight.miner(pace).whole(bars) if inputs.workers is None else _mined_by(inputs, sight, pace, about, bars)
    step = step_for(own.taps[0].device, own.config, pace)  # by which parts end
    unfinished = shelf.unfinished("tops", {**about, "step": step})

    def make() -> dict[str, torch.Tensor]:
        if inputs.workers is None:
            found = sight.miner(pace).whole(bars, unfinished)
        else:
            found = _mined_by(inputs, sight, pace, about, bars)
        return {
            f"{i} {name}": torch.as_tensor(value) for i, top in enumerate(found) for name, value in vars(top).items()
        }

    held = shelf.tensors("tops", about, make)
    unfinished.remove()  # that of a precision which did not do stays: another run comes to the same end sooner
    return [_top({name: held[f"{i} {name}"] for name in TopPatches.__dataclass_fields__}) for i in range(len(own.taps))]


def _mined_by(inputs: Inputs, sight: Sight, pace: Pace, about: Any, bars: Progress) -> list[TopPatches]:
    """The top patches from parts of the images that workers mine, joined in the order of the images."""
    workers, own, miner = inputs.workers, inputs.own, sight.miner(pace)
    assert workers is not None
    about = {**about, "batch_size": inputs.subject.config.batch_size}  # which decides where parts end on a GPU
    numbers = range(len(miner.parts))
    found: dict[int, Mapping[str, torch.Tensor]] = {}
    if own:
        own.make()  # for the workers, who keep how far they are there
        kept = {number: own.find("part", [about, number]) for number in numbers}
        found = {number: held for number, held in kept.items() if held is not None}
    tasks = {number: (pace, about, number) for number in numbers if number not in found and workers.own(MINING, number)}
    done = sum(len(miner.parts[number]) for number in found)
    with bars.bar("mining", len(inputs.bank), "img", done) as bar:
        for number, part in workers.results(mined_part, tasks, sight):
            if own:
                own.keep("part", [about, number], part)
                own.unfinished("part", [about, number]).remove()
            found[number] = part
            bar.update(len(miner.parts[number]))
    require_all(found, len(numbers), MINING)
    for number in numbers:
        miner.add(miner.parts[number], found[number])
    return miner.result()


def _top(held: Mapping[str, torch.Tensor]) -> TopPatches:
    values: dict[str, Any] = {name: own if name == "image_maxima" else own.numpy() for name, own in held.items()}
    return TopPatches(**values)


def _embeddings(
    layers: Sequence[LayerPatches], inputs: Inputs, bars: Progress, retried: list[str]
) -> tuple[torch.Tensor, list[tuple[np.ndarray, np.ndarray]]]:
    """Embeddings [U, d] of the distinct crops of all layers, and for each layer where its [C, K] and [R] patches find theirs."""
    images = [
        part
        for own in layers
        for part in (np.where(own.top.dead[:, None], -1, own.top.images).ravel(), own.random_images)
    ]
    places = [part for own in layers for part in (own.box.reshape(-1, 4), own.random_box)]
    # one crop serves channels, random patches and layers, wherever they meet
    crops, index = distinct_crops(np.concatenate(images), np.concatenate(places))
    with bars.stage("embedding"):
        arguments = (crops, inputs.bank, inputs.subject, inputs.subject.encoder)
        if inputs.shelf is None and inputs.workers is None:
            embedded = embedded_crops(*arguments, bars, retried)
        else:
            mark = inputs.subject.fingerprints["encoder"]
            embedded = shelved_crops(*arguments, mark, inputs.shelf, bars, retried, inputs.workers)
    parts = iter(np.split(index, np.cumsum([len(part) for part in images])[:-1]))
    return embedded, [(next(parts).reshape(own.top.images.shape), next(parts)) for own in layers]


def _evaluated(
    found: LayerPatches,
    embedded: torch.Tensor,
    index: np.ndarray,
    random_index: np.ndarray,
    inputs: Inputs,
    bars: Progress,
) -> Evaluation:
    """The layer's scores and clusters, from its own patches alone."""
    labels, top = inputs.subject.images.labels, found.top
    return evaluate(
        PatchEmbeddings(*used_rows(embedded, index), torch.from_numpy(top.channels)),
        None if labels is None else torch.from_numpy(labels[top.images]),
        inputs.text,
        Background(embedded[random_index], None if labels is None else torch.from_numpy(labels[found.random_images])),
        inputs.subject.config,
        inputs.subject.device,
        bars,
        dead=top.dead,
        max_activation=top.highest,
        selectivity=top.selectivity,
        unselective=top.unselective,
        weights=top.weights,
        class_selectivity=top.class_selectivity,
        keep_draws=KEPT_DRAWS,
        spread=_spread(inputs),
    )


def _spread(inputs: Inputs) -> Spread | None:
    """How null draws are shared out and kept; None where they are neither."""
    if inputs.workers is None and inputs.own is None:
        return None
    return Spread(inputs.workers, inputs.own, [inputs.subject.fingerprints[name] for name in OF_DRAWS])


def used_rows(embedded: torch.Tensor, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of `embedded` that `index` names (-1: none), each once, and where each place finds its own among them."""
    used, inverse = np.unique(index[index >= 0], return_inverse=True)
    own = np.full(index.shape, -1, dtype=np.int64)
    own[index >= 0] = inverse
    return embedded[used], torch.from_numpy(own)


def _account(
    layers: Sequence[LayerPatches],
    pace: Pace,
    table: pd.DataFrame,
    crops: int,
    retried: Sequence[str],
    inputs: Inputs,
    bars: Progress,
) -> dict[str, Any]:
    """What the manifest says about the run."""
    subject, bank = inputs.subject, inputs.bank
    images, encoder = subject.images, subject.encoder
    said = [
        *(*subject.network.warnings, *images.warnings, *encoder.warnings, *inputs.text_warnings, *retried),
        *_coarse(layers, inputs),
        *cautions(table, subject.config.draws),
    ]
    return {
        "made": now(),
        "channels": len(table),
        "images": len(images),
        "concepts": len(inputs.text.names),
        "bank": {"side_px": bank.side, "folder": _kept(bank, images.lasting)},
        "distinct_crops": crops,
        "patch": {
            own.layer: {"mode": str(own.field.mode), "size_px": list(own.field.size), "note": own.field.note}
            for own in layers
        },
        "versions": versions(),
        "device": device_info(subject.device),
        "forward_passes": str(pace),
        "encoder_precision": getattr(encoder, "precision", "not stated"),
        "encoder_activation": getattr(encoder, "activation", "not stated"),
        "workers": 1 if inputs.workers is None else inputs.workers.count,
        "seconds": {name: round(seconds, 3) for name, seconds in bars.seconds.items()},
        "images_per_second": round(bars.rate("mining"), 1),
        "crops_per_second": round(bars.rate("embedding"), 1),
        "warnings": list(dict.fromkeys(said)),
    }


def _coarse(layers: Sequence[LayerPatches], inputs: Inputs) -> list[str]:
    """What a reader must know of the detail that patches lack: of the layer with the smallest ones, where it has any."""
    boxes, images = (
        [own.box[own.top.valid & ~own.top.dead[:, None]] for own in layers],
        [own.top.images[own.top.valid & ~own.top.dead[:, None]] for own in layers],
    )
    said = {
        float((box[:, 2:] - box[:, :2]).mean()): lost_detail(box, rows, inputs.bank, inputs.subject.encoder)
        for box, rows in zip(boxes, images, strict=True)
        if len(rows)
    }
    smallest = said[min(said)] if said else None
    return [] if smallest is None else [smallest]


def _kept(bank: ImageBank | ImageStream, lasting: bool) -> str:
    if isinstance(bank, ImageStream):
        return "none, decoded when needed"
    return str(bank.folder) if lasting else "kept for this run only"
