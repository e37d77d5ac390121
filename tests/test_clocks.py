"""Clocks that go back or stand still: state is written still, no time is negative, nothing waits for ever."""

import fcntl
import itertools
import os
import time
from datetime import datetime

import pytest
import tiny
import torch
from image_helpers import message

from psi_fast import locks, run_jobs, shelf, store
from psi_fast.errors import StoreError
from psi_fast.shelf import Shelf

CLOCKS = ("time", "monotonic", "perf_counter")


@pytest.fixture
def going_back(monkeypatch):
    """Each look at a clock finds it an hour and a bit earlier than the one before."""
    for number, name in enumerate(CLOCKS):
        times = itertools.count(2e9 - number, -3600.5)
        monkeypatch.setattr(time, name, lambda times=times: next(times))


@pytest.fixture
def standing(monkeypatch):
    for name in CLOCKS:
        monkeypatch.setattr(time, name, lambda: 1e9)


@pytest.mark.parametrize("clock", ["going_back", "standing"])
def test_a_run_by_such_a_clock_is_the_run_of_any_other(tmp_path, clock, request, monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")
    tiny.score(out=tmp_path / "whole")
    request.getfixturevalue(clock)
    found = tiny.score(out=tmp_path / "run", progress=True)
    for name in store.FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    manifest = found.manifest
    assert set(manifest["seconds"].values()) == {0.0}
    assert manifest["images_per_second"] == manifest["crops_per_second"] == 0
    assert datetime.fromisoformat(manifest["made"]).tzinfo is not None
    assert store.load(tmp_path / "run").manifest == manifest


@pytest.mark.parametrize("clock", ["going_back", "standing"])
def test_a_batch_by_such_a_clock_takes_no_negative_time(tmp_path, pictures, clock, request, capsys):
    settings = {name[2:].replace("-", "_"): value for name, value in tiny.SETTINGS.items()}
    settings = {name: value if name == "precision" else float(value) if name == "patch" else int(value)
                for name, value in settings.items()}  # fmt: skip
    job = {"images": str(pictures), "network": "tiny:network", "layer": "2", "encoder": "classifier:tiny:classifier"}
    request.getfixturevalue(clock)
    table = run_jobs([job | settings | {"seed": seed} for seed in (0, 1)], tmp_path / "out", allow_code=True)
    assert table["state"].tolist() == ["finished"] * 2
    assert table["seconds"].tolist() == [0.0] * 2
    assert "-" not in capsys.readouterr().err.replace("seed-", "")


def test_state_is_written_by_a_clock_that_has_gone_back(tmp_path, monkeypatch):
    """An hour back would put it off by an hour."""
    clock = [5000.0]
    monkeypatch.setattr(shelf.time, "monotonic", lambda: clock[0])
    unfinished, written = Shelf(tmp_path).unfinished("tops", 1), []
    for done in range(1, 100):
        clock[0] += -3600 if done == 5 else 1
        unfinished.write(done, lambda: {"x": torch.zeros(1)})
        written.append(unfinished.read()[0])
    assert written[:5] == [0, 0, 0, 0, 5]
    assert max(done - kept for done, kept in enumerate(written, 1)) <= shelf.EVERY
    assert len(set(written)) < 10


def test_a_folder_in_use_is_refused_by_a_clock_that_stands(tmp_path, standing):
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "PATIENCE", 0.01)
        assert "another process is at work" in message(tiny.score, out=tmp_path, error=StoreError)
    os.close(other)
