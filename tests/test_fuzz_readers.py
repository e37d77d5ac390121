"""A few inputs of the fuzzer in each run of the tests, and that it sees what it looks for."""

import fuzz_readers
import pytest
from fuzz_readers import READERS, faults, fuzz, run

INPUTS = 50
"""For each reader; `python tests/fuzz_readers.py` takes more."""


@pytest.mark.parametrize("reader", READERS)
def test_spoiled_files_are_read_or_refused_in_one_line(reader):
    if reader in ("parquet", "arrow"):
        pytest.importorskip("datasets")
    found = run(reader, 2**20, INPUTS)
    assert [index for index, _, _ in found] == list(range(INPUTS))
    assert not faults({reader: found})
    said = {outcome for _, outcome, _ in found}
    assert "read" in said
    assert said & {"refused", "in part"}


FAKE = """
import os, signal, sys, time
from psi_fast.errors import PsiFastError

number = int(sys.argv[5]) - 1  # of the process's first input

class Images:
    def __len__(self):
        return 1
    def load(self, index):
        if number == 7:
            raise PsiFastError("of one image")

def open_images(path):
    global number
    if not path.exists():  # asked for before inputs are counted
        raise PsiFastError("not there")
    number += 1
    if number == 1:
        raise PsiFastError("two\\nlines")
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        time.sleep(60)
    if number == 4:
        raise ValueError("of another kind")
    if number == 5:
        open(OUTSIDE, "w").close()
    if number == 6:
        fd = os.open(path.parent, os.O_RDONLY)
        os.mkdir("inside", dir_fd=fd)
    return Images()
"""


def test_the_fuzzer_sees_crashes_hangs_writes_and_other_errors(tmp_path, monkeypatch):
    """It is given readers that do all that."""
    package = tmp_path / "first" / "psi_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "errors.py").write_text("class PsiFastError(Exception): pass")
    (package / "checkpoints.py").write_text("read_weights = None")
    (package / "images.py").write_text(FAKE.replace("OUTSIDE", repr(str(tmp_path / "outside"))))
    monkeypatch.syspath_prepend(tmp_path / "first")
    monkeypatch.setattr(fuzz_readers, "SECONDS", 5.0)
    found = run("zip", 0, 9)
    assert [index for index, _, _ in found] == list(range(9))
    said = [outcome for _, outcome, _ in found]
    assert said[0] == said[8] == "read"
    assert said[1] == "several lines: 'two\\nlines'"
    assert said[2].startswith("killed: code -11 at File")
    assert said[3] == "hang"
    assert said[4].startswith("ValueError: of another kind (images.py:")
    assert said[5].startswith(f"wrote: open ('{tmp_path / 'outside'}', 'w'")
    assert said[6].startswith("wrote: os.mkdir ('inside'")
    assert said[7] == "in part"
    assert [index for _, index, _ in faults({"zip": found})] == [1, 2, 3, 4, 5, 6]


def test_inputs_are_shared_out_between_processes(monkeypatch):
    asked = []
    monkeypatch.setattr(fuzz_readers, "run", lambda *given: asked.append(given) or [(given[3], "read", 0.0)])
    results = fuzz(12, 5, 2)
    assert sorted(asked) == sorted((reader, 5, 2, first, 2) for reader in READERS for first in (0, 1))
    assert all([index for index, _, _ in results[reader]] == [0, 1] for reader in READERS)


def test_the_same_numbers_give_the_same_input():
    files = fuzz_readers.make("tar")
    inputs = [fuzz_readers.input_of("tar", files, 0, index) for index in range(50)]
    assert inputs == [fuzz_readers.input_of("tar", fuzz_readers.make("tar"), 0, index) for index in range(50)]
    assert len({held for _, held in inputs}) > 40
