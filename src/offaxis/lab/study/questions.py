"""What the first study asks, and how an answer is reached.

Every question has a measure, a direction that the papers claim, and a scale: `ratio` measures are
compared by the logarithm of their quotient, `difference` measures by subtraction. The unit of
replication is a task with a seed: a contrast is averaged over the learning rates and the RL
algorithms within a unit, and its interval is Student's t over units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offaxis.comparison.sampling import student_t

__all__ = ["OWN", "QUESTIONS", "Answer", "Question", "answer", "judge"]

Scale = Literal["ratio", "difference"]
Word = Literal["holds", "does not", "cannot tell"]


@dataclass(frozen=True)
class Question:
    """One claim about RL against fine-tuning, made measurable."""

    claim: str
    measure: str
    direction: Literal[1, -1]
    """The sign that the claim gives to RL minus (or over) the other."""
    scale: Scale
    margin: float
    """A contrast wholly within ± margin is nothing to speak of: `does not`."""


QUESTIONS = tuple(
    Question(*one)
    for one in (
        ("sparser", "unchanged_bf16", 1, "difference", 0.01),
        ("spectrum-preserving", "nss", -1, "ratio", math.log(1.05)),
        ("less rotating, left", "rotation_left_deg", -1, "ratio", math.log(1.05)),
        ("less rotating, right", "rotation_right_deg", -1, "ratio", math.log(1.05)),
        ("more off-principal", "principal_overlap_excess", -1, "difference", 0.001),
        ("more at small weights", "low_magnitude_overlap_excess", 1, "difference", 0.001),
        ("out of the principal subspaces", "update_energy_two_sided", -1, "difference", 0.005),
        ("more striped by rows", "row_stripes", 1, "ratio", math.log(1.05)),
        ("more striped by columns", "column_stripes", 1, "ratio", math.log(1.05)),
        ("lower rank", "effective_rank", -1, "ratio", math.log(1.05)),
        ("more in one direction", "rank1_energy", 1, "ratio", math.log(1.05)),
        ("less forgetful: loss on other tasks", "forgetting", -1, "difference", 0.01),
        ("closer to the base: KL(tuned ‖ base)", "kl_tuned_base", -1, "ratio", math.log(1.05)),
        ("closer to the base: KL(base ‖ tuned)", "kl_base_tuned", -1, "ratio", math.log(1.05)),
    )
)
"""Asked of RL against each kind of fine-tuning."""

OWN = tuple(
    Question(*one)
    for one in (
        ("off-principal against the magnitude null", "principal_overlap_excess", -1,
         "difference", 0.001),
        ("off-principal against the rounding null", "principal_overlap_rounding_excess", -1,
         "difference", 0.001),
        ("off-principal at fixed density", "principal_overlap_top5_excess", -1,
         "difference", 0.001),
        ("at small weights against the magnitude null", "low_magnitude_overlap_excess", 1,
         "difference", 0.001),
        ("at small weights against the rounding null", "low_magnitude_overlap_rounding_excess", 1,
         "difference", 0.001),
        ("at small weights at fixed density", "low_magnitude_overlap_top5_excess", 1,
         "difference", 0.001),
    )
)  # fmt: skip
"""Asked of each method alone, against zero."""


@dataclass(frozen=True)
class Answer:
    """A mean over units with its 95 % interval, and what it says of the claim."""

    value: float
    low: float | None
    high: float | None
    units: int
    word: Word


def answer(question: Question, values: Sequence[float]) -> Answer:
    """From one number a unit to an answer: mean ± t · s / √n over units, 95 %.

    `cannot tell` with fewer than two units; otherwise what `judge` says.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        return Answer(math.nan, None, None, 0, "cannot tell")
    mean = float(sample.mean())
    if sample.size < 2:
        return Answer(mean, None, None, 1, "cannot tell")
    half = student_t(sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return judge(question, mean, half, sample.size)


def judge(question: Question, value: float, half: float, units: int) -> Answer:
    """An answer from a mean and half the width of its interval.

    `holds`: the interval lies wholly on the claimed side of zero, and not wholly within the
    margin. `does not`: wholly on the other side, or wholly within ± margin. `cannot tell`:
    otherwise.
    """
    low, high = value - half, value + half
    return Answer(value, low, high, units, _word(question, low, high))


def _word(question: Question, low: float, high: float) -> Word:
    if -question.margin <= low and high <= question.margin:
        return "does not"
    if (low > 0 and question.direction > 0) or (high < 0 and question.direction < 0):
        return "holds"
    return "does not" if low > 0 or high < 0 else "cannot tell"
