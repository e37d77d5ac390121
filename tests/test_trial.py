"""The precision of forward passes: named, tried once a machine, and given up where it overflows."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from torch import nn

import psi_fast.trial
from psi_fast.activation_tap import ActivationTap, JointTap
from psi_fast.forward import Pace
from psi_fast.trial import choose_pace, fastest

CPU = torch.device("cpu")
OTHER = torch.contiguous_format  # than the tiny network, which is convolutional, is given by default
PACES = [Pace(dtype, size) for dtype in (torch.float32, torch.bfloat16) for size in (4, 8, 16)]


def tap(layer=tiny.LAYER):
    return ActivationTap(tiny.network(), layer, CPU)


class NanInHalf(nn.Module):
    """What it gets, but nan where products run in half precision."""

    def forward(self, x):
        return x * torch.nan if torch.is_autocast_enabled("cpu") else x


@pytest.fixture
def trials(monkeypatch, tmp_path):
    """The trials made, in an empty cache; each finds the last pace fastest."""
    made = []

    def try_out(taps, paces):
        made.append((taps, paces))
        return paces[-1]

    monkeypatch.setenv("PSI_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(psi_fast.trial, "fastest", try_out)
    monkeypatch.setattr(psi_fast.trial, "fast_precision", lambda _device: torch.bfloat16)
    return made


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_precision_is_taken_without_a_trial(name, trials):
    assert choose_pace([tap()], name, "mark") == Pace(getattr(torch, name))
    assert trials == []


def test_a_trial_is_made_once_for_a_network_and_its_layers(trials):
    found = choose_pace([tap()], "auto", "mark")
    assert found == Pace(torch.bfloat16, 16, OTHER)
    assert choose_pace([tap()], "auto", "mark") == found
    assert [tried for _, tried in trials] == [PACES, [Pace(torch.bfloat16, 16), found]]
    choose_pace([tap()], "auto", "another network")
    choose_pace([tap("3")], "auto", "mark")
    choose_pace([tap(), tap("3")], "auto", "mark")
    choose_pace([tap("3"), tap()], "auto", "mark")  # the same layers
    assert len(trials) == 8


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("make", [tiny.network, tiny.attention_network])
def test_the_memory_format_is_kept_with_the_trial(place, make, trials, monkeypatch):
    monkeypatch.setattr(psi_fast.trial, "fastest", lambda taps, paces: (trials.append(paces), paces[place])[1])
    taps = [ActivationTap(make(), tiny.LAYER, CPU)]
    found = choose_pace(taps, "auto", "mark")
    other = OTHER if make is tiny.network else torch.channels_last
    assert [pace.memory_format for pace in trials[1]] == [None, other]
    assert found.memory_format == trials[1][place].memory_format
    assert choose_pace(taps, "auto", "mark") == found
    assert len(trials) == 2


def test_a_pace_says_its_memory_format_unless_it_is_the_usual_one():
    said = [str(Pace(torch.float32, 4, own)) for own in (None, torch.channels_last, torch.contiguous_format)]
    assert said == [f"float32, 4 at once on a CPU{tail}" for tail in ("", ", channels last", ", channels first")]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_pace_decides_the_memory_format_and_the_bits(memory_format):
    seen, network = [], tiny.network()
    network.module[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = torch.randn(13, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with JointTap([ActivationTap(network, tiny.LAYER, CPU)], Pace(size=4, memory_format=memory_format)) as joint:
        seen.clear()
        with torch.inference_mode():
            (whole,), (one,) = joint(images), joint(images[9:10])
    assert torch.equal(one, whole[9:10])
    assert len(seen) == 5
    assert all(batch.is_contiguous(memory_format=memory_format) for batch in seen)


@pytest.mark.parametrize("content", ["", "{", '"bfloat16, 3 at once on a CPU"', "7", b"\xff"])
def test_a_broken_record_of_a_trial_is_made_anew(content, trials, tmp_path):
    found = choose_pace([tap()], "auto", "mark")
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert choose_pace([tap()], "auto", "mark") == found
    assert len(trials) == 4
    assert choose_pace([tap()], "auto", "mark") == found
    assert len(trials) == 4


def test_without_bfloat16_only_sizes_are_tried(trials, monkeypatch):
    monkeypatch.setattr(psi_fast.trial, "fast_precision", lambda _device: torch.float32)
    assert choose_pace([tap()], "auto", "mark") == Pace(torch.float32, 16, OTHER)
    assert trials[0][1] == PACES[:3]


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ({}, Pace(torch.float32, 8)),
        ({Pace(torch.bfloat16, 8): 0.5}, Pace(torch.bfloat16, 8)),
        ({Pace(torch.bfloat16, 4): 0.5}, Pace(torch.bfloat16, 4)),
        ({Pace(torch.bfloat16, 4): 0.5, Pace(torch.bfloat16, 8): 0.54}, Pace(torch.bfloat16, 8)),  # within the noise
        ({Pace(torch.float32, 16): 0.8}, Pace(torch.float32, 16)),
    ],
)
def test_the_fastest_pace_is_found(rates, wanted, monkeypatch):
    """Seconds an image on a clock that the passes move; the first pass of each is slow."""
    now, warm = [0.0], set()

    class Clocked(JointTap):
        def __call__(self, batch):
            now[0] += len(batch) * rates.get(self.pace, 1.0) + (self.pace not in warm) * 100
            warm.add(self.pace)
            return super().__call__(batch)

    monkeypatch.setattr(psi_fast.trial, "JointTap", Clocked)
    monkeypatch.setattr(psi_fast.trial.time, "perf_counter", lambda: now[0])
    assert fastest([tap()], PACES) == wanted


@pytest.mark.parametrize(("rate", "wanted"), [(0.5, OTHER), (0.95, None), (1.5, None)])
def test_the_other_memory_format_has_to_be_clearly_faster(rate, wanted, monkeypatch):
    now, tried = [0.0], [Pace(torch.float32, 4), Pace(torch.float32, 4, OTHER)]

    class Clocked(JointTap):
        def __call__(self, batch):
            now[0] += len(batch) * (rate if self.pace == tried[1] else 1.0)
            return super().__call__(batch)

    monkeypatch.setattr(psi_fast.trial, "JointTap", Clocked)
    monkeypatch.setattr(psi_fast.trial.time, "perf_counter", lambda: now[0])
    assert fastest([tap()], tried).memory_format == wanted


def test_products_run_in_the_precision_asked_for():
    with JointTap([tap()], Pace(torch.bfloat16)) as joint, torch.no_grad():
        (half,) = joint(tiny.PREPROCESS(tiny.bank(tiny.image_set(5)).read(slice(None), CPU)))
    with JointTap([tap()]) as joint, torch.no_grad():
        (full,) = joint(tiny.PREPROCESS(tiny.bank(tiny.image_set(5)).read(slice(None), CPU)))
    assert half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float())
    assert not torch.equal(full, full.bfloat16().float())
    torch.testing.assert_close(half, full, atol=0.03, rtol=0.03)


def test_score_says_how_the_passes_ran():
    scores = tiny.score(config=replace(tiny.CONFIG, precision="bfloat16"))
    assert scores.manifest["forward_passes"] == "bfloat16, 8 at once on a CPU"
    assert scores.manifest["fingerprints"]["forward passes"] == "bfloat16, 8 at once on a CPU"
    activations = scores.table["max_activation"].to_numpy()
    np.testing.assert_array_equal(activations, torch.tensor(activations).bfloat16().float().numpy())


def test_a_network_that_overflows_in_half_precision_runs_again_in_float32():
    network = tiny.conv_network(NanInHalf())
    wanted = tiny.score(network, "3")
    found = tiny.score(network, "3", config=replace(tiny.CONFIG, precision="bfloat16"))
    (said,) = [line for line in found.manifest["warnings"] if "again in float32" in line]
    assert "the network" in said
    assert "bfloat16" in said
    assert not any("again in float32" in line for line in wanted.manifest["warnings"])
    assert found.table.equals(wanted.table)
    assert found.manifest["forward_passes"] == wanted.manifest["forward_passes"] == "float32, 8 at once on a CPU"


def test_a_network_that_overflows_in_float32_is_an_error():
    assert "not finite" in message(tiny.score, tiny.poisoned_network(), "poison", tiny.image_set(20, red=(7,)))


def test_an_encoder_that_overflows_in_half_precision_runs_again_in_float32():
    class Overflowing(tiny.TinyEncoder):
        precision = "float16"

        def encode(self, batch):
            return super().encode(batch) * (torch.inf if self.precision == "float16" else 1)

        def at_precision(self, dtype):
            self.precision = str(dtype).removeprefix("torch.")
            return self

    wanted, found = tiny.score(), tiny.score(encoder=Overflowing())
    assert found.table.equals(wanted.table)
    assert any("the encoder ran again in float32" in line for line in found.manifest["warnings"])
    assert found.manifest["encoder_precision"] == "float32"


def test_a_classifier_takes_the_precision_it_is_given():
    from psi_fast.encoders.classifier import ClassifierEncoder

    encoder = ClassifierEncoder(tiny.classifier())
    crops = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half, full = (encoder.at_precision(dtype).encode(crops) for dtype in (torch.bfloat16, torch.float32))
    assert encoder.to(CPU).precision == "float32"
    assert torch.equal(half, half.bfloat16().float())
    assert not torch.equal(half, full)
