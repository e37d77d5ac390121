"""What the benchmarks share: a layer's responses to images, and where Tiny-ImageNet's classes lie among ImageNet's."""

import argparse
from pathlib import Path

import numpy as np
import torch

from psi_fast.activation_tap import ActivationTap
from psi_fast.environment import keep_freed_memory
from psi_fast.images import ImageSet, open_images
from psi_fast.networks import load_network
from psi_fast.prefetch import batches, prefetch
from psi_fast.progress import Progress

BATCH = 32


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options every benchmark on Tiny-ImageNet has."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/tiny-imagenet-200-val.zip"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def responses(network_spec: str, layer: str, images: ImageSet) -> np.ndarray:
    """Largest response over positions of each unit of a layer to each image, float32 [N, C]."""
    network = load_network(network_spec)
    tap = ActivationTap(network, layer, torch.device("cpu"))
    loaded = prefetch(lambda i: network.preprocess(images.load(i)), range(len(images)), ahead=2 * BATCH)
    parts = []
    with tap, torch.inference_mode(), Progress().bar(f"{network_spec} {layer}", len(images), "img") as bar:
        for batch in batches(loaded, BATCH):
            parts.append(tap(torch.stack(batch)).amax(2))
            bar.update(len(batch))
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
