"""Jobs one after the other in one process leave no memory, file handle, thread, hook or temporary file behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
JOBS = 200
PROGRAM = f"""
import dataclasses, json, sys
from pathlib import Path
import long_run
print(json.dumps(dataclasses.asdict(long_run.run({JOBS}, Path(sys.argv[1])))))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """In a process of its own, whose memory no other test has used."""
    folder = tmp_path_factory.mktemp("long")
    paths = os.pathsep.join([str(BENCHMARKS), *sys.path])
    with_cache = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PSI_FAST_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "work")],
        env=with_cache,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_is_flat(found):
    assert len(found["rss_mb"]) == JOBS
    assert found["slope_mb"] < 1


def test_nothing_stays_open_hooked_or_on_the_disk(found):
    assert (found["handles"], found["threads"], found["hooks"], found["temporary"]) == (0, 0, 0, [])


def test_jobs_of_all_kinds_ran_both_ways(found):
    states = found["states"]
    assert [state for number, state in enumerate(states) if number % 8 < 4] == [*["finished"] * 3, "failed"] * (
        JOBS // 8
    )
    assert {state for number, state in enumerate(states) if number % 8 >= 4} == {"waiting"}
