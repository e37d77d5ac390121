"""Parts of a run that others do: tasks of an array that meet in a folder, and what merges them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_slow
import torch
from test_tar_shards import sample, write_shards

from psi_fast import crew, mining, store
from psi_fast.activation_tap import ActivationTap
from psi_fast.errors import ConfigError, StoreError
from psi_fast.image_stream import open_stream
from psi_fast.images import open_images
from psi_fast.locks import alone, locked
from psi_fast.mining import PARTS, image_parts
from psi_fast.workers import ArrayTask, Here, Merging, OthersMissing, part_size

CASES = {"labels": {}, "no labels": {"labels": False}, "band": {"band": [0.3, 0.8]}}


@pytest.mark.parametrize(("count", "step"), [(1, 8), (8, 8), (100, 8), (512, 8), (513, 8), (10_000, 8), (10**9, 256)])
def test_parts_hold_every_image_once_in_whole_batches(count, step):
    parts = image_parts(count, step)
    assert len(parts) <= PARTS
    assert [parts[0].start, parts[-1].stop] == [0, count]
    assert all(one.stop == two.start for one, two in pairwise(parts))
    assert all(part.start % step == 0 and len(part) for part in parts)
    assert len(parts) == min(PARTS, -(-count // step)) or len(parts[0]) > step


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "a/b", "1/", "-1/4", "1/4/2"])
def test_a_task_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="must be i/n"):
        ArrayTask.parse(text)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_each_part_is_one_tasks(tasks):
    whose = [[ArrayTask.parse(f"{i + 1}/{tasks}").own("mining", part) for i in range(tasks)] for part in range(40)]
    assert all(sum(own) == 1 for own in whose)


def test_workers_get_some_parts_each():
    assert part_size(10_000, Here(), 16, 256) == 256
    assert part_size(100, ArrayTask(1, 5), 4, 256) == 5
    assert part_size(100, ArrayTask(1, 50), 4, 256) == 4


def held(folder):
    return {name: (folder / name).read_bytes() for name in tiny_slow.FILES}


def in_tasks(folder, count, case):
    """Have an array of tasks do all they can, as often as they can; what each said."""
    said = []
    for _ in range(3):
        for task in range(1, count + 1):
            with pytest.raises(OthersMissing) as found:
                tiny_slow.score(folder, **case, workers=ArrayTask(task, count))
            said.append(str(found.value))
    return said


@pytest.mark.parametrize(("count", "case"), [(2, "labels"), (5, "no labels"), (3, "band")])
def test_an_array_ends_in_the_bytes_of_one_process(tmp_path, monkeypatch, case, count):
    monkeypatch.setattr("psi_fast.embedding.FEWEST", 8)
    monkeypatch.setattr("psi_fast.null_parts.FEWEST", 2)
    tiny_slow.score(tmp_path / "whole", **CASES[case])
    said = in_tasks(tmp_path / "run", count, CASES[case])
    assert "of the 12 parts of mining" in said[0]
    assert any("parts of embedding" in one for one in said)
    assert any("parts of null draws" in one for one in said)
    assert "all parts are done" in said[-1]
    with monkeypatch.context() as patch:  # nothing is left to do
        patch.setattr(mining.Miner, "part", None)
        patch.setattr("psi_fast.sight.embed", None)
        patch.setattr("psi_fast.null_parts.null_part", None)
        tiny_slow.score(tmp_path / "run", **CASES[case], workers=Merging())
    assert held(tmp_path / "run") == held(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*tiny_slow.FILES, "manifest.json"])


def test_merging_refuses_images_that_no_task_mined_or_mines_them(tmp_path):
    with pytest.raises(OthersMissing):
        tiny_slow.score(tmp_path / "run", workers=ArrayTask(1, 2))
    with pytest.raises(OthersMissing, match="6 of the 12 parts of mining"):
        tiny_slow.score(tmp_path / "run", workers=Merging())
    assert not (tmp_path / "run" / "manifest.json").exists()
    tiny_slow.score(tmp_path / "run", workers=Merging(complete=True))
    tiny_slow.score(tmp_path / "whole")
    assert held(tmp_path / "run") == held(tmp_path / "whole")


def test_tasks_work_in_one_folder_at_once_but_beside_no_other_run(tmp_path):
    folder = tmp_path / "run"
    with store.reserved(folder, among=True), pytest.raises(OthersMissing):
        tiny_slow.score(folder, workers=ArrayTask(1, 2))
    with store.reserved(folder, among=True), pytest.raises(StoreError, match="another process is at work"):
        tiny_slow.score(folder)
    with alone(folder), pytest.raises(StoreError, match="another process is at work"):
        tiny_slow.score(folder, workers=ArrayTask(2, 2))


def test_a_task_without_a_folder_is_refused():
    with pytest.raises(ConfigError, match="give one"):
        tiny_slow.score(None, workers=ArrayTask(1, 2))


def test_only_classes_of_a_part_are_sent():
    images, network = tiny.image_set(96), tiny.network()
    tap = ActivationTap(network, "2", torch.device("cpu"))
    given = ([tap], network, tiny.bank(images), images.names, [np.arange(6)], tiny.CONFIG)
    miner = mining.Miner(*given, labels=images.labels)
    part = miner.part(miner.parts[1])
    wanted = np.unique(images.labels[miner.parts[1].start : miner.parts[1].stop])
    np.testing.assert_array_equal(part["0 classes"].numpy(), wanted)
    assert part["0 by class"].shape == (len(wanted), 6)


def test_a_part_of_shards_opens_only_those_that_hold_it(tmp_path, monkeypatch):
    images = open_images(str(write_shards(tmp_path / "shards", [sample(i) for i in range(40)], 10)))
    network, opened = tiny.network(), set()
    tap = ActivationTap(network, "2", torch.device("cpu"))
    given = ([tap], network, open_stream(images, 32), images.names, [np.arange(6)], tiny.CONFIG)
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.add(path.name) or real(path, *rest, **more))
    miner = mining.Miner(*given)
    for part in miner.parts:
        opened.clear()
        mining.Miner(*given).part(part)
        assert opened == {f"shard-{image // 10:03}.tar" for image in part}


class TestCommand:
    @pytest.fixture
    def flags(self, tmp_path):
        images = tiny.write_pictures(tmp_path / "images", 40)
        given = ("tiny:network", "2", images, "classifier:tiny:classifier", "cpu")
        names = ("--network", "--layer", "--images", "--encoder", "--device")
        settings = [part for pair in tiny.SETTINGS.items() for part in pair]
        return [
            *(part for pair in zip(names, map(str, given), strict=True) for part in pair),
            *settings,
            "--no-progress",
        ]

    def test_an_array_and_its_merge(self, tmp_path, flags, capsys):
        whole, out = tmp_path / "whole", tmp_path / "run"
        assert tiny.run("score", *flags, "--out", whole) == 0
        shared = ("--share", tmp_path / "shared")
        for _ in range(3):
            for task in ("1/2", "2/2"):
                assert tiny.run("score", *flags, *shared, "--out", out, "--array-task", task) == 0
        assert "psi-fast merge" in capsys.readouterr().err
        assert not (out / "manifest.json").exists()
        assert tiny.run("merge", out) == 2
        assert "--allow-code" in capsys.readouterr().err  # the network is a function
        assert tiny.run("merge", out, "--allow-code", "--no-progress") == 0
        assert held(out) == held(whole)
        assert tiny.run("merge", out) == 0  # shown again

    def test_what_goes_wrong_is_said_in_a_line(self, tmp_path, flags, capsys):
        out = tmp_path / "run"
        assert tiny.run("merge", tmp_path / "none") == 2
        assert "holds no work of array tasks" in capsys.readouterr().err
        assert tiny.run("score", *flags, "--out", out, "--array-task", "3/2") == 2
        assert "i/n" in capsys.readouterr().err
        assert tiny.run("score", *flags, "--precision", "auto", "--out", out, "--array-task", "1/2") == 2
        assert "--precision float32" in capsys.readouterr().err
        assert tiny.run("score", *flags, "--layer", "no", "--out", out, "--array-task", "1/2") == 2
        assert "layer 'no' not found" in capsys.readouterr().err
        assert not out.exists()
        assert tiny.run("score", *flags, "--out", out, "--array-task", "1/2", "--report") == 2
        assert "--report" in capsys.readouterr().err
        assert tiny.run("score", *flags, "--out", out, "--ray-workers", "2") == 2
        assert "give --ray as well" in capsys.readouterr().err
        assert tiny.run("score", *flags, "--out", out, "--array-task", "1/2") == 0
        capsys.readouterr()
        assert tiny.run("score", *flags, "--out", out, "--seed", "7", "--array-task", "2/2") == 2
        assert "is of another job" in capsys.readouterr().err
        assert tiny.run("merge", out, "--allow-code", "--no-progress") == 2
        assert "give --complete" in capsys.readouterr().err
        (out / "unfinished" / "job.json").write_text(json.dumps({"network": 3}))
        assert tiny.run("merge", out) == 2
        assert "job.json" in capsys.readouterr().err

    def test_of_tasks_of_two_jobs_at_once_one_is_refused(self, tmp_path, flags, capsys, monkeypatch):
        """The other ends its share between the first one's look at the job's file and its end; notes wait for each other."""
        out, real, other = tmp_path / "run", crew.score, []
        note = out / "unfinished" / "job.json"

        def score(*arguments, **others):
            monkeypatch.setattr(crew, "score", real)
            other.append(tiny.run("score", *flags, "--out", out, "--seed", "7", "--array-task", "1/2"))
            return real(*arguments, **others)

        monkeypatch.setattr(crew, "score", score)
        assert tiny.run("score", *flags, "--out", out, "--array-task", "1/2") == 2
        assert other == [0]
        assert f"{note} is of another job" in capsys.readouterr().err
        assert json.loads(note.read_text())["seed"] == 7

        whole, seen = store.write_shared, []
        monkeypatch.setattr(store, "write_shared", lambda *given: seen.append(locked(note.parent)) or whole(*given))
        assert tiny.run("score", *flags, "--out", out, "--seed", "7", "--array-task", "2/2") == 0
        assert seen == [True]
        assert not locked(note.parent)
