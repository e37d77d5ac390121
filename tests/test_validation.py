"""Reading arrays: rows that are alike are kept once."""

import numpy as np
import pytest

from psi_fast import validation


def distinct(rows):
    unique, inverse = validation._distinct_rows(rows)
    assert unique.dtype == rows.dtype
    np.testing.assert_array_equal(unique[inverse].view(np.uint32), rows.view(np.uint32))
    return unique, inverse


@pytest.mark.parametrize("count", [1, 7, 5000, 9000])
def test_each_distinct_row_is_kept_once(count):
    rng = np.random.default_rng(count)
    pool = rng.normal(size=(max(1, count // 3), 5)).astype(np.float32)
    rows = pool[rng.integers(len(pool), size=count)]
    unique, _ = distinct(rows)
    assert len(unique) == len(np.unique(rows, axis=0))


def test_rows_that_differ_are_left_as_they_are():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    unique, inverse = distinct(rows)
    assert unique is rows
    np.testing.assert_array_equal(inverse, np.arange(50))


def test_no_rows():
    assert len(distinct(np.empty((0, 4), dtype=np.float32))[0]) == 0


def test_rows_with_one_sum_are_told_apart(monkeypatch):
    class Zeros:
        def integers(self, _high, size, dtype):
            return np.zeros(size, dtype=dtype)

    monkeypatch.setattr(np.random, "default_rng", lambda _seed: Zeros())  # every factor 1: the order of numbers is lost
    rows = np.array([[1, 2], [2, 1], [1, 2], [2, 1], [3, 4]], dtype=np.float32)
    assert len(distinct(rows)[0]) == 3
