"""Work in chunks: every item once, and smaller chunks when memory runs out."""

import weakref

import pytest
import torch

from psi_fast_kernels._chunks import in_chunks

SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
)


class Work:
    """Squares its items; more than `room` of them at once fail with `error`."""

    def __init__(self, total: int, room: int = 10**9, error: Exception = SHORTAGES[0]) -> None:
        self.result = torch.full((total,), -1)
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, part: slice) -> None:
        self.sizes.append(part.stop - part.start)
        if self.sizes[-1] > self.room:
            raise self.error
        assert (self.result[part] == -1).all(), "an item came twice"
        self.result[part] = torch.arange(part.start, part.stop) ** 2


@pytest.mark.parametrize(
    ("total", "chunk", "sizes"),
    [(0, 3, []), (1, 1, [1]), (1, 7, [1]), (7, 7, [7]), (7, 3, [3, 3, 1]), (6, 3, [3, 3]), (5, 1, [1] * 5)],
)
def test_every_item_comes_once_and_in_order(total, chunk, sizes):
    work = Work(total)
    in_chunks(work, total, chunk, "items")
    assert work.sizes == sizes
    assert work.result.tolist() == [i**2 for i in range(total)]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_chunk_and_says_so(error):
    work = Work(20, room=3, error=error)
    with pytest.warns(UserWarning, match="out of memory with") as caught:
        in_chunks(work, 20, 12, "channels")
    assert [str(one.message) for one in caught] == [
        "out of memory with 12 channels at once; going on with 6",
        "out of memory with 6 channels at once; going on with 3",
    ]
    assert work.sizes == [12, 6, 3, 3, 3, 3, 3, 3, 2]
    assert work.result.tolist() == [i**2 for i in range(20)]


def test_a_shortage_later_on_keeps_what_is_done():
    work = Work(10)

    def shrinking(part: slice) -> None:
        work.room = 4 if part.start == 0 else 2
        work(part)

    with pytest.warns(UserWarning, match="with 4 items at once; going on with 2"):
        in_chunks(shrinking, 10, 4, "items")
    assert work.sizes == [4, 4, 2, 2, 2]
    assert work.result.tolist() == [i**2 for i in range(10)]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_the_error_is_raised_when_not_even_one_item_fits(error):
    work = Work(4, room=0, error=error)
    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(type(error)) as caught:
        in_chunks(work, 4, 2, "items")
    assert caught.value is error
    assert work.sizes == [2, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("can't allocate memory")])
def test_other_errors_are_raised_at_once(error):
    work = Work(4, room=0, error=error)
    with pytest.raises(type(error), match=str(error)):
        in_chunks(work, 4, 4, "items")
    assert work.sizes == [4]


def test_what_failed_holds_no_memory_when_the_next_try_starts():
    held = []

    def work(part: slice) -> None:
        assert [reference() for reference in held] == [None] * len(held)
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        if part.stop - part.start > 1:
            raise torch.OutOfMemoryError

    with pytest.warns(UserWarning, match="out of memory"):
        in_chunks(work, 4, 4, "items")
    assert len(held) == 6
