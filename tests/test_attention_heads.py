"""Attention heads as units, against a replica in NumPy."""

import numpy as np
import pytest
import torch
from test_activation_tap import assert_same_state, state
from tiny import SMALL, Boom, Tokens, attention_network, seeded
from torch import nn

from psi_fast.activation_tap import ActivationTap, JointTap, list_layers
from psi_fast.attention_heads import HEADS, find_heads, one_a_head
from psi_fast.errors import ModelError
from psi_fast.networks import Network
from psi_fast.receptive_field import boxes, measure_field

CPU = torch.device("cpu")
COUNT = 3
WIDTH = 24


def timm_vit():
    """A ViT of timm, its attention, and how that names its weights."""
    vision = pytest.importorskip("timm.models.vision_transformer")
    return vision.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=COUNT, num_classes=5, qkv_bias=True
    ), "blocks.1.attn"


def torchvision_vit():
    from torchvision.models import VisionTransformer

    module = VisionTransformer(32, 8, num_layers=2, num_heads=COUNT, hidden_dim=WIDTH, mlp_dim=40, num_classes=5)
    nn.init.normal_(module.encoder.layers[1].self_attention.in_proj_bias)
    return module, "encoder.layers.encoder_layer_1.self_attention"


def even_torchvision_vit():
    """With an even number of heads torch has a path of its own, which calls no Python."""
    from torchvision.models import VisionTransformer

    module = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=WIDTH, mlp_dim=40, num_classes=5)
    return module, "encoder.layers.encoder_layer_1.self_attention"


def of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    from tiny_transformers import config

    module = transformers.AutoModel.from_config(config(kind))
    if kind in ("clip", "siglip"):
        return module.vision_model, "encoder.layers.1.self_attn"
    return module, "layers.1.attention" if kind == "vit" else "encoder.layer.1.attention"


MAKERS = {
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "even": even_torchvision_vit,
    **{kind: lambda kind=kind: of_transformers(kind) for kind in ("vit", "dinov2", "clip", "siglip")},
}


def made(kind):
    module, name = seeded(MAKERS[kind])
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if "attn" in key or "attention" in key:  # some begin at 0
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key))))
    return Network(module, SMALL, kind), name


def weights_of(attention):
    """W [D, D] and b [D] of query, key, value and output, as float64."""
    if isinstance(attention, nn.MultiheadAttention):
        pairs = [*zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)]
    elif hasattr(attention, "qkv"):
        pairs = [*zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)]
    else:
        pairs = [(part.weight, part.bias) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    out = next(getattr(attention, name) for name in ("proj", "o_proj", "out_proj") if hasattr(attention, name))
    return [[each.detach().double().numpy() for each in pair] for pair in (*pairs, (out.weight, out.bias))]


def contributions(attention, tokens, heads):
    """What each head writes, [B, heads, T, D] float64, and the bias [D], from the attention's input."""
    x = tokens.double().numpy()
    (wq, bq), (wk, bk), (wv, bv), (wo, bo) = weights_of(attention)
    each, d = [], WIDTH // heads
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (x @ w[rows].T + b[rows] for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(d)
        soft = np.exp(scores - scores.max(-1, keepdims=True))
        each.append(soft / soft.sum(-1, keepdims=True) @ v @ wo[:, rows].T)
    return np.stack(each, 1), bo


@pytest.mark.parametrize("kind", MAKERS)
def test_norm_of_what_each_head_writes(kind):
    network, name = made(kind)
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attention, seen = network.module.get_submodule(name), {}

    def keep(_module, inputs, keywords, output):
        seen["input"] = inputs[0] if inputs else keywords["hidden_states"]
        seen["output"] = output[0] if isinstance(output, tuple) else output

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        network.module.eval()(batch)
    handle.remove()
    heads = 2 if kind == "even" else COUNT
    written, bias = contributions(attention, seen["input"], heads)
    assert np.allclose(written.sum(1) + bias, seen["output"].numpy(), atol=2e-5)
    before = state(network)
    tap = ActivationTap(network, name + HEADS, CPU)
    with tap, torch.inference_mode():
        norms = tap(batch)
    assert_same_state(before, state(network))
    prefix = 0 if kind == "siglip" else 1
    assert (tap.channels, tap.grid, tap.prefix, tap.positions) == (heads, (4, 4), prefix, 16 + prefix)
    assert np.allclose(norms.numpy(), np.linalg.norm(written, axis=-1), rtol=1e-4)


def test_tokens_are_patches_and_the_class_token_is_the_image():
    network, name = made("timm")
    tap = ActivationTap(network, name + HEADS, CPU)
    field = measure_field(tap, 32, "cell")
    assert boxes(field, np.array([0, 1, 16]), tap.grid, tap.prefix, 32).tolist() == [
        [0, 0, 32, 32],
        [0, 0, 8, 8],
        [24, 24, 32, 32],
    ]
    assert measure_field(tap, 32, "theoretical").whole_image
    assert measure_field(tap, 32, "effective", probes=4).size[0] > 8


def test_field_measured_inside_inference_mode():
    network, name = made("timm")
    with torch.inference_mode(), ActivationTap(network, name + HEADS, CPU) as tap:
        tap(torch.randn(2, 3, 32, 32))
        assert measure_field(tap, 32, "effective", probes=1).size[0] > 8


def test_heads_beside_a_plain_layer():
    network, name = made("torchvision")
    layer = "encoder.layers.encoder_layer_0.mlp.0"
    alone = [ActivationTap(network, each, CPU) for each in (name + HEADS, layer)]
    batch = torch.randn(2, 3, 32, 32)
    joint = JointTap(alone)
    with joint, torch.inference_mode():
        together = joint(batch)
    for tap, seen in zip(alone, together, strict=True):
        with tap, torch.inference_mode():
            assert torch.equal(tap(batch), seen)


@pytest.mark.parametrize("kind", ["timm", "torchvision", "vit"])
def test_ends_before_the_projection(kind):
    network, name = made(kind)
    attention = network.module.get_submodule(name)
    tap = ActivationTap(network, name + HEADS, CPU)
    boom = Boom()
    for part in ("proj", "o_proj"):
        if hasattr(attention, part):
            projection = getattr(attention, part)
            projection.forward = lambda *_arguments: boom(0)
    if kind == "torchvision":
        attention.forward = lambda *_arguments, **_keywords: boom(0)
    boom.armed = True
    with tap, torch.inference_mode():
        tap(torch.randn(2, 3, 32, 32))
    assert boom.runs == 0


def test_state_after_errors():
    network, name = made("timm")
    network.module.blocks[0].norm1 = Boom()
    tap = ActivationTap(network, name + HEADS, CPU)
    network.module.blocks[0].norm1.armed = True
    before = state(network)
    with pytest.raises(ModelError, match="boom"), tap, torch.inference_mode():
        tap(torch.randn(2, 3, 32, 32))
    assert_same_state(before, state(network))
    with pytest.raises(ModelError, match="LookupError: boom"):
        ActivationTap(network, name + HEADS, CPU)
    with pytest.raises(ModelError, match="LookupError: boom"):
        list_layers(network)
    assert_same_state(before, state(network))


def test_gradient_and_batches():
    network, name = made("torchvision")
    tap = ActivationTap(network, name + HEADS, CPU)
    batch = torch.randn(11, 3, 32, 32, requires_grad=True)
    with tap:
        (gradient,) = torch.autograd.grad(tap(batch[:2])[:, 1, 3].sum(), batch)
        assert gradient[:2].abs().sum() > 0
        with torch.inference_mode():
            assert torch.equal(torch.cat([tap(part) for part in batch.split(8)]), tap(batch))


def test_listed():
    network, name = made("timm")
    before = state(network)
    layers = {layer.name: layer for layer in list_layers(network)}
    assert_same_state(before, state(network))
    heads = layers[name + HEADS]
    assert (heads.type, heads.shape, heads.channels, heads.calls) == ("Attention", (17, COUNT), COUNT, 1)
    assert [layer for layer in layers if layer.endswith(HEADS)] == ["blocks.0.attn#heads", "blocks.1.attn#heads"]
    names = list(layers)
    assert names.index("blocks.1.norm1") < names.index(name + HEADS) < names.index("blocks.1.attn.proj")


def test_encoder_layers_of_torch_are_read_too():
    """Their own path in eval mode calls no attention module, unless something listens."""
    network = attention_network()
    tap = ActivationTap(network, "2.self_attn#heads", CPU)
    assert (tap.channels, tap.grid, tap.prefix) == (2, (4, 4), 1)
    assert "2.self_attn#heads" in [layer.name for layer in list_layers(network)]


def test_attention_over_maps():
    """The heads' outputs as [B, H, W, C], as some networks have them."""
    attention = nn.Sequential()
    attention.num_heads, attention.proj = 2, nn.Linear(8, 8)
    attention.forward = lambda x: attention.proj(x.permute(0, 2, 3, 1))
    network = Network(nn.Sequential(nn.Conv2d(3, 8, 8, 8), attention), SMALL, "maps")
    with pytest.raises(ModelError, match=r"^layer '1#heads': heads are read from tokens.*\(2, 4, 4, 8\)"):
        ActivationTap(network, "1#heads", CPU)
    assert "1#heads" not in [layer.name for layer in list_layers(network)]


def test_matrices_of_the_heads_are_no_maps():
    """Queries [B, heads, T, d] and attention maps [B, heads, T, T]."""
    vision = pytest.importorskip("timm.models.vision_transformer")
    network = Network(
        vision.VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=1, num_heads=COUNT), SMALL, "vit"
    )
    network.module.blocks[0].attn.fused_attn = False
    layers = {layer.name: layer for layer in list_layers(network)}
    for part, shape in (("q_norm", (COUNT, 17, 8)), ("k_norm", (COUNT, 17, 8)), ("attn_drop", (COUNT, 17, 17))):
        own = layers[f"blocks.0.attn.{part}"]
        assert (own.shape, own.channels, own.refused) == (shape, 0, "a matrix for each head"), part
        with pytest.raises(ModelError, match="gives a matrix for each head, expected"):
            ActivationTap(network, own.name, CPU)
    refused = [name for name, layer in layers.items() if layer.refused]
    assert refused == [f"blocks.0.attn.{part}" for part in ("q_norm", "k_norm", "attn_drop")]


@pytest.mark.parametrize(
    ("shape", "one"),
    [
        ((2, 16, 3), True),  # heads, tokens
        ((16, 2, 3), True),  # tokens, heads
        ((2, 4, 4), True),
        ((2, 2, 6), False),  # a map of 2 x 2
        ((6, 2, 2), False),
        ((6, 4, 4), False),
        ((16, 6), False),
    ],
)
def test_which_shapes_are_a_matrix_for_each_head(shape, one):
    attention = nn.MultiheadAttention(6, 2)
    attention.inside = nn.Identity()
    assert one_a_head(shape, "0.inside", nn.Sequential(attention)) == one
    assert not one_a_head(shape, "0", nn.Sequential(attention))


class Turned(nn.Module):
    """Attention with a mask, or with tokens in front, as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=how != "tokens first", add_zero_attn=how == "zero")
        self.how = how

    def forward(self, x):
        mask = torch.zeros(x.shape[1], x.shape[1]) if self.how == "mask" else None
        if self.how == "tokens first":
            x = x.transpose(0, 1)
        y = self.attention(x, key=x, value=x, attn_mask=mask)[0]
        return y.transpose(0, 1) if self.how == "tokens first" else y


def turned(how):
    return Network(seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 8, 8), Tokens(), Turned(how))), SMALL, "turned")


def test_tokens_in_front_of_the_batch():
    batch = torch.randn(2, 3, 32, 32)
    seen = []
    for how in ("batch first", "tokens first"):
        with ActivationTap(turned(how), "2.attention#heads", CPU) as tap, torch.inference_mode():
            seen.append(tap(batch))
    assert seen[0].shape == (2, 2, 17)
    assert torch.equal(*seen)


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_attention_that_is_not_understood(how):
    network = turned(how)
    before = state(network)
    with pytest.raises(ModelError, match=r"^layer '2.attention#heads': heads .* without masks and without added keys"):
        ActivationTap(network, "2.attention#heads", CPU)
    assert not [layer for layer in list_layers(network) if layer.name.endswith(HEADS)]
    assert_same_state(before, state(network))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "blocks.1.mlp#heads",
            r"'blocks.1.mlp' of timm \(Mlp\) has no attention heads.*heads are in blocks.0.attn, blo",
        ),
        ("blocks.7.attn#heads", r"not found in timm; nearest: 'blocks.\d.attn#heads'.*heads are in blocks.0.attn"),
        ("#heads", "not found"),
    ],
)
def test_layers_without_heads(layer, message):
    network, _ = made("timm")
    with pytest.raises(ModelError, match=message):
        ActivationTap(network, layer, CPU)


def test_errors_that_lead_to_the_heads():
    network = attention_network()
    with pytest.raises(ModelError, match=r"gives a tuple.* or 2.self_attn#heads for its heads$"):
        ActivationTap(network, "2.self_attn", CPU)
    with pytest.raises(ModelError, match=r"nearest: '2.self_attn#heads'; list"):
        ActivationTap(network, "2.self_attn#head", CPU)


def test_networks_without_heads(net):
    with pytest.raises(ModelError, match=r"'conv' of net \(Conv2d\) has no.*no module of this network has heads"):
        find_heads(net.module, "conv#heads", "net")


def test_windows_are_refused():
    swin = pytest.importorskip("timm.models.swin_transformer")
    module = swin.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=3
    )
    network = Network(module, SMALL, "swin")
    with pytest.raises(ModelError, match=r"gives .*for 2 images"):
        ActivationTap(network, "layers.0.blocks.0.attn#heads", CPU)
    listed = [layer.name for layer in list_layers(network)]
    assert "layers.0.blocks.0.attn#heads" not in listed
    assert "layers.0.blocks.0.attn" in listed
