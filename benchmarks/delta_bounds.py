"""What a pair holds: how much changed, by how many ULPs, and the entropies that bound its size.

With d = tuned - base as integers modulo 2**16 (the bit patterns of bfloat16) and e the exponent
field of the base entry, over all n entries of the pair:

    zero order             n H(d) / 8 bytes
    given the exponent     n H(d | e) / 8 bytes

H is the empirical entropy, so it is what a coder reaches that knows these very probabilities. To
say them takes more: `cells`, one byte for each (d), or (e, d), that occurs. That is printed beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from delta_pairs import WORDS, Tensor


@dataclass(frozen=True)
class Bound:
    """bytes: the entropy. cells: how many probabilities that is, and bytes of a table of them."""

    bytes: float
    cells: int


@dataclass(frozen=True)
class Statistics:
    """changed: share of entries. ulp1, ulp2, ulp3: shares of the changed that moved 1, 2, more."""

    model_bytes: int
    changed: float
    ulp1: float
    ulp2: float
    ulp3: float
    zero_order: Bound
    by_exponent: Bound


@njit(nogil=True, cache=True)
def _count(base: Any, tuned: Any, shift: Any, mask: Any, counts: Any) -> None:
    for i in range(base.size):
        counts[(base[i] >> shift) & mask, np.uint16(tuned[i] - base[i])] += 1


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Bytes of all symbols of one context at their own entropy."""
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum() / 8)


def statistics(tensors: Sequence[Tensor]) -> Statistics:
    counts = np.zeros((WORDS.exponents, 1 << WORDS.bits), dtype=np.int64)
    for tensor in tensors:
        _count(tensor.base, tensor.tuned, np.uint16(WORDS.shift), np.uint16(WORDS.exponents - 1),
               counts)  # fmt: skip
    steps = counts.sum(axis=0)
    entries, changed = int(steps.sum()), int(steps[1:].sum())
    one, two = (int(steps[k] + steps[-k]) for k in (1, 2))
    return Statistics(
        entries * WORDS.bits // 8,
        changed / entries,
        one / max(changed, 1),
        two / max(changed, 1),
        (changed - one - two) / max(changed, 1),
        Bound(_entropy(steps), int(np.count_nonzero(steps))),
        Bound(sum(map(_entropy, counts)), int(np.count_nonzero(counts))),
    )
