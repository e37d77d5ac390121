"""score() on a small network of every family, each kind of unit, from images to the table."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CONFIG, PREPROCESS, Tokens, attention_network, score, seeded
from torch import nn

from psi_fast.activation_tap import ActivationTap
from psi_fast.networks import Network, load_network

CELL = replace(CONFIG, patch="cell")


def of_torchvision():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=5)


def of_timm(name, **settings):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, img_size=32, **settings)


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def timm_convnext():
    timm = pytest.importorskip("timm")
    return timm.create_model("convnext_atto", pretrained=False, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))


def timm_vit():
    return of_timm("vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=3)


def timm_swin():
    return of_timm(
        "swin_tiny_patch4_window7_224", patch_size=2, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4
    )


CASES = [
    (timm_vit, "blocks.1.mlp.fc1", 96, 17),
    (timm_vit, "blocks.1", 24, 17),
    (timm_vit, "blocks.1.attn#heads", 3, 17),
    (timm_vit, "head", 1000, 1),
    (timm_swin, "layers.0", 12, 256),
    (timm_convnext, "stages.1.blocks.0.mlp.act", 48, 16),
    (of_torchvision, "encoder.layers.encoder_layer_1.self_attention#heads", 2, 17),
    (of_torchvision, "encoder.layers.encoder_layer_1.mlp.1", 40, 17),
    (torchvision_resnet, "layer2", 128, 16),
    (torchvision_resnet, "fc", 5, 1),
    ("vit", "layers.1.mlp.fc1", 40, 17),
    ("vit", "layers.1", 24, 17),
    ("vit", "layers.1.attention#heads", 3, 17),
    ("clip", "encoder.layers.0.self_attn#heads", 3, 17),
    ("siglip", "encoder.layers.0.mlp.fc1", 40, 16),
    ("dinov2", "encoder.layer.1", 24, 17),
    ("convnext", "encoder.stages.0", 8, 64),
]


def made(family, folder):
    if isinstance(family, str):
        pytest.importorskip("transformers")
        from tiny_transformers import saved

        return load_network(f"transformers:{saved(folder, family)}")
    return Network(seeded(family), PREPROCESS, family.__name__)


@pytest.mark.parametrize(("family", "layer", "channels", "positions"), CASES)
def test_every_family_and_kind_of_unit(tmp_path, family, layer, channels, positions):
    model = made(family, tmp_path)
    asked = min(channels, 5)
    scores = score(model, layer, config=CELL, channels=slice(asked))
    tap = ActivationTap(model, layer, torch.device("cpu"))
    assert (tap.channels, tap.positions) == (channels, positions)
    table = scores.table
    assert list(table["channel"]) == list(range(asked))
    assert table["psi"].between(0, 1).all(), table[["psi", "flags"]]
    boxes = np.stack(scores.patches["box"])
    whole = (boxes[:, 2:] - boxes[:, :2]).min(1) >= 32
    assert whole.all() if positions == 1 else not whole.all()


def test_a_module_as_it_comes():
    """No spec and no Network: fed by its own attribute, its layers of several kinds read in one pass."""
    module = seeded(timm_vit).train()
    module.preprocess = PREPROCESS
    layers = ["blocks.1", "blocks.1.mlp.act", "blocks.0.attn#heads", "head"]
    scores = score(module, layers, config=CELL, channels=slice(3))
    assert list(scores.table["layer"]) == [layer for layer in layers for _ in range(3)]
    assert scores.manifest["network"] == "VisionTransformer"
    assert module.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class Only(nn.Module):
    """Lets the class token through, or only the patches."""

    def __init__(self, patches):
        super().__init__()
        self.patches = patches

    def forward(self, x):
        first = torch.arange(x.shape[1])[:, None] == 0
        return torch.where(first == self.patches, -1000, x)


@pytest.mark.parametrize("patches", [False, True])
def test_a_patch_token_is_its_cell_and_the_class_token_the_whole_image(patches):
    def make():
        return nn.Sequential(nn.Conv2d(3, 6, 8, 8), Tokens(), Only(patches))

    found = score(Network(seeded(make), PREPROCESS, "tokens"), "2", config=CELL).patches
    sides = np.stack(found["box"])[:, 2:] - np.stack(found["box"])[:, :2]
    shorter = sides.min(1)
    assert (shorter < 16).all() if patches else (shorter >= 32).all()


def test_heads_and_a_plain_layer_as_each_alone():
    model = attention_network()
    both = score(model, ["2.self_attn#heads", "0"], config=CELL).table
    assert sorted(set(both["layer"])) == ["0", "2.self_attn#heads"]
    for layer, channels in (("2.self_attn#heads", 2), ("0", 6)):
        own = both[both["layer"] == layer]
        alone = score(model, layer, config=CELL).table
        assert list(own["max_activation"]) == list(alone["max_activation"])
        assert len(own) == channels
