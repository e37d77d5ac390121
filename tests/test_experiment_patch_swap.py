"""Patch swaps: exact where the answer is known, an independent replica, and the experiment on a detector of squares."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from scipy import stats
from test_experiment_separation import ARGUMENTS
from test_study import study
from torch import nn

from psi_fast import Network, Preprocess, PSIConfig
from psi_fast.activation_tap import ActivationTap
from psi_fast.errors import ConfigError, InputError
from psi_fast.experiments import patch_swap, swap_plan, swaps
from psi_fast.experiments.patch_swap import CONTROLS
from psi_fast.experiments.swap_plan import plan
from psi_fast.experiments.swaps import CONDITIONS, Places, Swaps, swapped
from psi_fast.image_set import ImageSet
from psi_fast.receptive_field import Field, boxes

CPU = torch.device("cpu")
BLUE = (0.4, 0.5, 0.6, 0.7)
"""What a blue square is worth to each unit; a red one is worth 1."""
STRONG = 8
"""Bright red squares, and as many bright blue ones."""


def square_network():
    """Layer "2": four units on 8 x 8 positions of 4 px, each the redness of its cell and some of its blueness."""
    colour, units = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 4, stride=4)
    with torch.no_grad():
        colour.weight.copy_(torch.tensor([[1, -0.5, -0.5], [-0.5, -0.5, 1]])[:, :, None, None])
        colour.bias.zero_()
        units.weight.copy_(torch.tensor([[1.0, blue] for blue in BLUE])[:, :, None, None].expand(-1, -1, 4, 4) / 16)
        units.bias.zero_()
    return Network(
        nn.Sequential(colour, nn.ReLU(), units), Preprocess(32, 32, (0,) * 3, (1,) * 3, "bilinear"), "squares"
    )


def square_images():
    """8 bright red squares, 8 bright blue ones, 36 pale red ones and 8 images without; on grey noise."""

    def read(name):
        number = int(name)
        rng = np.random.default_rng(number)
        pixels = np.repeat(rng.integers(90, 120, size=(32, 32, 1)), 3, axis=2) + rng.integers(0, 4, size=(32, 32, 3))
        y, x = 4 * rng.integers(0, 7, size=2)
        kind = min(number // STRONG, 2) if number < 52 else 3
        if kind < 3:
            pixels[y : y + 8, x : x + 8] = ((255, 0, 0), (0, 0, 255), (160 - number % 5, 80, 80))[kind]
        return Image.fromarray(pixels.astype(np.uint8))

    names = [str(number) for number in range(60)]
    return ImageSet(
        names, read, names, labels=[min(n // STRONG, 2) for n in range(60)], class_names=["r", "b", "other"]
    )


class ColourEncoder(tiny.TinyEncoder):
    """The mean colour of a patch, without its grey, through a fixed matrix, and a little of all its pixels."""

    def encode(self, batch):
        mean = batch.mean((2, 3))
        colour = torch.stack([row @ self._weight[:3] for row in mean - mean.mean(1, keepdim=True)])
        return 3 * colour + 0.05 * super().encode(batch)


def square_study(folder, **changes):
    config = PSIConfig(top_k=2 * STRONG, k_max=3, n_init=2, draws=19, patch=12 / 32, precision="float32")
    return study(
        folder, square_network(), "2", square_images(), **{"encoder": ColourEncoder(), "config": config} | changes
    )


def made_swaps(own, layer, count=13, side=10):
    """Random swaps of a layer."""
    rng = np.random.default_rng(3)
    tap = own.tap(layer)
    places = Places(tap, side)
    positions = rng.choice(np.flatnonzero(places.usable), count)
    extents = places.boxes[positions, 2:] - places.boxes[positions, :2]
    corners = rng.integers(0, places.size - extents[:, None] + 1, size=(count, 3, 2))
    elsewhere = np.array([places.elsewhere(int(one), rng) for one in positions])
    return Swaps(
        rng.integers(tap.channels, size=count), rng.integers(40, size=count), positions, places.boxes[positions],
        rng.integers(40, size=(count, 3)), corners, elsewhere,
    )  # fmt: skip


def replica(own, layer, made):
    """As `swapped`, one image at a time and by plain slices of arrays."""
    network, tap = own.subject.network, own.tap(layer)
    inputs = network.preprocess(own.squares.read(slice(0, len(own.squares)), CPU)).numpy()
    found = np.empty((len(made), 6))
    for n, (x0, y0, x1, y1) in enumerate(made.boxes):
        host = inputs[made.images[n]]
        w, h = x1 - x0, y1 - y0
        variants = [host.copy() for _ in range(6)]
        patches = []
        for k in range(3):
            x, y = made.corners[n, k]
            patches.append(inputs[made.donors[n, k], :, y : y + h, x : x + w])
            variants[1 + k][:, y0:y1, x0:x1] = patches[-1]
        x, y = made.elsewhere[n]
        variants[4][:, y : y + h, x : x + w] = patches[0]
        variants[5][:, y : y + h, x : x + w] = host.reshape(3, -1).mean(1)[:, None, None]
        with tap, torch.no_grad():
            values = tap(torch.from_numpy(np.stack(variants)))
        found[n] = values[:, made.channels[n], made.positions[n]]
    return found


@pytest.mark.parametrize(
    ("model", "layer"), [(tiny.network, "2"), (tiny.attention_network, "2")], ids=["map", "tokens"]
)
def test_swaps_are_what_plain_slices_give(tmp_path, model, layer):
    own = study(tmp_path, model(), layer)
    made = made_swaps(own, layer)
    found = swapped(own, layer, made)
    np.testing.assert_allclose(found, replica(own, layer, made), atol=1e-5)
    assert (np.abs(found[:, 1:4] - found[:, :1]).max(0) > 0.01).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [tiny.network, tiny.attention_network], ids=["map", "tokens"])
def test_a_swap_that_changes_no_pixel_changes_nothing(tmp_path, model, precision):
    own = study(tmp_path, model(), "2", config=replace(tiny.CONFIG, precision=precision))
    made = made_swaps(own, "2", count=21)
    same = replace(made, donors=np.tile(made.images[:, None], 3), corners=np.tile(made.boxes[:, None, :2], (1, 3, 1)))
    found = swapped(own, "2", same)
    np.testing.assert_array_equal(found[:, 1:4], np.tile(found[:, :1], 3))
    assert np.ptp(found[:, 0]) > 0


def test_a_token_sees_its_own_patch_behind_the_class_token(tmp_path):
    """In the layer "1", a token is the convolution of one square of 8 px, so a box of 8 px decides it alone."""
    own = study(tmp_path, tiny.attention_network(), "1")
    tap, made = own.tap("1"), made_swaps(own, "1", side=8)
    places = Places(tap, 8)
    assert tap.prefix == 1
    assert not places.usable[0]
    donors = np.random.default_rng(0).integers(1, tap.positions, size=made.donors.shape)
    found = swapped(own, "1", replace(made, corners=places.boxes[donors][..., :2]))
    inputs = own.subject.network.preprocess(own.squares.read(slice(0, 40), CPU))
    with tap, torch.no_grad():
        values = tap(inputs).numpy()
    np.testing.assert_allclose(found[:, 1:4], values[made.donors, made.channels[:, None], donors], atol=1e-5)
    np.testing.assert_array_equal(found[:, 4:], np.tile(found[:, :1], 2))


@pytest.mark.parametrize("side", [5, 8, 11])
@pytest.mark.parametrize(
    ("model", "layer"), [(tiny.network, "2"), (tiny.attention_network, "2")], ids=["map", "tokens"]
)
def test_places_are_those_of_the_receptive_field(model, layer, side):
    tap = ActivationTap(model(), layer, CPU)
    places = Places(tap, side)
    field = Field(side / 32, (side, side), False)
    expected = boxes(field, np.arange(tap.positions), tap.grid, tap.prefix, 32)[tap.prefix :]
    assert np.abs(places.boxes[tap.prefix :] - expected).max() <= 0.5
    assert not places.on_grid[: tap.prefix].any()
    assert places.on_grid[tap.prefix :].all()


def test_a_box_elsewhere_shares_no_pixel_and_may_lie_wherever_there_is_room():
    places = Places(ActivationTap(tiny.attention_network(), "2", CPU), 10)
    rng = np.random.default_rng(0)
    for host in np.flatnonzero(places.usable):
        x0, y0, x1, y1 = places.boxes[host]
        w, h = x1 - x0, y1 - y0
        free = {
            (x, y)
            for x in range(32 - w + 1)
            for y in range(32 - h + 1)
            if x + w <= x0 or x >= x1 or y + h <= y0 or y >= y1
        }
        drawn = [tuple(places.elsewhere(host, rng).tolist()) for _ in range(12 * len(free))]
        assert set(drawn) <= free
        assert len(set(drawn)) > 0.99 * len(free)
    large = Places(ActivationTap(tiny.attention_network(), "2", CPU), 16)
    corner, middle = large.boxes[1], large.boxes[6]
    assert corner.tolist() == [0, 0, 12, 12]
    assert middle.tolist() == [4, 4, 20, 20]
    assert large.usable[1]
    assert not large.usable[6]


def test_a_patch_is_cut_with_its_peak_where_the_hosts_is_unless_the_border_forbids():
    places = Places(ActivationTap(tiny.attention_network(), "1", CPU), 12)
    first, inner, last = 1, 1 + 5, 16  # cells (0, 0), (1, 1) and (3, 3) of 4 x 4, of 8 px
    corners, shifts = places.windows(inner, np.array([inner, first, last]))
    assert places.boxes[inner].tolist() == [6, 6, 18, 18]
    assert corners.tolist() == [[6, 6], [0, 0], [20, 20]]
    assert shifts.tolist() == [0, 4, 4]
    assert places.boxes[first].tolist() == [0, 0, 10, 10]  # clipped, with its peak at (4, 4)
    corners, shifts = places.windows(first, np.array([inner, last]))
    assert corners.tolist() == [[8, 8], [22, 22]]
    assert shifts.tolist() == [0, 4]


def planned(own, layer="2", rows=(0, 1, 2, 3), side=10, hosts="middle", count=8):
    return plan(own, layer, Places(own.tap(layer), side), np.array(rows), count, hosts)


def test_hosts_come_from_the_middle_and_patches_from_the_clusters(tmp_path):
    own = square_study(tmp_path)
    made, top, clusters = planned(own), own.top("2"), own.evaluation("2").clusters
    maxima, positions = own.survey("2").maxima.numpy(), own.survey("2").positions.numpy()
    assert np.bincount(made.channels).tolist() == [8] * 4
    for n, channel in enumerate(made.channels):
        host = made.images[n]
        share = stats.percentileofscore(maxima[:, channel], maxima[host, channel], "mean")
        assert 19 < share < 81
        assert host not in top.images[channel]
        assert made.positions[n] == positions[host, channel]
        label = dict(zip(top.images[channel].tolist(), clusters.labels[channel].tolist(), strict=True))
        aligned, other, random = made.donors[n]
        assert label[aligned] != label[other]
        assert aligned < STRONG  # the hosts are pale red
        assert random != host
    assert len(set(made.donors[:, 2])) > 15


def test_a_channels_swaps_do_not_depend_on_the_others(tmp_path):
    own = square_study(tmp_path)
    made, alone = planned(own), planned(own, rows=[2])
    for name, values in alone.arrays().items():
        np.testing.assert_array_equal(values, made[made.channels == 2].arrays()[name], err_msg=name)


def test_hosts_from_the_top_are_no_part_of_the_clusters(tmp_path, monkeypatch):
    own = square_study(tmp_path)
    given, real = [], swap_plan.cluster_patches
    monkeypatch.setattr(
        swap_plan, "cluster_patches", lambda patches, *rest: given.append(patches) or real(patches, *rest)
    )
    made, top = planned(own, hosts="top"), own.top("2")
    assert torch.equal(given[0].index, own.patches("2")[1].index[:, ::2])
    ranks = {(c, int(image)): rank for c in range(4) for rank, image in enumerate(top.images[c])}
    for n, channel in enumerate(made.channels):
        assert ranks[channel, made.images[n]] % 2 == 1
        assert made.positions[n] == top.positions[channel][ranks[channel, made.images[n]]]
        aligned, other, _ = made.donors[n]
        assert {ranks[channel, aligned] % 2, ranks[channel, other] % 2} == {0}
        assert (aligned < STRONG) == (made.images[n] < STRONG)
        assert (other < STRONG) != (made.images[n] < STRONG)


def test_aligned_wins_where_units_detect_a_square(tmp_path):
    own = square_study(tmp_path)
    found = patch_swap(own)
    table = found.table.set_index(["channel", "condition"])
    assert len(table) == 4 * 5
    assert "boxes of 4 of 32 px" in found.text  # the effective field of a unit
    for channel, blue in enumerate(BLUE):
        change = table["change"][channel]
        assert change["shuffled-position"] == 0.0
        assert change["ablate-elsewhere"] == 0.0
        # a pale square of redness .31 becomes a bright one, or a blue one that is worth less
        assert change["aligned"] == pytest.approx(1 - 0.307, abs=0.02)
        assert change["non-aligned"] == pytest.approx(blue - 0.307, abs=0.02)
        assert change["random"] < change["non-aligned"]
        spread = own.survey("2").maxima[:, channel].double().numpy().std()
        assert table["change_sd"][channel, "aligned"] == pytest.approx(change["aligned"] / spread)
    claims = {one.name: one for one in found.claims}
    assert claims["2: change, aligned, raw"].value == pytest.approx(table["change"].unstack()["aligned"].mean())
    for control in CONTROLS:
        one = claims[f"2: aligned minus {control}"]
        margins = table["change_sd"].unstack()["aligned"] - table["change_sd"].unstack()[control]
        assert one.value == pytest.approx(margins.mean())
        assert one.low > 0
        assert one.p == pytest.approx(2 / 16)  # four channels have 16 ways of signs
        effect = claims[f"2: aligned minus {control}, effect size"]
        assert effect.value == pytest.approx(margins.mean() / margins.std(ddof=1))
        raw = table["change"].unstack()[control]
        assert claims[f"2: change, {control}, raw"].value == pytest.approx(raw.mean())
        assert claims[f"2: share of channels with aligned above {control}, q <= 0.05"].value == 1
        assert claims[f"2: share of channels with aligned below {control}, q <= 0.05"].value == 0
        p = found.table[found.table["condition"] == control]["p"]
        np.testing.assert_allclose(
            found.table[found.table["condition"] == control]["q"], stats.false_discovery_control(p)
        )
        rho = claims[f"2: rank correlation of aligned minus {control} with PSI"]
        log_psi = found.table.drop_duplicates("channel").set_index("channel")["log_psi"]
        assert rho.value == pytest.approx(stats.spearmanr(log_psi, margins.loc[log_psi.index]).statistic)


def test_tests_of_a_channel_are_those_of_its_hosts(tmp_path):
    own = square_study(tmp_path)
    found = patch_swap(own, host_count=8, channel_count=2, box=10 / 32)
    scored = own.evaluation("2").table
    chosen = scored.sort_values("log_psi", kind="stable")["channel"].to_numpy()[[0, 3]]
    assert list(dict.fromkeys(found.table["channel"])) == chosen.tolist()
    assert list(found.table["decile"]) == [1] * 5 + [6] * 5
    made = planned(own, rows=chosen)
    values = swapped(own, "2", made).astype(float)
    several = 0
    for channel in chosen:
        own_values = values[made.channels == channel]
        changes = (own_values[:, 1:] - own_values[:, :1]) / own.survey("2").maxima[:, channel].double().numpy().std()
        rows = found.table[found.table["channel"] == channel].set_index("condition")
        np.testing.assert_allclose(rows["change_sd"], changes.mean(0))
        assert (rows["hosts"] == 8).all()
        for place, condition in enumerate(CONDITIONS[1:], 1):
            margins = changes[:, 0] - changes[:, place]
            signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1)
            means = np.abs((signs * margins[:, None]).mean(0))
            assert rows["p"][condition] == pytest.approx((means >= abs(margins.mean()) - 1e-12).mean())
            varies = margins.std(ddof=1) > 1e-12  # of some channels all hosts change alike
            expected = margins.mean() / margins.std(ddof=1) if varies else np.nan
            assert rows["d_z"][condition] == pytest.approx(expected, nan_ok=True)
            several += varies
            wanted = stats.bootstrap((margins,), np.mean, method="percentile", rng=0).confidence_interval
            assert rows["margin_low"][condition] == pytest.approx(wanted.low, abs=0.02)
            assert rows["margin_high"][condition] == pytest.approx(wanted.high, abs=0.02)
    assert several >= 2


def test_layers_have_a_row_of_panels_each(tmp_path):
    found = patch_swap(study(tmp_path, tiny.attention_network(), ["1", "2"]), box=0.25, host_count=4)
    assert list(dict.fromkeys(found.table["layer"])) == ["1", "2"]
    assert len(found.figure.axes) == 6
    assert "| decile of PSI |" in found.summary
    assert (found.table["q"] > found.table["p"] + 0.01).any()
    for _, rows in found.table[found.table["condition"] != "aligned"].groupby(["layer", "condition"]):
        np.testing.assert_allclose(rows["q"], stats.false_discovery_control(rows["p"]))


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(swaps, "PART", 8)
    expected = patch_swap(square_study(tmp_path / "whole"), host_count=6).table
    seen, real = [], swaps._activations

    def dying(*arguments):
        seen.append(len(arguments[-1]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(swaps, "_activations", dying)
    with pytest.raises(KeyboardInterrupt):
        patch_swap(square_study(tmp_path / "cut"), host_count=6)
    found = patch_swap(square_study(tmp_path / "cut"), host_count=6).table
    assert seen == [8] * 4  # of 24 hosts: two parts, the one that died, and that one again
    pd.testing.assert_frame_equal(found, expected)


def test_bad_input_ends_in_one_line(tmp_path):
    own = study(tmp_path, tiny.attention_network(), "4")
    with pytest.raises(InputError, match="4 has no map of positions"):
        patch_swap(own)
    own = square_study(tmp_path / "squares")
    with pytest.raises(ConfigError, match=r"box must be a share .* got 1\.5"):
        patch_swap(own, box=1.5)
    with pytest.raises(ConfigError, match="host_count of at least 2, got 200 and 1"):
        patch_swap(own, host_count=1)
    with pytest.raises(ConfigError, match="hosts must be middle or top, got 'best'"):
        patch_swap(own, hosts="best")
    with pytest.raises(InputError, match=r"leaves room for another elsewhere; give a smaller box"):
        patch_swap(own, box=0.99)
    with pytest.raises(ConfigError, match="at least 4 k_max = 24, got 16"):
        patch_swap(square_study(tmp_path / "few", config=replace(own.config, k_max=6)), hosts="top")


def test_the_command_takes_its_options(tmp_path, pictures, capsys):
    own = ("--box", "0.3", "--host-count", "3", "--channel-count", "2", "--out", tmp_path / "run")
    assert tiny.run("experiment", "patch-swap", *ARGUMENTS, "--images", pictures, *own) == 0
    assert "aligned minus random" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "run" / "experiments" / "patch-swap" / "table.csv")
    assert table["channel"].nunique() == 2
    assert (table["hosts"] <= 3).all()


def test_few_channels_beat_nothing(tmp_path):
    found = patch_swap(study(tmp_path), channel_count=4, host_count=3)
    gains = [one for one in found.claims if "aligned minus" in one.name and one.how.endswith("sign flips, two-sided")]
    assert any(one.low > 0 for one in gains)
    assert all(one.p >= 2 / 2**4 for one in gains)  # all that four channels can give
    assert "beats" not in found.text
