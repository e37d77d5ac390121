"""A device whose memory does not suffice: batches are halved and the numbers stay, or one line says what to lower."""

import warnings

import pytest
import tiny
import torch
from image_helpers import message

from psi_fast import activation_tap, api, channel_parts, null_parts, ranking, shelf, store
from psi_fast.errors import DeviceMemoryError
from psi_fast.trial_forward import memory_told

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free")
CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
CONFIG = tiny.replace(tiny.CONFIG, batch_size=32)
LAYERS = ["0", "2"]


class Encoder(tiny.TinyEncoder):
    """Takes at most so many crops at once."""

    def __init__(self, most=32):
        super().__init__()
        self.most, self.tried = most, []

    def encode(self, batch):
        self.tried.append(len(batch))
        if len(batch) > self.most:
            raise FULL
        return super().encode(batch)


@pytest.fixture
def limited(monkeypatch):
    """Has passes through the network fail where `fails` says so of the batch's length; the lengths that were tried."""
    real, tried = activation_tap._read, []

    def limit(fails, error=FULL):
        def read(taps, batch, pace):
            tried.append(len(batch))
            if fails(len(batch)):
                raise error
            return real(taps, batch, pace)

        monkeypatch.setattr(activation_tap, "_read", read)
        return tried

    return limit


@pytest.fixture(autouse=True)
def _same_code(monkeypatch):
    monkeypatch.setattr(store, "code_fingerprint", lambda experiments=False: "this code")


def run(out, encoder=None, **changes):
    options = {"encoder": encoder or Encoder(), "config": CONFIG, "images": tiny.image_set(96), "out": out} | changes
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiny.score(tiny.network(), LAYERS, **options)
    return [str(one.message) for one in said if "out of memory" in str(one.message)]


def same(first, second):
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in store.FILES)


@pytest.mark.usefixtures("batched")  # steps of batch_size on the CPU, as on a GPU
@pytest.mark.parametrize("error", [FULL, CPU_FULL, MemoryError()], ids=["gpu", "cpu", "python"])
def test_batches_that_do_not_fit_are_halved_and_the_numbers_stay(tmp_path, limited, error):
    assert run(tmp_path / "whole") == []
    tried = limited(lambda count: count > 8, error)
    encoder = Encoder(most=16)
    said = [f"out of memory with {count} at once; going on with {count // 2}" for count in (32, 16, 32)]
    assert run(tmp_path / "run", encoder) == said
    assert tried == [32, 16, *[8] * 12]
    assert encoder.tried[:3] == [32, 16, 16]
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("batched")
def test_memory_that_others_take_in_the_middle_costs_nothing_that_is_done(tmp_path, limited):
    run(tmp_path / "whole")
    calls = iter(range(100))
    tried = limited(lambda _: next(calls) == 2)
    assert run(tmp_path / "run", share=tmp_path / "share") == ["out of memory with 32 at once; going on with 16"]
    assert tried == [32, 32, 32, 16, 16]
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("batched")
def test_a_run_that_goes_on_between_such_batches_ends_parts_where_they_end(tmp_path, monkeypatch, limited):
    """Sums are added part by part, so their last bits would tell where they ended."""
    monkeypatch.setattr(shelf, "EVERY", 0.0)
    monkeypatch.setattr(shelf, "SHARE", float("inf"))
    ends, real = [], ranking.Ranking.end_part
    monkeypatch.setattr(ranking.Ranking, "end_part", lambda own: ends.append(own._count) or real(own))
    run(tmp_path / "whole")
    expected, calls = list(ends), iter(range(100))
    ends.clear()

    def fails(count):
        number = next(calls)
        if number == 3:
            raise KeyboardInterrupt  # between two ends, as batches of 16 are
        return number == 1

    real_read = activation_tap._read
    limited(fails)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(activation_tap, "_read", real_read)
    run(tmp_path / "cut")
    assert ends == expected
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_memory_that_takes_not_one_slice_is_one_line(tmp_path, limited, pictures, capsys):
    tried = limited(lambda _: True)
    arguments = tiny.score_flags(pictures, tmp_path / "run")
    assert tiny.run(*arguments) == 2
    text = tiny.one_line(capsys)
    assert "tiny on 8 images: the device's memory does not suffice (CUDA out of memory. Tried to allocate" in text
    assert text.endswith("lower batch_size, free memory of the device, or choose another one (--device)")
    assert tried == [8]
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_an_encoder_that_takes_not_one_slice_is_one_line(tmp_path):
    text = message(run, tmp_path / "run", Encoder(most=0), error=DeviceMemoryError)
    assert text.startswith("embedding: tiny-encoder raised OutOfMemoryError (CUDA out of memory.")
    assert "lower batch_size" in text


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        (channel_parts, "cluster_patches", "clusters"),
        (null_parts, "draw_nulls", "null draws"),
        (ranking, "topk_merge", "the run"),
        (api, "run", "the run"),
    ],
)
@pytest.mark.parametrize("error", [FULL, CPU_FULL, MemoryError("no room")], ids=["gpu", "cpu", "python"])
def test_other_stages_say_what_to_lower(tmp_path, monkeypatch, module, name, what, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(module, name, full)
    text = message(run, tmp_path / "run", error=DeviceMemoryError)
    assert text.startswith(f"{what}: the device's memory does not suffice (")
    assert "score fewer channels at once (--channels)" in text


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("shapes differ"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), memory_told("x"):
            raise error
