"""A stderr that nobody reads, that is closed, or that is not there: the run goes on, and its exit code is the same."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import psi_fast
from psi_fast import progress, store

TESTS = Path(__file__).parent
PATIENCE = 120
"""Seconds after which a process waits for ever."""


@pytest.fixture
def pipe():
    """Both ends of a pipe that holds no more than a page."""
    ends = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    yield ends
    for end in ends:
        os.close(end)


def fill(end):
    os.set_blocking(end, False)
    try:
        while True:
            os.write(end, b"x" * 512)
    except BlockingIOError:
        os.set_blocking(end, True)


def command(pictures, out, stderr, **changes):
    """The exit code of `psi-fast score`."""
    argv = [str(own) for own in tiny.score_flags(pictures, out, **changes)]
    with subprocess.Popen(
        [sys.executable, "-m", "psi_fast", *argv], cwd=TESTS, stdout=subprocess.DEVNULL, stderr=stderr,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            return process.wait(timeout=PATIENCE)
        finally:
            process.kill()


def test_a_full_pipe_holds_no_run_up(tmp_path, pictures, pipe):
    fill(pipe[1])
    assert command(pictures, tmp_path / "run", pipe[1]) == 0
    assert len(psi_fast.load(tmp_path / "run").table) == 6
    assert command(pictures, tmp_path / "other", pipe[1], layer="none such") == 2
    assert set(os.read(pipe[0], 10**6)) == {ord("x")}


def test_what_packages_say_holds_no_run_up(tmp_path, pictures, pipe):
    fill(pipe[1])
    assert command(pictures, tmp_path / "run", pipe[1], network="tiny_raising:talking") == 0
    assert len(psi_fast.load(tmp_path / "run").table) == 6
    assert set(os.read(pipe[0], 10**6)) == {ord("x")}


def test_a_pipe_whose_reader_is_gone_ends_no_run(tmp_path, pictures):
    reader, writer = os.pipe()
    os.close(reader)
    assert command(pictures, tmp_path / "run", writer) == 0
    assert len(psi_fast.load(tmp_path / "run").table) == 6
    os.close(writer)


def test_what_packages_say_to_nobody_ends_no_run(tmp_path, pictures):
    reader, writer = os.pipe()
    os.close(reader)
    assert command(pictures, tmp_path / "run", writer, network="tiny_raising:talking") == 0
    os.close(writer)


def test_no_stderr_ends_no_run(tmp_path, pictures, monkeypatch):
    """As with 2>&- in a shell."""
    monkeypatch.setattr(sys, "stderr", None)
    assert tiny.run(*tiny.score_flags(pictures, tmp_path / "run")) == 0
    assert tiny.run(*tiny.score_flags(pictures, tmp_path / "other", layer="none such")) == 2
    assert store.load(tmp_path / "run").manifest["channels"] == 6


def test_lines_are_dropped_while_the_pipe_is_full_and_told_again_later(pipe, monkeypatch):
    with open(os.dup(pipe[1]), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        bars = progress.Progress()
        bars.say("before")
        assert os.read(pipe[0], 100) == b"before\n"
        fill(pipe[1])
        for _ in range(100):
            bars.say("dropped " * 50)
        held = os.read(pipe[0], 10**6)
        assert b"dropped" not in held
        bars.say("after")
        assert os.read(pipe[0], 100) == b"after\n"
        bars.say("a long line " * 1000)
        assert 0 < len(os.read(pipe[0], 10**6)) <= 4096


def test_a_line_that_cannot_be_encoded_is_told_all_the_same(pipe, monkeypatch):
    with open(os.dup(pipe[1]), "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        progress.tell("no image 'K\u00e4fer.png'")
        os.write(pipe[1], b".")
        assert os.read(pipe[0], 100) == b"no image 'K\\xe4fer.png'\n."


def test_what_packages_say_is_read_where_somebody_reads(pipe, monkeypatch):
    with open(os.dup(pipe[1]), "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.unhindered():
            sys.stderr.write("net.py:7: too \u2192 warm\n")
            assert os.read(pipe[0], 100) == b"net.py:7: too \\u2192 warm\n"
            sys.stderr.write("lost " * 10_000)
            assert 0 < len(os.read(pipe[0], 10**6)) <= 4096
            progress.tell("and after")
            assert os.read(pipe[0], 100) == b"and after\n"
        assert sys.stderr is stream
