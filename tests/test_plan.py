"""psi_fast.plan and `psi-fast plan`: from a trial, from rates that were kept and from peaks, and what they refuse."""

import dataclasses
import inspect
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from image_helpers import message
from test_plan_costs import WORK, at

import psi_fast
from psi_fast import store
from psi_fast.errors import ConfigError, InputError, StoreError
from psi_fast.planning.commands import Draft
from psi_fast.planning.costs import STAGES, costs
from psi_fast.planning.outlook import Terms, outlook
from psi_fast.planning.rates import PEAKS, Rates, about, floor_seconds
from psi_fast.planning.view import amount, duration
from psi_fast.workers import Here

ENCODER = "classifier:tiny:classifier"
RATES = Rates(
    source="a trial",
    device={"type": "cuda", "name": "a GPU"},
    about=about(WORK),
    seconds={"open images": 1e-6, "load": 5.0, "concepts": 2.0, "decoding": 1e-3, "mining": 1e-4, "merge": 1e-8,
             "embedding": 1e-4, "clusters": 1e-13, "nulls": 1e-13, "writing": 1e-9},
    pool_seconds=1e-12,
    distinct=((0.001, 2.0), (0.01, 8.0)),
    host_bytes=1e9,
)  # fmt: skip


def planned(images=10**6, workers=1, rates=RATES, work=WORK, **terms):
    return outlook(work, rates, [images], [workers], Terms(**terms), [])


def seconds(plan):
    return plan.stages.set_index("stage")["seconds"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run on tiny things, and its pictures."""
    place = tmp_path_factory.mktemp("planned")
    pictures = tiny.write_pictures(place / "pictures", 40)
    tiny.score("tiny:network", images=pictures, out=place / "run", encoder=ENCODER, bank=place / "bank")
    return place / "run", pictures


def plan(images_count=10**5, **changes):
    options = {"encoder": ENCODER, "config": tiny.CONFIG, "device": "cpu", "progress": False} | changes
    return psi_fast.plan("tiny:network", tiny.LAYER, images_count, **options)


def test_a_trial_gives_every_stage_a_rate_and_the_plan_all_numbers(run_folder, tmp_path):
    _, pictures = run_folder
    made = plan([100, 1e6], images=pictures, workers=[1, 4], price_per_hour=2, trial_images=40)
    assert made.totals[["images", "workers"]].to_numpy().tolist() == [[100, 1], [100, 4], [10**6, 1], [10**6, 4]]
    assert set(made.rates.seconds) == set(STAGES)
    assert all(rate > 0 for rate in made.rates.seconds.values())
    assert made.stages["stage"].tolist() == 4 * list(STAGES)
    assert (made.stages[["seconds", "cost"]] >= 0).all(axis=None)
    assert made.totals["host_memory_bytes"].gt(1e8).all()
    assert made.totals["device_memory_bytes"].isna().all()  # there is none
    assert made.workload.image_bytes == pytest.approx(
        sum(path.stat().st_size for path in pictures.rglob("*.png")) / 40, rel=1e-9
    )
    again = plan([100, 1e6], images=pictures, workers=[1, 4], price_per_hour=2, rates=made.rates)
    pd.testing.assert_frame_equal(again.totals, made.totals)
    made.to_json(tmp_path / "plan.json")
    kept = plan([100, 1e6], images=pictures, workers=[1, 4], price_per_hour=2, rates=tmp_path / "plan.json")
    pd.testing.assert_frame_equal(kept.stages, made.stages)


def test_a_run_planned_from_its_own_manifest_takes_what_it_took(run_folder):
    folder, pictures = run_folder
    manifest = psi_fast.load(folder).manifest
    made = plan(40, images=pictures, rates=folder)
    by_stage = seconds(made)
    for name in ("open images", "mining", "embedding", "clusters", "nulls"):
        assert by_stage[name] == pytest.approx(manifest["seconds"][name], rel=0.05, abs=2e-3)
    total = made.totals.iloc[0]
    assert total["crops"] == pytest.approx(manifest["distinct_crops"], rel=0.02)
    two = plan(40, images=pictures, rates=folder, workers=[1, 2])
    for told, missing in ((made, "writing"), (two, "merge, writing")):  # which no manifest tells
        assert any(f"without {missing}, which" in line for line in told.assumptions)
    assert math.isnan(by_stage["writing"])
    assert plan(40, images=pictures, rates=folder / "manifest.json").totals.equals(made.totals)


def test_workers_share_what_can_be_shared_and_cost_what_they_wait():
    alone, many = planned(price=3.6), planned(workers=8, price=3.6)
    for name in ("mining", "embedding"):
        assert seconds(many)[name] == pytest.approx(seconds(alone)[name] / 8, rel=0.02)
    for name in ("clusters", "nulls"):
        assert seconds(alone)[name] / 8 <= seconds(many)[name] < seconds(alone)[name] / 4
    for name in ("open images", "load", "concepts", "decoding", "writing"):
        assert seconds(many)[name] == seconds(alone)[name]
    assert seconds(alone)["merge"] == 0 < seconds(many)["merge"]
    one, eight = alone.totals.iloc[0], many.totals.iloc[0]
    assert one["seconds"] / 8 < eight["seconds"] < one["seconds"]
    assert one["cost"] == pytest.approx(one["seconds"] * 1e-3)
    assert eight["cost"] == pytest.approx(eight["seconds"] * 8e-3)
    assert one["wire_bytes"] == 0 < eight["wire_bytes"]


def test_time_grows_with_the_images_in_the_stages_that_see_them_all():
    small, large = seconds(planned(10**5)), seconds(planned(10**9))
    for name in ("open images", "decoding", "mining"):
        assert large[name] == pytest.approx(10**4 * small[name])
    for name in ("load", "concepts", "clusters", "nulls"):
        assert large[name] == small[name]
    assert small["embedding"] < large["embedding"] <= 1e-4 * WORK.most_crops(10**9)


def test_totals_at_a_thousand_million_images_are_whole_and_positive():
    big = replace(WORK, network=replace(WORK.network, flops=10**12), bank_side=4096)
    total = planned(10**9, 64, work=big).totals.iloc[0]
    assert total["flops"] == pytest.approx(1e21, rel=0.01)
    assert total["disk_bytes"] > 5e16
    assert total["host_memory_bytes"] > 2e11
    assert (planned(10**9, 64, work=big).totals.select_dtypes("number").dropna(axis=1) >= 0).all(axis=None)


def test_finding_unreadable_images_decodes_all_of_them_once_more():
    skipping = replace(WORK, skip_unreadable=True)
    plain, careful = planned(), planned(work=skipping)
    assert seconds(careful)["open images"] == pytest.approx(seconds(plain)["open images"] + 1e-3 * 10**6)
    assert careful.totals["read_bytes"][0] - plain.totals["read_bytes"][0] == 110_000_500_000
    without = replace(RATES, seconds={name: rate for name, rate in RATES.seconds.items() if name != "decoding"})
    assert math.isnan(seconds(planned(work=skipping, rates=without))["open images"])


def test_workers_without_a_place_for_squares_decode_while_they_mine():
    work = replace(WORK, bank_named=False)
    one, eight = planned(work=work), planned(work=work, workers=8)
    assert (seconds(one)["decoding"], seconds(eight)["decoding"]) == (1000, 0)
    assert seconds(eight)["mining"] == pytest.approx((1e-4 + 1e-3) * 125_000)
    assert any("several workers keep no squares" in line for line in eight.assumptions)
    streamed = replace(RATES, about=RATES.about | {"bank": "stream"})  # whose seconds have it in them
    assert seconds(planned(work=work, workers=8, rates=streamed))["mining"] == pytest.approx(1e-4 * 125_000)


def test_slow_wires_and_storage_are_waited_for():
    free, wired = planned(workers=4), planned(workers=4, wire=1e6)
    sent = free.stages["wire_bytes"].sum()
    assert wired.totals["seconds"][0] - free.totals["seconds"][0] == pytest.approx(sent / 1e6)
    stored = planned(workers=4, storage=1e6)
    assert seconds(stored)["decoding"] == pytest.approx(10**6 * 110_000.5 / 1e6)
    assert seconds(stored)["nulls"] == seconds(free)["nulls"]


def test_a_stage_without_a_rate_is_left_out_and_named():
    rates = replace(RATES, seconds={name: rate for name, rate in RATES.seconds.items() if name != "decoding"})
    made = planned(rates=rates)
    assert math.isnan(seconds(made)["decoding"])
    assert made.totals["seconds"][0] == pytest.approx(seconds(made).sum())
    assert any("without decoding, which the rates do not tell" in line for line in made.assumptions)
    assert made.to_dict()["stages"][3]["seconds"] is None


def test_a_floor_is_work_over_the_published_peak_and_is_called_one():
    peak = PEAKS["h200"]
    made = planned(rates=None, peak=peak, workers=8)
    floors = made.stages.set_index("stage")["floor_seconds"]
    cost = costs(WORK, at(10**6, 8, WORK.most_crops(10**6)))
    assert floors["mining"] == pytest.approx(cost["mining"].flops / 989.5e12 / 8)
    assert floors["merge"] == pytest.approx(cost["merge"].moved / 4.8e12 / 8)
    assert made.stages["seconds"].isna().all()
    assert any("no estimate" in line for line in made.assumptions)
    assert made.totals["crops"][0] == made.totals["crops_at_most"][0]
    for name, own in costs(WORK, at(10**6)).items():  # no measured rate here is below its floor
        assert RATES.of(name, own) >= floor_seconds(own, 1, peak)


BAD = {
    "a negative count": ({"images_count": -5}, ConfigError, "images_count must be a whole number of at least 12"),
    "too many images": ({"images_count": 1e300}, ConfigError, "images_count must be a whole number of at most 1e+15"),
    "a wire too narrow": (
        {"wire_gbit": 1e-300},
        ConfigError,
        "wire_gbit must be a number from 1e-15 to 1e+15, got 1e-300",
    ),
    "half an image": ({"images_count": 100.5}, ConfigError, "whole number of at least 12 (top_k is 12), got 100.5"),
    "no count": ({"images_count": []}, ConfigError, "got none"),
    "no worker": ({"workers": [1, 0]}, ConfigError, "workers must be a whole number of at least 1, got 0"),
    "a price below nothing": ({"price_per_hour": -1}, ConfigError, "price_per_hour must be a number above 0, got -1"),
    "a price that is none": ({"price_per_hour": math.nan}, ConfigError, "price_per_hour must be a number above 0"),
    "a wire of no width": ({"wire_gbit": 0}, ConfigError, "wire_gbit must be a number above 0, got 0"),
    "storage that reads nothing": ({"storage_mb": -2.0}, ConfigError, "storage_mb must be a number above 0"),
    "files of no bytes": ({"image_bytes": 0}, ConfigError, "image_bytes must be a number above 0"),
    "a GPU nobody knows": ({"floor": "h20"}, ConfigError, "floor must be one of a100, h100, h200, b200, got 'h20'"),
    "rates that are not there": ({"rates": "/nope"}, InputError, "no rates at '/nope'; expected a finished run's"),
    "nothing to go by": ({"rates": None, "image_bytes": 9}, ConfigError, "nothing says how fast a run is: give"),
    "no file sizes": ({"floor": "h100", "rates": None}, ConfigError, "nothing says how large an image's file is"),
    "a small trial": ({"trial_images": 5}, ConfigError, "trial_images must be a whole number of at least 12"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    changes, error, said = BAD[case]
    text = message(lambda: plan(**{"rates": RATES} | changes), error=error)
    assert said in text


def test_rates_of_another_network_or_of_none_are_refused(run_folder, tmp_path):
    folder, pictures = run_folder
    given = {"images": pictures}
    held = RATES.to_dict()
    file = tmp_path / "rates.json"
    for content, said in (
        (json.dumps({"rates": held}), "rates in .* are of network 'x', expected 'tiny'"),
        ("[]", "holds no rates"),
        ("{", "holds no rates"),
        (json.dumps({"rates": held | {"pool_seconds": -1.0}}), "a rate is no number of at least 0"),
        (json.dumps({"rates": held | {"seconds": {"mining": "x"}}}), "a rate is no number of at least 0"),
    ):
        file.write_text(content)
        text = message(lambda: plan(rates=file, **given), error=(ConfigError, InputError))
        assert pd.Series([text]).str.contains(said).all(), text
    other = message(lambda: plan(rates=folder, config=replace(tiny.CONFIG, patch="image"), **given), error=ConfigError)
    assert "are of patch 0.5, expected 'image'" in other
    fewer = message(lambda: plan(rates=folder, channels=slice(0, 3), **given), error=ConfigError)
    assert "scored 6 channels, expected 3" in fewer


class Two(Here):
    """Works on two parts at once, as it says."""

    count = 2


def test_rates_of_several_workers_together_are_refused(run_folder, tmp_path):
    _, pictures = run_folder
    tiny.score("tiny:network", images=pictures, out=tmp_path / "run", encoder=ENCODER, workers=Two())
    text = message(lambda: plan(rates=tmp_path / "run", images=pictures), error=ConfigError)
    assert "made by 2 workers" in text


def test_a_plan_that_cannot_be_written_is_one_line(tmp_path):
    found = plan(images=tiny.image_set(30), image_bytes=9)
    assert "choose another file" in message(lambda: found.to_json(tmp_path / "no" / "plan.json"), error=StoreError)


def test_a_sample_that_is_too_small_or_has_no_files_is_one_line():
    few = message(lambda: plan(images=tiny.image_set(5), image_bytes=9), error=InputError)
    assert "at least top_k = 12 images, got 5" in few
    assert "give --image-bytes" in message(lambda: plan(images=tiny.image_set(30)), error=InputError)


def test_the_command_takes_a_settings_file_and_writes_what_it_shows(run_folder, tmp_path, capsys):
    _, pictures = run_folder
    job, out = tmp_path / "job.toml", tmp_path / "plan.json"
    lines = {"network": "tiny:network", "layer": [tiny.LAYER], "encoder": ENCODER, "out": "runs/x", "max_images": 3}
    job.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items()))
    settings = [part for pair in tiny.SETTINGS.items() for part in pair]
    asked = (
        "--images-count",
        "1e3",
        "1e9",
        "--gpus",
        "1",
        "64",
        "--price-per-hour",
        "2.5",
        "--device",
        "cpu",
        "--stages",
    )
    flags = ("--images", pictures, "--trial-images", "24", "--floor", "h100", "--json", out, "--no-progress")
    assert tiny.run("plan", "--config", job, *settings, *asked, *flags) == 0
    shown = capsys.readouterr().out
    for text in (
        "tiny  2: 6 channels",
        "1,000,000,000",
        "between workers",
        "floor",
        "host memory",
        "embedding",
        "no estimate",
    ):
        assert text in shown
    assert max(map(len, shown.splitlines()[:12])) <= 120
    held = json.loads(out.read_text())
    assert [row["images"] for row in held["totals"]] == [1000, 1000, 10**9, 10**9]
    assert held["rates"]["device"]["type"] == "cpu"


def test_the_command_says_what_is_wrong_in_one_line(run_folder, capsys):
    _, pictures = run_folder
    job = ("--network", "tiny:network", "--layer", "2", "--encoder", ENCODER, "--no-progress", "--images", pictures)
    for flags, said in (
        (("--images-count", "-5"), "images_count must be a whole number of at least 100 (top_k is 100), got -5"),
        (("--images-count", "1e5", "--price-per-hour", "-2"), "price_per_hour must be a number above 0, got -2.0"),
        (("--images-count", "1e5", "--price-per-hour", "much"), "expected --price-per-hour FLOAT, got 'much'"),
        (("--images-count", "1e5", "--rates", "nope.json"), "no rates at 'nope.json'"),
        (("--images-count", "1e5", "--out", "x"), "unknown --out"),
        ((), "psi-fast plan needs --images-count"),
    ):
        assert tiny.run("plan", *job, *flags) == 2
        assert said in tiny.one_line(capsys)


def test_every_flag_of_the_command_is_something_plan_takes():
    flags = {own.name for own in dataclasses.fields(Draft) if own.init} - {"json", "stages"}
    takes = set(inspect.signature(psi_fast.plan).parameters)
    assert {"model" if name == "network" else "config" if name == "settings" else name for name in flags} == takes


def test_amounts_and_durations_read_well():
    assert [amount(value, "B") for value in (0, 7, 1234, 5.678e13, 1e30)] == [
        "-",
        "7 B",
        "1.23 kB",
        "56.8 TB",
        "1e+06 YB",
    ]
    told = [duration(value) for value in (0, 0.1234, 59.96, 200, 3599.7, 7300, 1e6)]
    assert told == ["-", "0.123 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 2 min", "11.6 days"]


def test_store_and_torch_are_left_as_they_were(run_folder):
    folder, pictures = run_folder
    before = sorted(path.name for path in folder.iterdir())
    threads = torch.get_num_threads()
    plan(images=pictures, trial_images=24)
    assert (sorted(path.name for path in folder.iterdir()), torch.get_num_threads()) == (before, threads)
    assert not list(pictures.rglob(f"{store.TEMPORARY}*"))
