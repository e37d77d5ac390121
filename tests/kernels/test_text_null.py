"""D and its nulls of shuffled and rotated text, against the definition, closed forms and brute-force rotations."""

import numpy as np
import pytest
import replicas
import torch

from psi_fast_kernels.text_null import (
    distinctness,
    shuffle_moments,
    text_rotation_null,
    text_shuffle_null,
)

KINDS = ("gap", "pairwise")
BACKENDS = (
    "torch",
    "numba",
)  # the definition is tested on these, and they against triton in test_text_null_backends.py
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def problem(
    width: int = 24, concepts: int = 30, sizes: tuple[int, ...] = (2, 3, 4, 6, 2), seed: int = 0, dtype=torch.float64
):
    """Prototypes [C, 6, d] of which the first k are used, the others poisoned; k [C]; text [P, d] with a common part."""
    rng = np.random.default_rng(seed)
    text = replicas.unit(rng.normal(size=(concepts, width)) + 0.3)
    prototypes = np.full((len(sizes), 6, width), 7.0)
    for row, k in zip(prototypes, sizes, strict=True):
        row[:k] = replicas.unit(rng.normal(size=(k, width)) + 0.5 * text[rng.choice(concepts, k)])
    return torch.from_numpy(prototypes).to(dtype), torch.tensor(sizes), torch.from_numpy(text).to(dtype)


def shuffled(prototypes, k, text, kind, draws, pool=None, backend="torch", head=None):
    ids = torch.arange(len(k))
    return text_shuffle_null(
        prototypes, k, text, kind=kind, head=head, pool=pool, draws=draws, seed=0, channel=ids, backend=backend
    )


def other_bank(text, width=9):
    """Unit rows [P, width] of the same concepts, as another text encoder would give."""
    rows = replicas.unit(np.random.default_rng(7).normal(size=(len(text), width)) + 0.4)
    return torch.from_numpy(rows).to(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("width", "concepts"), [(24, 30), (3, 7), (64, 1), (2, 129)])
def test_d_equals_the_replica(kind, dtype, width, concepts):
    prototypes, k, text = problem(width, concepts, dtype=dtype)
    value, index = distinctness(prototypes, k, text, kind=kind)
    for i, size in enumerate(k.tolist()):
        expected, chosen = replicas.distinctness(prototypes[i, :size].numpy(), text.numpy(), kind)
        assert float(value[i]) == pytest.approx(expected, abs=TOLERANCE[dtype])
        assert index[i].tolist() == [*chosen.tolist(), *[-1] * (6 - size)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_head_gives_the_distances_and_the_bank_the_concepts(dtype):
    prototypes, k, text = problem(dtype=dtype)
    head = other_bank(text)
    value, index = distinctness(prototypes, k, text, kind="pairwise", head=head)
    assert torch.equal(index, distinctness(prototypes, k, text, kind="pairwise").concept)
    for i, size in enumerate(k.tolist()):
        expected = replicas.pairwise(None, head[index[i, :size]].double().numpy())
        assert float(value[i]) == pytest.approx(expected, abs=TOLERANCE[dtype])
    with pytest.raises(ValueError, match="a head goes with distinctness 'pairwise' alone"):
        distinctness(prototypes, k, text, kind="gap", head=head)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_banks_own_copy_as_a_head_changes_no_bit(backend):
    prototypes, k, text = problem(dtype=torch.float32)
    given = {"kind": "pairwise", "draws": range(40), "backend": backend}
    assert torch.equal(
        shuffled(prototypes, k, text, head=text.clone(), **given), shuffled(prototypes, k, text, **given)
    )
    own, same = (text_rotation_null(prototypes, k, text, head=h, seed=0, **given) for h in (None, text.clone()))
    assert torch.equal(own, same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_concepts_are_drawn_with_a_head_and_without(backend):
    """A head of one-hot rows tells which concepts a draw took: equal ones, or not."""
    prototypes, k, text = problem(concepts=30, sizes=(2, 2))
    head = torch.eye(30, dtype=text.dtype)

    def rotated(*given, backend, head=None):
        return text_rotation_null(*given[:3], kind=given[3], head=head, draws=given[4], seed=0, backend=backend)

    for call in (shuffled, rotated):
        plain, headed = (
            call(prototypes, k, text, "pairwise", range(300), backend=backend, head=own) for own in (None, head)
        )
        assert set(headed.flatten().tolist()) == {0, 1}
        assert torch.equal(headed == 0, plain.abs() < 1e-12)  # no two concepts of the bank are the same


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shuffled_draw_is_d_of_concepts_of_the_pool(kind, backend):
    """With one concept in the pool every draw is known; with two, every draw is one of the few combinations."""
    prototypes, k, text = problem(sizes=(3,))
    mu, t = prototypes[0, :3].numpy(), text.numpy()
    one = shuffled(prototypes, k, text, kind, range(20), torch.tensor([4, 4]), backend)[0]
    np.testing.assert_allclose(one, replicas.DISTINCTNESS[kind](mu, t[[4, 4, 4]]), atol=1e-12)
    drawn = shuffled(prototypes, k, text, kind, range(200), torch.tensor([4, 9]), backend)[0].numpy()
    possible = [replicas.DISTINCTNESS[kind](mu, t[[a, b, c]]) for a in (4, 9) for b in (4, 9) for c in (4, 9)]
    assert np.abs(drawn[:, None] - possible).min(1).max() < 1e-12
    assert (np.abs(drawn[:, None] - possible).min(0) < 1e-12).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "headed"), [("gap", False), ("pairwise", False), ("pairwise", True)])
@pytest.mark.parametrize("pool", [None, [0, 3, 3, 3, 8, 11, 12, 12]])
def test_monte_carlo_agrees_with_the_closed_form(kind, headed, pool, backend):
    prototypes, k, text = problem()
    pool, head = None if pool is None else torch.tensor(pool), other_bank(text) if headed else None
    drawn = shuffled(prototypes, k, text, kind, range(30_000), pool, backend, head).numpy()
    mean, sd = (x.numpy() for x in shuffle_moments(prototypes, k, text, kind=kind, head=head, pool=pool))
    assert mean.shape == sd.shape == (5,)
    assert (np.abs(drawn.mean(1) - mean) < 4 * sd / np.sqrt(drawn.shape[1])).all()
    fourth = ((drawn - mean[:, None]) ** 4).mean(1)
    assert (np.abs(drawn.var(1) - sd**2) < 4 * np.sqrt((fourth - sd**4) / drawn.shape[1])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_equals_enumeration_of_all_draws(kind):
    prototypes, k, text = problem(concepts=5, sizes=(3,))
    mu, t = prototypes[0, :3].numpy(), text.numpy()
    values = [replicas.DISTINCTNESS[kind](mu, t[[a, b, c]]) for a in range(5) for b in range(5) for c in range(5)]
    mean, sd = shuffle_moments(prototypes, k, text, kind=kind, pool=None)
    assert float(mean) == pytest.approx(np.mean(values), abs=1e-12)
    assert float(sd) == pytest.approx(np.std(values), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [4, 16])  # fewer dimensions than clusters, and more
def test_rotated_null_agrees_with_rotations_of_the_bank(kind, width):
    prototypes, k, text = problem(width, 40, sizes=(2, 3, 6))
    drawn = text_rotation_null(prototypes, k, text, kind=kind, draws=range(3000), seed=0, backend="torch").numpy()
    rng = np.random.default_rng(0)
    for i, size in enumerate(k.tolist()):
        mu = prototypes[i, :size].numpy()
        brute = np.empty(1500)
        for j in range(len(brute)):
            turned = text.numpy() @ replicas.haar(width, rng)
            chosen = (mu @ turned.T).argmax(1)
            brute[j] = replicas.DISTINCTNESS[kind](mu, turned[chosen])
        error = np.sqrt(drawn[i].var() / drawn.shape[1] + brute.var() / len(brute))
        assert abs(drawn[i].mean() - brute.mean()) < 4 * error
        assert 0.85 < drawn[i].std() / brute.std() < 1.18


def test_rotated_null_lets_clusters_choose_again():
    """Chosen concepts fit better than random ones: the rotated gap is positive where the shuffled one is about zero."""
    prototypes, k, text = problem(concepts=100)
    rotated = text_rotation_null(prototypes, k, text, kind="gap", draws=range(300), seed=0)
    assert (rotated.mean(1) > shuffled(prototypes, k, text, "gap", range(300)).mean(1) + 0.2).all()


def test_pairwise_reads_the_images_through_the_chosen_concepts_only():
    prototypes, k, text = problem()
    value, index = distinctness(prototypes, k, text, kind="pairwise")
    # a step toward the chosen concept leaves it the nearest one
    moved = torch.nn.functional.normalize(prototypes + 0.1 * text[index.clamp(min=0)], dim=-1)
    other_value, other_index = distinctness(moved, k, text, kind="pairwise")
    assert torch.equal(index, other_index)
    assert not torch.equal(prototypes, moved)
    assert torch.equal(value, other_value)
    draws = range(50)
    assert torch.equal(shuffled(prototypes, k, text, "pairwise", draws), shuffled(moved, k, text, "pairwise", draws))
    gap, other_gap = (distinctness(x, k, text, kind="gap").value for x in (prototypes, moved))
    assert not torch.equal(gap, other_gap)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_of_equal_concepts_has_no_spread(kind):
    prototypes, k, text = problem(dtype=torch.float32)
    _, sd = shuffle_moments(prototypes, k, text[:1].expand(9, -1), kind=kind, pool=None)
    assert (sd < 1e-9).all()
