"""Batches: what jobs share runs once, failures and kills are recorded, the rest goes on, nobody else is in the folder."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
from image_helpers import message
from rich.console import Console

import psi_fast
from psi_fast import batch, batch_view, mining, sight, store
from psi_fast.batch import Batch
from psi_fast.errors import ConfigError, PsiFastError, StoreError
from psi_fast.experiments import Study
from psi_fast.jobs import read_jobs
from psi_fast.locks import alone, locked
from psi_fast.present import Terminal

TESTS = Path(__file__).parent
SETTINGS = {"top_k": 12, "k_max": 3, "n_init": 1, "draws": 9, "patch": 0.5, "precision": "float32"}
CTRL_C = "psi-fast: stopped by Ctrl-C; the same command goes on from what was last kept\n"
JOB = {"network": "tiny:network", "layer": "2", "encoder": "classifier:tiny:classifier", "device": "cpu", **SETTINGS}


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")


@pytest.fixture
def job(pictures):
    return JOB | {"images": str(pictures)}


def run(jobs, out, **options):
    return psi_fast.run_jobs(jobs, out, **{"allow_code": True, "progress": False} | options)


def write(file, job, *rest):
    lines = [f"{name} = {json.dumps(value)}" for name, value in job.items()]
    file.write_text("\n".join(["[defaults]", *lines, *rest]))
    return file


@pytest.fixture
def counted(monkeypatch):
    """How often mining and embedding really ran, by what they were called with."""
    seen = {"mine": 0, "crops": 0}

    def mine(*arguments, _real=mining.Miner.whole):
        seen["mine"] += 1
        return _real(*arguments)

    def embed(crops, *arguments, _real=sight.embed):
        seen["crops"] += len(crops)
        return _real(crops, *arguments)

    monkeypatch.setattr(mining.Miner, "whole", mine)
    monkeypatch.setattr(sight, "embed", embed)
    return seen


def test_what_jobs_share_runs_once_and_each_scores_as_alone(tmp_path, job, counted):
    """Ten settings and three seeds on one mining and one embedding; another encoder embeds anew but mines no more."""
    jobs = [job | {"draws": draws, "seed": seed} for draws in (9, 10, 11) for seed in (0, 1)]
    run(jobs[:1], tmp_path / "one")
    once = dict(counted)
    table = run(jobs, tmp_path / "all")
    assert table["state"].tolist() == ["finished"] * 6
    assert counted["mine"] == 2 * once["mine"] == 2
    # random patches are drawn by the seed
    assert 2 * once["crops"] <= counted["crops"] < 3 * once["crops"]
    other = run([*jobs, job | {"encoder": "classifier:tiny:markup_classifier"}], tmp_path / "all")
    assert counted["mine"] == 2
    assert len(other) == 7
    for name, own in zip(table["job"], jobs, strict=True):
        config = psi_fast.PSIConfig(**SETTINGS | {"draws": own["draws"], "seed": own["seed"]})
        alone_ = psi_fast.score(
            *(own[part] for part in ("network", "layer", "images")),
            encoder=own["encoder"], config=config, device="cpu", progress=False,
        )  # fmt: skip
        pd.testing.assert_frame_equal(store.load(tmp_path / "all" / name).table, alone_.table, check_exact=True)


def test_a_failed_job_is_recorded_and_the_others_go_on(tmp_path, job, monkeypatch, capsys):
    """By a PsiFastError, by what nobody expected, and by a job that cannot be tried at all."""
    real = batch.score

    def score(network, layer, *arguments, **others):
        if others["config"].seed == 1:
            raise RuntimeError("no [red]memory[/red]\nleft\x1b[31m")
        return real(network, layer, *arguments, **others)

    monkeypatch.setattr(batch, "score", score)
    file = write(
        tmp_path / "b.toml", job, "[grid]", "seed = [0, 1, 2]", "[[jobs]]", "name = 'lost'", "images = 'nowhere'"
    )
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: no [red]memory[/red] left" in " ".join(shown.split())
    assert "\x1b[31m" not in shown
    assert "2 finished, 2 failed" in shown
    folder, jobs = read_jobs(file)
    own = Batch(folder, jobs)
    table = own.table()
    assert table["state"].tolist() == ["finished", "failed", "finished", "failed"]
    assert "nowhere" in table["error"][3]
    assert table["error"][1].endswith("left\\x1b[31m")
    records = [own.record(one) for one in own.jobs]
    assert "in score" in records[1].traceback
    assert records[3].traceback == ""
    results = pd.read_parquet(tmp_path / "b" / "results.parquet")
    assert results["job"].unique().tolist() == [jobs[0].name, jobs[2].name]

    # run leaves the failed ones, retry runs them alone, and once all are finished the exit code is 0
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == 1
    monkeypatch.setattr(batch, "score", real)
    monkeypatch.chdir(tmp_path)
    tiny.write_pictures(tmp_path / "nowhere")
    before = [(tmp_path / "b" / name / "manifest.json").stat().st_mtime_ns for name in results["job"].unique()]
    assert tiny.run("jobs", "retry", file, "--allow-code", "--no-progress") == 0
    assert own.table()["state"].tolist() == ["finished"] * 4
    assert own.record(own.jobs[1]).traceback == own.record(own.jobs[1]).error == ""
    assert before == [(tmp_path / "b" / name / "manifest.json").stat().st_mtime_ns for name in results["job"].unique()]
    assert pd.read_parquet(tmp_path / "b" / "results.parquet")["job"].nunique() == 4
    capsys.readouterr()
    assert tiny.run("jobs", "status", file) == 0
    assert "4 finished" in capsys.readouterr().out


def test_results_have_all_runs_and_what_varies(tmp_path, job):
    jobs = [
        job | {"patch": 0.5, "layer": "2"},
        job | {"patch": "image", "layer": ["0", "2"], "channels": "0:3", "name": "b"},
    ]
    run([*jobs, job | {"name": "failed", "images": "nowhere"}], tmp_path)
    found = pd.read_parquet(tmp_path / "results.parquet")
    parts = []
    for name, patch in ((found["job"].iloc[0], "0.5"), ("b", "image")):
        own = store.load(tmp_path / name).table
        part = found[found["job"] == name].reset_index(drop=True)
        assert part["patch"].unique().tolist() == [patch]
        pd.testing.assert_frame_equal(part[["layer", "channel", "psi", "S_z"]], own[["layer", "channel", "psi", "S_z"]])
        parts.append(len(part))
    assert parts == [6, 6]
    assert list(found)[:4] == ["job", "images", "channels", "patch"]  # and the table's own layer


def test_a_batch_without_a_finished_job_has_empty_results(tmp_path, job):
    assert run([job | {"images": "nowhere"}], tmp_path)["state"].tolist() == ["failed"]
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == 0


def test_a_job_whose_values_changed_takes_the_place_of_its_run(tmp_path, job, counted):
    first = run([job | {"name": "a"}, job | {"name": "b", "seed": 4}], tmp_path)
    kept = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
    changed = [job | {"name": "a", "draws": 19}, job | {"name": "b", "seed": 4}]
    assert Batch(tmp_path, changed).table()["state"].tolist() == ["waiting", "finished"]
    assert run(changed, tmp_path)["state"].tolist() == first["state"].tolist() == ["finished"] * 2
    assert store.load(tmp_path / "a").manifest["config"]["draws"] == 19
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == kept
    assert counted["mine"] == 1


def test_a_run_that_is_not_the_batchs_is_left_alone(tmp_path, job):
    tiny.score(out=tmp_path / "a")
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    table = run([job | {"name": "a"}], tmp_path)
    assert table["state"].tolist() == ["failed"]
    assert "holds another run" in table["error"][0]
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before


def test_a_run_that_was_taken_away_is_made_again(tmp_path, job):
    run([job | {"name": "a"}], tmp_path)
    (tmp_path / "a" / "manifest.json").unlink()
    assert Batch(tmp_path, [job | {"name": "a"}]).table()["state"].tolist() == ["waiting"]
    assert run([job | {"name": "a"}], tmp_path)["state"].tolist() == ["finished"]


@pytest.mark.parametrize("name", ["records", "shared", "results.parquet"])
def test_a_job_cannot_be_called_like_a_file_of_the_batch(tmp_path, job, name):
    assert f"cannot be called {name!r}" in message(run, [job | {"name": name}], tmp_path, error=ConfigError)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "finished"}', '{"values": {}, "more": 1}', "\x00"])
def test_a_record_that_is_none_is_as_if_there_was_none(tmp_path, job, text):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text(text)
    assert Batch(tmp_path, [job | {"name": "a"}]).table()["state"].tolist() == ["waiting"]


def test_code_is_called_only_where_that_is_allowed(tmp_path, job, capsys, monkeypatch):
    """Not even imported, and no job is run before; families need no leave."""
    for changes in ({"network": "no_such_package:f"}, {"network": "timm:x", "encoder": "classifier:no_such_package:f"}):
        jobs = [job | {"network": "timm:x", "encoder": "open_clip:A/b"}, job | {"name": "code"} | changes]
        told = message(psi_fast.run_jobs, jobs, tmp_path / "out", progress=False, error=ConfigError)
        assert told.startswith(
            "job 'code' names 'no_such_package:f', a function that would be called; give --allow-code"
        )
        assert not (tmp_path / "out").exists()
    file = write(tmp_path / "b.toml", job, "[grid]", "seed = [0]")
    for command in ("run", "retry"):
        assert tiny.run("jobs", command, file, "--no-progress") == 2
        assert "names 'tiny:network'" in tiny.one_line(capsys)
    assert tiny.run("jobs", "status", file) == 0
    families = {"network": "efficientnet-lite:none", "encoder": "classifier:torchvision:none@none"}
    table = psi_fast.run_jobs([job | families], tmp_path / "out", progress=False)
    assert "efficientnet-lite" in table["error"][0]  # which was tried


CHILD = """
import json, os, sys
from psi_fast import mining, run_jobs, store
store.code_fingerprint = lambda experiments=False: "this code"
whole = mining.Miner.whole

def slow(miner, *others):
    if miner._config.band:  # so that this job mines by itself
        print("mining", flush=True)
        sys.stdin.read()
    return whole(miner, *others)

mining.Miner.whole = slow
run_jobs(json.loads(sys.argv[1]), sys.argv[2], allow_code=True, progress=False)
"""


@pytest.fixture
def stuck(tmp_path, job):
    """Two jobs, and a process that has done the first and is in the middle of the second."""
    jobs = [job | {"name": "first"}, job | {"name": "second", "band": [0.1, 0.9]}]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(jobs), str(tmp_path / "out")],
        cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "mining\n"
    yield jobs, tmp_path / "out", child
    child.kill()
    child.communicate()


def test_a_killed_batch_gives_up_its_folder_and_goes_on(stuck, counted):
    jobs, out, child = stuck
    own = Batch(out, jobs)
    assert own.table()["state"].tolist() == ["finished", "running"]
    assert "another process is at work in" in message(run, jobs, out, error=StoreError)
    band = psi_fast.PSIConfig(**SETTINGS, band=(0.1, 0.9))
    given = {"encoder": jobs[1]["encoder"], "config": band, "device": "cpu", "progress": False}
    with pytest.raises(PsiFastError, match=r"at work in .*second"):
        psi_fast.score("tiny:network", "2", jobs[1]["images"], out=out / "second", **given)
    assert own.table()["state"].tolist() == ["finished", "running"]  # and its record is as it was

    (out / "shared" / ".psi-fast-1-x").write_bytes(b"half")
    os.utime(out / "shared" / ".psi-fast-1-x", (0, 0))
    (out / "records" / ".psi-fast-1-x").write_bytes(b"half")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert own.table()["state"].tolist() == ["finished", "cut short"]
    mined = counted["mine"]
    first = (out / "first" / "manifest.json").stat().st_mtime_ns
    assert run(jobs, out)["state"].tolist() == ["finished", "finished"]
    assert (counted["mine"] - mined, (out / "first" / "manifest.json").stat().st_mtime_ns) == (1, first)
    assert not list(out.rglob(".psi-fast-*"))
    assert sorted(path.name for path in out.iterdir()) == ["first", "records", "results.parquet", "second", "shared"]


def test_what_a_dead_batch_left_running_is_not_running_in_the_next(stuck):
    jobs, out, child = stuck
    child.send_signal(signal.SIGKILL)
    child.wait()
    with alone(out):
        own = Batch(out, jobs)
        assert [one.name for one in own.begin()] == ["second"]
        assert own.table()["state"].tolist() == ["finished", "cut short"]


def test_an_interrupted_batch_is_cut_short_and_its_results_are_there(tmp_path, job, monkeypatch, capsys):
    file = write(tmp_path / "b.toml", job, "[grid]", "seed = [0, 1]")
    real = batch.score

    def interrupted(*arguments, **others):
        if others["config"].seed == 1:
            raise KeyboardInterrupt
        return real(*arguments, **others)

    monkeypatch.setattr(batch, "score", interrupted)
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == 130
    assert capsys.readouterr() == ("", CTRL_C)
    folder, jobs = read_jobs(file)
    assert Batch(folder, jobs).table()["state"].tolist() == ["finished", "cut short"]
    assert not locked(folder)
    assert pd.read_parquet(folder / "results.parquet")["job"].nunique() == 1
    monkeypatch.setattr(batch, "score", real)
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == 0


def test_a_look_at_a_folder_takes_no_lock_from_who_needs_it(tmp_path):
    with alone(tmp_path):
        assert locked(tmp_path)
        with pytest.raises(StoreError, match="at work"), alone(tmp_path):
            pass
    assert not locked(tmp_path)
    with alone(tmp_path):
        pass
    assert not locked(tmp_path / "none")


def test_the_live_table_shows_state_stage_rate_and_time_left(tmp_path, job, monkeypatch):
    own = Batch(tmp_path, [job | {"seed": seed} for seed in range(4)])
    clock = [100.0]
    monkeypatch.setattr(batch_view.time, "monotonic", lambda: clock[0])

    def drawn():
        console = Console(record=True, width=160, file=io.StringIO())
        console.print(view)
        return console.export_text()

    view = batch_view.View(own, own.jobs)
    assert "0 finished, 0 failed, 4 to go" in drawn()
    view.begin(own.jobs[0])
    with view.bars.stage("mining"), view.bars.bar("mining", 4000, "img", 1000) as bar:
        bar._from = time.perf_counter() - 10
        bar.update(500)
        clock[0] += 20
        (line,) = [line for line in drawn().splitlines() if "running" in line]
        assert "mining: 1,500 of 4,000 img, 50/s, 50.0 s left" in line or "49.9" in line
        assert "20.0 s" in line
    view.end(own.jobs[0], replace(own.record(own.jobs[0]), state="finished", seconds=90.0))
    view.begin(own.jobs[1])
    view.end(own.jobs[1], replace(own.record(own.jobs[1]), state="failed", seconds=30.0, error="bad [red]x[/red] [/b]"))
    text = drawn()
    assert "1 finished, 1 failed, 2 to go; 60 jobs an hour, about 2 min 00 s left" in text
    assert "bad [red]x[/red] [/b]" in text
    assert "1 min 30 s" in text
    assert text.count("waiting") == 2


def test_a_long_batch_shows_the_jobs_around_the_one_that_runs(tmp_path, job):
    own = Batch(tmp_path, [job | {"seed": seed} for seed in range(100)])
    view = batch_view.View(own, own.jobs)
    view.begin(own.jobs[50])
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(view)
    text = console.export_text()
    assert text.count("seed-") == batch_view.SHOWN
    assert "seed-50" in text


def test_where_stderr_is_no_terminal_a_line_tells_of_each_job(tmp_path, job, capsys):
    run([job | {"seed": 0}, job | {"seed": 1, "images": "no[red]where"}], tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert [line.endswith(": begins") for line in lines] == [True, False, True, False]
    assert "seed-0: finished in" in lines[1]
    assert "(1 finished, 0 failed, 1 to go; " in lines[1]
    assert "failed in" in lines[3]
    assert "no[red]where" in lines[3]
    assert lines[3].endswith("(1 finished, 1 failed, 0 to go)")


def test_a_terminal_gets_the_live_table(tmp_path, job, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(batch_view, "Terminal", lambda **_: Terminal(file=shown, force_terminal=True, width=120))
    run([job], tmp_path, progress=True)
    assert "finished" in shown.getvalue()
    assert "\x1b[?25h" in shown.getvalue()  # the cursor is back


def test_runs_and_studies_share_by_a_flag(tmp_path, pictures, counted):
    share = tmp_path / "share"
    for name, draws in (("one", "9"), ("two", "19")):
        assert tiny.run(*tiny.score_flags(pictures, tmp_path / name, share=share, draws=draws)) == 0
        once = counted["crops"]
    assert counted == {"mine": 1, "crops": once}
    assert not list(tmp_path.glob("*/unfinished"))
    kept = {path.name for path in share.iterdir()}
    config = psi_fast.PSIConfig(**SETTINGS)
    study = Study(
        "tiny:network", "2", str(pictures), encoder="classifier:tiny:classifier", out=tmp_path / "study",
        config=config, device="cpu", progress=False, share=share,
    )  # fmt: skip
    study.evaluation("2")
    assert counted["crops"] == once  # the crops that the runs have left serve the study as well
    assert kept < {path.name for path in share.iterdir()}
    assert not (tmp_path / "study" / "shared").exists()
