"""What a plan is made from and is not as expected: samples with images that cannot be decoded, files of rates of anything."""

import io
import json
import time
from contextlib import redirect_stdout

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_helpers import message
from test_plan import RATES, plan
from test_plan_costs import WORK
from tiny_stored import seal

from psi_fast import images as image_sources
from psi_fast.errors import InputError, PsiFastError
from psi_fast.image_set import readable
from psi_fast.images import open_images
from psi_fast.planning.outlook import Terms, outlook
from psi_fast.planning.rates import about, read_rates
from psi_fast.planning.view import show_plan


@pytest.fixture
def spoiled(tmp_path):
    """A hundred pictures, one of them broken: none of those that tell the squares' side, but its file's size is asked for."""
    pictures = tiny.write_pictures(tmp_path / "pictures", 100)
    names = open_images(pictures).names
    row = next(row for row in range(100) if row not in np.linspace(0, 99, 64, dtype=int))
    (pictures / names[row]).write_bytes(b"no image")
    return pictures, names[row]


def test_a_sample_with_a_broken_image_is_one_line_or_goes_without_it(spoiled):
    pictures, name = spoiled
    said = message(lambda: plan(images=pictures, trial_images=30), error=InputError)
    assert f"cannot decode image {name!r}" in said
    made = plan(images=pictures, trial_images=99, skip_unreadable=True)
    files = [path.stat().st_size for path in pictures.rglob("*.png") if path.name != name.rpartition("/")[2]]
    assert made.workload.image_bytes == pytest.approx(np.mean(files))
    assert made.rates.source == "a trial of 99 images on this machine"


def test_looking_for_broken_images_is_no_part_of_opening_them(tmp_path, monkeypatch):
    def slow(images, progress):
        found = readable(images, progress)
        time.sleep(2)
        return found

    pictures = tiny.write_pictures(tmp_path / "pictures", 40)
    monkeypatch.setattr(image_sources, "readable", slow)
    made = plan(images=pictures, trial_images=40, skip_unreadable=True)
    assert 0 < made.rates.seconds["open images"] * 40 < 1.5


# ---- files of rates


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": 5}, "device is a int, no dict"),
        ({"device": None}, "device is a NoneType, no dict"),
        ({"device": {"name": "a GPU"}}, "device has no type"),
        ({"about": "x"}, "about is a str, no dict"),
        ({"about": [1]}, "about is a list, no dict"),
        ({"source": 7}, "source is a int, no str"),
        ({"seconds": []}, "seconds is a list, no dict"),
        ({"seconds": {"mining": True}}, "a rate is no number"),
        ({"seconds": {"mining": 1e308}}, "a rate is no number of at least 0 and at most 1e+15"),
        ({"seconds": {"mining": 10**400}}, "a rate is no number"),
        ({"pool_seconds": None}, "a rate is no number"),
        ({"host_bytes": float("nan")}, "a rate is no number"),
        ({"distinct": 5}, "holds no rates"),
        ({"distinct": [[0.1]]}, "holds no rates"),
        ({"distinct": [[0, 5], [0, 7]]}, "a share or number of distinct crops is 0"),
        ({"distinct": [[0.1, 0]]}, "a share or number of distinct crops is 0"),
        ({"distinct": [[0.1, 5], [0.1, 7]]}, "do not ascend"),
        ({"distinct": [[2, 1], [1, 5]]}, "do not ascend"),
        ({"speed": 1}, "holds no rates"),
    ],
)
def test_rates_of_another_kind_are_one_line(tmp_path, changes, says):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rates": RATES.to_dict() | changes}))
    said = message(read_rates, file, WORK)
    assert says in said
    assert "expected a finished run's folder" in said


@pytest.mark.parametrize("held", ["5", '"x"', "null", "[1]", '{"rates": 5}', '{"rates": null}', "{}", "[" * 5000])
def test_a_file_of_something_else_is_one_line(tmp_path, held):
    (tmp_path / "rates.json").write_text(held)
    assert "holds no rates" in message(read_rates, tmp_path / "rates.json", WORK)


NUMBERS = st.one_of(st.floats(), st.floats(0, 1), st.integers(0, 100), st.integers(), st.booleans(), st.none())
ANYTHING = st.one_of(NUMBERS, st.text(max_size=5), st.lists(NUMBERS, max_size=3))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "source": ANYTHING,
        "device": st.one_of(ANYTHING, st.dictionaries(st.sampled_from(["type", "name"]), ANYTHING)),
        "seconds": st.one_of(ANYTHING, st.dictionaries(st.sampled_from(["mining", "nulls", "x"]), NUMBERS)),
        "pool_seconds": ANYTHING,
        "host_bytes": ANYTHING,
        "distinct": st.one_of(ANYTHING, st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4)),
    },
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.sampled_from([100, 10**9, 10**15]), st.sampled_from([1, 64]))
def test_rates_of_anything_give_a_plan_or_one_line(tmp_path, changes, images, workers):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rates": RATES.to_dict() | changes}))
    try:
        rates, said = read_rates(file, WORK), ""
    except InputError as error:
        rates, said = None, str(error)
    assert "\n" not in said
    if rates is None:
        return
    assert rates.about == about(WORK)
    made = outlook(WORK, rates, [images], [workers], Terms(price=1e15, wire=1e-7, storage=1e-9), [])
    with redirect_stdout(io.StringIO()):
        show_plan(made, stages=True)
    json.dumps(made.to_dict(), allow_nan=False)


def test_a_run_whose_manifest_is_of_something_else_is_one_line(tmp_path):
    pictures = tiny.write_pictures(tmp_path / "pictures", 40)
    tiny.score("tiny:network", images=pictures, out=tmp_path / "run", encoder="classifier:tiny:classifier")
    file = tmp_path / "run" / "manifest.json"
    held = json.loads(file.read_text())
    for name, value in {
        "images": 0,
        "seconds": {"mining": 1.0},
        "device": 3,
        "layers": 5,
        "crops_per_second": "x",
    }.items():
        file.write_text(json.dumps(held | {name: value}))
        seal(file.parent)
        said = message(lambda: plan(images=pictures, rates=file), error=PsiFastError)
        assert "manifest.json" in said
