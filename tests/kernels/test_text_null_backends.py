"""The implementations of the text nulls against each other, and what no implementation's result depends on."""

from importlib import import_module

import numpy as np
import pytest
import replicas
import torch

from psi_fast_kernels.text_null import frames, nearest, reference, text_rotation_null, text_shuffle_null
from psi_fast_kernels.text_null.cost import rotation_bytes, rotation_flops, shuffle_bytes, shuffle_flops

KINDS = ("gap", "pairwise")
WITH_HEAD = (*KINDS, "head")  # pairwise, of another bank
BACKENDS = ("triton", "numba", "torch")
ROUNDING = {torch.float32: 2e-6, torch.float64: 2e-14}
# k_max, the channels' k, P, d
SHAPES = [
    (2, (2, 2, 2), 1, 3),
    (3, (2, 3, 3, 2), 2, 64),
    (6, (2, 3, 4, 5, 6), 7, 97),
    (16, (2, 16, 9), 129, 3),
    (6, (6, 2), 1000, 64),
    (16, (16, 5), 129, 97),
]
MODULES = {"triton": "triton_impl", "numba": "numba_impl", "torch": "reference"}
HUGE = 10**9


def problem(k_max, sizes, concepts, width, dtype=torch.float32, device="cpu"):
    """Prototypes with poison from k on, k, a bank whose concepts partly repeat, a pool with repeats, ids far apart."""
    rng = np.random.default_rng(0)
    prototypes = replicas.unit(rng.normal(size=(len(sizes), k_max, width)))
    for row, size in zip(prototypes, sizes, strict=True):
        row[size:] = 7.0
    text = replicas.unit(rng.normal(size=(concepts, width)))
    text[rng.integers(concepts, size=concepts // 3)] = text[0]
    pool = torch.from_numpy(rng.integers(concepts, size=11))
    channel = torch.arange(len(sizes)) * 5 + 2**31
    arrays = torch.from_numpy(prototypes).to(dtype), torch.tensor(sizes), torch.from_numpy(text).to(dtype)
    return [x.to(device) for x in (*arrays, pool, channel)]


def compared(kind, text):
    """Arguments of one of WITH_HEAD; a head has more dimensions than the bank, or fewer."""
    if kind != "head":
        return {"kind": kind}
    head = replicas.unit(np.random.default_rng(1).normal(size=(len(text), 41)))
    return {"kind": "pairwise", "head": torch.from_numpy(head).to(text)}


def shuffled(given, kind, backend, *, pooled=False, draws=range(3, 14), seed=2**40 + 7):
    prototypes, k, text, pool, channel = given
    return text_shuffle_null(
        prototypes, k, text, **compared(kind, text), pool=pool if pooled else None, draws=draws, seed=seed,
        channel=channel, backend=backend,
    )  # fmt: skip


def rotated(given, kind, backend, *, draws=range(3, 10), seed=2**40 + 7):
    return text_rotation_null(*given[:3], **compared(kind, given[2]), draws=draws, seed=seed, backend=backend)


def replace(monkeypatch, backend, name, substitute):
    """Put `substitute` of the function `name` in its place in the implementation, and in the reference that it builds on."""
    module = import_module(f"psi_fast_kernels.text_null.{MODULES[backend]}")
    for place in (module, reference):
        if hasattr(place, name):
            monkeypatch.setattr(place, name, substitute)


def shrink(monkeypatch, backend, items):
    """Chunks of `items` channels or draws."""
    for name in ("channels_per_chunk", "rows_per_chunk"):
        replace(monkeypatch, backend, name, lambda *_, **__: items)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("kind", WITH_HEAD)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["triton", "numba"])
def test_every_backend_gives_the_draws_of_the_reference(backend, shape, kind, dtype, triton_device):
    device = triton_device if backend == "triton" else "cpu"
    given = problem(*shape, dtype=dtype, device=device)
    exact = {"rtol": 0, "atol": ROUNDING[dtype]}
    for pooled in (False, True):
        arguments = {"pooled": pooled}
        torch.testing.assert_close(
            shuffled(given, kind, backend, **arguments), shuffled(given, kind, "torch", **arguments), **exact
        )
    torch.testing.assert_close(rotated(given, kind, backend), rotated(given, kind, "torch"), **exact)


@pytest.mark.parametrize("kind", WITH_HEAD)
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("width", [24, 41])
def test_neither_chunks_nor_company_change_a_bit(backend, kind, width, monkeypatch):
    """A channel alone, draws in two parts, chunks of any size: the bits are those of one whole call."""
    given = problem(6, (2, 3, 4, 6, 2, 5, 3), 129, width)
    wholes = shuffled(given, kind, backend), shuffled(given, kind, backend, pooled=True), rotated(given, kind, backend)
    some = [given[0][2:5], given[1][2:5], given[2], given[3], given[4][2:5]]
    for items in (1, 3, HUGE):
        shrink(monkeypatch, backend, items)
        assert torch.equal(shuffled(given, kind, backend), wholes[0])
        assert torch.equal(shuffled(some, kind, backend, pooled=True), wholes[1][2:5])
        assert torch.equal(rotated(given, kind, backend), wholes[2])
        assert torch.equal(rotated(some, kind, backend, draws=range(5, 9)), wholes[2][2:5, 2:6])
        assert torch.equal(shuffled(given, kind, backend, draws=range(8, 14)), wholes[0][:, 5:])
    assert not torch.equal(shuffled(given, kind, backend, seed=1), wholes[0])
    assert not torch.equal(rotated(given, kind, backend, seed=1), wholes[2])


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_triton_draws_depend_on_index_channel_and_seed_only(kind, monkeypatch, triton_device):
    given = problem(6, (2, 6, 3), 30, 41, device=triton_device)
    whole, turned = shuffled(given, kind, "triton"), rotated(given, kind, "triton")
    some = [given[0][1:], given[1][1:], given[2], given[3], given[4][1:]]
    shrink(monkeypatch, "triton", 1)
    exact = {"rtol": 0, "atol": ROUNDING[torch.float32]}
    torch.testing.assert_close(shuffled(some, kind, "triton", draws=range(6, 14)), whole[1:, 3:], **exact)
    torch.testing.assert_close(rotated(some, kind, "triton", draws=range(4, 9)), turned[1:, 1:6], **exact)
    assert not torch.allclose(shuffled(given, kind, "triton", seed=1), whole)
    assert not torch.allclose(rotated(given, kind, "triton", seed=1), turned)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_gives_the_same_draws_in_smaller_chunks(backend, monkeypatch, triton_device):
    given = problem(3, (2, 3, 2, 3, 2), 7, 8, device=triton_device if backend == "triton" else "cpu")
    wholes = shuffled(given, "gap", backend), rotated(given, "gap", backend)
    shrink(monkeypatch, backend, 4)

    def fits_of_two(prototypes, *others):
        if len(prototypes) > 2:
            raise torch.OutOfMemoryError
        return channel_fits(prototypes, *others)

    def banks_of_two(*arguments, draws, seed):
        if len(draws) > 2:
            raise torch.OutOfMemoryError
        return frames.turned_banks(*arguments, draws=draws, seed=seed)

    channel_fits = reference.channel_fits
    replace(monkeypatch, backend, "channel_fits", fits_of_two)
    replace(monkeypatch, backend, "turned_banks", banks_of_two)
    exact = {"rtol": 0, "atol": ROUNDING[torch.float32]}
    with pytest.warns(UserWarning, match="out of memory with 4 channels at once; going on with 2"):
        torch.testing.assert_close(shuffled(given, "gap", backend), wholes[0], **exact)
    with pytest.warns(UserWarning, match="out of memory with 4 draws at once; going on with 2"):
        torch.testing.assert_close(rotated(given, "gap", backend), wholes[1], **exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("concepts", [1, 1000, 100_000])
@pytest.mark.parametrize("k_max", [2, 16])
def test_chunks_keep_to_their_budget_but_never_stop(kind, concepts, k_max):
    prototypes = torch.empty(1, k_max, 512)
    channels = reference.channels_per_chunk(prototypes, torch.empty(concepts, 512, device="meta"), 10**6, kind)
    assert channels >= 1
    held = k_max * concepts if kind == "gap" else 2 * reference.DRAWS * 512
    assert channels == 1 or 4 * channels * held <= reference.BUDGET
    assert frames.bytes_per_draw(concepts, 512, k_max, 4) >= 4 * k_max * concepts


def test_products_held_at_once_do_not_grow_with_the_channels(monkeypatch):
    """The whole product of this layer with this bank would take 240 MB."""
    given = problem(6, (2, 3, 4, 6, 2) * 20, 100_000, 3)
    sizes, fits = [], nearest.fits
    monkeypatch.setattr(reference, "fits", lambda *both: (sizes.append(fits(*both)), sizes[-1])[1])
    shuffled(given, "gap", "torch", draws=range(2))
    assert sum(x.numel() for x in sizes) >= 100 * 6 * 100_000
    assert max(x.untyped_storage().nbytes() for x in sizes) <= reference.BUDGET


@pytest.mark.parametrize(("k_max", "width"), [(2, 3), (6, 64), (16, 16), (6, 4)])
def test_the_root_belongs_to_the_gram_matrix_alone(k_max, width):
    """It does not change when the image space is turned, so no library's choice of eigenvectors can enter the draws."""
    prototypes = problem(k_max, (k_max, 2, 2), 1, width, dtype=torch.float64)[0]
    prototypes[1:, 2:] = 0
    root = frames.gram_root(prototypes)
    assert root.shape == (3, k_max, frames.frame_size(k_max, width))
    torch.testing.assert_close(root @ root.mT, prototypes @ prototypes.mT, rtol=0, atol=1e-12)
    if width >= k_max:
        torch.testing.assert_close(root, root.mT, rtol=0, atol=1e-12)  # unique, being positive
        turn = torch.from_numpy(replicas.haar(width, np.random.default_rng(1)))
        torch.testing.assert_close(frames.gram_root(prototypes @ turn), root, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("size", "width"), [(1, 1), (2, 3), (6, 6), (6, 64)])
def test_frames_are_orthonormal_and_uniform(size, width):
    """Turned by a frame, the axes become its columns; over many draws each has the covariance of a uniform direction."""
    axes = nearest.aligned(torch.eye(width, dtype=torch.float64))
    drawn = frames.turned_banks(axes, width, size, draws=range(2000), seed=0)[..., :width]
    one = torch.eye(size, dtype=torch.float64).expand(2000, -1, -1)
    torch.testing.assert_close(drawn @ drawn.mT, one, rtol=0, atol=1e-9)
    first = drawn[:, 0]
    assert first.mean(0).abs().max() < 5 / np.sqrt(2000 * width)
    assert (first.T @ first / 2000 - torch.eye(width) / width).abs().max() < 5 * np.sqrt(2) / width / np.sqrt(2000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "spread"}, "unknown distinctness 'spread'; there are gap, pairwise"),
        ({"k": torch.tensor([2, 4])}, r"k must lie in 2\.\.3, got 2\.\.4"),
        ({"k": torch.tensor([1, 3])}, r"k must lie in 2\.\.3, got 1\.\.3"),
        ({"k": torch.tensor([2, 3, 3])}, r"k must be \[2\] int64, got \(3,\)"),
        ({"k": torch.tensor([2.0, 3.0])}, r"k must be \[2\] int64, got \(2,\) torch.float32"),
        ({"channel": torch.arange(3)}, r"channel must be \[2\] int64, got \(3,\)"),
        ({"text": torch.ones(0, 8)}, r"text \[P, d\] with P >= 1, got \(2, 3, 8\) and \(0, 8\)"),
        ({"text": torch.ones(4, 8).double()}, "both be float32 or float64, got torch.float32 and torch.float64"),
        ({"head": torch.ones(4, 5)}, "a head goes with distinctness 'pairwise' alone.*got 'gap'"),
        (
            {"kind": "pairwise", "head": torch.ones(3, 8)},
            r"head must be \[4, e\] torch.float32 like text, got \(3, 8\)",
        ),
        ({"kind": "pairwise", "head": torch.ones(4, 5).double()}, r"head must be .* got \(4, 5\) torch.float64"),
        ({"pool": torch.tensor([], dtype=torch.int64)}, r"pool must be \[M\] int64 with M >= 1, got \(0,\)"),
        ({"pool": torch.tensor([0, 4])}, r"pool must lie in 0\.\.3, got 0\.\.4"),
        ({"draws": range(0, 9, 2)}, r"draws must count up by 1 within 0\.\.2\*\*32, got range\(0, 9, 2\)"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
    ],
)
def test_a_bad_argument_is_named(change, said):
    arguments = {
        "prototypes": torch.ones(2, 3, 8), "k": torch.tensor([2, 3]), "text": torch.ones(4, 8), "kind": "gap",
        "pool": None, "draws": range(3), "seed": 0, "channel": torch.arange(2),
    }  # fmt: skip
    text_shuffle_null(**arguments)
    with pytest.raises(ValueError, match=said):
        text_shuffle_null(**arguments | change)
    if not {"channel", "pool"} & set(change):
        both = {name: value for name, value in (arguments | change).items() if name not in ("channel", "pool")}
        with pytest.raises(ValueError, match=said):
            text_rotation_null(**both)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", WITH_HEAD)
def test_no_channels_and_no_draws_give_an_empty_result(backend, kind, triton_device):
    given = problem(3, (2, 3), 7, 8, device=triton_device if backend == "triton" else "cpu")
    none = [given[0][:0], given[1][:0], given[2], given[3], given[4][:0]]
    for call in (shuffled, rotated):
        assert call(none, kind, backend).shape[0] == 0
        assert call(given, kind, backend, draws=range(0)).shape == (2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_grow_with_every_size(kind):
    shape = {"channels": 2048, "draws": 1000, "concepts": 1000, "clusters": 6, "width": 512}
    counts = {
        "shuffle_flops": lambda **s: shuffle_flops(**s, kind=kind),
        "shuffle_bytes": lambda **s: shuffle_bytes(**s, kind=kind),
        "rotation_flops": lambda **s: rotation_flops(**s, kind=kind),
        "rotation_bytes": rotation_bytes,
    }
    for count in counts.values():
        for name in ("channels", "draws"):
            assert count(**shape | {name: 2 * shape[name]}) > count(**shape)
    # the search takes 6 x 6 products with 1000 concepts for each channel and draw
    assert 1 < rotation_flops(**shape, kind=kind) / (2048 * 1000 * 2 * 36 * 1000) < {"gap": 1.2, "pairwise": 1.3}[kind]
