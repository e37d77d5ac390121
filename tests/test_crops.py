"""Each distinct crop is cut and encoded once, at whole pixels inside its image, as image libraries do it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from PIL import Image

from psi_fast import Preprocess, PSIConfig
from psi_fast.crops import distinct_crops, embed, prepare, whole_pixels
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.image_bank import open_bank
from psi_fast.images import open_images
from psi_fast.progress import Progress

CPU = torch.device("cpu")


SIDE = 40


def random_boxes(rng, count, side=SIDE):
    """[N, 4] boxes inside a bank's images, some with no area, some at a border."""
    corners = np.sort(rng.random((count, 2, 2)) * 1.2 - 0.1, axis=1).clip(0, 1)
    corners[rng.random(count) < 0.1, 1] = corners[0, 0]
    corners = np.sort(corners, axis=1)
    corners[rng.random(count) < 0.1] = 1.0
    return (corners * side).reshape(-1, 4)


def encode(crops, encoder=None, images=None, **changes):
    images = images or tiny.image_set(10)
    config = replace(tiny.CONFIG, **changes)
    bank = tiny.bank(images, SIDE)
    return embed(crops, bank, images.names, encoder or tiny.TinyEncoder(), CPU, config, Progress(False))


def some_crops(count=37, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 10, count)
    return distinct_crops(images, random_boxes(rng, count))[0]


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 6), (3, 1, 4)])
def test_distinct_crops_hold_each_pair_once_and_index_finds_it(shape):
    rng = np.random.default_rng(len(shape))
    images = rng.integers(-1, 4, shape)
    images.flat[0] = 2
    boxes = rng.integers(0, 2, (*shape, 4)) + 0.25
    crops, index = distinct_crops(images, boxes)
    held = images >= 0
    wanted = {(int(i), *box) for i, box in zip(images[held], boxes[held].tolist(), strict=True)}
    assert {tuple(row) for row in crops.tolist()} == wanted
    assert len(crops) == len(wanted)
    assert index.shape == shape
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index == -1, ~held)
    np.testing.assert_array_equal(crops[index[held]], np.column_stack((images[held], boxes[held])))
    assert (np.diff(crops[:, 0]) >= 0).all()


def test_distinct_crops_without_any_patch():
    crops, index = distinct_crops(np.full((2, 3), -1), np.zeros((2, 3, 4)))
    assert crops.shape == (0, 5)
    np.testing.assert_array_equal(index, -1)


def test_every_distinct_crop_is_encoded_once():
    crops, encoder = some_crops(), tiny.TinyEncoder()
    result = encode(crops, encoder, batch_size=8)
    assert encoder.encoded == len(crops)
    assert max(encoder.batches) <= 8
    assert result.shape == (len(crops), 10)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=1), torch.ones(len(crops)))


def test_rows_are_the_embeddings_of_their_crops():
    crops, encoder = some_crops(), tiny.TinyEncoder()
    result = encode(crops, batch_size=8)
    pixels = tiny.bank(tiny.image_set(10), SIDE).read(slice(None), CPU)
    for row, (index, x0, y0, x1, y1) in zip(result, crops, strict=True):
        left, top = (min(int(np.floor(v)), SIDE - 1) for v in (x0, y0))
        right, bottom = (max(int(np.ceil(v)), start + 1) for v, start in ((x1, left), (y1, top)))
        wanted = encoder.encode(encoder.preprocess(pixels[int(index), top:bottom, left:right][None]))[0]
        torch.testing.assert_close(row, wanted / wanted.norm(), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize(
    "make", [tiny.TinyEncoder, lambda: ClassifierEncoder(tiny.classifier())], ids=["tiny", "classifier"]
)
def test_the_batch_size_changes_no_bit(make):
    crops = some_crops()
    wanted = encode(crops, make(), batch_size=1)
    for batch_size in (16, 32, 100):
        assert torch.equal(encode(crops, make(), batch_size=batch_size), wanted)


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("spoil", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_an_embedding_that_is_zero_or_not_finite_names_the_image(spoil, batch_size):
    encoder, images = tiny.TinyEncoder(spoil=spoil), tiny.image_set(10, red=(7,))
    text = message(encode, some_crops(), encoder, images, batch_size=batch_size)
    assert "'picture-7'" in text
    assert text.startswith("embedding")
    assert "tiny-encoder" in text


@pytest.mark.parametrize("size", [1e-15, 1e-30, 1e30])
def test_embeddings_of_any_magnitude_become_unit_rows(size):
    class Scaled(tiny.TinyEncoder):
        def encode(self, batch):
            return super().encode(batch) * size

    torch.testing.assert_close(encode(some_crops(), Scaled()), encode(some_crops()), atol=1e-6, rtol=0)


def test_a_crop_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    bank, images = tiny.bank(tiny.image_set(10), SIDE), rng.integers(0, 10, 50)
    boxes = whole_pixels(random_boxes(rng, 50), SIDE)
    boxes[10:30] = boxes[0]  # some of one size
    preprocess = Preprocess(size=24, resize=28)
    together = prepare(bank, images, boxes, preprocess, CPU)
    alone = torch.cat([prepare(bank, images[i : i + 1], boxes[i : i + 1], preprocess, CPU) for i in range(50)])
    assert together.shape == (50, 3, 24, 24)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_widened_to_whole_pixels_inside_the_image(seed):
    rng = np.random.default_rng(seed)
    side = int(rng.integers(1, 200))
    boxes = random_boxes(rng, 150, side)
    whole = whole_pixels(boxes, side)
    assert whole.dtype == np.int64
    assert whole.min() >= 0
    assert whole.max() <= side
    width = whole[:, 2:] - whole[:, :2]
    assert (width >= 1).all()
    before, after = boxes[:, :2] - whole[:, :2], whole[:, 2:] - boxes[:, 2:]
    assert (before >= 0).all()  # nothing of the box is lost
    assert (after >= 0).all()
    assert (before <= 1).all()  # and less than a pixel is added on each side,
    assert ((after < 1) | (width == 1)).all()  # unless the box has no area


def test_the_prepared_crop_is_the_one_image_libraries_cut():
    preprocess, bank = Preprocess(24, 24, (0.0,) * 3, (1.0,) * 3), tiny.bank(tiny.image_set(10), SIDE)
    boxes = whole_pixels(random_boxes(np.random.default_rng(3), 10), SIDE)
    pixels = bank.read(slice(None), CPU).numpy()
    for square, box, found in zip(pixels, boxes, prepare(bank, np.arange(10), boxes, preprocess, CPU), strict=True):
        part = Image.fromarray(square).crop(box.tolist())
        scaled = part.resize([24 * side // min(part.size) for side in part.size], Image.Resampling.BICUBIC)
        left, top = (round((side - 24) / 2) for side in scaled.size)
        wanted = np.asarray(scaled.crop((left, top, left + 24, top + 24)), dtype=np.float32) / 255
        assert np.abs(found.permute(1, 2, 0).numpy() - wanted).max() <= 1.01 / 255


def test_embeddings_are_those_of_open_clips_own_preprocessing(tiny_val_zip):
    open_clip = pytest.importorskip("open_clip")
    images = open_images(tiny_val_zip, max_images=200)
    bank = open_bank(images, 224, progress=Progress(False))
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    transform = open_clip.image_transform(224, is_train=False, mean=mean, std=std)
    encoder = ClassifierEncoder("efficientnet-lite:lite0")
    encoder.preprocess = Preprocess(224, 224, mean, std)
    rng = np.random.default_rng(0)
    corner, size = rng.integers(0, 40, (200, 2)), rng.integers(16, 65, (200, 1))
    boxes = np.concatenate((corner, (corner + size).clip(max=64)), 1)  # whole pixels of the originals
    crops = np.column_stack((np.arange(200), boxes)).astype(np.float64)
    found = embed(crops, bank, images.names, encoder, CPU, PSIConfig(), Progress(False))
    alone = torch.stack([transform(images.load(i).crop(box)) for i, box in enumerate(boxes.tolist())])
    cosine = torch.nn.functional.cosine_similarity(found, encoder.encode(alone))
    assert bank.side == 64
    assert cosine.min() >= 0.995
