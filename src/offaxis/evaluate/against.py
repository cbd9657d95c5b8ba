"""The other run of a comparison: one of ours, or lighteval's, checked against the problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.evaluate.lighteval import LightEval, read_lighteval
from offaxis.evaluate.problems import Problem, ProblemSet
from offaxis.evaluate.result import Evaluation, load_evaluation
from offaxis.evaluate.scores import Answers
from offaxis.evaluate.versus import Versus, compared, unequal_settings, versus

__all__ = ["Other"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Other:
    """A finished run to compare with."""

    name: str
    run: Evaluation | Mapping[tuple[str, int], Floats]
    """One of ours, or (`avg` or `pass`, k) -> a number for each problem, in the problems' order."""
    ids: tuple[str, ...]

    @classmethod
    def opened(cls, path: str | Path, problems: ProblemSet) -> Other:
        """The run at `path`. Raises InputError where its problems are not `problems`."""
        place = Path(path).expanduser()
        ids = tuple(one.id for one in problems.problems)
        if (place / "settings.json").is_file():
            run = load_evaluation(place)
            _check_same(run, problems.problems, str(path))
            return cls(run.model or str(path), run, ids)
        found = read_lighteval(place)
        return cls(found.model, _columns(found, problems.problems), ids)

    def compared_with(self, run: Evaluation) -> Versus:
        """`run` minus this one."""
        ours, theirs = run.model, self.name
        if isinstance(self.run, Evaluation):
            unequal = unequal_settings(run.header, self.run.header)
            if ours == theirs:
                ours, theirs = "this run", "the other"
            return versus(run.answers, self.run.answers, unequal=unequal, first=ours, second=theirs)
        answers = _in_order(run.answers, self.ids)
        columns = {
            (metric, k): answers.per_problem(metric, k) - values
            for (metric, k), values in self.run.items()
            if k <= answers.samples or metric == "avg"
        }
        if not columns:
            raise InputError(
                f"{self.name}: it has pass@k for k above the {answers.samples} samples here alone; "
                "draw more samples with --k"
            )
        return compared(columns, first=ours, second=theirs)


def _check_same(run: Evaluation, problems: Sequence[Problem], place: str) -> None:
    """Raise where ids, texts or reference answers differ."""
    theirs = {one.id: one for one in run.problems}
    for ours in problems:
        other = theirs.get(ours.id)
        if other is None:
            raise InputError(
                f"{place}: holds no samples of problem {ours.id!r}; finish that run, or evaluate "
                "both on the same problems"
            )
        for what, one, two in (
            ("text", ours.prompt, other.prompt),
            ("reference answer", ours.answer, other.gold),
        ):
            if one != two:
                raise InputError(
                    f"{place}: problem {ours.id!r} has another {what} there ({two[:60]!r} against "
                    f"{one[:60]!r} here); evaluate both on the same problems"
                )
    if len(theirs) != len(problems):
        raise InputError(
            f"{place}: {len(theirs)} problems there, {len(problems)} here; evaluate both on the "
            "same problems (--limit)"
        )


def _in_order(answers: Answers, ids: Sequence[str]) -> Answers:
    place = {one: at for at, one in enumerate(answers.ids)}
    return Answers(tuple(ids), answers.correct[[place[one] for one in ids]], None)


def _columns(found: LightEval, problems: Sequence[Problem]) -> dict[tuple[str, int], Floats]:
    """lighteval's numbers of the task whose prompts hold these problems, in their order."""
    for task, queries in found.queries.items():
        order = _matched(queries, problems)
        if order is None:
            continue
        columns = {}
        for (name, metric), values in found.per_problem.items():
            kind, _, k = metric.partition("@")
            if name == task and kind in ("avg", "pass") and k.isdigit():
                columns[kind, 1 if kind == "avg" else int(k)] = values[order]
        if columns:
            return dict(sorted(columns.items()))
    raise InputError(
        f"{found.source}: no details of lighteval hold pass@k or avg@n of these "
        f"{len(problems)} problems; run lighteval with --save-details on the same data"
    )


def _matched(queries: Sequence[str], problems: Sequence[Problem]) -> list[int] | None:
    """For each problem the one query that holds its text; None where that is not one to one."""
    if len(queries) != len(problems):
        return None
    order = []
    for problem in problems:
        places = [at for at, query in enumerate(queries) if problem.prompt.strip() in query]
        if len(places) != 1:
            return None
        order += places
    return order if len(set(order)) == len(order) else None
