"""A process that is killed or told to end in whatever stage leaves nothing half-done, and the next one goes on from there."""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import time
import weakref

import pytest
import tiny
import tiny_stages
import torch
from forks import forks_of
from safetensors.torch import load_file
from tiny_stages import FILES, STAGES

from psi_fast import stopping, store
from psi_fast.progress import Progress
from psi_fast.shelf import Shelf
from psi_fast.stopping import Stopped, stoppable

KILLS = 3
"""Of each stage."""


class Processes:
    """Runs of tiny_stages, stopped where a test says."""

    def __init__(self, forks, marks):
        self._forks, self._marks = forks, marks

    def run(self, stage=None, steps=0, delay=0.0, send=signal.SIGKILL, **order):
        """The exit code of a process; it is sent a signal `delay` seconds behind so many steps of a stage."""
        self._marks.write_bytes(b"")
        order |= {"marks": str(self._marks)} if stage else {}
        child = self._forks.start(order)
        if not stage:
            return self._forks.code()
        return self._forks.stop(child, lambda: self._marks.read_text().split().count(stage) >= steps, delay, send)


@pytest.fixture(scope="module")
def forks():
    with forks_of("tiny_stages.py") as found:
        yield found


@pytest.fixture
def processes(forks, tmp_path):
    return Processes(forks, tmp_path / "marks")


def held(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_kills_in_every_stage_end_in_the_bytes_of_a_run_that_was_not(tmp_path, processes):
    """In turn, KILLS times each, so a process begins from all that the ones before it have left."""
    rng, order = random.Random("every stage"), {"images": str(tiny.write_pictures(tmp_path / "pictures", 64))}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = (
        {**order, "out": str(tmp_path / name / "run"), "cache": str(tmp_path / name)} for name in ("whole", "cut")
    )
    assert processes.run(**whole) == 0
    for stage in STAGES:
        for _ in range(KILLS):
            if stage == "concepts":  # else the second kill finds them done
                shutil.rmtree(tmp_path / "cut" / "text", ignore_errors=True)
            code = processes.run(stage, rng.randint(1, 3), rng.uniform(0, 2 * tiny_stages.PAUSE), **cut)
            assert code == -signal.SIGKILL, stage
            assert not (tmp_path / "cut" / "run" / "manifest.json").exists()
            later = STAGES.index(stage) > STAGES.index("embedding")  # all that is kept is there, and only that
            kept = below(tmp_path / "cut" / "run" / "unfinished")
            kept = {path.split("-")[0] for path in kept if not path.startswith(store.TEMPORARY)}
            assert not later or kept - {"nulls"} == {"tops", "crops"}
    assert processes.run(**cut) == 0
    assert held(tmp_path / "cut" / "run") == held(tmp_path / "whole" / "run")
    left = [path for path in below(tmp_path / "cut") if store.TEMPORARY not in path]
    assert left == below(tmp_path / "whole")
    temporary = [path for path in below(tmp_path / "cut") if store.TEMPORARY in path]
    assert all(path.startswith("text/") for path in temporary)  # others may be at work in the cache, so for a day


def test_what_killed_processes_left_in_a_folder_of_many_goes_after_a_day(tmp_path):
    old, new = (tmp_path / f"{store.TEMPORARY}{number}-x" for number in range(2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 1.01 * store.FORGOTTEN,) * 2)
    Shelf(tmp_path).tensors("kind", 1, lambda: {"x": torch.zeros(1)})
    assert (old.exists(), new.exists()) == (False, True)


@pytest.fixture
def command(tmp_path, processes, pictures):
    """Runs `psi-fast score` into a folder of that name, and gives its exit code and what it wrote on stderr."""

    def run(name, *stop, send=signal.SIGTERM):
        argv = [str(own) for own in tiny.score_flags(pictures, tmp_path / name)]
        code = processes.run(
            *stop, send=send, argv=argv, stderr=str(tmp_path / "stderr"), cache=str(tmp_path / "cache")
        )
        return code, (tmp_path / "stderr").read_text()

    return run


@pytest.mark.parametrize("stage", ["decoding", "mining", "embedding", "clusters", "nulls"])
def test_sigterm_keeps_what_is_done_and_ends_with_143(tmp_path, command, stage):
    code, said = command("cut", stage, 2, 0.003)
    assert code == 143
    assert said.splitlines()[-1] == "psi-fast: stopped by SIGTERM; the same command goes on from what is done"
    assert "Traceback" not in said
    kept = list((tmp_path / "cut").rglob("*.unfinished"))
    if stage in ("mining", "embedding"):  # every 15 s, which are not over
        (path,) = kept
        assert path.name.startswith("tops" if stage == "mining" else "crops")
        assert load_file(path)["done"] > 0
    else:
        assert kept == []
    assert not list(tmp_path.rglob(store.TEMPORARY + "*"))
    assert (stage == "decoding") == bool(list((tmp_path / "cache" / "banks").glob(".building-*")))  # gone on with
    assert command("cut")[0] == 0
    assert command("whole")[0] == 0
    assert held(tmp_path / "cut") == held(tmp_path / "whole")
    assert below(tmp_path / "cut") == below(tmp_path / "whole")


def test_a_run_goes_on_from_what_sigterm_left(tmp_path, processes, command):
    """The images that were mined before it are not mined again."""
    assert command("cut", "mining", 2)[0] == 143
    (path,) = (tmp_path / "cut").rglob("*.unfinished")
    done = int(load_file(path)["done"])
    assert done in (16, 24)
    marks = tmp_path / "marks"
    assert command("cut", "files", 99)[0] == 0  # the signal never comes
    assert marks.read_text().split().count("mining") == (24 - done) // 8


def test_sigterm_to_a_batch_cuts_its_job_short_and_ends_with_143(tmp_path, processes, pictures):
    lines = [
        f'images = "{pictures}"',
        'network = "tiny:network"',
        'layer = "2"',
        'encoder = "classifier:tiny:classifier"',
    ]
    settings = [f"{name[2:].replace('-', '_')} = {json.dumps(value)}" for name, value in tiny.SETTINGS.items()]
    settings = [line.replace('"', "") if line[-2].isdigit() and "precision" not in line else line for line in settings]
    file = tmp_path / "jobs.toml"
    file.write_text("\n".join(["[defaults]", *lines, *settings, "[grid]", "per_image = [1, 2]"]))
    argv = {"argv": ["jobs", "run", str(file), "--allow-code"], "stderr": str(tmp_path / "stderr")}
    argv["cache"] = str(tmp_path / "cache")
    assert processes.run("mining", 5, 0.003, signal.SIGTERM, **argv) == 143  # three batches a job
    assert "stopped by SIGTERM" in (tmp_path / "stderr").read_text()
    records = [json.loads(path.read_text())["state"] for path in sorted((tmp_path / "jobs" / "records").iterdir())]
    assert sorted(records) == ["finished", "running"]
    (path,) = (tmp_path / "jobs" / "shared").glob("*.unfinished")
    assert load_file(path)["done"] > 0
    assert processes.run(**argv) == 0
    records = [json.loads(path.read_text())["state"] for path in (tmp_path / "jobs" / "records").iterdir()]
    assert records == ["finished", "finished"]
    assert not list((tmp_path / "jobs").rglob("*.unfinished"))


def test_the_handler_is_there_only_for_the_command():
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) == stopping._ask
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_comes_where_errors_are_dropped_stops_the_next_step():
    """As in a finalizer, whose errors Python only prints."""

    class Thing:
        pass

    thing = Thing()
    weakref.finalize(thing, os.kill, os.getpid(), signal.SIGTERM)
    bars = Progress(False)
    with stoppable():
        with contextlib.suppress(Stopped):
            del thing
            gc.collect()
        with pytest.raises(Stopped), bars.stage("mining"):
            pytest.fail("the stage began")
        os.kill(os.getpid(), signal.SIGTERM)  # one that is sent again disturbs no clearing up
        time.sleep(0.01)
    with bars.stage("mining"):
        pass
