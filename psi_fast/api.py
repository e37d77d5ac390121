"""score() and score_embeddings(): the stages in order."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import normalize

from psi_fast import store
from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.crops import distinct_crops, embed
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.environment import device_info, pick_backend, pick_device, versions
from psi_fast.errors import InputError
from psi_fast.evaluation import Background, evaluate
from psi_fast.image_bank import ImageBank, open_bank
from psi_fast.images import ImageSet, open_images
from psi_fast.mining import mine, random_patches
from psi_fast.networks import Network, load_network
from psi_fast.progress import Progress
from psi_fast.receptive_field import boxes, measure_field
from psi_fast.results import Bank, PatchEmbeddings, TopPatches
from psi_fast.scores import Scores, cautions
from psi_fast.validation import read_bank, read_embeddings, read_labels, read_rows
from psi_fast.vocabulary import load_vocabulary

RANDOM_POOL = 1000
"""Random patches embedded for the random-patch channels."""
PROBE_IMAGES = 8
"""Images the effective receptive field is averaged over."""


def score(
    model: str | nn.Module | Network,
    layer: str,
    images: Any,
    *,
    encoder: str | Encoder,
    vocabulary: str | None = None,
    config: PSIConfig | None = None,
    channels: slice | Sequence[int] | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
    max_images: int | None = None,
    skip_unreadable: bool = False,
    bank: str | Path | None = None,
    bank_side: int | None = None,
) -> Scores:
    """Calibrated polysemanticity scores of a layer's channels, from images.

    Parameters
    ----------
    model : str, nn.Module or Network
        A spec such as "torchvision:resnet50", or a module, which is fed ImageNet-normalised 224 px images.
    layer : str
        A key of `dict(model.named_modules())`; `psi-fast layers` lists them.
    images : path or map-style dataset of (image, label)
        Tiny-ImageNet's tree as a folder or zip, an ImageFolder, a folder of images, or a dataset.
    encoder : str or Encoder
        "open_clip:ARCH/TAG", "open_clip:ARCH/CHECKPOINT" or "classifier:NETWORK-SPEC".
    vocabulary : str, optional
        "imagenet", "open-1602" or a text file, one concept a line; None is the encoder's own.
    config : PSIConfig, optional
    channels : slice or sequence of int, optional
        Channels to score; None is all.
    device : {"auto", "cpu", "cuda"}
    out : path, optional
        Run folder to write. One that holds this very run is read instead of computed again.
    progress : bool
        Show progress bars on stderr, when it is a terminal.
    max_images : int, optional
        Use an evenly spread subset of so many images, drawn by the seed.
    skip_unreadable : bool
        Leave out images that cannot be decoded, and count them, instead of stopping.
    bank : path, optional
        Folder that keeps decoded images for other runs; None is psi_fast's cache folder.
    bank_side : int, optional
        Side in px that the images' centre squares are kept at; None is what network and encoder resize to, or less
        where the images are smaller.

    Returns
    -------
    Scores

    Raises
    ------
    PsiFastError
        One line saying what was expected, what came and what to do.
    """
    config = config or PSIConfig()
    bars = Progress(progress)
    where = pick_device(device)
    backend = pick_backend(config.backend, where)
    network = load_network(model)
    tap = ActivationTap(network, layer, where)
    chosen = _channel_ids(channels, tap.channels)
    with bars.stage("open images"):
        source = open_images(
            images, max_images=max_images, seed=config.seed, skip_unreadable=skip_unreadable, progress=bars
        )
    if len(source) < config.top_k:
        raise InputError(
            f"top_k is {config.top_k}, but there are only {len(source)} images; give more images or lower top_k"
        )
    with bars.stage("load encoder"):
        encoder = load_encoder(encoder).to(where)
        words = None if vocabulary is None else load_vocabulary(vocabulary)
    fingerprints = {
        "network": network.fingerprint(),
        "images": source.fingerprint,
        "encoder": encoder.fingerprint(),
        "vocabulary": f"{words.name} {words.fingerprint}" if words else "the encoder's own",
        "bank side": bank_side or "auto",
        "code": store.code_fingerprint(),
        "device": where.type,
        "backend": backend,
    }
    decides = {name: value for name, value in config.to_dict().items() if name not in ("batch_size", "backend")}
    about = {
        "identity": store.fingerprint([fingerprints, layer, chosen.tolist(), decides]),
        "network": network.name,
        "layer": layer,
        "encoder": encoder.name,
        "vocabulary": words.name if words else "the encoder's own",
        "source": str(images) if isinstance(images, (str, Path)) else type(images).__name__,
        "config": config.to_dict(),
        "fingerprints": fingerprints,
    }
    folder = None if out is None else Path(out)
    if folder is not None and store.finished(folder, about):
        return store.load(folder)
    with bars.stage("concepts"):
        names, text = encoder.concepts(words, bars)
    text_bank = Bank(tuple(names), normalize(text.float().cpu(), dim=1))

    def run() -> tuple[Scores, dict[str, torch.Tensor]]:
        with bars.stage("decoding"):
            largest = max(network.preprocess.resize, encoder.preprocess.resize)
            place = None if bank is None else Path(bank)
            decoded = open_bank(source, largest, folder=place, side=bank_side, progress=bars).to(where)
        return _run(Inputs(network, tap, chosen, source, decoded, encoder, text_bank, config, where), about, bars)

    if folder is None:
        return run()[0]
    with store.reserved(folder):
        scores, tensors = run()
        store.save(folder, scores, tensors, text_bank.names)
    return scores


@dataclass(frozen=True)
class Inputs:
    """What a run works on: channels [C] int64 of the tapped layer, everything else loaded and checked."""

    network: Network
    tap: ActivationTap
    channels: np.ndarray
    images: ImageSet
    bank: ImageBank
    encoder: Encoder
    text: Bank
    config: PSIConfig
    device: torch.device


def _run(inputs: Inputs, about: dict[str, Any], bars: Progress) -> tuple[Scores, dict[str, torch.Tensor]]:
    """The stages from images to scores; also the tensors worth keeping."""
    network, tap, images, bank, config = inputs.network, inputs.tap, inputs.images, inputs.bank, inputs.config
    with bars.stage("patch size"):
        spread = np.linspace(0, len(images) - 1, PROBE_IMAGES, dtype=int)
        probes = network.preprocess(bank.read(spread, inputs.device)).cpu()
        field = measure_field(tap, network.preprocess.size, config.patch, seed=config.seed, images=probes)
    with bars.stage("mining"):
        top = mine(tap, network, bank, images.names, inputs.channels, config, bars)
        random_images, random_positions = random_patches(RANDOM_POOL, tap.positions, len(images), config.seed)

    def in_bank(positions: np.ndarray) -> np.ndarray:
        box = boxes(field, positions, tap.grid, tap.prefix, network.preprocess.size)
        return network.preprocess.to_image(box, np.full((*positions.shape, 2), bank.side))

    box = in_bank(top.positions)
    chosen = np.where(top.dead[:, None], -1, top.images)
    # one crop serves both the channels and the random patches, wherever they meet
    crops, index = distinct_crops(
        np.concatenate((chosen.ravel(), random_images)),
        np.concatenate((box.reshape(-1, 4), in_bank(random_positions))),
    )
    with bars.stage("embedding"):
        embedded = embed(crops, bank, images.names, inputs.encoder, inputs.device, config, bars)
    index, random_index = index[: chosen.size].reshape(chosen.shape), index[chosen.size :]
    used, inverse = np.unique(index[index >= 0], return_inverse=True)
    index[index >= 0] = inverse
    unique = embedded[used]
    labels = images.labels
    table, clusters = evaluate(
        PatchEmbeddings(unique, torch.from_numpy(index), torch.from_numpy(inputs.channels)),
        None if labels is None else torch.from_numpy(labels[top.images]),
        inputs.text,
        Background(embedded[random_index], None if labels is None else torch.from_numpy(labels[random_images])),
        config,
        inputs.device,
        bars,
        dead=top.dead,
        max_activation=top.highest,
    )
    manifest = about | {
        "channels": len(inputs.channels),
        "images": len(images),
        "concepts": len(inputs.text.names),
        "bank": {"side_px": bank.side, "folder": str(bank.folder) if images.lasting else "kept for this run only"},
        "distinct_crops": len(crops),
        "patch": {"mode": str(field.mode), "size_px": list(field.size), "note": field.note},
        "versions": versions(),
        "device": device_info(inputs.device),
        "encoder_precision": getattr(inputs.encoder, "precision", "not stated"),
        "seconds": {name: round(seconds, 3) for name, seconds in bars.seconds.items()},
        "images_per_second": round(len(images) / bars.seconds["mining"], 1),
        "crops_per_second": round(len(crops) / bars.seconds["embedding"], 1),
        "warnings": list(
            dict.fromkeys(
                [*network.warnings, *images.warnings, *inputs.encoder.warnings, *cautions(table, config.draws)]
            )
        ),
    }
    patches = _patch_table(top, bank.to_image(box, top.images), images, clusters)
    tensors = {"unique": unique, "index": torch.from_numpy(index), "text": inputs.text.embeddings}
    return Scores(table, clusters, manifest, patches), tensors


def score_embeddings(
    embeddings: Any,
    *,
    labels: Any = None,
    text: Any = None,
    valid: Any = None,
    concept_names: Sequence[str] | None = None,
    background: Any = None,
    background_labels: Any = None,
    config: PSIConfig | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Scores:
    """Calibrated polysemanticity scores of units whose top patches are already embedded; arrays are NumPy or torch.

    Parameters
    ----------
    embeddings : [C, K, d] float
        Embeddings of each unit's top K patches; normalised here.
    labels : [C, K] int, optional
        Class of each patch; without them Q is absent and PSI = S^ D^.
    text : [P, d] float, optional
        Embeddings of the concepts, in the same space; without them D is absent.
    valid : [C, K] bool, optional
        Which places hold a patch; the others are ignored, whatever they hold.
    concept_names : sequence of P str, optional
        Names for the `concepts` column; numbers otherwise.
    background, background_labels : [M, d] float and [M] int, optional
        Patches no unit chose, M >= K; with them `random_percentile` tells how each unit compares with random ones.
    config : PSIConfig, optional
        The fields on mining have no effect here.
    device : {"auto", "cpu", "cuda"}
    progress : bool

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        An array has the wrong shape or type, or is not finite.
    """
    config = config or PSIConfig()
    where = pick_device(device)
    pick_backend(config.backend, where)
    patches = read_embeddings(embeddings, valid)
    channels, places = patches.index.shape
    width = patches.unique.shape[1]
    classes = None if labels is None else read_labels(labels, (channels, places))
    bank = None if text is None else read_bank(text, concept_names, width)
    random = None
    if background is not None:
        rows = read_rows("background", background, width)
        if len(rows) < places:
            raise InputError(f"background must hold at least K = {places} patches, got {len(rows)}")
        if (background_labels is None) != (labels is None):
            raise InputError("labels and background_labels go together: give both or neither")
        random = Background(
            rows,
            None if background_labels is None else read_labels(background_labels, (len(rows),), "background_labels"),
        )
    table, clusters = evaluate(
        patches,
        classes,
        bank,
        random,
        config,
        where,
        Progress(progress),
        dead=np.zeros(channels, dtype=bool),
        max_activation=np.full(channels, np.nan, dtype=np.float32),
    )
    return Scores(table, clusters)


def _channel_ids(channels: slice | Sequence[int] | None, count: int) -> np.ndarray:
    """The channels asked for as ids [C] int64, each within the layer's and named once."""
    if channels is None:
        return np.arange(count)
    if isinstance(channels, slice):
        first, stop = channels.start or 0, count if channels.stop is None else channels.stop
        if not 0 <= first < stop <= count:
            raise InputError(f"channels {first}:{stop} are not a range within the layer's 0:{count}")
        return np.arange(count)[channels]
    try:
        ids = np.asarray(channels)
    except ValueError:  # rows of unequal length
        ids = np.empty(0)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise InputError(
            f"channels must be a slice or a list of whole numbers within the layer's 0..{count - 1}, got {channels!r}"
        )
    outside = ids[(ids < 0) | (ids >= count)]
    if len(outside):
        raise InputError(f"channel {outside[0]} is outside the layer's 0..{count - 1}")
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"each of the layer's channels 0..{count - 1} can be named once, got {channels!r}")
    return ids.astype(np.int64)


def _patch_table(top: TopPatches, box: np.ndarray, source: ImageSet, clusters: np.ndarray) -> pd.DataFrame:
    """A row a patch, by channel and rank."""
    row, rank = np.nonzero(top.valid)
    image = top.images[row, rank]
    return pd.DataFrame(
        {
            "channel": top.channels[row],
            "rank": rank,
            "image": np.array([_printable(name) for name in source.names], dtype=object)[image],
            "box": list(box[row, rank].astype(np.float32)),
            "activation": top.values[row, rank],
            "label": None if source.labels is None else np.asarray(source.class_names, object)[source.labels[image]],
            "cluster": clusters[row, rank],
        }
    )


def _printable(name: str) -> str:
    """A file name as it is, or with its bytes escaped where they are no text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
