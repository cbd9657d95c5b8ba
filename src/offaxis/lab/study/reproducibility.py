"""Is RL's footprint the same over seeds, tasks and algorithms? Jaccard overlap minus its null."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.lab.study.answers import MATCHINGS, RL, TUNING, Runs, Where, prepare
from offaxis.lab.study.matching import Trajectory, read_pair
from offaxis.lab.study.questions import Answer, Question, answer, judge

__all__ = ["footprints", "reproducibility"]

Over = Literal["seeds", "tasks", "algorithms"]
Pairs = dict[tuple[Any, ...], Trajectory]

_QUESTIONS: Mapping[Over, Question] = {
    over: Question(f"more reproducible over {over}", "jaccard_excess", 1, "difference", 0.002)
    for over in ("seeds", "tasks", "algorithms")
}


class _Pairing:
    """Pairs of runs as trajectories: their overlap at each step that both have."""

    def __init__(self, rows: pl.DataFrame, pairs: pl.DataFrame) -> None:
        _, self.runs, self.start = prepare(rows)
        names = rows.select("method", "task", "learning_rate", "seed", "run").iter_rows()
        self._name = {tuple(where): name for *where, name in names}
        self._excess: dict[tuple[frozenset[str], int], float | None] = {}
        told = pairs.select("run_a", "run_b", "step", "jaccard", "jaccard_magnitude_null")
        for a, b, step, seen, null in told.iter_rows():
            known = seen is not None and null is not None
            self._excess[frozenset((a, b)), step] = seen - null if known else None

    def trajectory(self, a: Where, b: Where) -> Trajectory | None:
        """Steps, geometric mean norms and mean accuracies of two runs, and their excess overlap.

        None where the pair is not in the table at every common step.
        """
        one, other = self.runs[a], self.runs[b]
        both = frozenset((self._name[a], self._name[b]))
        common = [step for step in one.steps if step in other.steps]
        if not common or any((both, step) not in self._excess for step in common):
            return None
        at = [(one.steps.index(step), other.steps.index(step)) for step in common]
        return Trajectory(
            tuple(common),
            tuple(math.sqrt(one.norms[i] * other.norms[j]) for i, j in at),
            tuple((one.accuracies[i] + other.accuracies[j]) / 2 for i, j in at),
            {"jaccard_excess": tuple(self._excess[both, step] for step in common)},
        )


def _pairs_over(runs: Runs, over: Over, members: Sequence[str]) -> Iterator[tuple[Where, Where]]:
    """Pairs of runs of these methods that differ in the seed, the task, or method and seed."""
    chosen = [where for where in runs if where[0] in members]
    same: Mapping[Over, Callable[[Where], tuple[Any, ...]]] = {
        "seeds": lambda w: (w[0], w[1], w[2]),
        "tasks": lambda w: (w[0], w[2], w[3]),
        "algorithms": lambda w: (w[1], w[2]),
    }
    groups: dict[tuple[Any, ...], list[Where]] = defaultdict(list)
    for where in chosen:
        groups[same[over](where)].append(where)
    for group in groups.values():
        for a, b in itertools.combinations(sorted(group), 2):
            if over != "algorithms" or (a[0] != b[0] and a[3] != b[3]):
                yield a, b


def _cell(over: Over, a: Where, b: Where) -> tuple[tuple[str, str], float, tuple[Any, ...]]:
    """What a pair of runs stands for: its methods, its rate, and its replicate."""
    seeds = (min(a[3], b[3]), max(a[3], b[3]))
    replicate = ((a[1], b[1]), a[3]) if over == "tasks" else (a[1], seeds)
    return (a[0], b[0]), a[2], replicate


def footprints(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Mean excess overlap at the last step: for each `over`, methods and learning rate.

    pairs: what `overlaps.pair_table` gives. Columns: over, method_a, method_b, learning_rate,
    jaccard_excess, pairs.
    """
    pairing = _Pairing(rows, pairs)
    cells: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    everything = (*RL, *TUNING)
    for over in _QUESTIONS:
        for a, b in _pairs_over(pairing.runs, over, everything):
            one = pairing.trajectory(a, b)
            value = one.values["jaccard_excess"][-1] if one else None
            if value is not None:
                methods, rate, _ = _cell(over, a, b)
                cells[over, *methods, rate].append(value)
    names = ("over", "method_a", "method_b", "learning_rate")
    return pl.DataFrame(
        [
            dict(zip(names, key, strict=True))
            | {"jaccard_excess": float(np.mean(values)), "pairs": len(values)}
            for key, values in cells.items()
        ]
    )


def reproducibility(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """RL's excess overlap minus that of each kind of fine-tuning, by what differs and matching.

    Pairs of runs differ in the seed, in the task, or in algorithm and seed. Over seeds and tasks,
    RL's pairs of one method stand against the other method's; over algorithms, pairs of two RL
    algorithms stand against pairs of an RL algorithm and the other method. Columns as those of
    `answers.contrasts`, `claim` naming what differs.
    """
    pairing = _Pairing(rows, pairs)
    found = []
    for over, question in _QUESTIONS.items():
        for other in TUNING:
            for matching in MATCHINGS:
                values, count = _differences(pairing, over, other, matching)
                result = _judged(question, over, values)
                told = asdict(question)
                told.pop("margin")
                extra = {"against": other, "matching": matching, "pairs": count}
                found.append(told | asdict(result) | extra)
    return pl.DataFrame(found)


def _differences(
    pairing: _Pairing, over: Over, other: str, matching: Any
) -> tuple[dict[tuple[Any, ...], float], int]:
    """Replicate -> RL's excess minus the other's, the mean over rates and algorithms."""
    ours: dict[tuple[float, tuple[Any, ...]], list[tuple[Trajectory, str]]] = defaultdict(list)
    theirs: dict[tuple[float, tuple[Any, ...]], list[Trajectory]] = defaultdict(list)
    for a, b in _pairs_over(pairing.runs, over, (*RL, other)):
        methods, rate, replicate = _cell(over, a, b)
        one = pairing.trajectory(a, b)
        if one is None:
            continue
        if other not in methods:
            ours[rate, replicate].append((one, a[1]))
        elif over == "algorithms" or methods == (other, other):
            theirs[rate, replicate].append(one)
    units: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    pairs = 0
    for key, mine in ours.items():
        for (one, task), rival in itertools.product(mine, theirs.get(key, ())):
            start = pairing.start[task]
            read = read_pair(one, rival, ["jaccard_excess"], matching=matching, start=start)
            if read is not None and read[0]:
                pairs += 1
                units[key[1]].append(read[0]["jaccard_excess"] - read[1]["jaccard_excess"])
    return {replicate: float(np.mean(values)) for replicate, values in units.items()}, pairs


def _judged(question: Question, over: Over, units: Mapping[tuple[Any, ...], float]) -> Answer:
    """An answer from replicates. Pairs of seeds share runs, so there the jackknife over seeds."""
    if over == "tasks":
        return answer(question, list(units.values()))
    return _jackknife(question, units)


def _jackknife(question: Question, units: Mapping[tuple[Any, ...], float]) -> Answer:
    """The mean over tasks of the mean over pairs of seeds; its error by leaving out each seed.

    Variance of a task's mean: (n − 1)/n · Σ_i (θ_{−i} − θ̄)², n seeds, θ_{−i} the mean over pairs
    without seed i. Tasks are independent. Degrees of freedom: Σ (n − 1).
    """
    tasks: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for (task, seeds), value in units.items():
        tasks[task][seeds] = value
    means, variance, degrees = [], 0.0, 0
    for pairs in tasks.values():
        seeds = sorted({seed for pair in pairs for seed in pair})
        left = [
            np.mean(kept)
            for seed in seeds
            if (kept := [value for pair, value in pairs.items() if seed not in pair])
        ]
        means.append(float(np.mean(list(pairs.values()))))
        if len(left) == len(seeds):
            spread = float(np.sum((np.array(left) - np.mean(left)) ** 2))
            variance += (len(seeds) - 1) / len(seeds) * spread
            degrees += len(seeds) - 1
    if not means:
        return Answer(math.nan, None, None, 0, "cannot tell")
    value = float(np.mean(means))
    if not degrees:
        return Answer(value, None, None, len(units), "cannot tell")
    half = student_t(degrees) * math.sqrt(variance) / len(means)
    return judge(question, value, half, len(units))
