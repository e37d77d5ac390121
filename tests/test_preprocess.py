"""How networks are fed: against torchvision and PIL, and boxes there and back."""

import numpy as np
import PIL.Image
import pytest
import torch

from psi_fast import Preprocess
from psi_fast.errors import ModelError
from psi_fast.networks import load_network

ONE_STEP = 1 / 255 / 0.224
"""One of the 256 steps of a pixel, after normalising by the smallest of ImageNet's deviations."""


def noise(height, width, count=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def pil(pixels):
    return PIL.Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(301, 400), (400, 301), (64, 64), (256, 256), (9, 1000), (224, 230)])
def test_equals_torchvision_within_a_step(height, width, interpolation):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    ours = load_network("torchvision:resnet50@none").preprocess
    ours = Preprocess(224, 256, ours.mean, ours.std, interpolation)
    preset = ImageClassification(crop_size=224, resize_size=256, interpolation=InterpolationMode(interpolation))
    pixels = noise(height, width)
    difference = (ours(pixels)[0] - preset(pil(pixels[0]))).abs()
    assert difference.max() <= 1.01 * ONE_STEP
    assert (difference > 1e-6).float().mean() < 0.2  # nearly all are equal


def test_squash_takes_the_whole_image():
    ours = Preprocess(48, 48, (0.5,) * 3, (0.5,) * 3, squash=True)
    pixels = noise(60, 100)
    wanted = torch.from_numpy(np.asarray(pil(pixels[0]).resize((48, 48), PIL.Image.Resampling.BICUBIC)).copy())
    assert (ours(pixels)[0] - (wanted.permute(2, 0, 1) / 127.5 - 1)).abs().max() <= 1.01 / 127.5
    assert ours.to_image(np.array([0.0, 0, 48, 48]), np.array([100, 60])).tolist() == [0, 0, 100, 60]


def test_squash_before_the_cut():
    ours = Preprocess(40, 48, (0.5,) * 3, (0.5,) * 3, squash=True)
    pixels = noise(60, 100)
    squashed = pil(pixels[0]).resize((48, 48), PIL.Image.Resampling.BICUBIC).crop((4, 4, 44, 44))
    wanted = torch.from_numpy(np.asarray(squashed).copy()).permute(2, 0, 1) / 127.5 - 1
    assert (ours(pixels)[0] - wanted).abs().max() <= 1.01 / 127.5
    box = ours.to_image(np.array([0.0, 0, 40, 40]), np.array([96, 60]))
    assert box.tolist() == [8, 5, 88, 55]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 33)])
def test_an_image_does_not_depend_on_its_batch(height, width):
    preprocess, pixels = Preprocess(size=40, resize=48), noise(height, width, 7)
    alone = torch.cat([preprocess(pixels[i : i + 1]) for i in range(7)])
    assert alone.shape == (7, 3, 40, 40)
    assert alone.dtype == torch.float32
    assert torch.equal(preprocess(pixels), alone)


def test_pixels_of_the_right_size_are_only_normalised():
    pixels = noise(32, 32)
    found = Preprocess(32, 32, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))(pixels)[0]
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.2, 0.3]])[:, :, None, None]
    torch.testing.assert_close(found, (pixels[0].permute(2, 0, 1) / 255 - mean) / std, atol=1e-5, rtol=0)


def test_boxes_return_to_the_image():
    preprocess = Preprocess(size=100, resize=200)
    # 400 x 800 shrinks to 200 x 400; the cut starts at (50, 150).
    boxes = np.array([[[0, 0, 100, 100], [10, 20, 30, 40]], [[0, 0, 100, 100], [0, 0, 100, 100]]])
    sizes = np.array([[[400, 800], [400, 800]], [[50, 50], [200, 300]]])
    back = preprocess.to_image(boxes, sizes)
    expected = [
        [[100, 300, 300, 500], [120, 340, 160, 380]],
        [[12.5, 12.5, 37.5, 37.5], [50, 100, 150, 200]],
    ]
    assert back.dtype == np.float64
    assert np.allclose(back, expected)


def test_a_marked_pixel_is_found_again():
    preprocess = Preprocess(size=64, resize=80)
    pixels = torch.zeros(1, 150, 211, 3, dtype=torch.uint8)
    pixels[:, 70:74, 100:104] = 255
    seen = preprocess(pixels)[0].sum(0)
    row, column = np.unravel_index(int(seen.argmax()), seen.shape)
    x0, y0, x1, y1 = preprocess.to_image(np.array([column, row, column + 1, row + 1]), np.array([211, 150]))
    assert x0 < 104
    assert x1 > 100
    assert y0 < 74
    assert y1 > 70


def test_boxes_are_clipped():
    box = Preprocess(size=10, resize=10).to_image(np.array([-5.0, -5, 20, 20]), np.array([30, 30]))
    assert box.tolist() == [0, 0, 30, 30]


@pytest.mark.parametrize(("size", "resize"), [(224, 200), (0, 10)])
def test_bad_sizes(size, resize):
    with pytest.raises(ModelError, match="size <= resize"):
        Preprocess(size, resize)


def test_other_bad_settings():
    with pytest.raises(ModelError, match="bilinear or bicubic"):
        Preprocess(10, 10, interpolation="nearest")
