"""Adversarial patches: known answers under a linear encoder, the controls, and the experiment itself."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_study import study
from torch import nn

from psi_fast import Network
from psi_fast.errors import ConfigError, InputError, NotFiniteError
from psi_fast.experiments import adversarial
from psi_fast.experiments.adversarial import changed
from psi_fast.experiments.attack import RESTORING, Attack, Sight
from psi_fast.experiments.attack_plan import concept_axis, halves, most_monosemantic, noised

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
    encoder = own.subject.encoder
    sight = Sight(own.tap(own.layers[0]), channel, encoder, encoder.preprocess)
    return Attack(sight, torch.zeros(10), direction, budget, 4)


def squares(own, top, row=1):
    """The images of a channel's top patches as the attack takes them."""
    return own.squares.read(top.images[row], torch.device("cpu")).float()


def test_a_linear_encoder_is_split_and_the_activation_stays(tmp_path):
    own = study(tmp_path, linear_network(), "0", encoder=LinearEncoder())
    made, top = attack(own), own.top("0")
    clean = squares(own, top)
    boxes = np.tile([4, 6, 30, 28], (len(clean), 1))
    aims = halves(np.arange(len(clean)), by_class=False)
    before = made.sight.measured(clean, boxes)
    held = before["map"].amax(1)
    changed = made(clean, boxes, aims, held)

    difference = changed - clean
    assert difference.abs().max() == pytest.approx(24, abs=1e-4)
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert (changed != changed.round()).any()  # whole numbers would not hold the activation
    outside = difference.clone()
    outside[:, 6:28, 4:30] = 0
    assert not outside.any()

    after = made.sight.measured(changed, boxes)
    assert (torch.from_numpy(aims) * ((after["rows"] - before["rows"]) @ made.direction) > 0.05).all()
    relative = (after["map"].amax(1) / held - 1).abs()
    assert relative.median() < 1e-5
    assert relative.max() < 0.01
    # not by standing still: many maps peak elsewhere now, and what was the peak is one no more
    place = before["map"].argmax(1)
    assert (after["map"].argmax(1) != place).float().mean() > 0.3
    assert (after["map"][torch.arange(len(place)), place] / held - 1).abs().max() > 0.05
    noise = made.sight.measured(noised(clean, boxes, 24, [0]), boxes)
    assert (noise["map"].amax(1) / held - 1).abs().median() > 0.02


def test_places_near_the_maximum_are_brought_back_together(tmp_path):
    own = study(tmp_path, linear_network(), "0", encoder=LinearEncoder())
    top = own.top("0")
    for channel in range(6):
        made, clean = attack(own, channel), squares(own, top, channel)
        boxes, aims = np.tile([4, 6, 30, 28], (len(clean), 1)), halves(np.arange(len(clean)), by_class=False)
        held = made.sight.measured(clean, boxes)["map"].amax(1)
        after = made.sight.measured(made(clean, boxes, aims, held), boxes)["map"].amax(1)
        assert (after / held - 1).abs().max() < 1e-3


def test_what_is_measured_is_the_unrounded_float32_path(tmp_path):
    own = study(tmp_path, encoder=LinearEncoder(), config=replace(tiny.CONFIG, precision="bfloat16"))
    sight, top = attack(own).sight, own.top(tiny.LAYER)
    pixels = squares(own, top) * 0.99 + 0.3
    boxes = np.tile([4, 6, 30, 28], (len(pixels), 1))
    found = sight.measured(pixels, boxes)
    network = own.subject.network
    with torch.no_grad():
        maps = network.module[:3](network.preprocess.smooth(pixels))[:, 1].flatten(1)
        rows = sight.encoder.encode_smooth(sight.preprocess.smooth(pixels[:, 6:28, 4:30]))
    torch.testing.assert_close(found["map"], maps)
    torch.testing.assert_close(found["rows"], torch.nn.functional.normalize(rows, dim=1))


def test_an_embedding_that_is_not_finite_is_said(tmp_path):
    class Broken(LinearEncoder):
        def encode_smooth(self, batch):
            return super().encode_smooth(batch) * torch.nan

    own = study(tmp_path, encoder=LinearEncoder())
    top = own.top(tiny.LAYER)
    sight = replace(attack(own).sight, encoder=Broken())
    with pytest.raises(NotFiniteError, match="channel 1 of 2 is not finite in float32"):
        sight.measured(squares(own, top), np.tile([0, 0, 32, 32], (12, 1)))


def test_a_step_costs_a_pass_through_each_and_the_network_ends_at_the_layer(tmp_path):
    encoder = LinearEncoder()
    own = study(tmp_path, tiny.conv_network(behind := tiny.Boom()), encoder=encoder)
    made, top = attack(own), own.top(tiny.LAYER)
    clean, boxes = squares(own, top), np.tile([0, 0, 32, 32], (12, 1))
    held = made.sight.measured(clean, boxes)["map"].amax(1)
    ran, seen = [], []
    own.subject.network.module[0].register_forward_hook(lambda _module, inputs, _output: ran.append(len(inputs[0])))
    encoder.encode_smooth = lambda batch: seen.append(len(batch)) or LinearEncoder.encode_smooth(encoder, batch)
    runs = behind.runs
    made(clean, boxes, np.ones(12, np.float32), held)
    assert behind.runs == runs
    assert sum(seen) == 12 * made.steps
    assert sum(ran) == 12 * (made.steps + RESTORING)


def test_images_do_not_depend_on_their_batch(tmp_path):
    own = study(tmp_path, encoder=LinearEncoder())
    made, top = attack(own), own.top(tiny.LAYER)
    clean = squares(own, top)
    boxes, aims = np.tile([0, 0, 32, 32], (len(clean), 1)), np.ones(len(clean), np.float32)
    held = made.sight.measured(clean, boxes)["map"].amax(1)
    whole = made(clean, boxes, aims, held)
    part = made(clean[5:7], boxes[5:7], aims[5:7], held[5:7])
    assert (whole[5:7] - part).abs().mean() < 0.05


def test_a_linear_encoder_raises_s_and_not_q(tmp_path):
    config = replace(tiny.CONFIG, top_k=24, draws=60, k_max=2, patch="image")
    own = study(tmp_path, linear_network(), "0", encoder=LinearEncoder(), config=config)
    found = adversarial(own, **OPTIONS)
    table = found.table
    assert list(table["condition"].unique()) == ["before", "noise", "mixed", "by class"]
    by = table.set_index(["condition", "channel"])
    draws = [own.evaluation("0", own.with_changes(seed=seed)).table.set_index("channel") for seed in range(3)]
    lowest = ((draws[0]["psi"] + draws[1]["psi"]) / 2).nsmallest(2)
    assert claim_of(found, "0: PSI that chose the channels") == pytest.approx(lowest.mean())
    # before is what the layer's own scores are by the third seed, but for the rounding of resized pixels
    for channel in lowest.index:
        far = [abs(by.loc[("before", channel), "log_psi"] - one.loc[channel, "log_psi"]) for one in draws]
        assert far[2] < min(0.05, *far[:2])
    mean = table.groupby("condition")[["S", "Q_p", "activation_change", "cosine_to_before"]].mean()
    assert mean.loc["mixed", "S"] > mean.loc["before", "S"] + 0.1
    assert mean.loc["mixed", "S"] > mean.loc["noise", "S"] + 0.3
    # labels do not move: Q knows nothing of mixed halves, and everything of halves by class
    assert mean.loc["mixed", "Q_p"] > 0.05
    assert mean.loc["by class", "Q_p"] < 0.05
    assert by.loc["mixed", "psi"].max() < 0.5 < by.loc["by class", "psi"].min()
    assert table.loc[table["condition"] == "before", "largest_activation_change"].eq(0).all()
    assert (
        mean.loc[["mixed", "by class"], "activation_change"].max()
        < 1e-5
        < 0.01
        < mean.loc["noise", "activation_change"]
    )
    assert mean.loc["before", "cosine_to_before"] == pytest.approx(1)
    gap = by.loc["mixed", "psi"] - by.loc["before", "psi"]
    assert claim_of(found, "0: psi, mixed - before") == pytest.approx(gap.mean())
    gap = by.loc["mixed", "psi"] - by.loc["noise", "psi"]
    assert claim_of(found, "0: psi, mixed - noise") == pytest.approx(gap.mean())
    assert claim_of(found, "0: PSI >= .5, by class") == pytest.approx((by.loc["by class", "psi"] >= 0.5).mean())
    assert claim_of(found, "0: change of the activation, mixed, 95 % quantile") < 0.01
    assert claim_of(found, "0: change of the activation, noise, median") > 0.01
    assert claim_of(found, "0: change at the place where it peaked, mixed, 95 % quantile") > 0.01
    assert (table.loc[table["condition"] == "before", ["place_change", "peak_moved"]] == 0).all(axis=None)
    moved = table.loc[table["condition"] == "mixed", "peak_moved"]
    assert claim_of(found, "0: patches whose peak moved, mixed") == pytest.approx(moved.mean())
    assert moved.mean() > 0.1
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


def claim_of(found, name):
    return {one.name: one for one in found.claims}[name].value


def test_changes_are_of_the_largest_value_and_of_that_at_its_old_place():
    before = torch.tensor([[[1.0, 4.0, 2.0], [5.0, 0.0, 1.0]]])
    after = torch.tensor([[[1.0, 3.0, 5.0], [5.0, 4.0, 1.0]]])
    found = changed(before, after)
    np.testing.assert_allclose(found["activation"], [[0.25, 0]])
    np.testing.assert_allclose(found["place"], [[0.25, 0]])
    np.testing.assert_array_equal(found["moved"], [[True, False]])
    np.testing.assert_allclose(changed(after, before)["place"], [[0.6, 0]])
    np.testing.assert_allclose(changed(after, before)["activation"], [[0.2, 0]])


def test_the_most_monosemantic_by_the_mean_are_scored_live_and_selective():
    table = pd.DataFrame(
        {
            "channel": [9, 8, 7, 6, 5, 4],
            "psi": [0.7, 0.1, 0.1, np.nan, 0.2, 0.4],
            "flags": [[], ["dead"], ["unselective"], [], ["degenerate:Q"], []],
        }
    )
    again = table.assign(psi=[0.3, 0.1, 0.1, 0.1, 0.9, 0.5])  # channel 5 was lucky before
    assert most_monosemantic([table, again], 2).to_dict() == pytest.approx({4: 0.45, 9: 0.5})
    assert list(most_monosemantic([table, again], 9).index) == [4, 9, 5]
    with pytest.raises(InputError, match="no channel that is scored, live and selective"):
        most_monosemantic([table[1:4], again[1:4]], 2)


def test_fewer_patches_take_part_and_choose_the_channels(tmp_path, monkeypatch):
    own = study(tmp_path, encoder=LinearEncoder())
    seen = []
    real = Sight.measured
    monkeypatch.setattr(
        Sight, "measured", lambda self, pixels, *rest: seen.append(len(pixels)) or real(self, pixels, *rest)
    )
    found = adversarial(own, **OPTIONS, patch_count=8)
    assert set(seen) == {8}
    before = found.table[found.table["condition"] == "before"]
    draws = [own.evaluation(tiny.LAYER, own.with_changes(top_k=8, seed=seed)).table for seed in range(2)]
    assert set(before["channel"]) == set(most_monosemantic(draws, 2).index)
    assert np.isfinite(found.table["log_psi"]).all()


def test_noise_is_of_the_budget_and_inside_its_box():
    pixels = torch.full((2, 8, 8, 3), 100.0)
    found = noised(pixels, np.array([[1, 2, 5, 8], [0, 0, 8, 8]]), 9, [0]) - 100
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
        runs.append(self.sight.channel)
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
    with pytest.raises(ConfigError, match=r"patch_count must be at least 2 \* k_max = 6, got 5"):
        adversarial(study(tmp_path, encoder=LinearEncoder()), patch_count=5)


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
