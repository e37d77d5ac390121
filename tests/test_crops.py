"""Each distinct crop is cut and encoded once, at whole pixels inside its image."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from PIL import Image

from psi_fast.crops import distinct_crops, embed
from psi_fast.encoders.classifier import ClassifierEncoder
from psi_fast.images import ImageSet
from psi_fast.progress import Progress

CPU = torch.device("cpu")


def random_boxes(rng, sizes):
    """[N, 4] boxes inside images of `sizes` [N, 2], some with no area, some at a border."""
    corners = np.sort(rng.random((len(sizes), 2, 2)) * 1.2 - 0.1, axis=1).clip(0, 1)
    corners[rng.random(len(sizes)) < 0.1, 1] = corners[0, 0]
    corners = np.sort(corners, axis=1)
    corners[rng.random(len(sizes)) < 0.1] = 1.0
    return (corners * sizes[:, None, :]).reshape(-1, 4)


def encode(crops, encoder=None, images=None, **changes):
    encoder = encoder or tiny.TinyEncoder()
    config = replace(tiny.CONFIG, **changes)
    return embed(crops, images or tiny.image_set(10), encoder, CPU, config, Progress(False))


def some_crops(count=37, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 10, count)
    boxes = random_boxes(rng, np.array([tiny.sizes(i) for i in images]))
    return distinct_crops(images, boxes)[0]


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


def test_every_distinct_crop_is_prepared_and_encoded_once():
    crops = some_crops()
    encoder, loads = tiny.TinyEncoder(), []
    images = tiny.image_set(10)
    plain, images.load = images.load, lambda index: (loads.append(index), plain(index))[1]
    result = encode(crops, encoder, images, batch_size=8)
    assert encoder.prepared == encoder.encoded == len(crops)
    assert max(encoder.batches) <= 8
    assert sorted(loads) == sorted(set(crops[:, 0].astype(int)))  # each image decoded once
    assert result.shape == (len(crops), 10)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=1), torch.ones(len(crops)))


def test_rows_are_the_embeddings_of_their_crops():
    crops, encoder, images = some_crops(), tiny.TinyEncoder(), tiny.image_set(10)
    result = encode(crops, batch_size=8)
    for row, (index, x0, y0, x1, y1) in zip(result, crops, strict=True):
        picture = images.load(int(index))
        low = [min(int(np.floor(v)), side - 1) for v, side in zip((x0, y0), picture.size, strict=True)]
        high = [max(int(np.ceil(v)), start + 1) for v, start in zip((x1, y1), low, strict=True)]
        wanted = encoder.encode(encoder.prepare(picture.crop((*low, *high)))[None])[0]
        torch.testing.assert_close(row, wanted / wanted.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "make", [tiny.TinyEncoder, lambda: ClassifierEncoder(tiny.classifier())], ids=["tiny", "classifier"]
)
def test_the_batch_size_changes_no_bit(make):
    crops = some_crops()
    wanted = encode(crops, make(), batch_size=1)
    for batch_size in (3, 8, 32, 100):
        assert torch.equal(encode(crops, make(), batch_size=batch_size), wanted)


@pytest.mark.parametrize("spoil", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
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


class Ruler:
    """Images whose red and green tell each pixel's x and y; an encoder that notes which of them it was given."""

    name, size, warnings = "ruler", 1, ()

    def __init__(self, sizes):
        self.seen = {}

        def read(name):
            width, height = sizes[int(name)]
            x, y = np.meshgrid(np.arange(width), np.arange(height))
            return Image.fromarray(np.stack((x, y, np.full_like(x, 255)), axis=2).astype(np.uint8))

        names = [str(i) for i in range(len(sizes))]
        self.images = ImageSet(names, read, names)
        plain = self.images.load

        def load(index):
            picture = plain(index)
            cut = picture.crop

            def crop(box):
                part = cut(box)
                part.info["number"] = index
                return part

            picture.crop = crop
            return picture

        self.images.load = load

    def prepare(self, crop):
        self.seen[crop.info["number"]] = np.asarray(crop)
        return torch.ones(3, 1, 1)

    def encode(self, batch):
        return torch.ones(len(batch), 2)

    def to(self, device):
        return self


@pytest.mark.parametrize("seed", range(5))
def test_crops_are_the_box_widened_to_whole_pixels_inside_the_image(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 200, (150, 2))
    sizes[0] = (1, 1)
    boxes = random_boxes(rng, sizes)
    ruler = Ruler(sizes.tolist())
    encode(distinct_crops(np.arange(150), boxes)[0], ruler, ruler.images)
    assert len(ruler.seen) == 150
    for i, pixels in ruler.seen.items():
        height, width, _ = pixels.shape
        assert min(height, width) >= 1
        assert (pixels[..., 2] == 255).all(), "a crop reaches over the border of its image"
        x0, x1, y0, y1 = pixels[..., 0].min(), pixels[..., 0].max() + 1, pixels[..., 1].min(), pixels[..., 1].max() + 1
        assert (x1 - x0, y1 - y0) == (width, height)
        for low, high, start, stop in ((x0, x1, *boxes[i, [0, 2]]), (y0, y1, *boxes[i, [1, 3]])):
            assert low <= start  # nothing of the box is lost
            assert high >= stop
            assert start - low <= 1  # and less than a pixel is added on each side,
            assert high - stop < 1 or high - low == 1  # unless the box has no area
