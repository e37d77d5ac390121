"""The run folder: whole files or none, whatever kills a run, and never over another run."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from image_helpers import message
from safetensors import safe_open

import psi_fast
from psi_fast import mining, store
from psi_fast.errors import StoreError

CODE_FINGERPRINT = store.code_fingerprint  # which these tests hold still
TESTS = Path(__file__).parent
FILES = ("scores.parquet", "patches.parquet", "embeddings.safetensors", "distributions.safetensors", "manifest.json")

# Scores into one folder a file, each in a child that may write no more than 64 bytes of that file: the operating system
# then kills it in the middle of the write ("kill"), or fails the write as a full disk does ("full").
CHILD = """
import os, resource, signal, sys
from pathlib import Path
import tiny, psi_fast
from psi_fast import store

root = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
whole = store.write_whole

def limited(path, write):
    if path.name == target:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    whole(path, write)

store.write_whole = limited
for how, target in [(how, target) for how in ("kill", "full") for target in sys.argv[2:]]:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "kill" else signal.SIG_IGN)
        code = 1
        try:
            psi_fast.score(tiny.network(), tiny.LAYER, tiny.image_set(), encoder=tiny.TinyEncoder(), config=tiny.CONFIG,
                           device="cpu", progress=False, out=root / how / target)
        except psi_fast.PsiFastError as error:
            print(how, target, "PsiFastError", error, flush=True)
            code = 2
        except Exception as error:
            print(how, target, type(error).__name__, error, flush=True)
        os._exit(code)
    print(how, target, "exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def score(out, **changes):
    options = {"encoder": tiny.TinyEncoder(), "config": tiny.CONFIG, "device": "cpu", "progress": False} | changes
    return psi_fast.score(tiny.network(), tiny.LAYER, tiny.image_set(), out=out, **options)


def snapshot(root):
    """Names, contents and times of change of everything below `root`."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="module", autouse=True)
def _same_code():
    """The code's fingerprint, held still: an editor that saves a file during the tests would make every run another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "code_fingerprint", lambda: "this code")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, for reading only, and its scores."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, score(folder)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in finished[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """The folder that CHILD ran in, and what it printed."""
    root = tmp_path_factory.mktemp("limited")
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), *FILES],
        cwd=TESTS, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return root, result.stdout.splitlines()


def check_whole(folder):
    """Every file under a final name can be read to its end."""
    for name in FILES:
        path = folder / name
        if not path.exists():
            continue
        if name.endswith(".parquet"):
            assert len(pd.read_parquet(path)) >= 6
        elif name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, framework="np") as file:
                tensor, shape = {"e": ("index", (6, 12)), "d": ("S_null", (6, 9))}[name[0]]
                assert file.get_tensor(tensor).shape == shape


@pytest.mark.parametrize("target", FILES)
def test_a_killed_run_leaves_no_half_file_and_can_be_run_again(limited, finished, target):
    root, lines = limited
    assert f"kill {target} exit -25" in lines, lines  # SIGXFSZ
    folder = root / "kill" / target
    check_whole(folder)
    assert not (folder / "manifest.json").exists()
    assert not (folder / target).exists()
    with pytest.raises(StoreError, match="holds no finished run"):
        psi_fast.load(folder)
    again = score(folder)
    np.testing.assert_array_equal(again.labels, finished[1].labels)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    check_whole(folder)


@pytest.mark.parametrize("target", FILES)
def test_a_full_disk_ends_in_one_line_and_no_half_file(limited, finished, target):
    root, lines = limited
    folder = root / "full" / target
    assert f"full {target} exit 2" in lines, lines
    (line,) = [line for line in lines if line.startswith(f"full {target} PsiFastError")]
    assert str(folder) in line
    check_whole(folder)
    assert not (folder / target).exists()
    assert not (folder / "manifest.json").exists()
    assert {path.name for path in folder.glob("*")} < {*FILES, "unfinished"}
    np.testing.assert_array_equal(score(folder).labels, finished[1].labels)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_the_same_run_again_is_read_and_not_computed(copied, finished, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    before = snapshot(copied)
    monkeypatch.setattr(mining.Miner, "whole", refuse)
    again = score(copied)
    pd.testing.assert_frame_equal(again.table, finished[1].table, check_exact=True)
    np.testing.assert_array_equal(again.labels, finished[1].labels)
    assert snapshot(copied) == before


def test_the_order_in_which_layers_are_asked_for_makes_no_other_run(tmp_path, monkeypatch):
    def run(layers, folder=None, **changes):
        return tiny.score(layer=layers, out=folder, **changes)

    first, folder = run(["2", "0"], tmp_path / "run"), tmp_path / "run"
    before = snapshot(folder)
    other = run(["0", "2"])
    assert other.manifest["identity"] == first.manifest["identity"]
    for layer in ("0", "2"):  # each has its own rows, wherever they stand
        one, two = (scores.table[scores.table["layer"] == layer].reset_index(drop=True) for scores in (first, other))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    with monkeypatch.context() as patch:
        patch.setattr(mining.Miner, "whole", None)  # nothing is computed
        again = run(["0", "2"], folder)
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    assert snapshot(folder) == before
    assert "with other layers)" in message(run, ["2", "1"], folder, error=StoreError)
    assert "with other layers)" in message(run, ["2"], folder, error=StoreError)
    assert "with other channels)" in message(run, ["0", "2"], folder, channels=[0], error=StoreError)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"config": replace(tiny.CONFIG, seed=1)}, "seed"),
        ({"config": replace(tiny.CONFIG, draws=10)}, "draws"),
        ({"channels": [0, 1]}, "channels"),
        ({"encoder": "other weights"}, "encoder"),
        ({"max_images": 30}, "images"),
        ({"vocabulary": "imagenet"}, "vocabulary"),
    ],
)
def test_another_run_is_refused_and_nothing_changes(copied, changes, difference, monkeypatch):
    if changes == {"encoder": "other weights"}:
        changes = {"encoder": tiny.TinyEncoder()}
        monkeypatch.setattr(tiny.TinyEncoder, "fingerprint", lambda _self: "other")
    before = snapshot(copied)
    text = message(score, copied, error=StoreError, **changes)
    assert str(copied) in text
    assert "another run" in text
    assert f"other {difference})" in text
    assert snapshot(copied) == before


def test_other_weights_images_or_code_are_another_run(copied, monkeypatch):
    before = snapshot(copied)
    other = tiny.network()
    other.module[0].bias.data += 1e-3

    def run(network=None, images=None):
        return psi_fast.score(
            network or tiny.network(), tiny.LAYER, images or tiny.image_set(),
            encoder=tiny.TinyEncoder(), config=tiny.CONFIG, device="cpu", progress=False, out=copied,
        )  # fmt: skip

    message(run, network=other, error=StoreError)
    message(run, images=tiny.image_set(41), error=StoreError)
    message(run, images=tiny.image_set(labelled=False), error=StoreError)
    monkeypatch.setattr(store, "code_fingerprint", lambda: "other code")
    message(run, error=StoreError)
    assert snapshot(copied) == before


def test_a_folder_with_foreign_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "sub").mkdir()
    before = snapshot(tmp_path)
    text = message(score, tmp_path, error=StoreError)
    assert str(tmp_path) in text
    assert "thesis.tex" in text or "sub" in text
    assert snapshot(tmp_path) == before


def test_a_foreign_folder_is_refused_before_a_dataset_is_decoded(tmp_path):
    class Unread(tiny.Pictures):
        def __getitem__(self, index):
            raise AssertionError("read")

    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in message(tiny.score, images=Unread(), out=tmp_path, error=StoreError)


def test_an_empty_folder_is_taken(tmp_path):
    score(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_folder_with_what_goes_with_a_run_is_taken(tmp_path):
    for name in ("shared", "experiments", "report"):
        (tmp_path / name).mkdir()
    score(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*FILES, "shared", "experiments", "report"))


def test_code_that_shows_results_makes_no_other_run(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "__file__", str(tmp_path / "store.py"))
    found = {}
    for name in ("store.py", "report/pages.py", "figures/charts.py", "experiments/figures.py", "networks/report.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        before = CODE_FINGERPRINT(), CODE_FINGERPRINT(True)
        (tmp_path / name).write_text("new = 1")
        found[name] = (CODE_FINGERPRINT() != before[0], CODE_FINGERPRINT(True) != before[1])
    assert found == {
        "store.py": (True, True),
        "report/pages.py": (False, False),
        "figures/charts.py": (False, False),
        "experiments/figures.py": (False, True),
        "networks/report.py": (True, True),
    }


def test_out_that_is_a_file_or_lies_below_one_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    for out in (file, file / "run"):
        assert str(file) in message(score, out, error=StoreError)
    assert snapshot(tmp_path).keys() == {"file"}
    assert file.read_text() == "text"


def test_a_folder_that_cannot_be_made_is_one_line():
    assert "/proc/psi-fast-test" in message(score, "/proc/psi-fast-test/run", error=StoreError)


def test_a_folder_that_cannot_be_written_is_found_before_the_work_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    def worked(*_, **__):
        raise AssertionError("worked before looking whether the folder can be written")

    monkeypatch.setattr(store, "write_whole", refuse)
    monkeypatch.setattr(mining.Miner, "whole", worked)
    text = message(score, tmp_path / "new" / "run", error=StoreError)
    assert "Permission denied" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", ["run", "a/b/run"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StoreError])
def test_a_failure_half_way_leaves_no_new_empty_folder(tmp_path, monkeypatch, depth, error):
    def fail(*_, **__):
        assert (tmp_path / depth).is_dir()
        raise error("half-way")

    monkeypatch.setattr(mining.Miner, "whole", fail)
    with pytest.raises(error, match="half-way"):
        score(tmp_path / depth)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_keeps_a_folder_that_holds_something(tmp_path, monkeypatch):
    kept = tmp_path / "a"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")

    def fail(*_, **__):
        raise RuntimeError("half-way")

    monkeypatch.setattr(mining.Miner, "whole", fail)
    with pytest.raises(RuntimeError):
        score(kept / "run")
    assert snapshot(tmp_path).keys() == {"a", "a/mine.txt"}


def test_a_failing_rename_leaves_the_old_file(copied, finished, monkeypatch):
    before = snapshot(copied)

    def refuse(self, _target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", refuse)
    scores = finished[1]
    text = message(store.save, copied, scores, {}, (), {}, error=StoreError)
    assert "Input/output error" in text
    assert snapshot(copied) == before


@pytest.mark.parametrize("name", ["scores.parquet", "patches.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_a_damaged_file_is_one_line_that_names_the_folder(copied, name, damage):
    path = copied / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\xff\x00" * 99}[damage])
    assert str(copied) in message(psi_fast.load, copied, error=StoreError)


@pytest.mark.parametrize("text", ["[]", "{}", "null", "3", '{"config": 3}', '{"config": {}}'])
def test_a_manifest_of_something_else_is_one_line(copied, text):
    (copied / "manifest.json").write_text(text)
    assert str(copied) in message(psi_fast.load, copied, error=StoreError)


@pytest.mark.parametrize("text", ["[]", "{}", "null", "{"])
def test_a_run_into_a_folder_with_such_a_manifest_is_refused(copied, text):
    (copied / "manifest.json").write_text(text)
    before = snapshot(copied)
    assert str(copied) in message(score, copied, error=StoreError)
    assert snapshot(copied) == before


@pytest.mark.parametrize("name", ["scores.parquet", "patches.parquet"])
def test_a_table_of_something_else_is_one_line(copied, name):
    pd.DataFrame({"a": [1, 2]}).to_parquet(copied / name)
    assert str(copied) in message(psi_fast.load, copied, error=StoreError)


def test_loading_what_is_no_run_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        assert str(folder) in message(psi_fast.load, folder, error=StoreError)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in message(psi_fast.load, tmp_path / "file", error=StoreError)


def test_a_table_can_be_written_alone(finished, tmp_path):
    finished[1].to_parquet(tmp_path / "table.parquet")
    assert list(pd.read_parquet(tmp_path / "table.parquet").columns) == tiny.SCORE_COLUMNS


def test_the_limit_used_above_is_no_part_of_this_process():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
