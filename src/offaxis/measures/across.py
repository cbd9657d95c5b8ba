"""Do runs change the same entries? Jaccard overlap, consensus, and what chance would give.

The Path Not Taken, section 2.2. Masks are packed bits of one tensor, one mask a run.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offaxis.kernels import popcount, run_counts
from offaxis.measures.number import Number, undefined

__all__ = [
    "changed_in_r_runs",
    "changed_in_r_runs_null",
    "jaccard",
    "jaccard_chance",
    "jaccard_magnitude_null",
]

Bits = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


def jaccard(first: Bits, second: Bits) -> Number:
    """|A ∩ B| / |A ∪ B|, in [0, 1]. Undefined where both are empty."""
    union = popcount(first | second)
    return Number(popcount(first & second) / union) if union else undefined("no_change")


def jaccard_chance(p: float, q: float) -> Number:
    """pq / (p + q − pq): the Jaccard overlap of independent masks of densities p and q."""
    union = p + q - p * q
    return Number(p * q / union) if union else undefined("no_change")


def jaccard_magnitude_null(total: Counts, first: Counts, second: Counts) -> Number:
    """The Jaccard overlap of masks that are independent within bins of equal |W₀|.

    I = Σ_b |A_b|·|B_b|/|b|; I / (|A| + |B| − I), from counts in each bin.
    """
    used = total > 0
    both = float((first[used].astype(np.float64) * second[used] / total[used]).sum())
    union = float(first.sum() + second.sum()) - both
    return Number(both / union) if union else undefined("no_change")


def changed_in_r_runs(masks: Sequence[Bits], entries: int) -> Counts:
    """How many entries changed in exactly r of the R runs, r = 0 … R; they sum to `entries`.

    The consensus ratio of an entry (the paper's C) is its r over R.
    """
    return run_counts(masks, entries)


def changed_in_r_runs_null(total: Counts, runs: Sequence[Counts]) -> npt.NDArray[np.float64]:
    """What `changed_in_r_runs` would be if runs were independent within bins of equal |W₀|.

    Expected entries, r = 0 … R: within bin b the number of runs that change an entry is a sum of
    independent draws with p_i = |A_i,b| / |b|. total, runs: entries in each bin, of the base and of
    each run's mask.
    """
    used = total > 0
    entries = total[used].astype(np.float64)
    found = entries[:, None]  # (bins, r + 1), grown by one run at a time
    for run in runs:
        p = (run[used] / entries)[:, None]
        stays, moves = found * (1 - p), found * p
        found = np.pad(stays, ((0, 0), (0, 1))) + np.pad(moves, ((0, 0), (1, 0)))
    return np.asarray(found.sum(axis=0), np.float64)
