"""The thread pool: spans cover their range once, results keep their order, errors come through."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.kernels.pool import for_each, in_order, spans


@given(
    count=st.integers(0, 10_000),
    multiple=st.sampled_from([1, 8]),
    smallest=st.sampled_from([1, 7, 100, 1 << 16]),
)
def test_spans_cover_the_range_once(count: int, multiple: int, smallest: int) -> None:
    cut = spans(count, multiple=multiple, smallest=smallest)
    assert [i for start, stop in cut for i in range(start, stop)] == list(range(count))
    assert all(start % multiple == 0 for start, _ in cut)


def test_results_keep_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    expected = [i * i for i in range(12)]
    assert for_each(slow_first, range(12)) == expected
    assert list(in_order(slow_first, range(12), 3)) == expected


@pytest.mark.parametrize(
    "run", [lambda f: for_each(f, range(4)), lambda f: list(in_order(f, range(4), 2))]
)
def test_an_error_reaches_the_caller(run: object) -> None:
    def fail(item: int) -> int:
        raise KeyError(item)

    with pytest.raises(KeyError):
        run(fail)  # type: ignore[operator]


def test_in_order_keeps_few_results_waiting() -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def hold(item: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return item

    for _ in in_order(hold, range(50), 2):
        with lock:
            alive -= 1
        time.sleep(0.001)
    assert most <= 4, "two at work, one waiting, one handed over"


def test_nothing_to_do_is_nothing_done() -> None:
    assert for_each(str, []) == []
    assert list(in_order(str, [], 2)) == []
