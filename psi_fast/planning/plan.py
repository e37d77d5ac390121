"""plan(): what a run would take, before it is begun."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from psi_fast.activation_tap import ActivationTap
from psi_fast.config import PSIConfig
from psi_fast.encoders import Encoder, load_encoder
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.encoders.text_head import TextHead, load_text_head
from psi_fast.environment import pick_backend, pick_device
from psi_fast.errors import ConfigError, InputError
from psi_fast.image_bank import side_for
from psi_fast.image_set import CHECKING, ImageSet
from psi_fast.image_stream import STREAM
from psi_fast.images import open_images
from psi_fast.networks import Network, load_network
from psi_fast.planning.outlook import BITS, Plan, Terms, outlook, positive, whole
from psi_fast.planning.rates import Rates, peak_of, read_rates, require_rates
from psi_fast.planning.sampling import Stopwatch, TimedProgress, Trial, try_stages
from psi_fast.planning.workload import (
    LayerSize,
    Workload,
    encoder_size,
    head_operations,
    network_size,
    text_operations,
)
from psi_fast.subject import open_subject
from psi_fast.validation import read_channels, read_layers, require_pairwise
from psi_fast.vocabulary import load_vocabulary

SAMPLED = 256
"""Images whose files' sizes are averaged."""
NAME_BYTES = 160
"""Bytes of memory for an image's name and stamp, where no sample tells: 30 letters each."""


def plan(
    model: str | nn.Module | Network,
    layer: str | Sequence[str],
    images_count: int | float | Sequence[int | float],
    *,
    encoder: str | Encoder,
    images: Any = None,
    workers: int | Sequence[int] = 1,
    price_per_hour: float | None = None,
    rates: str | Path | Rates | None = None,
    floor: str | None = None,
    image_bytes: float | None = None,
    classes: int = 1000,
    wire_gbit: float | None = None,
    storage_mb: float | None = None,
    trial_images: int = 512,
    vocabulary: str | None = None,
    text_head: str | TextHead | None = None,
    config: PSIConfig | None = None,
    channels: slice | Sequence[int] | None = None,
    device: str = "auto",
    skip_unreadable: bool = False,
    bank: str | Path | None = None,
    bank_side: int | None = None,
    trust_checkpoint: bool = False,
    progress: bool = True,
) -> Plan:
    """What `score` would take for `images_count` images on `workers` workers: bytes, operations, memory, seconds and cost.

    Parameters
    ----------
    model, layer, encoder, vocabulary, text_head, config, channels, device, skip_unreadable, bank, bank_side, trust_checkpoint
        As for `score`. Of `bank` only counts whether it is "stream" or a folder: without one, several workers keep no squares.
    images_count : int or sequence of int
        Numbers of images, at least `top_k`; 1e6 is one as well.
    images : as for `score`, optional
        A sample of the images: a trial on `trial_images` of them measures every stage here, how large their files are, and
        how often channels choose the same patches.
    workers : int or sequence of int
        GPUs, or machines without one.
    price_per_hour : float, optional
        Of one worker, in any currency.
    rates : path or Rates, optional
        Measured before, in place of a trial: a finished run's folder or manifest.json, a file of `Plan.to_json`, or `Plan.rates`.
    floor : {"a100", "h100", "h200", "b200"}, optional
        Also tell the seconds below which that GPU cannot be, by the peaks its maker publishes.
    image_bytes : float, optional
        Of an image's file on average; needed without `images`.
    classes : int
        Of the images' labels, where no `images` tell; 0: no labels.
    wire_gbit, storage_mb : float, optional
        Gigabits a second between workers, and 10^6 bytes a second from storage to each; without them nobody waits for either.
    trial_images : int
        Images of the trial, at least `top_k`.
    progress : bool
        Show progress on stderr.

    Returns
    -------
    Plan

    Raises
    ------
    PsiFastError
        One line saying what was expected, what came and what to do.
    """
    config = config or PSIConfig()
    counts = whole("images_count", images_count, config.top_k, f" (top_k is {config.top_k})")
    several = whole("workers", workers, 1)
    terms = Terms(
        price=positive("price_per_hour", price_per_hour),
        wire=positive("wire_gbit", wire_gbit, BITS),
        storage=positive("storage_mb", storage_mb, 1e6),
        peak=None if floor is None else peak_of(floor),
    )
    positive("image_bytes", image_bytes)
    (classes,) = whole("classes", classes, 0)
    (tried,) = whole("trial_images", trial_images, config.top_k, f" (top_k is {config.top_k})")
    if isinstance(rates, (str, Path)):
        require_rates(rates)
    if images is None and rates is None and floor is None:
        raise ConfigError(
            "nothing says how fast a run is: give a sample of the images (--images) for a trial, the rates of an earlier run or "
            "plan (--rates), or a GPU whose floors are told (--floor)"
        )
    if images is None and image_bytes is None:
        raise ConfigError("nothing says how large an image's file is: give --image-bytes, or a sample (--images)")
    bars, watch = TimedProgress(progress), Stopwatch()
    with watch.stage("load"), bars.stage("load"):
        parts = Parts(
            model, layer, encoder, vocabulary, text_head, channels, config, pick_device(device), trust_checkpoint
        )
    source: ImageSet | None = None
    if images is not None:
        with watch.stage("open images"), bars.stage("open images"):
            source = open_images(images, seed=config.seed, skip_unreadable=skip_unreadable, progress=bars)
        if (begun := bars.begun.get(CHECKING)) is not None:  # costs count what follows as decoding
            watch.add("open images", begun[0] - time.perf_counter(), begun[1] - time.process_time())
    with bars.stage("count operations"):
        work = parts.workload(source, image_bytes, classes, bank, bank_side, skip_unreadable)
    if isinstance(rates, Rates):
        found: Rates | None = rates
    elif rates is not None:
        found = read_rates(rates, work)
    elif source is None:
        found = None
    else:
        found = parts.trial(source, work, tried, bank == STREAM, bank_side, watch, bars).rates(work)
    said = f"images: files of {work.image_bytes:,.0f} bytes"
    return outlook(work, found, counts, several, terms, [said + (", as in the sample" if image_bytes is None else "")])


class Parts:
    """What a plan is made for, loaded: as in a `Subject`, but without images."""

    def __init__(
        self,
        model: str | nn.Module | Network,
        layer: str | Sequence[str],
        encoder: str | Encoder,
        vocabulary: str | None,
        text_head: str | TextHead | None,
        channels: slice | Sequence[int] | None,
        config: PSIConfig,
        device: torch.device,
        trust_checkpoint: bool = False,
    ) -> None:
        if text_head is not None:
            require_pairwise(config)
        pick_backend(config.backend, device)
        self.network, self.device, self.config = load_network(model, trust_checkpoint), device, config
        self.taps = [ActivationTap(self.network, name, device) for name in read_layers(layer)]
        self.channels, self.vocabulary = channels, vocabulary
        self.chosen = [read_channels(channels, tap.layer, tap.channels) for tap in self.taps]
        self.encoder = load_encoder(encoder, trust_checkpoint).to(device)
        self.words = None if vocabulary is None else load_vocabulary(vocabulary)
        if self.words is not None and isinstance(self.encoder, ClassifierEncoder):
            self.encoder.require_own(self.words)
        self.head = None if text_head is None else load_text_head(text_head).to(device)

    def workload(
        self,
        source: ImageSet | None,
        image_bytes: float | None,
        classes: int,
        bank: str | Path | None,
        bank_side: int | None,
        skip_unreadable: bool,
    ) -> Workload:
        """The sizes of all there is; of images as `source` has them, or as given where there is none."""
        largest, entry = max(self.network.preprocess.resize, self.encoder.preprocess.resize), NAME_BYTES
        side = bank_side or largest
        if source is not None:
            if len(source) < self.config.top_k:
                raise InputError(
                    f"the sample must hold at least top_k = {self.config.top_k} images, got {len(source)}; give more images"
                )
            side = side_for(source, largest, bank_side)
            rows = np.unique(np.linspace(0, len(source) - 1, SAMPLED, dtype=int)).tolist()
            entry = float(np.mean([source.entry_bytes(row) for row in rows]))
            classes = 0 if source.labels is None else len(np.unique(source.labels))
            if image_bytes is None:
                image_bytes = _mean_bytes(source, rows)
        found, width = encoder_size(self.encoder, self.device)
        concepts, operations = text_operations(self.encoder, self.words)
        head_width = 0
        if self.head is not None:
            more, head_width = head_operations(self.head, concepts)
            operations += more
        return Workload(
            network=network_size(self.network, self.taps),
            encoder=found,
            layers=tuple(
                LayerSize(name=tap.layer, channels=len(ids), width=tap.channels, positions=tap.positions)
                for tap, ids in zip(self.taps, self.chosen, strict=True)
            ),
            config=self.config,
            embedding_width=width,
            concepts=concepts,
            head_width=head_width,
            text_flops=operations,
            classes=classes,
            bank_side=0 if bank == STREAM else side,
            bank_named=bank not in (None, STREAM),
            image_bytes=image_bytes or 0.0,
            entry_bytes=entry,
            skip_unreadable=skip_unreadable,
        )

    def trial(
        self,
        source: ImageSet,
        work: Workload,
        count: int,
        stream: bool,
        bank_side: int | None,
        watch: Stopwatch,
        bars: TimedProgress,
    ) -> Trial:
        """Every stage tried on `count` of the images, whose squares go to a temporary folder, whatever lies in others."""
        with TemporaryDirectory(prefix="psi-fast-plan-") as place:
            subject = open_subject(
                self.network,
                [tap.layer for tap in self.taps],
                source,
                encoder=self.encoder,
                vocabulary=self.vocabulary,
                text_head=self.head,
                config=self.config,
                channels=self.channels,
                device=self.device.type,
                max_images=count,
                skip_unreadable=False,
                bank=STREAM if stream else place,
                bank_side=bank_side,
                trust_checkpoint=False,  # they are loaded
                bars=bars,
            )
            return try_stages(subject, work, len(source), watch, bars)


def _mean_bytes(images: ImageSet, rows: Sequence[int]) -> float:
    """Of the images' files."""
    found = [images.stored_bytes(row) for row in rows]
    known = [size for size in found if size is not None]
    if not known:
        raise InputError(
            "the sample's images come without files, so nothing says how large these are; give --image-bytes"
        )
    return float(np.mean(known))
