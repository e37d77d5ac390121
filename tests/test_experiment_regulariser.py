"""Regulariser: the tail of a network, tuning on planted units, what is left alone, and what is not computed twice."""

import copy
from dataclasses import replace

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
from psi_fast.experiments.lesson import lesson
from psi_fast.experiments.stand_in import Scoring
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
            weights[unit, [unit % 8, (unit + 1 + unit // 8 * 2) % 8]] = torch.tensor([1.0, 0.9])
        units.weight.copy_(weights[:, :, None, None])
        head.weight.copy_(4 * weights.T)
        head.weight[0] = 0  # one colour is to be learnt
        head.bias.zero_()
    return Network(module, colours.PREPROCESS, "two-colours", list(colours.NAMES))


def own_study(folder, **changes):
    options = {"encoder": colours.ColourEncoder(), "config": colours.CONFIG, "images": colours.image_set(400)} | changes
    return study(folder, options.pop("model", None) or two_colours(), "units", **options)


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
    found = regulariser(own, strengths=(0.0, 3.0), steps=40)
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


def test_a_penalty_lowers_the_stand_in_and_psi(tmp_path, monkeypatch):
    """Without cross-entropy, which itself makes units of one colour here: strength 0 leaves the network as it is."""
    monkeypatch.setattr(tuning, "RATE", 0.02)
    monkeypatch.setattr(tuning, "cross_entropy", lambda logits, _classes: 0 * logits.sum())
    own = own_study(tmp_path, config=replace(colours.CONFIG, seed=1))
    found = regulariser(own, strengths=(0.0, 1.0), steps=40)
    assert claim(found, "PSI less strength 0's, untuned").value == 0
    for what in ("stand-in", "stand-in of images trained on"):
        soft = claim(found, f"{what} less strength 0's, 1")
        assert soft.value < -0.1
        assert soft.high < 0
    assert claim(found, "PSI less strength 0's, 1").value < -0.05


def test_cross_entropy_teaches(tuned):
    _, _, found = tuned
    assert claim(found, "accuracy, untuned").value > 0.8
    assert claim(found, "accuracy, 0").value > 0.9


def test_the_stand_in_tells_planted_units_apart_that_it_was_not_calibrated_on(tuned):
    _, _, found = tuned
    rows = found.table[found.table["condition"] == "compared"]
    assert {"channel", "mono", "poly2", "poly3", "random"} == set(rows["kind"])
    rest = rows[~rows["fitted"].astype(bool)]
    assert abs(len(rows) - 2 * len(rest)) <= 5
    for name in ("poly2 / mono", "poly3 / mono"):
        one = claim(found, f"AUROC of the stand-in, {name}")
        assert one.value > 0.9
        poly, mono = (rest[rest["kind"] == kind]["soft_log_psi"] for kind in name.split(" / "))
        expected = stats.mannwhitneyu(poly, mono).statistic / len(poly) / len(mono)
        assert one.value == pytest.approx(expected)
    both = claim(found, "rank correlation of the stand-in with PSI, channels and planted units")
    assert both.value == pytest.approx(stats.spearmanr(rest["soft_log_psi"], rest["log_psi"])[0])
    assert both.low > 0.2


def test_classes_stay_whole_and_halves_have_none_in_common(tmp_path):
    own = own_study(tmp_path)
    found = lesson(own, 190)
    assert len(found.outputs) == 4
    assert not np.intersect1d(found.train, found.held).size
    for images in (found.train, found.held):
        assert list(np.bincount(found.classes[images])) == [25] * 4
        np.testing.assert_array_equal(found.outputs[found.classes[images]], own.labels[images])
    assert found.top == 18  # top_k, less than four fifths of 25
    assert lesson(own_study(tmp_path, config=replace(colours.CONFIG, top_k=40)), 190).top == 20
    assert (found.classes[~np.isin(np.arange(400), [*found.train, *found.held])] == -1).all()


def test_the_bank_has_the_batch_anew_and_gradients_from_it_alone(tmp_path):
    own = own_study(tmp_path)
    course = tuning.Course(own, "units", lesson(own, 400), 1)
    bank = tuning._Bank(course)
    before = bank.values.clone()
    rows = np.arange(40)
    free = (1.1 * before[:, rows].T[:, :, None] + 0.01).requires_grad_()
    penalty = bank.penalty(rows, free)
    torch.testing.assert_close(bank.values, 1.1 * before + 0.01)  # the others are carried along
    (gradient,) = torch.autograd.grad(penalty, free)
    # that of all images, of which the batch is a part
    whole = bank.values.clone().requires_grad_()
    values, places = whole.topk(course.scoring.candidates, dim=1)
    expected = course.calibration(course.scoring.measured(values, places, course.own.train, bank.gram)).penalty.mean()
    (wanted,) = torch.autograd.grad(expected, whole)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient[:, :, 0].T, 5 * wanted[:, :40])
    assert float(penalty.detach()) == pytest.approx(5 * float(expected.detach()))


def test_claims_are_those_of_the_table(tuned):
    _, _, found = tuned
    held = found.table[(found.table["images"] == "held out") | (found.table["condition"] == "compared")]
    parts = {name: rows.set_index("channel") for name, rows in held.groupby("condition")}
    assert set(parts) == {"compared", "untuned", "0", "3"}
    whole = parts["compared"]
    whole = whole[(whole["kind"] == "channel") & ~whole["fitted"].astype(bool)]
    expected = stats.spearmanr(whole["soft_log_psi"], whole["log_psi"])[0]
    assert claim(found, "rank correlation of the stand-in with PSI, channels").value == pytest.approx(expected)
    for name in ("untuned", "0", "3"):
        assert claim(found, f"mean PSI, {name}").value == pytest.approx(parts[name]["psi"].mean())
    gap = parts["3"]["D_z"] - parts["0"]["D_z"]
    assert claim(found, "D_z less strength 0's, 3").value == pytest.approx(gap.mean())
    trained = found.table[found.table["images"] == "trained on"].set_index(["condition", "channel"])["psi"]
    gap = trained["3"] - trained["0"]
    assert claim(found, "PSI of images trained on less strength 0's, 3").value == pytest.approx(gap.mean())
    assert claim(found, "mean PSI of images trained on, 0").value == pytest.approx(trained["0"].mean())
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
    monkeypatch.setattr(Scoring, "_scored", forbidden)
    again = own_study(own.folder)
    monkeypatch.setattr(again, "folder", tmp_path)  # where the experiment's own results are not
    np.testing.assert_array_equal(regulariser(again, strengths=(0.0, 3.0), steps=40).table["psi"], found.table["psi"])
    with pytest.raises(AssertionError, match="nothing is computed again"):
        regulariser(again, strengths=(0.0, 5.0), steps=40)


def test_bad_input_ends_in_one_line(tmp_path):
    own = own_study(tmp_path)
    for strengths in ((1.0, 2.0), (0.0,), (0.0, 2.0, 1.0)):
        with pytest.raises(ConfigError, match="strengths must ascend from 0"):
            regulariser(own, strengths=strengths)
    with pytest.raises(ConfigError, match="steps >= 1"):
        regulariser(own, steps=0)
    with pytest.raises(InputError, match="12 images to train on are too few for tops of 8"):
        regulariser(own_study(tmp_path, images=colours.image_set(28)), image_count=30)
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
