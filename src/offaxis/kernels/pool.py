"""One small thread pool for the kernels, which release the interpreter lock.

Plain threads, not numba's own parallel backends: those abort a process that forks after use, which
data loaders and test runners do.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

__all__ = ["for_each", "in_order", "spans", "threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    del process  # the key: a forked child gets a pool of its own
    return ThreadPoolExecutor(max_workers=threads(), thread_name_prefix="offaxis")


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`[function(item) for item in items]`, over the pool when there is more than one item."""
    todo = list(items)
    if len(todo) < 2 or threads() < 2:
        return [function(item) for item in todo]
    return list(_pool(os.getpid()).map(function, todo))


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Results of `function` in the order of `items`, `workers` at work at once.

    At most one finished result waits for its turn beyond those at work, so memory stays bounded.
    The workers are not those of `for_each`, which `function` may use.
    """
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="offaxis-worker") as executor:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def spans(count: int, *, multiple: int = 1, smallest: int = 1) -> list[tuple[int, int]]:
    """Cut `range(count)` into spans of at least `smallest`, each start a multiple of `multiple`.

    About four spans a thread, so that one slow core does not hold up the rest.
    """
    wanted = max(1, min(4 * threads(), count // max(1, smallest)))
    step = -(-count // wanted)
    step = max(multiple, -(-step // multiple) * multiple)
    return [(start, min(start + step, count)) for start in range(0, count, step)]
