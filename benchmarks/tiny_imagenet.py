"""What the benchmarks share: a layer's responses to images, Tiny-ImageNet's classes among ImageNet's, and planted units."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from psi_fast import PSIConfig
from psi_fast.activation_tap import ActivationTap
from psi_fast.crops import embed
from psi_fast.encoders import load_encoder
from psi_fast.environment import keep_freed_memory
from psi_fast.image_bank import open_bank
from psi_fast.image_set import ImageSet
from psi_fast.images import open_images
from psi_fast.networks import Network, load_network
from psi_fast.progress import Progress
from psi_fast.store import fingerprint

BATCH = 32
SIDE = 260
"""The largest input of the networks used here; Tiny-ImageNet's images have 64 px, and stay so."""
PLANTED = {"mono": 1, "poly2": 2, "poly3": 3}
"""Kinds of planted units, and of how many classes."""


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options every benchmark on Tiny-ImageNet has."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/tiny-imagenet-200-val.zip"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def planted_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of `planted_units`."""
    parser = arguments(description)
    parser.add_argument("--classes", type=int, default=200, help="use so many classes, evenly spread")
    parser.add_argument("--units", type=int, default=100, help="planted units of each kind")
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder that keeps logits and embeddings between runs")
    return parser


class Planted(NamedTuple):
    """Units whose number of classes is known.

    kind : [U] of "mono", "poly2", "poly3", "random"
    top : [U, K] int64, the images each unit responds to most
    labels : [N] int64, the images' classes
    embeddings : [N, d] float32 unit rows
    names, text : the P concepts and their embeddings [P, d], unit rows
    accuracy : share of the images that the network behind the units recognises
    """

    kind: np.ndarray
    top: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray
    names: list[str]
    text: Tensor
    accuracy: float


def planted_units(options: argparse.Namespace) -> Planted:
    """Units over EfficientNet-Lite0's class logits, their images embedded by EfficientNet-Lite2.

    mono: one class logit; poly m: the maximum of m class logits' ranks over the images, so that every class gets its share
    of the top; random: random images.
    """
    images, classes = some_classes(open_labelled(options.images), options.classes)
    network = load_network("efficientnet-lite:lite0")
    logits = kept(
        options.cache, ["_fc", network.fingerprint(), images.fingerprint], lambda: responses(network, "_fc", images)
    )[:, imagenet_rows(images)[classes]]
    encoder = load_encoder("classifier:efficientnet-lite:lite2").to(torch.device("cpu"))
    names, text = encoder.concepts(None)
    bank = open_bank(images, SIDE, progress=Progress())
    whole = np.array([(i, 0, 0, bank.side, bank.side) for i in range(len(images))], dtype=float)
    embeddings = kept(
        options.cache,
        ["whole images", encoder.fingerprint(), images.fingerprint],
        lambda: embed(whole, bank, images.names, encoder, torch.device("cpu"), PSIConfig(), Progress()).numpy(),
    )

    rng = np.random.default_rng(options.seed)
    ranks = logits.argsort(0).argsort(0)
    values = [
        ranks[:, rng.choice(options.classes, members, replace=False)].max(1)
        for members in PLANTED.values()
        for _ in range(options.units)
    ]
    top = [np.argsort(-value, kind="stable")[: options.top_k] for value in values]
    top += [rng.choice(len(images), options.top_k, replace=False) for _ in range(options.units)]
    return Planted(
        kind=np.repeat([*PLANTED, "random"], options.units),
        top=np.array(top),
        labels=np.asarray(images.labels),
        embeddings=embeddings,
        names=names,
        text=normalize(text, dim=1),
        accuracy=float((classes[logits.argmax(1)] == images.labels).mean()),
    )


def kept(folder: Path | None, origin: list[str], make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` returns, read from `folder` if an earlier run with the same `origin` left it there."""
    if folder is None:
        return make()
    path = folder / f"{fingerprint(origin)[:16]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.load(path)


def responses(network: str | Network, layer: str, images: ImageSet) -> np.ndarray:
    """Largest response over positions of each unit of a layer to each image, float32 [N, C]."""
    network = load_network(network)
    tap = ActivationTap(network, layer, torch.device("cpu"))
    bank, parts = open_bank(images, SIDE, progress=Progress()), []
    with tap, torch.inference_mode(), Progress().bar(f"{network.name} {layer}", len(images), "img") as bar:
        for first in range(0, len(images), BATCH):
            pixels = bank.read(slice(first, first + BATCH), torch.device("cpu"))
            parts.append(tap(network.preprocess(pixels)).amax(2))
            bar.update(len(pixels))
    return torch.cat(parts).numpy()


def imagenet_rows(images: ImageSet) -> np.ndarray:
    """Index among ImageNet-1k's classes of each of the set's classes, by WordNet id, int64."""
    from timm.data import ImageNetInfo

    wordnet = ImageNetInfo("imagenet-1k").label_names()
    return np.array([wordnet.index(key) for key in images.class_keys or []])


def some_classes(images: ImageSet, count: int) -> tuple[ImageSet, np.ndarray]:
    """The images of `count` classes evenly spread over the set's, and which those are, int64."""
    labels = images.labels
    if labels is None:
        raise SystemExit("the benchmark needs labels: give Tiny-ImageNet's val zip or folder")
    classes = np.unique(np.linspace(0, labels.max(), count, dtype=np.int64))
    return images.take(np.flatnonzero(np.isin(labels, classes)).tolist()), classes


def open_labelled(path: Path, max_images: int | None = None) -> ImageSet:
    """Tiny-ImageNet's images, or an evenly spread subset."""
    return open_images(path, max_images=max_images)
