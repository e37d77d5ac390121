"""The nearest concept of each prototype: against NumPy, in small and large banks, by products and by faiss."""

import importlib.util

import numpy as np
import pytest
import replicas
import torch

from psi_fast_kernels._backend import BackendError
from psi_fast_kernels.text_null import distinctness, nearest, nearest_concepts

ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}  # two products of unit vectors closer than this are equal
needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason='faiss is not installed: pip install "psi-fast[faiss]"'
)
SEARCHES = ("matmul", pytest.param("faiss", marks=needs_faiss))


def unit_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(replicas.unit(np.random.default_rng(seed).normal(size=shape))).to(dtype)


def same_but_for_ties(
    found: torch.Tensor, expected: torch.Tensor, prototypes: torch.Tensor, text: torch.Tensor
) -> bool:
    """Whether the two choices differ only where their products agree within rounding."""
    products = [(prototypes.double() * text[choice].double()).sum(-1) for choice in (found, expected)]
    return bool(((products[0] - products[1]).abs() < ROUNDING[torch.float32]).all())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 6, 64), (50, 3, 97), (3, 16, 24), (0, 6, 8)])
@pytest.mark.parametrize("concepts", [1, 2, 7, 129, 2049, 5000])
def test_products_find_what_numpy_finds(shape, concepts, dtype):
    prototypes, text = unit_rows(*shape, dtype=dtype), unit_rows(concepts, shape[2], seed=1, dtype=dtype)
    found = nearest_concepts(prototypes, text, search="matmul")
    assert found.dtype == torch.int64
    products = prototypes.double().numpy() @ text.double().numpy().T
    chosen = np.take_along_axis(products, found.numpy()[..., None], -1)[..., 0]
    assert (chosen >= products.max(-1) - ROUNDING[dtype]).all()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [3, 41, 64, 512])
def test_of_equal_concepts_the_first_is_taken(search, dtype, width):
    """The bank holds every concept three times, in columns that end up at different places of different products."""
    text = unit_rows(1451, width, seed=1, dtype=dtype)
    bank = torch.cat((text, text.flip(0), text[torch.randperm(1451, generator=torch.manual_seed(0))]))
    prototypes = unit_rows(40, 6, width, dtype=dtype)
    found = nearest_concepts(prototypes, bank, search=search)
    assert found.max() < len(text)
    assert same_but_for_ties(found, nearest_concepts(prototypes, text), prototypes, text)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_zeros_are_equal_whatever_their_sign(search, dtype):
    bank = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    assert nearest._first_places(bank).tolist() == [0, 2]
    assert nearest_concepts(bank.flip(0), bank, search=search).tolist() == [2, 0, 0]


def test_different_rows_with_one_key_stay_apart(monkeypatch):
    """The keys that find repeated rows may collide; then the rows themselves decide."""
    monkeypatch.setattr(nearest, "_keys", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
    bank = unit_rows(300, 16, seed=1)
    assert torch.equal(nearest_concepts(bank, bank), torch.arange(300))
    assert torch.equal(nearest_concepts(bank[:1], bank[:1].expand(5, -1)), torch.tensor([0]))


@needs_faiss
def test_both_ways_agree_on_a_large_bank():
    text, prototypes = unit_rows(120_000, 64, seed=1), unit_rows(30, 6, 64)
    by_products = nearest_concepts(prototypes, text, search="matmul")
    by_faiss = nearest_concepts(prototypes, text, search="faiss")
    assert same_but_for_ties(by_products, by_faiss, prototypes, text)
    assert (by_products != by_faiss).float().mean() < 0.01
    assert torch.equal(nearest_concepts(prototypes, text), by_faiss)  # what auto takes


@pytest.mark.parametrize("channels", [1, 300])
def test_memory_does_not_grow_with_bank_or_prototypes(channels, monkeypatch):
    sizes, fits = [], nearest.fits
    monkeypatch.setattr(nearest, "fits", lambda rows, bank: (sizes.append(len(rows) * len(bank)), fits(rows, bank))[1])
    text = unit_rows(50_000, 8, seed=1)
    nearest_concepts(unit_rows(channels, 6, 8), text)
    assert sum(sizes) >= 6 * channels * len(text)
    assert max(sizes) <= nearest.ROWS * nearest.COLUMNS


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [3, 41, 512])
def test_products_of_a_row_have_the_same_bits_in_any_company(width, dtype):
    rows = unit_rows(150, width, dtype=dtype)
    bank = nearest.aligned(unit_rows(129, width, seed=1, dtype=dtype))
    whole = nearest.fits(rows, bank)
    for start, stop in [(0, 1), (3, 5), (7, 10), (20, 33), (100, 150)]:
        assert torch.equal(nearest.fits(rows[start:stop], bank), whole[start:stop])


@pytest.mark.parametrize("width", [41, 64])
@pytest.mark.parametrize("concepts", [2, 1000, 3000])
def test_a_prototype_finds_the_same_in_any_company(width, concepts):
    prototypes, text = unit_rows(100, 6, width), unit_rows(concepts, width, seed=1)
    whole = nearest_concepts(prototypes, text)
    for part in (slice(0, 1), slice(17, 64), slice(99, 100)):
        assert torch.equal(nearest_concepts(prototypes[part], text), whole[part])


def test_out_of_memory_makes_the_parts_smaller(monkeypatch):
    fits = nearest.fits

    def short_of_memory(rows, bank):
        if len(rows) > 32:
            raise torch.OutOfMemoryError
        return fits(rows, bank)

    prototypes, text = unit_rows(30, 6, 24), unit_rows(129, 24, seed=1)
    expected = nearest_concepts(prototypes, text)
    monkeypatch.setattr(nearest, "fits", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory with") as caught:
        assert torch.equal(nearest_concepts(prototypes, text), expected)
    assert [str(one.message)[:40] for one in caught] == [
        "out of memory with 128 prototypes at onc",
        "out of memory with 64 prototypes at once",
    ]


def test_auto_takes_faiss_for_large_banks_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(nearest, "LARGE", 50)
    monkeypatch.setattr(nearest, "_by_faiss", lambda rows, text: torch.full(rows.shape[:1], 7))
    monkeypatch.setattr(nearest, "find_spec", lambda name: object())
    prototypes = unit_rows(2, 3, 4)
    assert (nearest_concepts(prototypes, unit_rows(51, 4)) == 7).all()
    assert not (nearest_concepts(prototypes, unit_rows(50, 4)) == 7).all()
    assert not (nearest_concepts(prototypes, unit_rows(51, 4), search="matmul") == 7).all()


def test_without_faiss_auto_multiplies_and_an_explicit_choice_raises(monkeypatch):
    monkeypatch.setattr(nearest, "LARGE", 50)
    monkeypatch.setattr(nearest, "find_spec", lambda name: None)
    prototypes, text = unit_rows(2, 3, 4), unit_rows(51, 4, seed=1)
    with pytest.warns(UserWarning, match=r'faiss.*is not installed \(pip install "psi-fast\[faiss\]"\); multiplying'):
        found = nearest_concepts(prototypes, text)
    assert torch.equal(found, nearest_concepts(prototypes, text, search="matmul"))
    with pytest.raises(BackendError, match=r'needs the package faiss: pip install "psi-fast\[faiss\]"'):
        nearest_concepts(prototypes, text[:5], search="faiss")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown search 'cosine'; there are auto, matmul, faiss"):
        nearest_concepts(torch.eye(3), torch.eye(3), search="cosine")
    with pytest.raises(ValueError, match=r"prototypes must be \[\.\.\., d\].*got \(3, 3\) and \(4, 4\)"):
        nearest_concepts(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="P >= 1"):
        nearest_concepts(torch.eye(3), torch.zeros(0, 3))


@pytest.mark.parametrize("kind", ["gap", "pairwise"])
@pytest.mark.parametrize("search", SEARCHES)
def test_d_is_the_same_by_both_ways(kind, search):
    prototypes, text = unit_rows(20, 4, 24), unit_rows(400, 24, seed=1)
    k = torch.full((20,), 4)
    value, index = distinctness(prototypes, k, text, kind=kind, search=search)
    for i in range(20):
        expected, chosen = replicas.distinctness(prototypes[i].numpy(), text.numpy(), kind)
        assert float(value[i]) == pytest.approx(expected, abs=1e-5)
        assert index[i].tolist() == chosen.tolist()
