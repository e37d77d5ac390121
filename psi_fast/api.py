"""score() and score_embeddings(): the stages in order."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from psi_fast import store
from psi_fast.config import PSIConfig
from psi_fast.disk_room import require_free, run_bytes
from psi_fast.encoders import Encoder
from psi_fast.encoders.text_head import TextHead
from psi_fast.environment import pick_backend, pick_device
from psi_fast.errors import ConfigError, InputError
from psi_fast.evaluation import FEWER_CHANNELS, Background, evaluate
from psi_fast.networks import Network
from psi_fast.paths import require_path
from psi_fast.peer_scores import scaled
from psi_fast.pipeline import Inputs, Tensors, run
from psi_fast.progress import Progress
from psi_fast.scores import Scores
from psi_fast.shelf import Shelf
from psi_fast.subject import open_subject
from psi_fast.trial_forward import memory_told
from psi_fast.validation import (
    read_activations,
    read_bank,
    read_embeddings,
    read_head,
    read_labels,
    read_rows,
    require_pairwise,
)
from psi_fast.workers import ArrayTask, OthersMissing, Workers


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
    progress: bool | Progress = True,
    max_images: int | None = None,
    skip_unreadable: bool = False,
    bank: str | Path | None = None,
    bank_side: int | None = None,
    share: str | Path | None = None,
    trust_checkpoint: bool = False,
    workers: Workers | None = None,
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
        or a folder of them), a Hugging Face dataset (an id, parquet files or a saved folder), "scikit-image:tiles" (the
        demo's), or a dataset.
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
        Show progress on stderr: bars where it is a terminal, else a line a stage. Or a Progress to tell.
    max_images : int, optional
        Use an evenly spread subset of so many images, drawn by the seed.
    skip_unreadable : bool
        Leave out images that cannot be decoded, and count them, instead of stopping.
    bank : path or "stream", optional
        Folder that keeps decoded images for other runs; None is psi_fast's cache folder. "stream" keeps none: images are
        decoded when they are mined, and those with a top patch once more; a dataset, which must give the same image each
        time, is decoded once before that, to tell its run from others.
    bank_side : int, optional
        Side in px that the images' centre squares are kept at; None is what network and encoder resize to, or less
        where the images are smaller.
    share : path, optional
        Folder that keeps mined patches and embeddings for other runs, which take from it what they have in common. A run
        with `out` keeps them in there by itself while it is unfinished, and goes on from them when it was cut short.
    trust_checkpoint : bool
        Read local checkpoints of network and encoder also where they are pickles, and so run what code they hold; without it
        weights alone are read, and such a file is refused.
    workers : Workers, optional
        Who mines, encodes and draws, as `psi_fast.RayWorkers()`; None is this process. The scores are the same bit for bit.
        Images are then decoded by those who need them, unless a bank is named or lies there.

    Returns
    -------
    Scores

    Raises
    ------
    PsiFastError
        One line saying what was expected, what came and what to do.
    OthersMissing
        `workers` are a task of an array, which has done its share.
    """
    bars = progress if isinstance(progress, Progress) else Progress(progress)
    for name, path in (("bank", bank), ("share", share)):
        if path is not None:
            require_path(name, path)
    folder = None if out is None else Path(out)
    if folder is not None:
        store.require_own(folder)
    subject = open_subject(
        model,
        layer,
        images,
        encoder=encoder,
        vocabulary=vocabulary,
        text_head=text_head,
        config=config,
        channels=channels,
        device=device,
        max_images=max_images,
        skip_unreadable=skip_unreadable,
        bank=bank,
        bank_side=bank_side,
        trust_checkpoint=trust_checkpoint,
        bars=bars,
        streamed=workers is not None,
    )
    about = subject.about(images, max_images, skip_unreadable)
    if folder is not None and (held := _held(folder, about, bars)) is not None:
        store.clear_finished(folder)
        return held
    with bars.stage("concepts"):
        text, said = subject.concepts(bars)

    def see_room() -> None:
        if folder is not None:
            require_free(
                folder,
                run_bytes(subject, text),
                "the run's files may need up to",
                "give another folder (--out), fewer channels (--channels) or a smaller top_k",
            )

    def from_images() -> tuple[Scores, Tensors, Tensors]:
        see_room()
        with bars.stage("decoding"):
            squares = subject.squares(bars)
        see_room()  # a bank on the same disk has taken its share by now
        with memory_told("the run", FEWER_CHANNELS):
            return run(Inputs(subject, squares, text, said, shelf, own, workers), about, bars)

    own = None if folder is None else Shelf(folder / store.UNFINISHED)
    shelf = own if share is None else Shelf(Path(share))
    if folder is None:
        if isinstance(workers, ArrayTask):
            raise ConfigError("the tasks of an array meet in a run folder; give one (out)")
        return from_images()[0]
    among = isinstance(workers, ArrayTask)
    with store.reserved(folder, among=among):
        if (held := _held(folder, about, bars)) is not None:  # another process has made it meanwhile
            return held
        scores, embedded, distributions = from_images()
        if among:
            raise OthersMissing(f"all parts are done; `psi-fast merge {folder}` writes the run")
        store.save(folder, scores, embedded, text.names, distributions)
        shutil.rmtree(folder / store.UNFINISHED, ignore_errors=True)
    return scores


def _held(folder: Path, about: dict[str, Any], bars: Progress) -> Scores | None:
    """The scores that the folder holds already, if it is this very run."""
    if not store.finished(folder, about):
        return None
    held = store.load(folder)
    bars.say(store.reused(folder, held.manifest))
    return held


def score_embeddings(
    embeddings: Any,
    *,
    labels: Any = None,
    activations: Any = None,
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
    activations : [C, K] float, optional
        The unit's activation at each patch, for `max_activation` and `monosemanticity`, which scales those of a unit to 0..1.
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
    values = read_activations(activations, (patches.index >= 0).numpy())
    lowest, highest = np.fmin.reduce(values, 1), np.fmax.reduce(values, 1)  # nan only where all are
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
    found = evaluate(
        patches,
        classes,
        bank,
        random,
        config,
        where,
        Progress(progress),
        dead=np.zeros(channels, dtype=bool),
        max_activation=highest,
        selectivity=np.full(channels, np.nan, dtype=np.float32),
        unselective=np.zeros(channels, dtype=bool),
        weights=scaled(values, lowest, highest),
    )
    return Scores(found.table, found.clusters.labels.numpy())
