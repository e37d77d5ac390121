"""Layer listing and the activation tap."""

import copy

import pytest
import torch
from tiny import SMALL, Boom
from torch import nn

from psi_fast.activation_tap import ActivationTap, JointTap, list_layers
from psi_fast.errors import ModelError
from psi_fast.networks import Network, load_network

CPU = torch.device("cpu")


def state(network):
    """All that a tap must leave alone."""
    module = network.module
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()]
    return (
        [m.training for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
        [None if p.grad is None else p.grad.sum().item() for p in module.parameters()],
        [p.device for p in module.parameters()],
        hooks,
        {key: value.clone() for key, value in module.state_dict().items()},
    )


def assert_same_state(before, after):
    assert before[:-1] == after[:-1]
    assert sum(after[4]) == 0
    assert before[5].keys() == after[5].keys()
    assert all(torch.equal(value, after[5][key]) for key, value in before[5].items())


class TestListLayers:
    def test_order_shapes_and_calls(self, net):
        before = state(net)
        layers = {layer.name: layer for layer in list_layers(net)}
        assert_same_state(before, state(net))
        assert list(layers) == ["before", "conv", "norm", "relu", "drop", "conv2", "pair", "behind", "head"]
        assert layers["conv"].shape == (6, 16, 16)
        assert layers["conv"].channels == 6
        assert layers["relu"].calls == 2
        assert layers["pair"].shape == (64, 5)  # the first tensor of an LSTM's output
        assert (layers["pair"].channels, layers["pair"].refused) == (0, "a tuple")
        assert not any(layer.refused for layer in layers.values() if layer.name != "pair")
        assert (layers["head"].type, layers["head"].shape, layers["head"].calls) == ("Linear", (10,), 1)

    def test_state_after_an_error(self, net):
        net.module.behind.armed = True
        before = state(net)
        with pytest.raises(ModelError, match="LookupError: boom"):
            list_layers(net)
        assert_same_state(before, state(net))

    def test_wrong_size(self):
        network = Network(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), SMALL, "flat")
        with pytest.raises(ModelError, match=r"cannot run on images of \[3, 32, 32\].*attribute `preprocess`"):
            list_layers(network)

    @pytest.mark.parametrize(
        ("output", "refused"),
        [
            (torch.zeros(2, 3, 4, 5, 6), "5 dimensions"),
            (torch.zeros(2), "1 dimensions"),
            (torch.zeros(2, 3, dtype=torch.int64), "whole numbers (int64)"),
            (torch.zeros(2, 3, dtype=torch.bool), "truth values (bool)"),
            ([torch.zeros(2, 3)], "a list"),
        ],
    )
    def test_outputs_that_are_refused(self, output, refused):
        network = Network(nn.Sequential(Give(output), Swallow()), SMALL, "give")
        if isinstance(output, torch.Tensor):
            (layer,) = [layer for layer in list_layers(network) if layer.name == "0"]
            assert (layer.channels, layer.refused) == (0, refused)
        with pytest.raises(ModelError) as caught:
            ActivationTap(network, "0", CPU)
        assert f"gives {refused}, expected" in str(caught.value)


class TestTap:
    def test_equals_the_layer(self, net):
        batch = torch.randn(5, 3, 32, 32)
        module = copy.deepcopy(net.module).eval()
        expected = module.conv2(torch.relu(module.norm(module.conv(batch))))
        tap = ActivationTap(net, "conv2", CPU)
        before = state(net)
        with tap, torch.inference_mode():
            seen = tap(batch)
        assert_same_state(before, state(net))
        assert (tap.channels, tap.grid, tap.prefix) == (8, (8, 8), 0)
        assert seen.shape == (5, 8, 64)
        assert seen.dtype == torch.float32
        assert torch.allclose(seen, expected.flatten(2), atol=1e-6)

    def test_input_of_a_layer(self, net):
        batch = torch.randn(3, 3, 32, 32)
        tap = ActivationTap(net, "head", CPU, at="input")
        assert (tap.channels, tap.grid) == (8, None)
        with tap, torch.no_grad():
            seen = tap(batch)
            module = net.module
            maps = torch.relu(module.conv2(torch.relu(module.norm(module.conv(batch)))))
        assert torch.allclose(seen[:, :, 0], maps.mean((2, 3)), atol=1e-6)

    def test_stops_at_the_layer(self, net):
        tap = ActivationTap(net, "conv2", CPU)
        net.module.behind.armed = True
        net.module.behind.runs = 0
        before = state(net)
        with tap, torch.inference_mode():
            tap(torch.randn(2, 3, 32, 32))
        assert net.module.behind.runs == 0
        assert_same_state(before, state(net))
        with pytest.raises(LookupError):  # armed indeed
            net.module(torch.randn(2, 3, 32, 32))

    def test_stop_passes_through_except_exception(self):
        class Careful(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)
                self.behind = Boom()

            def forward(self, x):
                try:
                    y = self.conv(x)
                except Exception:
                    y = self.behind(x)
                return y

        network = Network(Careful(), SMALL, "careful")
        tap = ActivationTap(network, "conv", CPU)
        with tap, torch.inference_mode():
            tap(torch.randn(1, 3, 32, 32))
        assert network.module.behind.runs == 0

    def test_state_after_errors(self, net):
        tap = ActivationTap(net, "conv2", CPU)
        net.module.before.armed = True
        before = state(net)
        with pytest.raises(ModelError, match="boom") as caught, tap, torch.inference_mode():
            tap(torch.randn(2, 3, 32, 32))
        assert isinstance(caught.value.__cause__, LookupError)
        assert_same_state(before, state(net))
        with pytest.raises(ZeroDivisionError), tap:
            raise ZeroDivisionError
        assert_same_state(before, state(net))

    def test_state_after_a_module_raises_while_examined(self, net):
        net.module.behind.armed = True
        before = state(net)
        with pytest.raises(ModelError, match="LookupError: boom"):
            ActivationTap(net, "conv2", CPU)
        assert_same_state(before, state(net))

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("conv3", r"'conv3' not found in net; nearest: 'conv', 'conv2'.*psi-fast layers"),
            ("", "name is empty.*net as a whole.*psi-fast layers"),
            ("relu", "runs 2 times"),
            ("pair", "gives a tuple"),
            ("unused", "runs 0 times"),
            ("windows", r"gives 8 rows for 2 images, expected one floating-point"),
        ],
    )
    def test_bad_layers(self, net, layer, message):
        net.module.unused = nn.Identity()
        if layer == "windows":
            net.module.behind = nn.Sequential(Split(), Join())
            layer = "behind.0"
        before = state(net)
        with pytest.raises(ModelError, match=message):
            ActivationTap(net, layer, CPU)
        assert_same_state(before, state(net))

    def test_changing_shape(self, net):
        tap = ActivationTap(net, "conv2", CPU)
        with tap, pytest.raises(ModelError, match=r"gave \(1, 8, 16, 16\).*expected \(1, 8, 8, 8\)"):
            tap(torch.randn(1, 3, 64, 64))

    def test_gradients(self, net):
        tap = ActivationTap(net, "conv2", CPU)
        before = state(net)
        batch = torch.randn(2, 3, 32, 32, requires_grad=True)
        with tap:
            seen = tap(batch)
            (gradient,) = torch.autograd.grad(seen[:, 0, 0].sum(), batch)
        assert gradient.abs().sum() > 0
        assert_same_state(before, state(net))

    def test_reentry(self, net):
        tap = ActivationTap(net, "conv2", CPU)
        before = state(net)
        with tap, torch.no_grad():
            with tap:
                tap(torch.randn(1, 3, 32, 32))
            tap(torch.randn(1, 3, 32, 32))  # still open
        assert_same_state(before, state(net))
        with pytest.raises(RuntimeError, match="inside"):
            tap(torch.randn(1, 3, 32, 32))

    @pytest.mark.parametrize(
        ("spec", "layer"),
        [
            ("torchvision:resnet18@none", "layer2"),
            ("torchvision:resnet18@none", "fc"),
            ("timm:vit_tiny_patch16_224@none", "blocks.2.mlp.fc1"),
        ],
    )
    def test_batch_size_changes_no_bit(self, spec, layer):
        tap = ActivationTap(load_network(spec), layer, CPU)
        images = torch.randn(13, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        with tap, torch.inference_mode():
            reference = tap(images)
            assert torch.equal(tap(images[9:10]), reference[9:10])
            for size in (3, 8):
                assert torch.equal(torch.cat([tap(part) for part in images.split(size)]), reference), size
            strange = images.contiguous(memory_format=torch.channels_last)
            assert torch.equal(tap(strange), reference)

    @pytest.mark.parametrize(
        ("shape", "channels", "grid", "prefix", "element"),
        [
            ((5, 4, 4), 5, (4, 4), 0, (2, 1, 3)),  # C, H, W
            ((4, 4, 5), 5, (4, 4), 0, (1, 3, 2)),  # H, W, C
            ((17, 6), 6, (4, 4), 1, None),
            ((16, 6), 6, (4, 4), 0, None),
            ((24, 6), 6, (4, 4), 8, None),
            ((76, 6), 6, None, 0, None),  # 64 + 12
            ((7,), 7, None, 0, None),
        ],
    )
    def test_layouts(self, shape, channels, grid, prefix, element):
        value = torch.randn(2, *shape)
        network = Network(nn.Sequential(Give(value)), SMALL, "give")
        tap = ActivationTap(network, "0", CPU)
        assert (tap.channels, tap.grid, tap.prefix) == (channels, grid, prefix)
        with tap:
            seen = tap(torch.zeros(2, 3, 32, 32).requires_grad_())
        assert seen.shape[:2] == (2, channels)
        if element == (2, 1, 3):
            assert seen[1, 2, 1 * 4 + 3] == value[1, 2, 1, 3]
        elif element == (1, 3, 2):
            assert seen[1, 2, 1 * 4 + 3] == value[1, 1, 3, 2]
        elif len(shape) == 2:
            assert seen[1, 2, 9] == value[1, 9, 2]


class Give(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value[: len(x)]


class Swallow(nn.Module):
    """Takes anything."""

    def forward(self, x):
        return torch.zeros(2, 3)


class Split(nn.Module):
    """Windows folded into the batch, as a shifted-window transformer does."""

    def forward(self, x):
        return x.reshape(len(x) * 4, 8, 4, 4)


class Join(nn.Module):
    def forward(self, x):
        return x.reshape(len(x) // 4, 8, 8, 8)


class Residual(nn.Module):
    """A block that works in place behind every layer, as torchvision's residual blocks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        first = self.relu(self.norm(self.conv(x)))
        second = self.conv2(first)
        second += first
        return self.head(self.relu(second).mean((2, 3)))


@pytest.mark.parametrize("gradients", [False, True])
def test_layers_read_together_are_as_each_alone_where_others_work_in_place(gradients):
    network = Network(Residual(), SMALL, "residual")
    taps = [ActivationTap(network, name, CPU) for name in ("norm", "conv2", "head")]
    batch = torch.randn(3, 3, 32, 32)
    with torch.set_grad_enabled(gradients):
        alone = []
        for tap in taps:
            with tap:
                alone.append(tap(batch))
        with JointTap(taps) as joint:
            together = joint(batch)
    assert all((part < 0).any() for part in alone)
    assert all(torch.equal(own, part) for own, part in zip(alone, together, strict=True))
