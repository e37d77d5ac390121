"""Work done ahead in threads: in order, never too early, and errors at their item."""

import threading
import time

import pytest

from psi_fast.prefetch import prefetch


@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_results_come_in_order(ahead, workers):
    def work(item):
        time.sleep(0.002 * (item % 3))  # later items finish first
        return item * item

    assert list(prefetch(work, range(20), ahead=ahead, workers=workers)) == [i * i for i in range(20)]


def test_no_items_give_no_results():
    assert list(prefetch(lambda item: item, [], ahead=4)) == []


def test_items_are_taken_at_most_ahead_early():
    taken = []

    def items():
        for item in range(30):
            taken.append(item)
            yield item

    results = prefetch(lambda item: item, items(), ahead=5)
    for done, _ in enumerate(results, start=1):
        assert len(taken) <= done + 5
    assert len(taken) == 30


def test_an_error_surfaces_at_its_item_and_not_before():
    def work(item):
        if item == 6:
            raise ValueError("item 6")
        return item

    results = prefetch(work, range(20), ahead=20)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="item 6"):
        next(results)


def test_work_left_over_is_cancelled_when_the_reader_stops():
    started = []
    gate = threading.Event()

    def work(item):
        started.append(item)
        if item:
            gate.wait(5)
        return item

    results = prefetch(work, range(50), ahead=50, workers=2)
    assert next(results) == 0
    threading.Timer(0.05, gate.set).start()
    results.close()
    assert len(started) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("psi-fast-load")]
