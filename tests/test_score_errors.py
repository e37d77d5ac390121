"""score() leaves the network as it was, and ends in one line on what it cannot take."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_raising
import torch
from image_helpers import message
from tiny import EFFECTIVE, score
from torch import nn

import psi_fast
from psi_fast.errors import ConfigError, ModelError


@pytest.mark.parametrize("channels", [[6], [-1], [1, 1], [], slice(5, 3), slice(6, None)])
def test_channels_outside_the_layer_are_an_error(channels):
    text = message(score, channels=channels, error=psi_fast.PsiFastError)
    assert "channel" in text
    assert "6" in text or "5" in text  # what there is


@pytest.mark.parametrize("channels", [[0.5], ["a"], [[0, 1]]])
def test_channels_of_another_type_are_an_error(channels):
    assert "channel" in message(score, channels=channels, error=psi_fast.PsiFastError)


class Sentinel:
    """Everything of a module, and of torch, that a run must leave as it was."""

    def __init__(self, module):
        self.module = module
        self.before = self.state()

    def state(self):
        parts = dict(self.module.named_modules())
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "training": {name: part.training for name, part in parts.items()},
            "hooks": {name: [list(getattr(part, kind)) for kind in kinds] for name, part in parts.items()},
            "requires_grad": {name: p.requires_grad for name, p in self.module.named_parameters()},
            "grads": {name: None if p.grad is None else p.grad.clone() for name, p in self.module.named_parameters()},
            "devices": {name: str(t.device) for name, t in self.module.state_dict().items()},
            "weights": {name: t.clone() for name, t in self.module.state_dict().items()},
            "identities": [id(p) for p in self.module.parameters()],
            "generator": torch.get_rng_state(),
            "grad_enabled": torch.is_grad_enabled(),
        }

    def check(self):
        after = self.state()
        for name in ("grads", "weights"):
            torch.testing.assert_close(after.pop(name), self.before[name], rtol=0, atol=0)
        assert torch.equal(after.pop("generator"), self.before["generator"])
        for name, value in after.items():
            assert value == self.before[name], name


def disturbed(network):
    """`network` with mixed training flags, gradients, a frozen parameter and a hook of the user's own."""
    network.module.train()
    first = next(iter(network.module.children()))
    first.eval()
    for parameter in network.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.bias.requires_grad_(False)
    first.register_forward_hook(lambda *_: None)
    return network


def test_the_network_is_left_as_it_was():
    network = disturbed(tiny.conv_network(nn.BatchNorm2d(6), nn.Dropout(0.5)))
    sentinel = Sentinel(network.module)
    score(network, "3", config=EFFECTIVE)
    sentinel.check()


@pytest.mark.parametrize("layers", [["0"], ["2", "0"]])
def test_no_image_goes_behind_the_last_layer_that_is_read(layers):
    runs = []
    for count in (24, 40):
        network = tiny.conv_network(boom := tiny.Boom())
        score(network, layers, tiny.image_set(count), config=EFFECTIVE)
        runs.append(boom.runs)
    assert runs[0] == runs[1] <= 2 * len(layers)  # made-up images alone, when the layers are looked at
    boom.armed = True
    with pytest.raises(LookupError):
        network.module(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("layers", [["2.self_attn#heads", "0"], ["4", "2"]])
def test_a_transformer_is_left_as_it_was(layers):
    network = tiny.attention_network()
    network.module.train()
    network.module[2].norm1.eval()
    network.module[4].weight.requires_grad_(False)
    network.module[0].weight.grad = torch.ones_like(network.module[0].weight)
    sentinel = Sentinel(network.module)
    for patch in ("theoretical", "effective"):
        score(network, layers, config=replace(tiny.CONFIG, patch=patch))
    sentinel.check()


@pytest.mark.parametrize("stage", ["mining", "embedding", "layer", "channels"])
def test_the_network_is_left_as_it_was_when_a_run_fails(stage):
    network = disturbed(tiny.poisoned_network() if stage == "mining" else tiny.network())
    sentinel = Sentinel(network.module)
    options = {
        "mining": {"layer": "poison", "images": tiny.image_set(red=(30,))},
        "embedding": {"encoder": tiny.TinyEncoder(spoil=np.nan), "images": tiny.image_set(red=range(30))},
        "layer": {"layer": "22"},
        "channels": {"channels": [99]},
    }[stage]
    text = message(score, network, config=EFFECTIVE, error=psi_fast.PsiFastError, **options)
    assert stage in text or stage == "channels"
    sentinel.check()


@pytest.mark.parametrize("patch", ["image", "effective"])  # the latter takes gradients before the images are mined
def test_a_network_that_raises_in_the_middle_of_a_run_is_named_with_layer_and_reason(patch):
    network = tiny_raising.late()
    network.module[0].register_forward_hook(lambda *_: None)
    for part in network.module.parameters():
        part.grad = torch.ones_like(part)
    network.module.train()
    network.module[1].eval()
    sentinel = Sentinel(network.module)
    with pytest.raises(ModelError) as caught:
        score(network, "5", config=replace(tiny.CONFIG, patch=patch))
    assert isinstance(caught.value.__cause__, LookupError)
    assert str(caught.value) == (
        "tiny raised LookupError (no such entry: 7) in its module '4.0' on a batch of [8, 3, 32, 32] while layer 5 was read; "
        "mend its forward, or leave out the images that it cannot take"
    )
    sentinel.check()


def test_an_encoder_that_raises_in_the_middle_of_a_run_is_named_with_the_image():
    class Late(tiny.TinyEncoder):
        def encode(self, batch):
            if len(self.batches) == 2:
                raise LookupError("no such\nentry")
            return super().encode(batch)

    with pytest.raises(
        ModelError, match=r"^embedding: tiny-encoder raised LookupError \(no such entry\).*'picture-\d+'"
    ):
        score(encoder=Late())


def test_a_network_of_nan_is_named_at_its_image():
    text = message(score, tiny.nan_network(), config=tiny.CONFIG)
    assert "mining: channel 0" in text
    assert "'picture-0'" in text


def test_a_network_of_nan_ends_in_one_line_for_every_patch_mode():
    for patch in ("effective", "theoretical"):
        message(score, tiny.nan_network(), config=replace(tiny.CONFIG, patch=patch), error=psi_fast.PsiFastError)


def test_fewer_images_than_top_k_is_an_error():
    text = message(score, images=tiny.image_set(11))
    assert "12" in text
    assert "11" in text


def test_an_unknown_layer_or_device_is_an_error():
    assert "nearest: '2'" in message(score, layer="22", error=ModelError)
    assert "'layr1'" in message(score, layer="layr1", error=ModelError)
    assert "tpu" in message(score, device="tpu", error=ConfigError)


def test_a_vocabulary_that_a_classifier_cannot_embed_is_told_before_images_are_decoded():
    read = []

    class Pictures:
        targets = tuple(i % 4 for i in range(200))

        def __len__(self):
            return 200

        def __getitem__(self, index):
            read.append(index)
            return tiny.picture(index), index % 4

    text = message(
        score, images=Pictures(), encoder="classifier:tiny:classifier", vocabulary="imagenet", error=ModelError
    )
    assert "no text tower: its concepts are its own 7 classes, so vocabulary 'imagenet'" in text
    assert len(read) <= 64  # a look at some


def test_an_object_that_is_no_encoder_is_an_error():
    assert "encoder" in message(score, encoder=object(), error=ModelError)
