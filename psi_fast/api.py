"""score() and score_embeddings(): the stages in order."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from psi_fast import store
from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.text_head import TextHead, load_text_head
from psi_fast.environment import pick_backend, pick_device
from psi_fast.errors import InputError
from psi_fast.evaluation import Background, evaluate
from psi_fast.image_bank import open_bank
from psi_fast.image_stream import STREAM, open_stream
from psi_fast.images import open_images
from psi_fast.networks import Network, load_network
from psi_fast.pipeline import Inputs, run
from psi_fast.progress import Progress
from psi_fast.results import Bank
from psi_fast.scores import Scores
from psi_fast.text_banks import concept_bank, head_bank
from psi_fast.trial import choose_pace
from psi_fast.validation import (
    read_bank,
    read_channels,
    read_embeddings,
    read_head,
    read_labels,
    read_layers,
    read_rows,
    require_pairwise,
)
from psi_fast.vocabulary import Vocabulary, load_vocabulary


def score(
    model: str | nn.Module | Network,
    layer: str | Sequence[str],
    images: Any,
    *,
    encoder: str | Encoder,
    vocabulary: str | None = None,
    text_head: str | TextHead | None = None,
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
    layer : str or sequence of str
        Keys of `dict(model.named_modules())`, or NAME#heads for the heads of an attention module; `psi-fast layers` lists
        them. Several are read in one pass over the images, and each is scored as it would be alone.
    images : path or map-style dataset of (image, label)
        Tiny-ImageNet's tree as a folder or zip, an ImageFolder, a folder of images, WebDataset shards ("shard-{00..99}.tar"
        or a folder of them), or a dataset.
    encoder : str or Encoder
        "open_clip:ARCH/TAG", "open_clip:ARCH/CHECKPOINT", "open_clip:hf-hub:ORG/NAME", "open_clip:local-dir:FOLDER" or
        "classifier:NETWORK-SPEC".
    vocabulary : str, optional
        "imagenet", "open-1602" or a text file, one concept a line; None is the encoder's own.
    text_head : str or TextHead, optional
        "sentence-transformers:NAME-OR-FOLDER", with `distinctness="pairwise"`: the encoder still chooses each cluster's
        concept, and the distances among concepts are those of this model's embeddings of their names.
    config : PSIConfig, optional
    channels : slice or sequence of int, optional
        Channels to score, of each layer; None is all.
    device : {"auto", "cpu", "cuda"}
    out : path, optional
        Run folder to write. One that holds this very run is read instead of computed again.
    progress : bool
        Show progress bars on stderr, when it is a terminal.
    max_images : int, optional
        Use an evenly spread subset of so many images, drawn by the seed.
    skip_unreadable : bool
        Leave out images that cannot be decoded, and count them, instead of stopping.
    bank : path or "stream", optional
        Folder that keeps decoded images for other runs; None is psi_fast's cache folder. "stream" keeps none: images are
        decoded when they are mined, and those with a top patch once more; a dataset must give the same image each time.
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
    if text_head is not None:
        require_pairwise(config)
    bars = Progress(progress)
    where = pick_device(device)
    backend = pick_backend(config.backend, where)
    network = load_network(model)
    taps = [ActivationTap(network, name, where) for name in read_layers(layer)]
    chosen = [read_channels(channels, tap.layer, tap.channels) for tap in taps]
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
        head = None if text_head is None else load_text_head(text_head).to(where)
        words = None if vocabulary is None else load_vocabulary(vocabulary)
    mark = network.fingerprint()
    with bars.stage("trial of precisions"):
        pace = choose_pace(taps, config.precision, mark)
    fingerprints = {
        "network": mark,
        "forward passes": str(pace),
        "images": source.fingerprint,
        "encoder": encoder.fingerprint(),
        "vocabulary": f"{words.name} {words.fingerprint}" if words else "the encoder's own",
        "text head": head.fingerprint() if head else "none",
        "bank side": bank_side or "auto",
        "code": store.code_fingerprint(),
        "device": where.type,
        "backend": backend,
    }
    decides = {name: value for name, value in config.to_dict().items() if name not in ("batch_size", "backend")}
    about = {
        "identity": store.fingerprint(
            [fingerprints, [(tap.layer, ids.tolist()) for tap, ids in zip(taps, chosen, strict=True)], decides]
        ),
        "network": network.name,
        "layers": [tap.layer for tap in taps],
        "encoder": encoder.name,
        "vocabulary": words.name if words else "the encoder's own",
        "text_head": head.name if head else None,
        "source": str(images) if isinstance(images, (str, Path)) else type(images).__name__,
        "config": config.to_dict(),
        "fingerprints": fingerprints,
    }
    folder = None if out is None else Path(out)
    if folder is not None and store.finished(folder, about):
        return store.load(folder)
    with bars.stage("concepts"):
        text_bank, said = _text_bank(encoder, words, head, fingerprints, where, bars)

    def from_images() -> tuple[Scores, dict[str, torch.Tensor]]:
        with bars.stage("decoding"):
            largest = max(network.preprocess.resize, encoder.preprocess.resize)
            if bank == STREAM:
                decoded = open_stream(source, largest, side=bank_side)
            else:
                place = None if bank is None else Path(bank)
                decoded = open_bank(source, largest, folder=place, side=bank_side, progress=bars).to(where)
        return run(
            Inputs(network, taps, chosen, source, decoded, encoder, text_bank, said, pace, config, where), about, bars
        )

    if folder is None:
        return from_images()[0]
    with store.reserved(folder):
        scores, tensors = from_images()
        store.save(folder, scores, tensors, text_bank.names)
    return scores


def _text_bank(
    encoder: Encoder,
    words: Vocabulary | None,
    head: TextHead | None,
    fingerprints: dict[str, Any],
    device: torch.device,
    bars: Progress,
) -> tuple[Bank, list[str]]:
    """The concepts as the encoder and the head, if there is one, embed them, and what a reader of the results must know."""
    names, text, said = concept_bank(encoder, words, fingerprints["encoder"], device, bars)
    bank = Bank(tuple(names), normalize(text.float().cpu(), dim=1))
    if head is None:
        return bank, said
    rows, more = head_bank(head, names, fingerprints["text head"], device, bars)
    said = [*said, *head.warnings, *more]
    if all(name == f"class {index}" for index, name in enumerate(names)):
        said.append(
            f"{encoder.name} does not know its classes' names, and {head.name} was given 'class 0', 'class 1', ...: D says "
            "nothing about them; use an encoder that names its concepts"
        )
    return replace(bank, head=normalize(rows, dim=1)), said


def score_embeddings(
    embeddings: Any,
    *,
    labels: Any = None,
    text: Any = None,
    text_head: Any = None,
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
    text_head : [P, e] float, optional
        Embeddings of the same concepts by a model of text alone, which `distinctness="pairwise"` then takes its distances
        from; `text` still chooses each cluster's concept.
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
    ConfigError
        A setting does not fit the device or the arrays.
    """
    config = config or PSIConfig()
    if text_head is not None:
        require_pairwise(config)
    where = pick_device(device)
    pick_backend(config.backend, where)
    patches = read_embeddings(embeddings, valid)
    channels, places = patches.index.shape
    width = patches.unique.shape[1]
    classes = None if labels is None else read_labels(labels, (channels, places))
    bank = None if text is None else read_bank(text, concept_names, width)
    if text_head is not None:
        if bank is None:
            raise InputError("text_head needs text as well, in which each cluster's nearest concept is found")
        bank = replace(bank, head=read_head(text_head, len(bank.names)))
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
        selectivity=np.full(channels, np.nan, dtype=np.float32),
        unselective=np.zeros(channels, dtype=bool),
    )
    return Scores(table, clusters)
