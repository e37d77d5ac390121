"""Mining against a brute-force ranking of all activations."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from image_helpers import message
from torch import nn

import psi_fast
from psi_fast.activation_tap import ActivationTap
from psi_fast.mining import mine, random_patches
from psi_fast.progress import Progress

CPU = torch.device("cpu")
CASES = {  # name -> network, layer
    "plain": (tiny.network, "2"),
    "after relu": (tiny.network, "3"),
    "quantised": (lambda: tiny.conv_network(tiny.Quantise()), "3"),
    "never positive": (lambda: tiny.conv_network(tiny.Shift(-100.0)), "3"),
    "never positive, quantised": (lambda: tiny.conv_network(tiny.Shift(-9.0), tiny.Quantise()), "4"),
    "bfloat16": (lambda: tiny.conv_network(tiny.Bfloat16()), "3"),
    "linear": (lambda: tiny.conv_network(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 10)), "5"),
    "small linear": (lambda: tiny.conv_network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7)), "5"),
    "one dead": (tiny.dead_network, "3"),
    "tokens": (lambda: tiny.conv_network(tiny.Tokens()), "3"),
    "tokens, quantised": (lambda: tiny.conv_network(tiny.Quantise(), tiny.Tokens()), "4"),
    "vector": (lambda: tiny.conv_network(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "4"),
    "vector, quantised": (lambda: tiny.conv_network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), tiny.Quantise()), "5"),
}
ORDERED = ("values", "images", "positions")


def run(network, layer, images, config=tiny.CONFIG, channels=None):
    tap = ActivationTap(network, layer, CPU)
    ids = np.arange(tap.channels) if channels is None else np.asarray(channels)
    return mine([tap], network, tiny.bank(images), images.names, [ids], config, Progress(False))[0]


def activations(network, layer, images):
    """[N, C, P] float32, all images at once."""
    tap = ActivationTap(network, layer, CPU)
    with tap, torch.inference_mode():
        return tap(fed(network, images)).numpy()


def fed(network, images):
    """All images as the network is fed them."""
    return network.preprocess(tiny.bank(images).read(slice(None), CPU))


def ranked(maps, top_k, per_image):
    """(values, images, positions), each [C, top_k]: value descending, image ascending, position ascending."""
    result = []
    for channel in maps.transpose(1, 0, 2):
        rows = []
        for image, row in enumerate(channel):
            best = np.lexsort((np.arange(len(row)), -row))[:per_image]
            rows += [(row[position], image, position) for position in best]
        values, found, positions = (np.array(part) for part in zip(*rows, strict=True))
        order = np.lexsort((positions, found, -values))[:top_k]
        result.append((values[order], found[order], positions[order]))
    return [np.stack(part) for part in zip(*result, strict=True)]


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_mining_equals_the_brute_force_ranking_whatever_the_batch_size(case, per_image):
    make, layer = CASES[case]
    network, images = make(), tiny.image_set(37)
    maps = activations(network, layer, images)
    if case.startswith("never"):
        assert maps.max() < 0
    if "quantised" in case or case == "bfloat16":
        per_image_maxima = maps.max(2)
        assert any(len(np.unique(column)) < len(column) for column in per_image_maxima.T), "the case holds no tie"
    expected = ranked(maps, 12, min(per_image, maps.shape[2]))
    for batch_size in (8, 16, 32):
        top = run(network, layer, images, replace(tiny.CONFIG, per_image=per_image, batch_size=batch_size))
        for name, wanted in zip(ORDERED, expected, strict=True):
            np.testing.assert_array_equal(getattr(top, name), wanted, err_msg=f"{name} at batch size {batch_size}")
        assert top.valid.all()
        np.testing.assert_array_equal(top.dead, maps.max((0, 2)) == maps.min((0, 2)))
        np.testing.assert_array_equal(top.highest, maps.max((0, 2)))


def test_the_tap_reads_what_the_network_computes():
    network, images = tiny.network(), tiny.image_set(5)
    with torch.no_grad():
        wanted = network.module[:3](fed(network, images)).flatten(2).numpy()
    np.testing.assert_allclose(activations(network, "2", images), wanted, atol=1e-6)


@pytest.mark.parametrize("band", [None, (0.0, 0.5), (0.4, 0.6), (0.9, 1.0)])
def test_selectivity_is_the_patches_mean_in_deviations_of_all_maxima(band):
    network, images = tiny.conv_network(nn.AvgPool2d(4)), tiny.image_set(40)
    maxima = activations(network, "3", images).max(2).astype(np.float64)
    top = run(network, "3", images, replace(tiny.CONFIG, band=band, top_k=8))
    kept = top.valid.sum(1)
    mean = np.where(top.valid, top.values, 0).sum(1) / kept
    wanted = (mean - maxima.mean(0)) / maxima.std(0)
    np.testing.assert_allclose(top.selectivity, wanted, rtol=1e-5, atol=1e-6)
    rng = np.random.default_rng(0)  # the upper 5 % point of the mean of as many random images
    random = np.stack([maxima[rng.permutation(40)[: kept[0]]].mean(0) for _ in range(4000)])
    above = mean > np.quantile(random, 0.95, axis=0)
    clear = np.abs(wanted - 1.6449 * np.sqrt((40 - kept) / kept / 39)) > 0.1
    np.testing.assert_array_equal(top.unselective[clear], ~above[clear])
    assert top.unselective.all() if band == (0.0, 0.5) else not top.unselective.any() if band != (0.4, 0.6) else True


def test_a_channel_that_does_not_vary_between_images_has_no_selectivity():
    top = run(tiny.dead_network(), "3", tiny.image_set(20))
    assert np.isnan(top.selectivity).tolist() == [False, True, False, False, False, False]
    assert not top.unselective[1]


def test_an_unselective_channel_is_flagged():
    config = replace(tiny.CONFIG, band=(0.0, 0.5))
    scores = psi_fast.score(
        tiny.network(), "2", tiny.image_set(), encoder=tiny.TinyEncoder(), config=config, device="cpu", progress=False
    )
    assert (scores.table["selectivity"] < 0).all()
    assert all("unselective" in own for own in scores.table["flags"])


def test_ties_go_to_the_earlier_image_and_position():
    network = tiny.conv_network(tiny.Kill(1, 0.5))
    for per_image in (1, 3):
        top = run(network, "3", tiny.image_set(20), replace(tiny.CONFIG, per_image=per_image))
        np.testing.assert_array_equal(top.images[1], np.arange(20).repeat(per_image)[:12])
        np.testing.assert_array_equal(top.positions[1], np.tile(np.arange(per_image), 12)[:12])


def test_channels_that_are_never_positive_hold_no_zero_and_no_empty_place():
    top = run(*(lambda case: (case[0](), case[1]))(CASES["never positive"]), tiny.image_set(13))
    assert (top.values < -90).all()
    assert (top.images >= 0).all()
    assert (np.diff(top.values, axis=1) <= 0).all()
    assert all(len(set(row)) == 12 for row in top.images)


def test_a_subset_of_channels_is_mined_as_in_the_whole():
    network, images = tiny.network(), tiny.image_set(20)
    whole, part = run(network, "2", images), run(network, "2", images, channels=[4, 0, 3])
    np.testing.assert_array_equal(part.channels, [4, 0, 3])
    for name in (*ORDERED, "dead"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[4, 0, 3]])


def test_a_constant_channel_is_dead_and_not_scored():
    def scored(make):
        return psi_fast.score(
            make(), "3", tiny.image_set(), encoder=tiny.TinyEncoder(), config=tiny.CONFIG, device="cpu"
        )

    scores = scored(tiny.dead_network)
    table = scores.table.set_index("channel")
    assert list(table.loc[1, "flags"]) == ["dead"]
    assert table.loc[1, ["psi", "log_psi", "p", "q", "S", "Q", "D", "S_z", "random_percentile"]].isna().all()
    assert (scores.labels[1] == -1).all()
    others = table.drop(index=1)
    assert others["psi"].notna().all()
    assert not any("dead" in flags for flags in others["flags"])
    assert scores.flag_counts()["dead"] == 1
    assert 1 not in scores.top(6)["channel"].tolist()


@pytest.mark.parametrize("text_pool", ["bank", "layer"])
def test_a_layer_of_dead_channels_is_reported(text_pool):
    network = tiny.conv_network(tiny.Kill(slice(None), 0.5))
    config = replace(tiny.CONFIG, text_pool=text_pool)
    scores = psi_fast.score(network, "3", tiny.image_set(), encoder=tiny.TinyEncoder(), config=config, device="cpu")
    assert scores.table["flags"].tolist() == [["dead"]] * 6
    assert scores.table["psi"].isna().all()


@pytest.mark.parametrize("layer", ["2", "3"])
def test_a_channel_of_one_value_per_image_that_differs_between_images_is_alive(layer):
    network = tiny.conv_network(nn.AdaptiveAvgPool2d(1))
    assert not run(network, layer, tiny.image_set(20)).dead.any()


@pytest.mark.parametrize("value", [-3.0, 9.0])
@pytest.mark.parametrize("red", [0, 10, 19])
def test_one_position_of_one_image_brings_a_channel_to_life(red, value):
    network = tiny.poisoned_network(value, channel=2)
    with torch.no_grad():
        network.module.body.weight[2], network.module.body.bias[2] = 0, 0.5
    plain, marked = (run(network, "poison", tiny.image_set(20, red=found)) for found in ((), (red,)))
    assert plain.dead.tolist() == [False, False, True, False, False, False]
    assert not marked.dead.any()


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch_size", [8, 24])
@pytest.mark.parametrize("per_image", [1, 3])
def test_activations_that_are_not_finite_name_stage_channel_and_image(value, batch_size, per_image):
    text = message(
        run,
        tiny.poisoned_network(value, channel=2),
        "poison",
        tiny.image_set(30, red=(17,)),
        replace(tiny.CONFIG, batch_size=batch_size, per_image=per_image),
        channels=[5, 2, 0],
    )
    assert text.startswith("mining")
    assert "channel 2 " in text
    assert "'picture-17'" in text


def test_a_channel_that_is_not_asked_for_may_be_nan():
    top = run(tiny.poisoned_network(channel=2), "poison", tiny.image_set(30, red=(17,)), channels=[0, 5])
    assert np.isfinite(top.values).all()


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("band", [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.0, 1.0), (0.1, 0.9)])
@pytest.mark.parametrize("layer", ["2", "4"])
def test_band_draws_distinct_images_from_its_quantile_range(band, layer):
    network, images = tiny.conv_network(nn.AvgPool2d(4), nn.Tanh()), tiny.image_set(40)
    config = replace(tiny.CONFIG, band=band)
    maxima = activations(network, layer, images).max(2).T
    for batch_size in (8, 32):
        top = run(network, layer, images, replace(config, batch_size=batch_size))
        assert top.valid.all()
        for channel, (drawn, values) in enumerate(zip(top.images, top.values, strict=True)):
            assert len(set(drawn)) == 12
            np.testing.assert_array_equal(values, maxima[channel][drawn])
            assert (np.diff(values) <= 0).all()
            below = (maxima[channel][None] < values[:, None]).sum(1)  # rank in ascending order, 0..39
            assert (below + 1 > 40 * band[0] + 1e-9).all()
            assert (below < 40 * band[1] - 1e-9).all()
        ranks = {tuple((maxima[c][None] < top.values[c][:, None]).sum(1)) for c in range(6)}
        assert len(ranks) == 6, "each channel has a draw of its own"


@pytest.mark.parametrize(("band", "count"), [((0.1, 0.9), 32), ((0.0, 0.9), 36), ((0.3, 0.7), 16), ((0.6, 1.0), 16)])
def test_band_holds_the_images_its_quantiles_say(band, count):
    top = run(tiny.network(), "2", tiny.image_set(40), replace(tiny.CONFIG, band=band, top_k=40))
    assert (top.valid.sum(1) == count).all()


def test_band_is_repeatable_and_follows_the_seed():
    def drawn(**changes):
        config = replace(tiny.CONFIG, band=(0.2, 0.8), **changes)
        return run(tiny.network(), "2", tiny.image_set(40), config).images

    np.testing.assert_array_equal(drawn(seed=3), drawn(seed=3, batch_size=5))
    assert (drawn(seed=3) != drawn(seed=4)).any()


def test_a_band_with_fewer_images_leaves_places_empty_and_is_not_scored():
    config = replace(tiny.CONFIG, band=(0.4, 0.5))
    top = run(tiny.network(), "2", tiny.image_set(40), config)
    assert (top.valid.sum(1) == 4).all()
    assert (top.values[~top.valid] == -np.inf).all()
    assert (top.positions[~top.valid] == -1).all()
    scores = psi_fast.score(
        tiny.network(), "2", tiny.image_set(40), encoder=tiny.TinyEncoder(), config=config, device="cpu"
    )
    assert all("few_patches" in flags for flags in scores.table["flags"])
    assert scores.table["psi"].isna().all()
    assert (scores.labels == -1).all()
    assert len(scores.patches) == 6 * 4


@pytest.mark.parametrize(("count", "images"), [(10, 40), (40, 40), (1000, 40), (1000, 5000), (1, 1)])
def test_random_patches_are_distinct_images_at_positions_of_the_map(count, images):
    found, positions = random_patches(count, 49, images, seed=3)
    assert found.dtype == positions.dtype == np.int64
    assert len(found) == len(positions) == min(count, images)
    assert len(set(found.tolist())) == len(found)
    assert found.min() >= 0
    assert found.max() < images
    assert positions.min() >= 0
    assert positions.max() < 49
    again = random_patches(count, 49, images, seed=3)
    np.testing.assert_array_equal(found, again[0])
    np.testing.assert_array_equal(positions, again[1])


def test_random_patches_follow_the_seed_and_cover_images_and_positions():
    found, positions = random_patches(1000, 49, 5000, seed=3)
    assert (found != random_patches(1000, 49, 5000, seed=4)[0]).any()
    assert len(np.unique(positions)) == 49  # misses any of 49 with probability below 1e-7
    assert 2300 < found.mean() < 2700  # 5 standard errors
    np.testing.assert_array_equal(random_patches(10, 1, 40, seed=0)[1], 0)
