"""Compiled loops: where their machine code is kept, in which order they add up, and how work spreads over threads."""

import hashlib
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from psi_fast_kernels import _compiled
from psi_fast_kernels._compiled import PARTS, compiled, over_threads


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A package of three files in place of this one's."""
    (tmp_path / "op").mkdir()
    for name in ("_compiled.py", "op/numba_impl.py", "op/triton_impl.py"):
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.setattr(_compiled, "__file__", str(tmp_path / "_compiled.py"))
    return tmp_path


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 40, 1001])
def test_every_item_is_worked_on_once(total, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    lock, slices = threading.Lock(), []

    def work(part: slice) -> None:
        with lock:
            slices.append(part)

    over_threads(work, total)
    assert sorted(i for part in slices for i in range(total)[part]) == list(range(total))
    assert len(slices) <= threads * PARTS
    assert all(0 <= part.start < part.stop <= total for part in slices)


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_of_a_part_are_raised(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def work(part: slice) -> None:
        if part.start == 0:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        over_threads(work, 40)


def test_work_runs_on_several_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2, timeout=30)  # passed only when two parts run at once
    over_threads(lambda part: both.wait(), 2)


@pytest.mark.parametrize("changed", ["_compiled.py", "op/numba_impl.py"])
def test_the_folder_of_machine_code_changes_with_the_sources(changed, sources):
    folder = _compiled._cache_folder.__wrapped__
    before = folder()
    assert folder() == before
    (sources / "op" / "triton_impl.py").write_text("# other kernels are compiled elsewhere")
    assert folder() == before
    (sources / changed).write_text("# another version")
    assert folder() != before


def test_machine_code_goes_to_the_user_s_cache(monkeypatch, tmp_path):
    folder = _compiled._cache_folder.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder().parent == tmp_path / "psi_fast_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert folder().parent == tmp_path / ".cache" / "psi_fast_kernels"
    assert len(folder().name) == len(hashlib.sha256().hexdigest()[:16])


def kept_in(function) -> Path:
    return Path(function.stats.cache_path)


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_a_folder_given_to_numba_is_used_and_left_as_it_was(given, tmp_path, monkeypatch):
    given = given and str(tmp_path / given)
    own = tmp_path / "own"
    monkeypatch.setattr(numba.config, "CACHE_DIR", given)
    monkeypatch.setattr(_compiled, "_cache_folder", lambda: own)
    assert Path(given or own) in kept_in(compiled(_sum)).parents
    assert given == numba.config.CACHE_DIR


def test_the_folder_is_restored_after_an_error(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    with pytest.raises(TypeError):
        compiled("no function")
    assert numba.config.CACHE_DIR == ""


def _sum(values):
    return values[0] + values[1] - values[0]


def test_sums_in_order_have_the_bits_of_python(tmp_path, monkeypatch):
    values = np.array([1e16, 1.0])  # the first swallows the second
    # Numba takes code that it kept for one order for the other as well
    monkeypatch.setattr(_compiled, "_cache_folder", lambda: tmp_path / "written")
    assert compiled(in_order=True)(_sum)(values) == _sum(values.tolist()) == 0
    monkeypatch.setattr(_compiled, "_cache_folder", lambda: tmp_path / "any")
    assert compiled(_sum)(values) == 1
