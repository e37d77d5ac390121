"""A run that is killed at any moment goes on where it was, and ends in the bytes of a run that was not."""

import contextlib
import random
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_slow
import torch
from forks import forks_of
from safetensors.torch import load_file, save_file

from psi_fast import crew, embedding, mining, shelf, sight, store
from psi_fast.errors import StoreError
from psi_fast.ranking import Ranking
from psi_fast.shelf import Shelf

CASES = {
    "labels": {"labels": True},
    "no labels": {"labels": False},
    "band": {"labels": True, "band": [0.3, 0.8]},
}
KILLS = 7
"""Of each case."""


@pytest.fixture(scope="module")
def forks():
    with forks_of("tiny_slow.py") as found:
        yield found


def held(folder):
    return {name: (folder / name).read_bytes() for name in tiny_slow.FILES}


def left(folder):
    """What lies below the folder beside the run's files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in tiny_slow.FILES)


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path, forks, name):
    """Killed at a random moment behind a random number of writes, so in mining, in embedding and in what follows."""
    case, rng = CASES[name], random.Random(f"psi {name}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tiny_slow.score(whole, **case)
    states, kills = [], 0
    while kills < KILLS:
        child, writes = forks.start(str(cut), 0.02, case), Writes(cut, rng.randint(1, 6))
        code = forks.stop(child, writes.over, rng.uniform(0, 0.04))
        states.append({name.split("-")[0] for name, _ in seen(cut)})
        if code == 0:  # it came to its end first; once more from the start
            shutil.rmtree(cut)
        else:
            assert code == -signal.SIGKILL
            kills += 1
    forks.start(str(cut), 0.0, case)
    assert forks.code() == 0
    assert {"tops"} in states  # in mining, or right behind it
    assert {"crops", "tops"} in states  # in embedding
    assert held(cut) == held(whole)
    assert left(cut) == ["manifest.json"] == left(whole)


def seen(folder):
    """Names and times of what a run has left for the next one."""
    found = set()
    for path in (folder / "unfinished").glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


class Writes:
    """Of a run into what it leaves for the next one, counted from now on."""

    def __init__(self, folder, count):
        self._folder, self._left, self._last = folder, count, seen(folder)

    def over(self):
        """Whether so many are done."""
        now = seen(self._folder)
        self._left, self._last = self._left - (now != self._last), now
        return self._left <= 0


def ranked(case, batches, until=None, state=None):
    """A ranking of the batches; from `until` on by another ranking that takes up the state of the first."""
    config = replace(tiny.CONFIG, band=case.get("band"), per_image=1 if case.get("band") else 2)
    names = [str(i) for i in range(sum(map(len, batches)))]
    labels = np.arange(len(names)) % 3 if case["labels"] else None

    def make():
        return Ranking(np.arange(5), names, config, 9, torch.device("cpu"), torch.tensor([4, 0, 2, 6, 1]), labels)

    own, first = make(), 0
    for number, batch in enumerate(batches):
        if number == until:
            state = {name: tensor.clone() for name, tensor in own.state().items()}
            own = make()
            own.go_on(first, state)
        own.add(batch, first)
        first += len(batch)
    return own.result()


@pytest.mark.parametrize("name", CASES)
def test_a_ranking_goes_on_from_any_batch_to_the_same_bits(name):
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(size, 7, 9, generator=generator).mul(4).round().div(4) for size in (8, 8, 8, 8, 5)]
    expected = vars(ranked(CASES[name], batches))
    for until in range(1, len(batches)):
        found = vars(ranked(CASES[name], batches, until))
        for part, value in expected.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: np.array_equal(a, b, equal_nan=True)
            if isinstance(value, torch.Tensor):
                assert same(found[part], value), (until, part)
            else:
                assert found[part].tobytes() == np.asarray(value).tobytes(), (until, part)


class Stopped(BaseException):
    """As a kill, in this process."""


def stop_after(monkeypatch, batches):
    """Have mining die behind so many batches; the list of first images it was given."""
    real, seen = mining.activations, []

    def dying(*arguments):
        for number, (first, layers) in enumerate(real(*arguments)):
            if number == batches:
                raise Stopped
            seen.append(first)
            yield first, layers

    monkeypatch.setattr(mining, "activations", dying)
    return seen


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "none"])
def test_a_broken_unfinished_file_is_made_again(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(shelf, "EVERY", 0.0)
    monkeypatch.setattr(shelf, "SHARE", float("inf"))
    tiny_slow.score(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            tiny_slow.score(tmp_path / "cut")
    (path,) = (tmp_path / "cut" / "unfinished").iterdir()
    bytes_ = bytearray(path.read_bytes())
    if harm == "flipped":
        bytes_[-5] ^= 16
    path.write_bytes({"cut": bytes_[:-9], "emptied": b""}.get(harm, bytes_))
    seen = stop_after(monkeypatch, 1000)
    tiny_slow.score(tmp_path / "cut")
    assert seen[0] == (32 if harm == "none" else 0)
    assert held(tmp_path / "cut") == held(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tops", "crops"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_broken_shared_file_is_made_again(tmp_path, monkeypatch, kind, harm):
    monkeypatch.setattr(embedding, "PART", 16)
    share = tmp_path / "share"
    tiny_slow.score(tmp_path / "first", share=share)
    path = sorted(share.glob(f"{kind}-*.safetensors"))[0]
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[-3] ^= 1
    path.write_bytes(whole[:-7] if harm == "cut" else broken)
    seen = stop_after(monkeypatch, 1000)
    _, encoder = tiny_slow.score(tmp_path / "second", share=share)
    assert held(tmp_path / "second") == held(tmp_path / "first")
    assert bool(seen) == (kind == "tops")
    assert encoder.encoded == (16 if kind == "crops" else 0)
    assert shelf._read(path) is not None


@pytest.mark.parametrize("kind", ["crops", "nulls"])
@pytest.mark.parametrize("change", ["other names", "a name less", "fewer rows", "no rows"])
def test_a_file_of_other_content_is_as_if_it_was_not_there(tmp_path, monkeypatch, kind, change):
    """With a checksum that is right, as of a file that others have put there."""

    def killed(*_):
        raise Stopped

    tiny_slow.score(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(store, "save", killed)
        with pytest.raises(Stopped):
            tiny_slow.score(tmp_path / "cut")
    path = next((tmp_path / "cut" / "unfinished").glob(f"{kind}-*.safetensors"))
    own = load_file(path)
    less = "rows" if kind == "crops" else "Q sd"
    other = {
        "other names": {"x": torch.zeros(3)},
        "a name less": {name: tensor for name, tensor in own.items() if name != less},
        "fewer rows": own | {less: own[less][1:].clone()},
        "no rows": own | {less: torch.tensor(1.0)},
    }[change]
    save_file(other, path, {"sha256": shelf.content(other)})
    tiny_slow.score(tmp_path / "cut")
    assert held(tmp_path / "cut") == held(tmp_path / "whole")


def test_an_encoder_that_leaves_half_precision_in_the_middle_ends_in_the_same_bytes(tmp_path, monkeypatch):
    """The parts before were embedded in half precision, and must have no part in the end."""
    monkeypatch.setattr(embedding, "PART", 16)
    case = {"red": (60, 90), "fails": True}
    expected, _ = tiny_slow.score(tmp_path / "whole", **case)
    assert any("ran again in float32" in line for line in expected.manifest["warnings"])
    real = sight.embed
    for parts in range(1, 100):
        count = 0

        def dying(*arguments, limit=parts):
            nonlocal count
            count += 1
            if count > limit:
                raise Stopped
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(sight, "embed", dying)
            try:
                found, _ = tiny_slow.score(tmp_path / "cut", **case)
                break
            except Stopped:
                pass
    assert parts > 3
    assert held(tmp_path / "cut") == held(tmp_path / "whole")
    assert found.manifest["warnings"] == expected.manifest["warnings"]
    assert found.manifest["encoder_precision"] == expected.manifest["encoder_precision"] == "float32"


def test_no_more_than_every_seconds_of_mining_are_lost(tmp_path, monkeypatch):
    """By a clock that each batch of 8 of the 96 images moves on by 4 seconds."""
    clock = [0.0]
    monkeypatch.setattr(shelf.time, "monotonic", lambda: clock[0])
    written = []
    unfinished = Shelf(tmp_path).unfinished("tops", 1)
    for done in range(8, 96, 8):
        clock[0] += 4.0
        unfinished.write(done, lambda: {"x": torch.zeros(1)})
        written.append(unfinished.read()[0])
    lost = [done - kept for done, kept in zip(range(8, 96, 8), written, strict=True)]
    assert max(lost) * 4 / 8 < shelf.EVERY
    assert 1 < len(set(written)) < 5  # nor is it written all the time


def test_big_states_are_written_less_often(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(shelf.time, "monotonic", lambda: clock[0])

    def slow():
        clock[0] += 10
        return {"x": torch.zeros(1)}

    unfinished, written = Shelf(tmp_path).unfinished("tops", 1), []
    for done in range(1000):
        clock[0] += 1
        unfinished.write(done, slow)
        written.append(unfinished.read()[0])
    assert (len(set(written)) - 1) * 10 <= 1.2 * shelf.SHARE * clock[0]


def test_a_run_of_other_code_takes_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    share = tmp_path / "share"
    tiny_slow.score(tmp_path / "first", share=share)
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "other code")
    seen = stop_after(monkeypatch, 1000)
    _, encoder = tiny_slow.score(tmp_path / "second", share=share)
    assert len(seen) == 12
    assert encoder.encoded > 100


def test_a_run_made_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    """Two runs pass the look at the folder; the one that comes second to its lock finds the other's."""
    real, other = store.reserved, []

    def late(folder, **given):
        monkeypatch.setattr(store, "reserved", real)
        other.append(tiny_slow.score(tmp_path / "run", **CASES["no labels"])[0])
        return real(folder, **given)

    monkeypatch.setattr(store, "reserved", late)
    with pytest.raises(StoreError, match="holds another run"):
        tiny_slow.score(tmp_path / "run", **CASES["labels"])
    assert store.load(tmp_path / "run").manifest == other[0].manifest


@pytest.mark.parametrize("ask", ["score", "merge"])
def test_what_a_run_killed_behind_its_manifest_left_goes_with_the_next(tmp_path, monkeypatch, ask):
    folder, real = tmp_path / "run", shutil.rmtree

    def killed(path, **given):
        if path == folder / "unfinished":
            raise Stopped
        real(path, **given)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Stopped):
            tiny_slow.score(folder)
    before = held(folder)
    assert any("crops" in name for name in left(folder))

    def again():
        return tiny_slow.score(folder) if ask == "score" else crew.merge(folder, complete=False, **asked)

    asked = {"allow_code": True, "progress": False}
    with store.reserved(folder, among=True):  # another process is in it
        again()
        assert any("crops" in name for name in left(folder))
    again()
    assert left(folder) == ["manifest.json"]
    assert held(folder) == before


def test_rates_count_what_this_run_did(tmp_path):
    first, _ = tiny_slow.score(None, share=tmp_path)
    again, _ = tiny_slow.score(None, share=tmp_path)
    assert first.manifest["images_per_second"] > 0 < first.manifest["crops_per_second"]
    assert again.manifest["images_per_second"] == again.manifest["crops_per_second"] == 0
