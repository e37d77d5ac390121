"""Philox against published vectors and a replica; the distributions drawn from it against theirs."""

import itertools

import numpy as np
import pytest
import replicas
import torch
from scipy import stats

from psi_fast_kernels._streams import Stream
from psi_fast_kernels.philox import cost, integers, normal, permutation, philox4x32, uint32, uniform

# Random123's kat_vectors for philox4x32-10: counter, key, output
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
DRAWS = torch.arange(2000)
NONE = torch.zeros_like(DRAWS)


def one(value: int) -> torch.Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_vectors(counter, key, words):
    assert [int(w) for w in philox4x32(tuple(map(one, counter)), tuple(key))] == words
    assert replicas.philox4x32_10(counter, key) == words


def test_random_counters_equal_the_replica():
    rng = np.random.default_rng(0)
    counters = rng.integers(2**32, size=(200, 4))
    key = [int(k) for k in rng.integers(2**32, size=2)]
    words = torch.stack(philox4x32(tuple(torch.from_numpy(counters.T.copy())), tuple(key)), dim=1)
    assert words.tolist() == [replicas.philox4x32_10(list(map(int, c)), key) for c in counters]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**64 - 1])
def test_counter_is_block_draw_channel_stream_and_key_the_seed(seed):
    channel, draw, stream = 2**31 + 5, 123456, 9
    words = uint32(seed, stream, one(channel), one(draw), 10)[0].tolist()
    key = [seed % 2**32, seed // 2**32]
    expected = [w for block in range(3) for w in replicas.philox4x32_10([block, draw, channel, stream], key)]
    assert words == expected[:10]


@pytest.mark.parametrize("function", [uint32, uniform, normal])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 41])
def test_numbers_do_not_depend_on_how_many_are_asked_for(function, count):
    channel, draw = torch.arange(5)[:, None], torch.arange(7)
    everything = function(3, 1, channel, draw, 64)
    assert everything.shape == (5, 7, 64)
    assert torch.equal(function(3, 1, channel, draw, count), everything[..., :count])
    assert torch.equal(function(3, 1, one(4), one(6), count)[0], everything[4, 6, :count])


def test_permutations_and_integers_do_not_depend_on_the_other_channels():
    channel, draw = torch.arange(5)[:, None], torch.arange(7)
    assert torch.equal(permutation(3, 1, one(2), one(5), 30)[0], permutation(3, 1, channel, draw, 30)[2, 5])
    assert torch.equal(integers(3, 1, one(2), one(5), 30, 11)[0], integers(3, 1, channel, draw, 30, 11)[2, 5])


def test_seed_stream_channel_and_draw_all_matter():
    base = uint32(1, 1, one(1), one(1), 4)
    others = [uint32(2, 1, one(1), one(1), 4), uint32(1 + 2**32, 1, one(1), one(1), 4), uint32(1, 2, one(1), one(1), 4)]
    others += [uint32(1, 1, one(2), one(1), 4), uint32(1, 1, one(1), one(2), 4)]
    assert all((other != base).all() for other in others)


def test_streams_are_distinct_and_keep_their_numbers():
    assert len({int(s) for s in Stream}) == len(Stream.__members__)
    assert (Stream.OBSERVED_STARTS, Stream.ROTATION, Stream.LABEL_PERMUTATION, Stream.RANDOM_CHANNELS) == (1, 3, 7, 13)


def test_uniform_is_open_and_uniform():
    x = uniform(0, 1, NONE, DRAWS, 50).flatten().numpy()
    assert x.min() > 0
    assert x.max() < 1
    assert stats.kstest(x, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / len(x) ** 0.5


def test_uniform_stays_open_at_the_ends(monkeypatch):
    ends = torch.tensor([[0, 2**32 - 1]])
    monkeypatch.setattr("psi_fast_kernels.philox.reference.uint32", lambda *_: ends)
    assert uniform(0, 1, one(0), one(0), 2).min() > 0
    assert uniform(0, 1, one(0), one(0), 2).max() < 1
    assert torch.isfinite(normal(0, 1, one(0), one(0), 2)).all()


def test_normal_is_standard_normal_and_pairs_are_independent():
    pairs = normal(0, 1, NONE, DRAWS, 50)
    assert stats.kstest(pairs.flatten().numpy(), "norm").pvalue > 0.01
    first, second = pairs[:, 0::2].flatten().numpy(), pairs[:, 1::2].flatten().numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / len(first) ** 0.5
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 4 / len(first) ** 0.5


def test_permutations_are_uniform_over_the_24_orders():
    drawn = permutation(0, 7, torch.zeros(24_000, dtype=torch.int64), torch.arange(24_000), 4)
    counts = [int((drawn == torch.tensor(order)).all(1).sum()) for order in itertools.permutations(range(4))]
    assert sum(counts) == 24_000
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("below", [1, 2, 3, 7, 1000])
def test_integers_are_uniform(below):
    drawn = integers(0, 8, NONE, DRAWS, 20, below).flatten()
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < below
    if below > 1:
        assert stats.chisquare(torch.bincount(drawn, minlength=below).numpy()).pvalue > 0.01


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"stream": 2**32}, r"stream must lie in \[0, 2\*\*32\), got 4294967296"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"draw": torch.zeros(1)}, "int64 on one device, got torch.int64 on cpu and torch.float32 on cpu"),
        ({"channel": torch.zeros(1, dtype=torch.int32)}, "int64 on one device"),
        ({"draw": torch.zeros(1, dtype=torch.int64, device="meta")}, "on one device, got .* on cpu and .* on meta"),
        ({"backend": "cuml"}, "no 'cuml' backend"),
    ],
)
def test_arguments_out_of_range_are_named(change, text):
    arguments = {"seed": 0, "stream": 1, "channel": one(0), "draw": one(0), "count": 4, **change}
    for function in (uint32, uniform, normal, permutation):
        with pytest.raises(ValueError, match=text):
            function(**arguments)
    with pytest.raises(ValueError, match=text):
        integers(**arguments, below=3)


@pytest.mark.parametrize("below", [0, 2**31 + 1])
def test_integers_below_nothing_or_too_much_are_refused(below):
    with pytest.raises(ValueError, match=rf"below must lie in 1\.\.2\*\*31, got {below}"):
        integers(0, 1, one(0), one(0), 4, below)


def test_cost_of_one_block_and_of_many():
    assert cost.operations("uint32", 1, 4) == cost.operations("uint32", 1, 1) == 100
    assert cost.operations("uniform", 3, 8) == 3 * (200 + 16)
    assert cost.operations("permutation", 2, 100) == 2 * (2500 + 60_000)
    assert cost.bytes_moved(5, 100) == 5 * 816
