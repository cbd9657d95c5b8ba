"""avg@k, pass@k and paired differences, with 95 % intervals. Pure functions of numpy arrays.

Intervals are percentile bootstraps over problems: they say how the score would vary with another
draw of problems and samples. They say nothing about another training seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError

__all__ = [
    "Score",
    "avg_at_k",
    "bootstrap_mean",
    "mean_score",
    "paired_difference",
    "pass_at_k",
    "pass_rates",
]

Floats = NDArray[np.float64]
_LEVEL = 0.95
_CHUNK = 4_000_000  # resampled indices held at a time


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over problems with its 95 % interval."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    """Problems."""


def _checked(correct: NDArray[Any]) -> Floats:
    """`correct` as float64, (problems, samples), or InputError."""
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(f"correct has shape {table.shape}: (problems, samples) is needed")
    if not np.isin(table, (0.0, 1.0)).all():
        raise InputError("correct holds something other than 0 and 1 (or False and True)")
    return table


def bootstrap_mean(
    values: NDArray[Any], *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean of `values` (n,) and its 95 % percentile-bootstrap interval: (mean, low, high).

    Where all values are equal the bootstrap has no width and the interval is that one point.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise InputError(f"values have shape {sample.shape}: a non-empty vector is needed")
    if not np.isfinite(sample).all():
        raise InputError("values hold NaN or infinity: drop them before taking a mean")
    mean = float(sample.mean())
    if (sample == sample[0]).all():
        return float(sample[0]), float(sample[0]), float(sample[0])
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // sample.size)
    means = [
        sample[rng.integers(sample.size, size=(min(block, resamples - done), sample.size))].mean(1)
        for done in range(0, resamples, block)
    ]
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return mean, float(low), float(high)


def mean_score(metric: str, per_problem: Floats, *, seed: int = 0) -> Score:
    """Mean of per-problem scores in [0, 1] with its interval.

    Where every problem scores 1 (or every one 0) the bootstrap has no width, and the exact
    one-sided binomial bound takes its place: with n of n successes the rate is at least
    0.025^(1/n) at 97.5 % confidence (Clopper and Pearson, 1934).
    """
    value, low, high = bootstrap_mean(per_problem, seed=seed)
    n = per_problem.size
    bound = ((1 - _LEVEL) / 2) ** (1 / n)
    if (per_problem == 1).all():
        low = bound
    if (per_problem == 0).all():
        high = 1 - bound
    return Score(metric, value, low, high, n)


def avg_at_k(correct: NDArray[Any], *, seed: int = 0) -> Score:
    """Mean accuracy over problems and their k samples; `correct` is (problems, k) of 0 and 1."""
    table = _checked(correct)
    return mean_score(f"avg@{table.shape[1]}", table.mean(axis=1), seed=seed)


def pass_rates(correct: NDArray[Any], k: int) -> Floats:
    """pass@k of every problem, unbiased from n >= k samples of it: a vector, one a problem.

    1 − C(n−c, k) / C(n, k), c right samples of n, computed as 1 − Π_{i=n−c+1..n} (1 − k/i) (Chen et
    al. 2021, "Evaluating large language models trained on code", arXiv 2107.03374, section 2.1).
    """
    table = _checked(correct)
    samples = table.shape[1]
    if not 1 <= k <= samples:
        raise InputError(f"pass@{k} needs 1 <= k <= samples a problem, and there are {samples}")
    factors = 1 - k / np.arange(1, samples + 1)  # factor of i at index i - 1
    per_problem = [
        1.0 if samples - c < k else 1 - factors[samples - c :].prod()
        for c in table.sum(axis=1).astype(int)
    ]
    return np.array(per_problem)


def pass_at_k(correct: NDArray[Any], k: int, *, seed: int = 0) -> Score:
    """Chance that k samples hold a right one: the mean of `pass_rates` over problems."""
    return mean_score(f"pass@{k}", pass_rates(correct, k), seed=seed)


def paired_difference(a: NDArray[Any], b: NDArray[Any], *, seed: int = 0) -> Score:
    """avg@k of `a` minus that of `b` on the same problems, bootstrapped over the pairs.

    `a` and `b` are (problems, samples), rows in the same order; sample counts may differ.
    """
    first, second = _checked(a), _checked(b)
    if len(first) != len(second):
        raise InputError(f"{len(first)} problems against {len(second)}: pairs need the same ones")
    value, low, high = bootstrap_mean(first.mean(axis=1) - second.mean(axis=1), seed=seed)
    return Score("avg difference", value, low, high, len(first))
