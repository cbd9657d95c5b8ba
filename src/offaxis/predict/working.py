"""Tensors one after the other by a few workers, each on one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar, cast

import torch

from offaxis.kernels.pool import in_order, threads
from offaxis.predict.series import Series

__all__ = ["over", "workers_for"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORKING_BYTES = 2_000_000_000
_COPIES = 5
"""Of a tensor in float64, that one worker holds."""
_MOST = 4


def workers_for(series: Series) -> int:
    """How many tensors are worked on at once: one where adapters are merged as they are read."""
    if any(point.adapter for point in series.points):
        return 1
    largest = max(spec.numel for spec in series.base.specs.values())
    fit = _WORKING_BYTES // max(1, _COPIES * 8 * largest)
    return max(1, min(threads(), _MOST, fit))


@contextmanager
def over(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Iterator[Result]]:
    """`function` of every item, in order, `workers` at once; all have ended when the block has.

    torch runs on one thread in each: threads inside such short operations wait for each other, and
    where another process takes a core they are slower by a factor of hundreds.
    """

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of the calling thread
        return function(item)

    before = torch.get_num_threads()
    try:
        with closing(cast("Generator[Result]", in_order(alone, items, workers))) as results:
            yield results
    finally:
        torch.set_num_threads(before)
