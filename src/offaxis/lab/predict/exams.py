"""The exams of the study: one to choose by, one to judge by, one that is harder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from offaxis.lab.queue.grid import RunConfig
from offaxis.lab.scoring import Exam
from offaxis.lab.tasks import DIFFICULTIES, Problem

__all__ = ["Validation", "harder", "harder_samples", "judging", "validation"]


@dataclass(frozen=True)
class Validation(Exam):
    """The held-out problems that come after the judging exam's; none is in both."""

    skip: int = 150
    """Problems of the judging exam."""

    def draw(self) -> list[Problem]:
        whole = Exam(self.skip + self.problems, 1, self.difficulty, self.seed, self.task)
        return whole.draw()[self.skip :]


def judging(config: RunConfig) -> Exam:
    """The exam that the queue scored the run's checkpoints with: its answers can be used again."""
    return Exam(config.problems, config.samples, config.difficulty, task=config.task)


def validation(config: RunConfig) -> Validation:
    """100 problems, 4 samples each: what fits, factors and targets are taken from."""
    return Validation(100, 4, config.difficulty, task=config.task, skip=config.problems)


def harder(config: RunConfig) -> Exam | None:
    """The same task one difficulty up, half the samples; None at the highest difficulty."""
    if config.difficulty + 1 not in DIFFICULTIES:
        return None
    samples = harder_samples(config.samples)
    return replace(judging(config), difficulty=config.difficulty + 1, samples=samples)


def harder_samples(samples: int) -> int:
    """Of each harder problem, where a problem of the judging exam has `samples`."""
    return max(1, samples // 2)
