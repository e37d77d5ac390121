"""Moments of null draws that come in blocks."""

import numpy as np
import pytest
import torch

from psi_fast.moments import TIE, RunningMoments, moments


def draws_of(channels: int, count: int, seed: int = 0) -> torch.Tensor:
    """Draws far from 0 for their spread, where sums of squares would lose digits."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(1e3 + rng.normal(size=(channels, count)) * 10.0 ** rng.integers(-4, 2, size=(channels, 1)))


@pytest.mark.parametrize("sizes", [(200,), (1, 199), (64, 64, 64, 8), (3,) * 66 + (2,)])
def test_blocks_give_the_moments_of_all_draws(sizes):
    draws = draws_of(5, 200)
    observed = draws.quantile(0.9, dim=1)
    running, start = RunningMoments(observed), 0
    for size in sizes:
        for rows in (slice(0, 2), slice(2, 5)):
            running.add(rows, draws[rows, start : start + size])
        start += size
    found = running.result()
    np.testing.assert_allclose(found.mean, draws.mean(1), rtol=1e-14)
    np.testing.assert_allclose(found.sd, draws.std(1), rtol=1e-9)
    reached = (draws >= observed[:, None] - TIE).sum(1)
    assert torch.equal(found.p, (1 + reached).double() / 201)
    assert (reached >= 20).all()


@pytest.mark.parametrize(("keep", "kept"), [(1, 1), (70, 70), (128, 128), (300, 200)])
def test_the_first_draws_are_kept(keep, kept):
    draws = draws_of(5, 200)
    running = RunningMoments(draws[:, 0], keep)
    for start in range(0, 200, 64):
        for rows in (slice(0, 2), slice(2, 5)):
            running.add(rows, draws[rows, start : start + 64])
    assert torch.equal(running.result().draws, draws[:, :kept].float())


def test_draws_that_never_vary_have_no_spread():
    found = moments(torch.tensor([0.3]), torch.full((1, 50), 0.1, dtype=torch.float32))
    assert found.sd.item() == 0
    assert found.p.item() == 1 / 51


def test_a_tie_counts_as_reached():
    found = moments(torch.tensor([0.5, 0.5]), torch.tensor([[0.5 - TIE / 2, 0.1], [0.5 - 3 * TIE, 0.1]]).double())
    assert found.p.tolist() == [2 / 3, 1 / 3]
