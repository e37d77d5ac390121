"""The workers of Ray: as many as one likes, lost and killed, and the bytes of one process in the end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny
import tiny_raising
import tiny_slow
import torch
from forks import TESTS, forks_of
from test_batch import JOB
from test_tar_shards import sample, write_shards

from psi_fast import RayWorkers, run_jobs
from psi_fast.errors import ConfigError, ModelError, PsiFastError
from psi_fast.shelf import Unfinished
from psi_fast.workers import Here

ray = pytest.importorskip("ray")
cloudpickle = pytest.importorskip("ray.cloudpickle")
CASES = {"labels": {}, "no labels": {"labels": False}, "band": {"band": [0.3, 0.8]}}
KILLS = 20


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of this machine with room for five workers of one thread."""
    own = ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield own.address_info["address"]
    ray.shutdown()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    for name, least in (("embedding", 8), ("null_parts", 2), ("channel_parts", 2)):
        monkeypatch.setattr(f"psi_fast.{name}.FEWEST", least)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of each case's run by one process."""
    found = {}

    def run(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            tiny_slow.score(folder, **CASES[name])
            found[name] = held(folder)
        return found[name]

    return run


def held(folder):
    return {name: (folder / name).read_bytes() for name in tiny_slow.FILES}


@pytest.mark.parametrize(
    ("count", "case"), [(1, "labels"), (2, "labels"), (5, "labels"), (2, "no labels"), (5, "band")]
)
def test_any_number_of_workers_ends_in_the_bytes_of_one_process(cluster, whole, tmp_path, count, case):
    with RayWorkers(workers=count, device="cpu") as workers:
        assert workers.count == count
        tiny_slow.score(tmp_path / "run", **CASES[case], workers=workers)
    assert held(tmp_path / "run") == whole(case)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*tiny_slow.FILES, "manifest.json"])


def test_workers_without_a_folder_give_the_same_scores(cluster, tmp_path):
    alone, _ = tiny_slow.score(None)
    with RayWorkers(workers=2, device="cpu") as workers:
        found, _ = tiny_slow.score(None, workers=workers)
    assert found.table.equals(alone.table)


def test_what_a_lost_worker_had_is_done_again(cluster, whole, tmp_path):
    with RayWorkers(workers=2, device="cpu") as workers:
        tiny_slow.score(tmp_path / "run", dies=str(tmp_path / "dead"), workers=workers)
    assert (tmp_path / "dead").exists()
    assert held(tmp_path / "run") == whole("labels")


def test_a_half_precision_that_overflows_in_a_worker_is_left(cluster, tmp_path):
    case = {"red": (60, 90), "fails": True}
    expected, _ = tiny_slow.score(tmp_path / "whole", **case)
    with RayWorkers(workers=2, device="cpu") as workers:
        found, _ = tiny_slow.score(tmp_path / "run", **case, workers=workers)
    assert any("ran again in float32" in line for line in found.manifest["warnings"])
    assert held(tmp_path / "run") == held(tmp_path / "whole")
    assert found.table.equals(expected.table)


def test_shards_of_a_data_set_are_read_by_the_workers(cluster, tmp_path):
    given = {"images": str(write_shards(tmp_path / "shards", [sample(i, cls=i % 4) for i in range(40)]))}
    tiny.score(out=tmp_path / "whole", **given)
    with RayWorkers(workers=2, device="cpu") as workers:
        tiny.score(out=tmp_path / "run", **given, workers=workers)
    assert held(tmp_path / "run") == held(tmp_path / "whole")


def test_an_error_in_a_worker_is_one_line_of_the_part_that_raised(cluster, tmp_path):
    network = tiny_raising.late()
    for late in network.module.modules():
        late.passes = tiny_raising.PASSES  # as if they were over
    with RayWorkers(workers=2, device="cpu") as workers, pytest.raises(ModelError, match="LookupError") as found:
        tiny.score(network, "5", out=tmp_path / "run", workers=workers)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_jobs_run_on_workers(cluster, tmp_path, pictures):
    jobs = [JOB | {"images": str(pictures), "seed": seed} for seed in (0, 1)]
    alone = run_jobs(jobs, tmp_path / "alone", allow_code=True, progress=False)
    with RayWorkers(workers=2, device="cpu") as workers:
        found = run_jobs(jobs, tmp_path / "ray", allow_code=True, progress=False, workers=workers)
    assert found["state"].tolist() == alone["state"].tolist() == ["finished"] * 2
    for name in found["job"]:
        assert held(tmp_path / "ray" / name) == held(tmp_path / "alone" / name)


def test_what_cannot_be_sent_is_said_in_a_line(cluster, tmp_path):
    network = tiny.network()
    network.module.held = threading.Lock()
    with RayWorkers(workers=1, device="cpu") as workers, pytest.raises(PsiFastError, match="cannot be sent") as found:
        tiny.score(network, out=tmp_path / "run", workers=workers)
    assert "\n" not in str(found.value)


class Looking(Here):
    """Does the work as another process would: with what comes out of what is sent there."""

    def results(self, work, tasks, shared=None):
        if shared is not None:
            shared = cloudpickle.loads(cloudpickle.dumps(shared))
            assert shared.shelf.folder.is_absolute()
        yield from super().results(work, tasks, shared)


def test_a_worker_keeps_how_far_a_part_is_from_the_first_run_on(tmp_path, monkeypatch, whole):
    written, real = [], Unfinished.write
    monkeypatch.setattr("psi_fast.shelf.EVERY", 0.0)
    monkeypatch.setattr(Unfinished, "write", lambda self, *given: written.append(self._path.name) or real(self, *given))
    monkeypatch.chdir(tmp_path)
    tiny_slow.score("run", workers=Looking())
    assert len({name for name in written if name.startswith("part-")}) == 12
    assert held(tmp_path / "run") == whole("labels")


def test_on_gpus_a_worker_claims_one_and_no_cpus(cluster, monkeypatch):
    monkeypatch.setattr("psi_fast.ray_workers.pick_device", lambda _: torch.device("cuda"))
    with pytest.raises(ConfigError, match="claims a GPU"):
        RayWorkers()
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0, "GPU": 8.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    claims = {}
    monkeypatch.setattr(ray, "remote", lambda **given: claims.update(given) or (lambda work: work))
    assert RayWorkers().count == 8
    assert (claims["num_gpus"], claims["num_cpus"]) == (1, 0)


def test_cpus_of_two_machines_make_no_worker(cluster, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 3.0}}] * 4)
    with pytest.raises(ConfigError, match="no machine of the Ray cluster has room"):
        RayWorkers(device="cpu")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_that_nobody_answers_at_is_one_line_at_once(monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(ConfigError, match=f"cannot reach a Ray cluster at {address}: .*; start one there"):
        RayWorkers(address, device="cpu")


def test_another_cluster_than_the_one_that_was_joined_is_refused(cluster):
    with pytest.raises(ConfigError, match="has joined a Ray cluster already"):
        RayWorkers("192.0.2.1:6379", device="cpu")


def test_the_commands_take_workers(cluster, tmp_path, pictures, capsys):
    flags = tiny.score_flags(pictures, tmp_path / "alone")
    assert tiny.run(*flags) == 0
    assert tiny.run(*tiny.score_flags(pictures, tmp_path / "ray"), "--ray", "--ray-workers", "2") == 0
    assert "2 workers of Ray at once" in capsys.readouterr().err
    assert held(tmp_path / "ray") == held(tmp_path / "alone")
    file = tmp_path / "jobs.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in (JOB | {"images": str(pictures)}).items()]
    file.write_text("\n".join(["[[jobs]]", 'name = "one"', *lines]))
    assert tiny.run("jobs", "run", file, "--allow-code", "--ray", "--ray-workers", "2", "--no-progress") == 0
    assert held(tmp_path / "jobs" / "one") == held(tmp_path / "alone")


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers):
    with pytest.raises(ConfigError, match="--ray-workers must be at least 1"):
        RayWorkers(workers=workers)


def test_a_cluster_without_room_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    with pytest.raises(ConfigError, match="claims 64 CPUs"):
        RayWorkers(device="cpu")


def test_a_worker_with_another_psi_fast_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("psi_fast.ray_workers._code", lambda: "another")
    with RayWorkers(workers=1, device="cpu") as workers, pytest.raises(PsiFastError, match="has another psi_fast"):
        list(workers.results(len, {0: ("a",)}))


def test_work_that_ends_every_worker_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr("psi_fast.ray_workers.RETRIES", 1)
    with RayWorkers(workers=1, device="cpu") as workers, pytest.raises(PsiFastError, match="workers were lost 2 times"):
        list(workers.results(os._exit, {0: (1,)}))


@pytest.fixture(scope="module")
def forks():
    with forks_of("tiny_slow.py") as found:
        yield found


def files_of(folder):
    return len(list((folder / "unfinished").glob("[!.]*")))


def test_sigterm_to_a_run_on_workers_ends_with_143(tmp_path, pictures):
    """Ray has an answer to SIGTERM of its own."""
    flags = tiny.score_flags(pictures, tmp_path / "run", network="tiny_slow:network")
    command = [sys.executable, "-m", "psi_fast", *map(str, flags), "--ray", "--ray-workers", "1"]
    with subprocess.Popen(
        command, cwd=TESTS, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    ) as child:
        while not list((tmp_path / "run").glob("unfinished/part-*")) and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate()
    assert child.returncode == 143, said
    assert "stopped by SIGTERM" in said


def test_a_run_on_workers_that_is_killed_again_and_again_ends_in_the_same_bytes(cluster, whole, forks, tmp_path):
    """The process that gives out the parts is killed, at seeded moments behind a number of parts that came back."""
    rng, cut, kills, seen = random.Random("psi ray"), tmp_path / "cut", 0, set()
    while kills < KILLS:
        child, behind = forks.start(str(cut), 0.02, {}, cluster), files_of(cut) + rng.randint(0, 4)
        code = forks.stop(child, lambda behind=behind: files_of(cut) >= behind, rng.uniform(0, 0.3))
        seen |= {path.name.split("-")[0] for path in (cut / "unfinished").glob("[!.]*")}
        if code == 0:  # it came to its end first; once more from the start
            shutil.rmtree(cut)
        else:
            assert code == -signal.SIGKILL
            kills += 1
    forks.start(str(cut), 0.0, {}, cluster)
    assert forks.code() == 0
    assert {"part", "tops", "crops", "nulls"} <= seen
    assert held(cut) == whole("labels")
    assert sorted(path.name for path in cut.iterdir()) == sorted([*tiny_slow.FILES, "manifest.json"])
