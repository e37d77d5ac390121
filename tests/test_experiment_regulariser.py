"""Regulariser: the tail of a network, tuning on planted units, what is left alone, and what is not computed twice."""

import copy

import colours
import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from test_study import forbidden, study
from torch import nn

from psi_fast import Network
from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments import regulariser, tuning
from psi_fast.experiments.tail import Tail

CPU = torch.device("cpu")
UNITS = 12


class Around(nn.Module):
    """A connection around its layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (x + self.layer(x)).mean((2, 3))


class Tokens(nn.Module):
    """A classifier that counts its images in front of the layer, works in place behind it, and takes one size alone."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.places = nn.Parameter(torch.randn(16, 6))
        self.layer = nn.Linear(6, 5)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        count = len(x)
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.relu(self.layer(x)).view(count, 16, 5).mean(1))


def two_colours():
    """A classifier of eight colours whose units, behind fixed colour detectors, each fire for two of them."""
    base = colours.network([{}]).module.get_submodule("find")
    units = nn.Conv2d(8, UNITS, 1, bias=False)
    head = nn.Linear(UNITS, 8)
    module = nn.Sequential()
    parts = {"find": base, "units": units, "relu": nn.ReLU(), "pool": nn.AdaptiveMaxPool2d(1), "flat": nn.Flatten()}
    for name, part in (parts | {"head": head}).items():
        module.add_module(name, part)
    with torch.no_grad():
        weights = torch.zeros(UNITS, 8)
        for unit in range(UNITS):
            weights[unit, [unit % 8, (unit + 1 + unit // 8 * 2) % 8]] = 1.0
        units.weight.copy_(weights[:, :, None, None])
        head.weight.copy_(4 * weights.T)
        head.weight[0] = 0  # one colour is to be learnt
        head.bias.zero_()
    return Network(module, colours.PREPROCESS, "two-colours", list(colours.NAMES))


def own_study(folder, **changes):
    options = {"encoder": colours.ColourEncoder(), "config": colours.CONFIG} | changes
    return study(folder, options.pop("model", None) or two_colours(), "units", colours.image_set(400), **options)


def norm_of(parameter):
    assert parameter.grad is not None
    return float(parameter.grad.norm())


def claim(found, name):
    (one,) = [one for one in found.claims if one.name == f"units: {name}"]
    return one


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(tuning, "RATE", 0.02)
    own = own_study(tmp_path_factory.mktemp("tuned"))
    before = copy.deepcopy(own.subject.network.module.state_dict())
    found = regulariser(own, strengths=(0.0, 10.0), steps=80)
    yield own, before, found
    patch.undo()


@pytest.mark.parametrize(("make", "size"), [(two_colours, 24), (lambda: Network(Tokens(), tiny.PREPROCESS, "t"), 32)])
def test_a_tail_gives_the_networks_own_logits_and_gradients(make, size):
    network = make()
    layer = "units" if size == 24 else "layer"
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    tail = Tail(network, layer, CPU, images)
    activations, logits = tail(tail.reach(images))
    seen = []
    handle = network.module.get_submodule(layer).register_forward_hook(
        lambda *own: seen.append(own[2].detach().clone())
    )
    network.module.eval()
    expected = network.module(images)
    handle.remove()
    torch.testing.assert_close(logits, expected)
    flat = seen[0].flatten(2) if size == 24 else seen[0].transpose(1, 2)
    torch.testing.assert_close(activations, flat)
    names = {name for name, _ in network.module.named_parameters()}
    behind = [name for name in names if name.split(".")[0] in (layer, "head")]
    assert len(tail.parameters) == len(behind)
    expected.square().sum().backward()
    logits.square().sum().backward()
    wanted = sorted(norm_of(p) for n, p in network.module.named_parameters() if n in behind)
    assert sorted(norm_of(p) for p in tail.parameters) == pytest.approx(wanted, rel=1e-4)


def test_what_is_no_tail_ends_in_one_line():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="in another way than through layer layer, such as a connection around it"):
        Tail(Network(Around(), tiny.PREPROCESS, "around"), "layer", CPU, images)
    with pytest.raises(InputError, match=r"tiny must end in logits \[B, classes\] to be trained, got \[4, 6, 16, 16\]"):
        Tail(tiny.network(), "2", CPU, images)
    with pytest.raises(InputError, match="have no parameters to train"):
        Tail(Network(nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), tiny.PREPROCESS, "flat"), "1", CPU, images)
    with pytest.raises(InputError, match="name the module itself"):
        Tail(tiny.attention_network(), "2.self_attn#heads", CPU, images)


def test_a_penalty_lowers_the_stand_in_and_psi(tuned):
    _, _, found = tuned
    soft = claim(found, "soft polysemanticity less strength 0's, 10")
    assert soft.value < -0.1
    assert soft.high < 0
    assert soft.p < 0.01
    psi = claim(found, "PSI less strength 0's, 10")
    assert psi.high < 0
    assert claim(found, "accuracy, untuned").value > 0.8
    assert claim(found, "accuracy, 0").value > 0.9


def test_claims_are_those_of_the_table(tuned):
    own, _, found = tuned
    parts = {name: rows.set_index("channel") for name, rows in found.table.groupby("condition")}
    assert set(parts) == {"study", "untuned", "0", "10"}
    whole = parts["study"]
    expected = stats.spearmanr(whole["soft"], whole["log_psi"])[0]
    assert claim(found, "rank correlation of soft polysemanticity with PSI").value == pytest.approx(expected)
    np.testing.assert_array_equal(whole["psi"], own.evaluation("units", channels=whole.index.to_numpy()).table["psi"])
    for name in ("untuned", "0", "10"):
        assert claim(found, f"mean PSI, {name}").value == pytest.approx(parts[name]["psi"].mean())
    gap = parts["10"]["D_z"] - parts["0"]["D_z"]
    assert claim(found, "D_z less strength 0's, 10").value == pytest.approx(gap.mean())
    better = claim(found, "accuracy, untuned").value - claim(found, "accuracy, 0").value
    assert better
    assert claim(found, "accuracy less strength 0's, untuned").value == pytest.approx(better)
    assert len(found.figure.axes) == 3


def test_the_studys_network_is_left_alone(tuned):
    own, before, _ = tuned
    after = own.subject.network.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert own.subject.network.module.training == two_colours().module.training
    assert "forward" not in vars(own.subject.network.module.get_submodule("units"))


def test_nothing_is_computed_twice(tuned, tmp_path, monkeypatch):
    own, _, found = tuned
    monkeypatch.setattr(tuning.Course, "_train", forbidden)
    monkeypatch.setattr(tuning.Course, "_scored", forbidden)
    again = own_study(own.folder)
    monkeypatch.setattr(again, "folder", tmp_path)  # where the experiment's own results are not
    np.testing.assert_array_equal(regulariser(again, strengths=(0.0, 10.0), steps=80).table["psi"], found.table["psi"])
    with pytest.raises(AssertionError, match="nothing is computed again"):
        regulariser(again, strengths=(0.0, 5.0), steps=80)


def test_bad_input_ends_in_one_line(tmp_path):
    own = own_study(tmp_path)
    for strengths in ((1.0, 2.0), (0.0,), (0.0, 2.0, 1.0)):
        with pytest.raises(ConfigError, match="strengths must ascend from 0"):
            regulariser(own, strengths=strengths)
    with pytest.raises(ConfigError, match="steps >= 1"):
        regulariser(own, steps=0)
    with pytest.raises(InputError, match="15 images to train on and 15 held out are too few for top_k 18"):
        regulariser(own, image_count=30)
    with pytest.raises(InputError, match="the images have none"):
        regulariser(study(tmp_path / "a", images=tiny.image_set(labelled=False)))
    with pytest.raises(InputError, match="the outputs of tiny have no names"):
        regulariser(study(tmp_path / "b"))
    other = two_colours()
    other.class_names = ["red", *"abcdefg"]
    with pytest.raises(
        InputError, match="1 of 8 classes of the images, such as 'red', 'green', 'blue', are outputs of"
    ):
        regulariser(own_study(tmp_path / "c", model=other))
