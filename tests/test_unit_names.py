"""The layers that hold a transformer's neurons, residual stream and heads, by name."""

import pytest
import torchvision
from test_attention_heads import MAKERS
from tiny import SMALL, Tokens, attention_network, conv_network, seeded
from torch import nn

from psi_fast.activation_tap import list_layers
from psi_fast.networks import Network
from psi_fast.unit_names import unit_layers

NAMES = ("neurons of MLPs", "units of the residual stream", "attention heads")


def units(module):
    """The names of neurons, residual units and heads."""
    network = module if isinstance(module, Network) else Network(seeded(lambda: module), SMALL, "net")
    found = unit_layers(network.module, list_layers(network))
    assert set(found) <= set(NAMES)
    return [found.get(kind, []) for kind in NAMES]


def numbered(pattern, count=2):
    return [pattern.format(number) for number in range(count)]


BLOCKS = {
    "timm": ("blocks.{}", "mlp.act", "attn"),
    "torchvision": ("encoder.layers.encoder_layer_{}", "mlp.1", "self_attention"),
    "vit": ("layers.{}", "mlp.activation_fn", "attention"),
    "dinov2": ("encoder.layer.{}", "mlp.activation_fn", "attention"),
    "clip": ("encoder.layers.{}", "mlp.activation_fn", "self_attn"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_vision_transformers(kind):
    block, neurons, attention = BLOCKS[kind]
    expected = [numbered(f"{block}.{neurons}"), numbered(block), numbered(f"{block}.{attention}#heads")]
    assert units(MAKERS[kind]()[0]) == expected


def test_pooling_by_attention_has_no_neurons_of_positions():
    neurons, residual, heads = units(MAKERS["siglip"]()[0])
    assert neurons == numbered("encoder.layers.{}.mlp.activation_fn")
    assert residual == numbered("encoder.layers.{}")
    assert heads == [*numbered("encoder.layers.{}.self_attn#heads"), "head.attention#heads"]


def test_an_activation_that_is_no_module():
    """torch's own layer calls its activation function and hands the result to a dropout."""
    assert units(attention_network()) == [["2.dropout"], ["2"], ["2.self_attn#heads"]]


def test_windows():
    swin = pytest.importorskip("timm.models.swin_transformer")
    module = swin.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=3
    )
    blocks = [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]
    assert units(module) == [[f"{block}.mlp.act" for block in blocks], blocks, []]


def test_convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    module = torchvision.models.ConvNeXt([setting(8, 12, 2), setting(12, None, 2)], num_classes=5)
    blocks = [f"features.{stage}.{block}" for stage in (1, 3) for block in (0, 1)]
    assert units(module) == [[f"{block}.block.4" for block in blocks], blocks, []]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "densenet121"])
def test_bottlenecks_are_no_mlps(name):
    assert units(getattr(torchvision.models, name)(num_classes=5)) == [[], [], []]


def test_networks_without_any():
    assert units(conv_network(nn.ReLU(), nn.Flatten(), nn.Linear(1536, 12), nn.ReLU(), nn.Linear(12, 1536))) == [[]] * 3


class Gated(nn.Module):
    """An MLP whose neurons are products, with two layers in front, or one twice as wide; `behind` takes the product."""

    def __init__(self, twins, behind=True):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.gate = nn.Linear(6, 10) if twins else None
        self.up = nn.Linear(6, 10 if twins else 20)
        self.act = nn.SiLU()
        self.product = nn.Identity() if behind else None
        self.down = nn.Linear(10, 6)

    def forward(self, x):
        y = self.norm(x)
        gate, up = self.up(y).chunk(2, 2) if self.gate is None else (self.gate(y), self.up(y))
        y = self.act(gate) * up
        return x + self.down(y if self.product is None else self.product(y))


@pytest.mark.parametrize("twins", [True, False])
def test_gated_neurons_are_products(twins):
    mlp = nn.Sequential(nn.Conv2d(3, 6, 8, 8), Tokens(), nn.Sequential(nn.Linear(6, 6), Gated(twins)))
    assert units(mlp) == [["2.1.product"], ["2"], []]


def test_a_product_that_no_module_gives_has_no_name():
    mlp = nn.Sequential(nn.Conv2d(3, 6, 8, 8), Tokens(), nn.Sequential(nn.Linear(6, 6), Gated(True, behind=False)))
    assert units(mlp) == [[], ["2"], []]
