"""Receptive fields against arithmetic, and boxes against hand-made ones."""

import numpy as np
import pytest
import torch
from torch import nn

from psi_fast.activation_tap import ActivationTap
from psi_fast.errors import ConfigError, ModelError
from psi_fast.networks import Network, load_network
from psi_fast.preprocess import Preprocess
from psi_fast.progress import Progress
from psi_fast.receptive_field import Field, boxes, measure_field, measure_fields

CPU = torch.device("cpu")


def arithmetic(layers):
    """(field, stride, offset) of a stack of (kernel, stride, padding); the offset is from the cell's centre.

    A layer adds (kernel - 1) times the stride so far; position i of its output begins `padding` steps before i strides.
    """
    field, step, begin = 1, 1, 0
    for kernel, stride, padding in layers:
        field += (kernel - 1) * step
        begin -= padding * step
        step *= stride
    return field, step, begin + field / 2 - step / 2


def tap_of(module, size, layer=None):
    names = [name for name, _ in module.named_children()]
    return ActivationTap(Network(module, Preprocess(size, size), "stack"), layer or names[-1], CPU)


def stack(layers, weight=None):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3 if i == 0 else 4, 4, k, s, p, bias=False) for i, (k, s, p) in enumerate(layers)]
    if weight is not None:
        for convolution in convolutions:
            nn.init.constant_(convolution.weight, weight)
    return nn.Sequential(*convolutions)


def resnet50_until(stage):
    """The layers of ResNet-50 wider than a pixel, up to layer`stage`: the stem, then 3, 4, 6 and 3 bottlenecks."""
    layers = [(7, 2, 3), (3, 2, 1)]
    for number, blocks in enumerate((3, 4, 6, 3)[:stage]):
        layers += [(3, 2 if number else 1, 1)] + [(3, 1, 1)] * (blocks - 1)
    return layers


STACKS = [
    [(3, 1, 1)],
    [(1, 1, 0)],
    [(3, 2, 1), (3, 2, 1)],
    [(7, 2, 3), (3, 2, 1), (3, 1, 1)],
    [(5, 3, 0), (2, 2, 0)],
    [(4, 4, 0), (3, 1, 1), (3, 1, 1)],
]


class TestTheoretical:
    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_a_field_that_ends_at_the_border(self, size):
        field = measure_field(tap_of(stack([(3, 1, 1)]), size), size, "theoretical")
        assert field.whole_image == (size == 2)
        assert field.size == (min(size, 3), min(size, 3))

    @pytest.mark.parametrize("layers", STACKS, ids=str)
    def test_stack_of_convolutions(self, layers):
        size, side, step, offset = 60, *arithmetic(layers)
        tap = tap_of(stack(layers), size)
        field = measure_field(tap, size, "theoretical")
        assert field.size == (side, side)
        assert not field.whole_image
        if size % step == 0 and tap.grid[0] == size // step:  # else cells are no whole strides
            assert field.offset == (offset, offset)

    def test_sides_apart(self):
        module = nn.Sequential(
            nn.Conv2d(3, 4, (3, 7), padding=(1, 3)), nn.ReLU6(), nn.Conv2d(4, 4, (1, 5), padding=(0, 2))
        )
        assert measure_field(tap_of(module, 33), 33, "theoretical").size == (3, 11)

    def test_pooling(self):
        module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))
        assert measure_field(tap_of(module, 40), 40, "theoretical").size == (7, 7)  # 3, + 2, + 1 * 2

    # torchvision strides in a bottleneck's 3 x 3 convolution; strided in the 1 x 1 before it, layer4 would reach 483 px.
    def test_resnet50_arithmetic(self):
        sides = [arithmetic(resnet50_until(stage))[0] for stage in range(5)]
        assert sides == [11, 35, 91, 267, 427]
        assert arithmetic([(7, 2, 3)])[0] == 7

    @pytest.mark.parametrize(("layer", "stage"), [("conv1", None), ("layer1", 1), ("layer3", 3), ("layer4", 4)])
    def test_resnet50(self, layer, stage):
        side, _, offset = arithmetic([(7, 2, 3)] if stage is None else resnet50_until(stage))
        field = measure_field(ActivationTap(load_network("torchvision:resnet50@none"), layer, CPU), 224, "theoretical")
        if stage == 4:
            assert field.whole_image
            assert field.size == (224, 224)
            assert "border" in field.note
        else:
            assert field == Field("theoretical", (side, side), False, "", (offset, offset))

    @pytest.mark.parametrize(("layer", "side"), [("layer1", 43), ("layer2", 99), ("layer3", 211)])
    def test_resnet18(self, layer, side):
        strides = [1] * 4 + [2, 1, 1, 1] * 2
        layers = [(7, 2, 3), (3, 2, 1), *((3, stride, 1) for stride in strides[: 4 * int(layer[-1])])]
        known, _, offset = arithmetic(layers)
        field = measure_field(ActivationTap(load_network("torchvision:resnet18@none"), layer, CPU), 224, "theoretical")
        assert known == side
        assert field == Field("theoretical", (side, side), False, "", (offset, offset))

    @pytest.mark.parametrize(("block", "side"), [(5, 83), (8, 211), (9, 275)])
    def test_lite0(self, block, side):
        """By the convolutions of the module itself; those with a stride pad one line less in front."""
        pytest.importorskip("efficientnet_lite_pytorch")
        network, layers = load_network("efficientnet-lite:lite0"), []
        for part in (network.module._conv_stem, *network.module._blocks[: block + 1]):
            for convolution in (own for own in part.modules() if isinstance(own, nn.Conv2d)):
                padded = next((own.padding[0] for own in convolution.children() if isinstance(own, nn.ZeroPad2d)), 0)
                layers.append((convolution.kernel_size[0], np.ravel(convolution.stride)[0], padded))
        known, _, offset = arithmetic(layers)
        field = measure_field(ActivationTap(network, f"_blocks.{block}", CPU), 224, "theoretical")
        assert known == side
        assert field == Field("theoretical", (side, side), False, "", (offset, offset))

    def test_a_wide_field_is_clipped_at_each_border(self):
        """Pixel by pixel, what can change a unit in the corner, at the border and in the middle of a map."""
        size, layers = 40, [(7, 2, 3)] * 3
        tap = tap_of(stack(layers, weight=1.0), size)
        field = measure_field(tap, size, "theoretical")
        assert field.size == (43, 43)
        for position in (0, 3, 12, 24):
            batch = torch.ones(1, 3, size, size, requires_grad=True)
            with tap:
                (gradient,) = torch.autograd.grad(tap(batch)[0, :, position].sum(), batch)
            rows, columns = np.nonzero(gradient.sum((0, 1)).numpy())
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert boxes(field, np.array([position]), tap.grid, 0, size)[0].tolist() == seen

    def test_windows_have_no_field_of_one_shape(self):
        pytest.importorskip("timm")
        from test_families import timm_swin

        tap = ActivationTap(Network(timm_swin(), Preprocess(32, 32), "swin"), "layers.0", CPU)
        field = measure_field(tap, 32, "theoretical")
        assert field.whole_image
        assert "windows" in field.note

    def test_an_enlarged_map_keeps_its_field(self):
        module = nn.Sequential(*stack([(5, 2, 2), (5, 2, 2), (5, 1, 2)]), nn.Upsample(scale_factor=2))
        assert measure_field(tap_of(module, 64), 64, "theoretical").size == (29, 29)

    @pytest.mark.parametrize("glue", ["squeeze", "blocks.0", "blocks.0.mlp.act", "blocks.0.attn#heads"])
    def test_global_operations_see_the_whole_image(self, glue):
        if glue == "squeeze":
            from torchvision.ops import SqueezeExcitation

            tap = tap_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), SqueezeExcitation(4, 2)), 32)
        else:
            pytest.importorskip("timm")
            tap = ActivationTap(load_network("timm:vit_tiny_patch16_224@none"), glue, CPU)
        size = tap.network.preprocess.size
        field = measure_field(tap, size, "theoretical")
        assert field.whole_image
        assert field.size == (size, size)

    def test_patch_embedding(self):
        pytest.importorskip("timm")
        tap = ActivationTap(load_network("timm:vit_tiny_patch16_224@none"), "patch_embed", CPU)
        assert measure_field(tap, 224, "theoretical") == Field("theoretical", (16, 16), False)

    def test_nan_weights(self):
        module = stack([(3, 1, 1)])
        nn.init.constant_(module[0].weight, torch.nan)
        with pytest.raises(ModelError, match="NaN on a blank image"):
            measure_field(tap_of(module, 16), 16, "theoretical")


class TestEffective:
    @pytest.mark.parametrize("layers", STACKS, ids=str)
    def test_at_most_theoretical(self, layers):
        tap = tap_of(stack(layers), 60)
        theoretical = measure_field(tap, 60, "theoretical")
        effective = measure_field(tap, 60, "effective", probes=8)
        # The square is centred on the cell, so it holds the whole field once it is wider by twice the offset.
        assert 1 <= effective.size[0] <= theoretical.size[0] + 2 * max(map(abs, theoretical.offset))
        assert effective.offset == (0, 0)

    def test_gaussian_stack_is_well_below_theoretical(self):
        # Twelve 3 x 3 means: the field is 25 px; the squared gradient is nearly a Gaussian of variance 12 * (2/3) / 2 = 4
        # per axis, of which a square of side 7 holds erf(3.5 / 2 / sqrt 2) ** 2 = .85, one of side 9 .95.
        tap = tap_of(stack([(3, 1, 1)] * 12, weight=1.0), 65)
        field = measure_field(tap, 65, "effective", probes=4)
        assert measure_field(tap, 65, "theoretical").size == (25, 25)
        assert field.size == (9, 9)

    def test_single_pixel(self):
        assert measure_field(tap_of(stack([(1, 1, 0)]), 15), 15, "effective").size == (1, 1)

    def test_share_is_exact(self):
        # Squared gradient: .5 at the centre, .45 spread over the ring at distance 1, .05 at distance 2.
        energy = torch.zeros(5, 5, dtype=torch.float64)
        energy[2, 2], energy[1, 1], energy[0, 0] = 0.5, 0.45, 0.05
        module = nn.Sequential(nn.Conv2d(3, 1, 5, padding=2, bias=False))
        module[0].weight.data[:] = (energy / 3).sqrt().float()
        field = measure_field(tap_of(module, 15), 15, "effective", probes=2)
        assert field.size == (3, 3)
        module[0].weight.data[:] = (energy.flip(0).flip(1) / 3).sqrt().float()
        assert measure_field(tap_of(module, 15), 15, "effective", probes=2).size == (3, 3)
        energy[2, 2], energy[1, 1], energy[0, 0] = 0.5, 0.35, 0.15
        module[0].weight.data[:] = (energy / 3).sqrt().float()
        assert measure_field(tap_of(module, 15), 15, "effective", probes=2).size == (5, 5)

    def test_every_probe_weighs_the_same(self):
        # Two channels: one narrow with a huge gradient, one wide with a small one. Unscaled, the narrow one would decide.
        module = nn.Sequential(nn.Conv2d(3, 2, 9, padding=4, bias=False))
        nn.init.zeros_(module[0].weight)
        module[0].weight.data[0, :, 4, 4] = 1e4
        module[0].weight.data[1, :, 0, 0] = 1.0
        assert measure_field(tap_of(module, 21), 21, "effective").size == (9, 9)

    def test_seeded(self):
        module = nn.Sequential(*stack([(3, 1, 1), (3, 2, 1)]), nn.ReLU())
        tap = tap_of(module, 32)
        assert measure_field(tap, 32, "effective", seed=3) == measure_field(tap, 32, "effective", seed=3)

    def test_dead_units(self):
        module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        nn.init.constant_(module[0].bias, -1000)
        with pytest.raises(ModelError, match="no gradient"):
            measure_field(tap_of(module, 16), 16, "effective")
        nn.init.constant_(module[0].bias[:4], 1000)
        field = measure_field(tap_of(module, 16), 16, "effective")
        assert "probes had no gradient" in field.note
        assert field.size[0] <= 4

    def test_uses_the_images_given(self):
        # Bright images open a wide unit, dark ones a narrow one.
        module = nn.Sequential(nn.Conv2d(3, 1, 9, padding=4, bias=False), nn.ReLU())
        nn.init.constant_(module[0].weight, 1.0)
        tap = tap_of(module, 31)
        assert measure_field(tap, 31, "effective", images=torch.ones(3, 3, 31, 31)).size == (9, 9)
        with pytest.raises(ModelError, match="no gradient"):
            measure_field(tap, 31, "effective", images=-torch.ones(3, 3, 31, 31))

    def test_inside_inference_mode_and_without_traces(self):
        tap = tap_of(stack([(3, 1, 1)]), 16)
        with torch.inference_mode():
            measure_field(tap, 16, "effective", probes=2)
        weight = tap.network.module[0].weight
        assert weight.grad is None
        assert weight.requires_grad

    def test_whole_image(self):
        module = nn.Sequential(nn.Conv2d(3, 2, 31, padding=15, bias=False))
        nn.init.constant_(module[0].weight, 1.0)
        field = measure_field(tap_of(module, 16), 16, "effective")
        assert field.whole_image
        assert field.size == (16, 16)

    def test_resnet50_layer4_is_measured(self):
        tap = ActivationTap(load_network("torchvision:resnet50@none"), "layer4", CPU)
        field = measure_field(tap, 224, "effective", probes=4)
        assert 32 < field.size[0] <= 224


class TestModes:
    def test_image_cell_and_fraction(self):
        tap = tap_of(nn.Sequential(nn.Conv2d(3, 4, (4, 2), stride=(4, 2))), 32)
        assert measure_field(tap, 32, "image").whole_image
        assert measure_field(tap, 32, "cell") == Field("cell", (4, 2), False)
        assert measure_field(tap, 32, 0.25) == Field(0.25, (8, 8), False)

    @pytest.mark.parametrize("mode", ["cell", "theoretical", "effective", 0.5])
    def test_vector_sees_the_whole_image(self, mode):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
        field = measure_field(tap_of(module, 16), 16, mode)
        assert field.whole_image
        assert "no map of positions" in field.note

    @pytest.mark.parametrize("mode", ["efective", 0, 1.5, -0.1])
    def test_bad_modes(self, mode):
        with pytest.raises(ConfigError, match="patch"):
            measure_field(tap_of(stack([(1, 1, 0)]), 8), 8, mode)


class TestBoxes:
    def test_by_hand(self):
        field = Field("cell", (8, 16), False)
        positions = np.array([[0, 5], [15, -1]])
        expected = [[[0, 0, 12, 8], [4, 8, 20, 16]], [[20, 24, 32, 32], [0, 0, 0, 0]]]
        result = boxes(field, positions, (4, 4), 0, 32)
        assert result.dtype == np.float64
        assert result.tolist() == expected

    def test_prefix_tokens_see_the_whole_image(self):
        result = boxes(Field("cell", (16, 16), False), np.array([0, 1, 2, 5]), (2, 2), 2, 32)
        assert result.tolist() == [[0, 0, 32, 32], [0, 0, 32, 32], [0, 0, 16, 16], [16, 16, 32, 32]]

    @pytest.mark.parametrize(
        ("field", "grid"), [(Field("image", (32, 32), True), (2, 2)), (Field("cell", (8, 8), False), None)]
    )
    def test_whole_image(self, field, grid):
        assert boxes(field, np.array([0, 3, -1]), grid, 0, 32).tolist() == [
            [0, 0, 32, 32],
            [0, 0, 32, 32],
            [0, 0, 0, 0],
        ]

    def test_theoretical_box_is_what_the_unit_sees(self):
        layers = [(3, 2, 1), (3, 2, 1), (3, 1, 1)]
        tap = tap_of(stack(layers), 32)
        field = measure_field(tap, 32, "theoretical")
        for position in (0, 27, 44, 63):
            x0, y0, x1, y1 = boxes(field, np.array(position), tap.grid, 0, 32).astype(int)
            image = torch.zeros(1, 3, 32, 32, requires_grad=True)
            with tap:
                (gradient,) = torch.autograd.grad(tap(image)[0, :, position].sum(), image)
            rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
            assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y0, y1, x0, x1)


def test_fields_of_several_layers():
    module = nn.Sequential(*stack([(3, 1, 1), (3, 2, 1)], weight=1.0), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 3))
    module[2].register_forward_hook(lambda _module, _inputs, output: output * 0)
    fields = measure_fields(Network(module, Preprocess(32, 32), "net"), ["0", "1", "2", "4", "5"], CPU, Progress(False))
    assert [field.size for field in fields["0"]] == [(3, 3), (3, 3)]
    assert fields["1"][0].size == (5, 5)
    assert fields["1"][1] == measure_field(tap_of(module, 32, "1"), 32, "effective", probes=8)
    assert fields["2"][0].size == (5, 5)
    assert fields["2"][1] is None  # no gradient
    assert [field.whole_image for field in fields["4"]] == [True, True]
    assert fields["5"] == (None, None)
