"""Two models on the same problems: did one come to solve more, or the same more often?

The curve of pass@k along k tells them apart: a model that only sharpened does better at k = 1 and
worse at large k, where the two curves have crossed (Yue et al. 2025, arXiv 2504.13837).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate.scores import Answers

__all__ = [
    "Crossing",
    "Difference",
    "Verdict",
    "Versus",
    "compared",
    "unequal_settings",
    "verdict",
    "versus",
]

Floats = NDArray[np.float64]
Label = Literal["widened", "sharpened only", "narrowed", "cannot tell"]

_LEVEL = 0.95
_RESAMPLES = 2000
_FLIPS, _BLOCK = 10_000, 500
_LARGE = 8  # the smallest k that may stand for "large"


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of the first model minus that of the second, with its 95 % interval."""

    metric: str
    k: int
    value: float
    low: float
    high: float
    p: float
    """Of the sign-flip test: how often a difference as large comes about where it is chance which
    of the two models did better at each problem."""
    n: int
    """Problems."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the first model's curve of pass@k falls below, or rises above, the second's."""

    between: tuple[int, int]
    """The neighbouring k between which the difference changes its sign for the first time."""
    resampled: float
    """Share of bootstrap resamples of the problems in which the ends of the curve differ in sign
    as they do here."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the curve says, by the rule in `verdict`."""

    label: Label
    sentence: str


@dataclass(frozen=True)
class Versus:
    """The paired comparison of a first model with a second."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    crossing: Crossing | None
    verdict: Verdict
    notes: tuple[str, ...] = ()
    """What makes the comparison less than equal."""

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = asdict(self)
        return found


def versus(
    a: Answers,
    b: Answers,
    *,
    first: str = "the first",
    second: str = "the second",
    unequal: Sequence[str] = (),
    seed: int = 0,
) -> Versus:
    """`a` minus `b`, paired by problem id: avg, and pass@k and maj@k at k = 1, 2, 4, ...

    Up to the largest power of two that both have samples for; maj@k where both keep votes.
    unequal: settings that differ, in words; they forbid a verdict. Raises InputError where the
    problems are not the same.
    """
    b = _aligned(b, a.ids)
    ks = [1 << bit for bit in range(min(a.samples, b.samples).bit_length())]
    wanted = [("avg", 1)] + [("pass", k) for k in ks]
    if a.classes is not None and b.classes is not None:
        wanted += [("maj", k) for k in ks]
    columns = {one: a.per_problem(*one) - b.per_problem(*one) for one in wanted}
    return compared(columns, first=first, second=second, unequal=unequal, seed=seed)


def compared(
    columns: Mapping[tuple[str, int], Floats],
    *,
    first: str,
    second: str,
    unequal: Sequence[str] = (),
    seed: int = 0,
) -> Versus:
    """The comparison that follows from differences: (`avg`, `pass` or `maj`, k) -> one a problem.

    All intervals come from the same 2000 resamples of the problems (percentile bootstrap), so each
    holds at its own k, not at all k at once; so do the p-values, from 10 000 flips of the signs of
    all problems' differences.
    """
    table = np.stack(list(columns.values()), axis=1)
    means = _resampled(table, seed)
    tail = (1 - _LEVEL) / 2
    lows, highs = np.quantile(means, [tail, 1 - tail], axis=0)
    chances = _by_chance(table, seed)
    found = []
    for at, (metric, k) in enumerate(columns):
        name = metric if metric == "avg" else f"{metric}@{k}"
        value, low, high = float(table[:, at].mean()), float(lows[at]), float(highs[at])
        found.append(Difference(name, k, value, low, high, float(chances[at]), len(table)))
    curve = [at for at, (metric, _) in enumerate(columns) if metric == "pass"]
    passes = [found[at] for at in curve]
    crossing = _crossing([one.k for one in passes], table[:, curve].mean(axis=0), means[:, curve])
    said = verdict(passes, first, second, unequal=unequal)
    notes = tuple(f"the runs differ in {one}" for one in unequal)
    return Versus(first, second, tuple(found), crossing, said, notes)


def _aligned(answers: Answers, ids: Sequence[str]) -> Answers:
    """The same answers in the order of `ids`."""
    place = {one: at for at, one in enumerate(answers.ids)}
    absent = [one for one in ids if one not in place]
    if absent or len(ids) != len(place):
        example = f", for example {absent[0]!r}" if absent else ""
        raise InputError(
            f"{len(ids)} problems against {len(place)}, {len(absent)} of them not in the other "
            f"run{example}: pairs need the same problems"
        )
    order = [place[one] for one in ids]
    classes = answers.classes
    return Answers(
        tuple(ids),
        answers.correct[order],
        None if classes is None else tuple(classes[at] for at in order),
    )


def _resampled(table: Floats, seed: int) -> Floats:
    """Column means of resamples of the rows: (resamples, columns)."""
    rng = np.random.default_rng(seed)
    rows = len(table)
    times = rng.multinomial(rows, np.full(rows, 1 / rows), size=_RESAMPLES)  # each row is drawn
    return times @ table / rows


def _by_chance(table: Floats, seed: int) -> Floats:
    """Two-sided p of the sign-flip test of each column's mean, the data counted as one flip."""
    rng = np.random.default_rng([seed, 1])
    observed = np.abs(table.sum(axis=0)) - 1e-9  # rounding makes no difference smaller
    reached = np.ones(table.shape[1])
    for _ in range(0, _FLIPS, _BLOCK):
        signs = 2.0 * rng.integers(2, size=(_BLOCK, len(table))) - 1
        reached += (np.abs(signs @ table) >= observed).sum(axis=0)
    return reached / (1 + _FLIPS)


def _crossing(ks: Sequence[int], curve: Floats, means: Floats) -> Crossing | None:
    """The first change of sign, where the ends of the curve lie on different sides of zero."""
    if not ks:
        return None
    start, end = np.sign(curve[0]), np.sign(curve[-1])
    if start * end >= 0:
        return None
    at = next(at for at in range(1, len(ks)) if np.sign(curve[at]) == end)
    share = float(((np.sign(means[:, 0]) == start) & (np.sign(means[:, -1]) == end)).mean())
    return Crossing((ks[at - 1], ks[at]), share)


def verdict(
    passes: Sequence[Difference], first: str, second: str, *, unequal: Sequence[str] = ()
) -> Verdict:
    """What differences of pass@k, k = 1 first and the largest k last, allow to be said.

    - widened: above zero at the largest k.
    - sharpened only: below zero at the largest k, above zero at k = 1.
    - narrowed: below zero at the largest k, and not above it at k = 1.
    - cannot tell: anything else; the largest k is below 8; or the runs were sampled differently.

    A difference counts as above (below) zero where its whole interval is and p < 0.05. The interval
    alone is not enough: at large k few problems differ, and with 30 problems it lies off zero in up
    to 13 % of simulated pairs of equal models, with the test in 6 %.
    """
    if unequal:
        return Verdict("cannot tell", f"Cannot tell: the runs differ in {'; '.join(unequal)}.")
    if not passes or passes[0].k != 1:
        return Verdict("cannot tell", "Cannot tell: the runs have no pass@1 of the same problems.")
    start, end = passes[0], passes[-1]
    figures = f"pass@1 {_told(start)}, pass@{end.k} {_told(end)}"
    if end.k < _LARGE:
        return Verdict(
            "cannot tell",
            f"Cannot tell: pass@{end.k} is no large k; draw at least {_LARGE} samples a problem.",
        )
    if _off_zero(end) > 0:
        label: Label = "widened"
        words = f"{first} solves problems within {end.k} samples that {second} does not"
    elif _off_zero(end) < 0 < _off_zero(start):
        label = "sharpened only"
        words = f"{first} is right more often, and within {end.k} samples solves fewer problems"
    elif _off_zero(end) < 0:
        label = "narrowed"
        words = f"{first} solves fewer problems within {end.k} samples, and is not right more often"
    else:
        label = "cannot tell"
        words = f"at k = {end.k} the difference may be chance"
        if end.low == end.high:
            words = f"within {end.k} samples both solve the same problems"
    return Verdict(label, f"{label.capitalize()}: {words} ({figures}).")


def _off_zero(one: Difference) -> int:
    """1 above zero, −1 below, 0 where that cannot be said."""
    if one.p >= 1 - _LEVEL:
        return 0
    return int(one.low > 0) - int(one.high < 0)


def _told(one: Difference) -> str:
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}], p {one.p:.2g}"


def unequal_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Which settings that shape the distribution differ between two runs' headers, in words."""
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "template", "system", "verifier")
    ours, theirs = a.get("settings") or {}, b.get("settings") or {}
    return [
        f"{name} ({ours[name]!r} and {theirs[name]!r})"
        for name in names
        if name in ours and name in theirs and ours[name] != theirs[name]
    ]
