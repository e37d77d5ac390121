"""Adversarial patches: known answers under a linear encoder, the controls, and the experiment itself."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_study import study
from torch import nn

from psi_fast import Network
from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments import adversarial
from psi_fast.experiments.adversarial import concept_axis, halves, noised
from psi_fast.experiments.attack import Attack

OPTIONS = {"channel_count": 2, "budget": 24.0, "steps": 3}


class LinearEncoder(tiny.TinyEncoder):
    """The tiny encoder, with gradients."""

    def encode_smooth(self, batch):
        return batch.flatten(1) @ self._weight


def linear_network():
    """A convolution: its units are linear in the pixels."""
    return Network(
        tiny.seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 5, stride=2, padding=2))), tiny.PREPROCESS, "linear"
    )


def attack(own, channel=1, budget=24.0):
    direction = torch.nn.functional.normalize(torch.arange(10.0) - 4.5, dim=0)
    tap = own.tap(own.layers[0])
    encoder = own.subject.encoder
    return Attack(tap, channel, encoder, encoder.preprocess, torch.zeros(10), direction, budget, 4)


def test_a_linear_encoder_is_split_and_the_activation_stays(tmp_path):
    own = study(tmp_path, linear_network(), "0", encoder=LinearEncoder())
    made, top = attack(own), own.top("0")
    clean = own.squares.read(top.images[1], torch.device("cpu"))
    boxes = np.tile([4, 6, 30, 28], (len(clean), 1))
    aims = halves(np.arange(len(clean)), by_class=False)
    changed = made(clean, boxes, top.positions[1], aims)

    difference = changed.float() - clean.float()
    assert difference.abs().max() == 24
    outside = difference.clone()
    outside[:, 6:28, 4:30] = 0
    assert not outside.any()

    def seen(pixels):
        crops = [made.preprocess(image[None, 6:28, 4:30]) for image in pixels]
        with torch.no_grad():
            rows = torch.nn.functional.normalize(made.encoder.encode_smooth(torch.cat(crops)), dim=1)
            with made.tap as tap:
                value = tap(tiny.PREPROCESS(pixels))[torch.arange(len(pixels)), 1, torch.from_numpy(top.positions[1])]
        return rows @ made.direction, value

    (before, value), (after, kept) = seen(clean), seen(changed)
    assert (torch.from_numpy(aims) * (after - before) > 0.05).all()
    # the activation moves by a fiftieth of what the same budget could do to it, at most
    with own.tap("0") as tap, torch.enable_grad():
        shown = clean.float().requires_grad_()
        read = tap(tiny.PREPROCESS.smooth(shown))[torch.arange(len(clean)), 1, torch.from_numpy(top.positions[1])]
        (pull,) = torch.autograd.grad(read.sum(), shown)
    reach = pull[:, 6:28, 4:30].abs().flatten(1).sum(1) * 24
    assert ((kept - value).abs() <= 0.02 * reach + 1e-6).all()


def test_images_do_not_depend_on_their_batch(tmp_path):
    own = study(tmp_path, encoder=LinearEncoder())
    made, top = attack(own), own.top(tiny.LAYER)
    clean = own.squares.read(top.images[1], torch.device("cpu"))
    boxes, aims = np.tile([0, 0, 32, 32], (len(clean), 1)), np.ones(len(clean), np.float32)
    whole = made(clean, boxes, top.positions[1], aims)
    part = made(clean[5:7], boxes[5:7], top.positions[1, 5:7], aims[5:7])
    assert (whole[5:7].int() - part.int()).abs().float().mean() < 0.05


def test_a_linear_encoder_raises_s_and_not_q(tmp_path):
    config = replace(tiny.CONFIG, top_k=24, draws=60, k_max=2, patch="image")
    own = study(tmp_path, linear_network(), "0", encoder=LinearEncoder(), config=config)
    found = adversarial(own, **OPTIONS)
    table = found.table
    assert list(table["condition"].unique()) == ["before", "noise", "mixed", "by class"]
    by = table.set_index(["condition", "channel"])
    lowest = own.evaluation("0").table.nsmallest(2, "log_psi")
    # before is what the layer's own scores are
    for _, row in lowest.iterrows():
        assert by.loc[("before", row["channel"]), "log_psi"] == pytest.approx(row["log_psi"], abs=1e-6)
    mean = table.groupby("condition")[["S", "Q_p", "activation_change", "cosine_to_before"]].mean()
    assert mean.loc["mixed", "S"] > mean.loc["before", "S"] + 0.1
    assert mean.loc["mixed", "S"] > mean.loc["noise", "S"] + 0.3
    # labels do not move: Q knows nothing of mixed halves, and everything of halves by class
    assert mean.loc["mixed", "Q_p"] > 0.05
    assert mean.loc["by class", "Q_p"] < 0.05
    assert by.loc["mixed", "psi"].max() < 0.5 < by.loc["by class", "psi"].min()
    assert mean.loc["mixed", "activation_change"] < 0.03
    assert mean.loc["before", "cosine_to_before"] == pytest.approx(1)
    claim = {one.name: one for one in found.claims}
    gap = by.loc["mixed", "psi"] - by.loc["before", "psi"]
    assert claim["0: psi, mixed - before"].value == pytest.approx(gap.mean())
    assert claim["0: PSI >= .5, by class"].value == pytest.approx((by.loc["by class", "psi"] >= 0.5).mean())
    assert found.figure.get_size_inches()[0] > 5


def test_halves_are_equal_and_mixed_or_apart():
    classes = np.repeat([0, 1, 2, 3, 4], [2, 6, 4, 4, 4])
    mixed, apart = halves(classes, by_class=False), halves(classes, by_class=True)
    assert mixed.sum() == apart.sum() == 0
    for name in range(5):
        assert mixed[classes == name].sum() == 0
        assert abs(apart[classes == name].mean()) == 1


def test_the_axis_joins_the_least_alike_of_near_concepts():
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0], [1, 0, 0.9], [1, 0, -0.7], [-1, 0, 9]]), dim=1)
    axis = concept_axis(torch.tensor([[1.0, 0, 0]]), text, None, 3)
    expected = torch.nn.functional.normalize(text[1] - text[2], dim=0)
    torch.testing.assert_close(axis * axis[2].sign(), expected)


def test_noise_is_of_the_budget_and_inside_its_box():
    pixels = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    found = noised(pixels, np.array([[1, 2, 5, 8], [0, 0, 8, 8]]), 9, [0]).float() - 100
    assert set(found[0, 2:, 1:5].unique().tolist()) == {-9, 9}
    found[0, 2:, 1:5] = 0
    assert not found[0].any()
    assert abs(float(found[1].mean())) < 3


def test_a_killed_experiment_goes_on(tmp_path, monkeypatch):
    arguments = {"encoder": LinearEncoder(), "config": replace(tiny.CONFIG, patch="image")}
    expected = adversarial(study(tmp_path / "whole", **arguments), **OPTIONS)
    real, runs = Attack.__call__, []

    class Killed(BaseException):
        pass

    def dying(self, *given):
        runs.append(self.channel)
        if len(runs) == 4:
            raise Killed
        return real(self, *given)

    monkeypatch.setattr(Attack, "__call__", dying)
    with pytest.raises(Killed):
        adversarial(study(tmp_path / "cut", **arguments), **OPTIONS)
    found = adversarial(study(tmp_path / "cut", **arguments), **OPTIONS)
    assert len(runs) == 5
    np.testing.assert_allclose(found.table["log_psi"], expected.table["log_psi"])


def test_bad_input_ends_in_one_line(tmp_path):
    with pytest.raises(InputError, match="tiny-encoder has no method encode_smooth"):
        adversarial(study(tmp_path))
    with pytest.raises(ConfigError, match="budget <= 255"):
        adversarial(study(tmp_path, encoder=LinearEncoder()), budget=0.0)


def test_images_without_labels_have_no_halves_by_class(tmp_path):
    own = study(tmp_path, images=tiny.image_set(labelled=False), encoder=LinearEncoder())
    found = adversarial(own, **OPTIONS)
    assert list(found.table["condition"].unique()) == ["before", "noise", "mixed"]
    assert not any("Q_hat" in one.name for one in found.claims)


@pytest.mark.parametrize("size", [(32, 32), (20, 27)])
def test_the_smooth_input_is_the_rounded_one(size):
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for preprocess in (tiny.PREPROCESS, replace(tiny.SMALL, interpolation="bicubic"), replace(tiny.SMALL, squash=True)):
        expected, found = preprocess(pixels), preprocess.smooth(pixels.float())
        step = 1 / 255 / min(preprocess.std)
        assert (found - expected).abs().mean() < step
        if (
            preprocess.interpolation == "bilinear"
        ):  # the rounded bicubic one also stays within 0..255 between its two passes
            assert (found - expected).abs().max() < 1.5 * step


def test_an_encoder_with_gradients_embeds_as_without():
    from psi_fast.encoders import load_encoder

    encoder = load_encoder("classifier:tiny:classifier").at_precision(torch.float32)
    crops = torch.rand(3, 3, 32, 32, requires_grad=True)
    found = encoder.encode_smooth(crops)
    torch.testing.assert_close(found.detach(), encoder.encode(crops.detach()))
    (gradient,) = torch.autograd.grad(found.sum(), crops)
    assert gradient.abs().sum((1, 2, 3)).min() > 0
