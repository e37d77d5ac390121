"""Batches whose results are damaged: the job that they are of has failed, and neither the others nor a signal is lost."""

import json
import os
import signal

import pandas as pd
import pytest
import tiny
import torch
from test_batch import JOB, run, write

from psi_fast import batch, shelf, store
from psi_fast.batch import Batch
from psi_fast.jobs import read_jobs
from psi_fast.shelf import Shelf

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")


@pytest.fixture(autouse=True)
def _ctrl_c():
    """Python's own answer, also where the shell that the tests were started from has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def job(pictures):
    return JOB | {"images": str(pictures)}


def damage(path):
    """Give the file one wrong bit."""
    held = bytearray(path.read_bytes())
    held[50] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("name", ["scores.parquet", "patches.parquet", "manifest.json"])
def test_a_finished_job_with_a_damaged_file_has_failed_and_the_others_results_are_there(tmp_path, job, name):
    jobs = [job | {"name": "a"}, job | {"name": "b", "seed": 1}, job | {"name": "c", "seed": 2}]
    run(jobs[:2], tmp_path)
    damage(tmp_path / "a" / name)
    table = run(jobs, tmp_path)
    assert table["state"].tolist() == ["failed", "finished", "finished"]
    assert f"cannot read {tmp_path / 'a' / name}" in table["error"][0]
    assert pd.read_parquet(tmp_path / "results.parquet")["job"].unique().tolist() == ["b", "c"]
    assert Batch(tmp_path, jobs).table().equals(table)

    # it is tried again only on demand, and made again once what the line says is done
    for failed in (False, True):
        assert run(jobs, tmp_path, failed=failed)["state"].tolist() == ["failed", "finished", "finished"]
    (tmp_path / "a" / "manifest.json").unlink()
    assert run(jobs, tmp_path, failed=True)["state"].tolist() == ["finished"] * 3
    assert pd.read_parquet(tmp_path / "results.parquet")["job"].unique().tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("sent", SIGNALS)
@pytest.mark.parametrize("fault", ["a damaged run", "no place for the results"])
def test_a_signal_is_not_lost_where_results_are_damaged(tmp_path, job, monkeypatch, capsys, sent, fault):
    file = write(tmp_path / "b.toml", job, "[grid]", "seed = [0, 1, 2]")
    folder, jobs = read_jobs(file)
    real = batch.score

    def interrupted(*arguments, **others):
        if others["config"].seed == 2:
            os.kill(os.getpid(), sent)
        return real(*arguments, **others)

    monkeypatch.setattr(batch, "score", interrupted)
    run(jobs[:1], folder)
    if fault == "a damaged run":
        damage(folder / jobs[0].name / "scores.parquet")
    else:
        (folder / "results.parquet").unlink()
        (folder / "results.parquet").mkdir()
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == SIGNALS[sent]
    assert "Traceback" not in capsys.readouterr().err
    states = Batch(folder, jobs).table()["state"].tolist()
    if fault == "a damaged run":
        assert states == ["failed", "finished", "cut short"]
        assert pd.read_parquet(folder / "results.parquet")["job"].unique().tolist() == [jobs[1].name]
    else:
        assert states == ["finished", "finished", "cut short"]


def test_a_run_that_writes_to_the_folder_a_batch_shares_is_not_disturbed(tmp_path, job, monkeypatch):
    """The batch begins when the run has a file half written; what nobody has touched for a day goes."""
    share, real = tmp_path / "shared", store.write_shared
    share.mkdir()
    own = Batch(tmp_path, [job])

    def meanwhile(path, write):
        def both(place):
            write(place)
            old = share / ".psi-fast-1-x"
            old.write_bytes(b"half")
            os.utime(old, (0, 0))
            own.begin()
            assert not old.exists()

        real(path, both)

    monkeypatch.setattr(shelf, "write_shared", meanwhile)
    Shelf(share).keep("tops", 1, {"x": torch.arange(3)})
    assert torch.equal(Shelf(share).find("tops", 1)["x"], torch.arange(3))


@pytest.mark.parametrize("command", ["run", "status", "retry"])
@pytest.mark.parametrize("out", ["file", "file/below/it"])
def test_a_folder_that_cannot_be_is_told_by_every_command(tmp_path, job, capsys, command, out):
    (tmp_path / "file").write_text("mine")
    file = write(tmp_path / "b.toml", job, "[grid]", "seed = [0]")
    file.write_text(f'out = "{tmp_path / out}"\n' + file.read_text())
    flags = () if command == "status" else ("--allow-code", "--no-progress")
    assert tiny.run("jobs", command, file, *flags) == 2
    assert tiny.one_line(capsys) == (
        f"psi-fast: error: out must name a folder, but {tmp_path / 'file'} is a file; choose another one"
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        *({"seconds": own} for own in ("abc", "5", [1], -1.0, float("nan"), float("inf"), 10**400)),
        *({"state": own} for own in ("done", None, ["failed"])),
        *({name: 5} for name in ("error", "traceback", "made", "values")),
    ],
    ids=lambda change: str(change)[:24],
)
def test_a_record_with_a_value_of_another_kind_is_as_if_there_was_none(tmp_path, job, capsys, change):
    file = write(tmp_path / "b.toml", job | {"images": "nowhere"}, "[[jobs]]", "name = 'a'")
    assert tiny.run("jobs", "run", file, "--allow-code", "--no-progress") == 1
    path = tmp_path / "b" / "records" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    assert tiny.run("jobs", "status", file) == 0
    assert "1 waiting" in capsys.readouterr().out
    assert tiny.run("jobs", "run", file, "--allow-code") == 1
    assert "a: failed in" in capsys.readouterr().err
