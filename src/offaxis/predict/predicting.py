"""`predict`: fit every tensor of a series, and write the model that the fits foretell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import Any

import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.masks import Progress
from offaxis.output import check_output, explained, staged_directory
from offaxis.predict.fitting import stretches
from offaxis.predict.methods import Fitted, Floats, Predictor, Timeline, Weighted
from offaxis.predict.prediction import FILE, Prediction
from offaxis.predict.series import AnyPath, Series, open_series
from offaxis.predict.surveying import Survey, check_different, survey
from offaxis.predict.table import METHODS
from offaxis.predict.trails import SeriesTrail
from offaxis.predict.working import over, workers_for
from offaxis.predict.writing import check_place, codes_of, opened_files, stored_as, stored_base

__all__ = ["method_named", "predict", "predict_series"]

Teller = Callable[[Progress], None]


def method_named(method: str | Predictor) -> Predictor:
    """A method of `METHODS` with its defaults, or the predictor itself."""
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError(f"method {method!r}: choose one of {', '.join(METHODS)}")
    return METHODS[method]()


def predict(
    base: AnyPath,
    checkpoints: Sequence[AnyPath],
    *,
    method: str | Predictor,
    out: AnyPath,
    at: float | None = None,
    steps: Sequence[float] | None = None,
    scores: Sequence[float | None] | None = None,
    base_score: float | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: Teller | None = None,
) -> Prediction:
    """Predict a model from a base and checkpoints on the way, and write it into `out`.

    base, checkpoints, steps, scores, base_score: as `open_series` takes them, in step order.
    method: a name of `METHODS`, or a predictor with its options (`Relex(rank=2)`). at: the step to
    predict, for methods that need one. dtype: float16, bfloat16, float32 or float64 for every
    floating-point tensor; None: the last checkpoint's, tensor by tensor (an adapter's base's).
    progress: told after each tensor.

    `out` is a complete model: the base's file names, configuration and tokenizer, every parameter
    predicted θ_BASE + Σ..., computed in float64 and rounded once; constants are the base's. A
    prediction that is the last checkpoint itself (`stop`, factor 1) has its values bit for bit.
    Beside it lies `predict.json`. `out` appears whole or not at all. The series is read twice or
    three times; memory is a few copies of one tensor.

    Raises InputError, CheckpointError and AlignmentError for series that cannot be used
    (`open_series`, `survey`), OutputError where `out` cannot be written.
    """
    predictor = method_named(method)
    target = Path(out)
    check_output(target, overwrite=overwrite)
    series = open_series(
        base,
        checkpoints,
        steps=steps,
        scores=scores,
        base_score=base_score,
        least=predictor.least,
        allow_pickle=allow_pickle,
    )
    return predict_series(
        series,
        method=predictor,
        out=target,
        at=at,
        dtype=dtype,
        overwrite=overwrite,
        progress=progress,
    )


def predict_series(
    series: Series,
    *,
    method: str | Predictor,
    out: AnyPath,
    at: float | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    found: Survey | None = None,
    extra: Mapping[str, Any] | None = None,
    beside: Callable[[Path, Mapping[str, Any]], None] | None = None,
    progress: Teller | None = None,
) -> Prediction:
    """`predict` for a series that is open.

    found: its survey, where it was made before. extra: keys to add to the record. beside: writes
    further files, a report of the record, into the directory before it appears.
    """
    predictor, target = method_named(method), Path(out)
    check_output(target, overwrite=overwrite)
    check_place(series, target)
    timeline = series.timeline(at, needs=predictor.needs)
    codes = codes_of(series, dtype)
    tell = progress or _silent
    if found is None:
        size = sum(prod(trail.shape) for trail in series.trails())
        found = survey(series, progress=tell, ahead=size)
    check_different(series, found, least=predictor.least, method=predictor.name)
    with staged_directory(target, overwrite=overwrite) as staged:
        job = _Job(series, predictor, timeline, codes, found, tell)
        facts = job.written(staged, target)
        made = Prediction(
            directory=target,
            method=predictor.name,
            options=_options(predictor),
            at=timeline.at,
            facts=facts,
            tensors=job.tensors,
            series=_series_told(series, found),
            dtypes=_entries(series, codes),
            notes=(*series.notes, *found.notes, *_notes(series, timeline)),
            extra=dict(extra or {}),
        )
        with explained(target):
            told = made.told()
            text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
            (staged / FILE).write_text(text + "\n", encoding="utf-8")
            if beside is not None:
                beside(staged, told)
    return made


@dataclass(frozen=True)
class _Made:
    """One predicted tensor."""

    value: torch.Tensor
    facts: Mapping[str, dict[str, float]]
    moved: bool
    squares: Mapping[str, float]
    """‖θ̂ − θ_BASE‖², ‖θ̂ − θ_T‖², and the square of what rounding lost."""


class _Job:
    """One prediction under way: sums, facts, and the files."""

    def __init__(
        self,
        series: Series,
        predictor: Predictor,
        timeline: Timeline,
        codes: Mapping[str, str],
        found: Survey,
        tell: Teller,
    ) -> None:
        self.series, self.predictor, self.timeline, self.codes = series, predictor, timeline, codes
        self.tensors: dict[str, dict[str, float]] = {}
        self._found, self._tell = found, tell
        self._squares = dict.fromkeys(("update", "rest", "lost"), 0.0)
        self._stayed = 0
        self._done = found.parameters

    def written(self, staged: Path, target: Path) -> dict[str, float]:
        """Fit and write every tensor; the facts of the whole model."""
        aliases = self.series.aliases
        heads = {embedding: (head,) for head, embedding in aliases.items()}
        names = [trail.name for trail in self.series.trails()]
        base = stored_base(self.series.base)
        files = opened_files(base, staged, codes=self.codes, changed=[*names, *aliases])
        with explained(target):
            files.begin()
        grouped = self._grouped()
        with over(self._predicted, grouped, workers=workers_for(self.series)) as values:
            for (whole, _), made in zip(grouped, values, strict=True):
                self._add(made)
                for name in (whole.name, *heads.get(whole.name, ())):
                    with explained(target):
                        files.put(name, made.value)
                self._done += prod(whole.shape)
                self._tell(Progress(self._done, 2 * self._found.parameters, whole.name))
        with explained(target):
            files.finish()
        return self._facts()

    def _grouped(self) -> list[tuple[SeriesTrail, list[SeriesTrail]]]:
        """Stored tensors, each with the trails that are fitted: itself, or its parts."""
        wholes = list(self.series.trails())
        if not getattr(self.predictor, "cuts", False):
            return [(one, [one]) for one in wholes]
        parts: dict[str, list[SeriesTrail]] = {one.name: [] for one in wholes}
        for part in self.series.trails(cut=True):
            parts[part.view.name].append(part)
        return [(one, parts[one.name]) for one in wholes]

    def _predicted(self, group: tuple[SeriesTrail, list[SeriesTrail]]) -> _Made:
        """One tensor as it will be stored, and what its fits found."""
        whole, parts = group
        fits = [self.predictor.fit(part, self.timeline) for part in parts]
        facts = {part.name: _finite(fit) for part, fit in zip(parts, fits, strict=True)}
        update, moved = _joined(whole, parts, [fit.update() for fit in fits])
        squares = {"update": 0.0, "rest": 0.0, "lost": 0.0}
        last = len(whole) - 1
        for part in stretches(update.numel(), 1):
            piece = update.view(-1)[part]
            squares["update"] += _square(piece)
            squares["rest"] += _square(piece - torch.from_numpy(whole.rows(last, part)))
        copied = _copied(fits[0], self.timeline) if parts == [whole] else None
        exact = whole.stored(copied) if copied is not None else update + whole.ground()
        value = stored_as(whole.name, exact, self.codes[whole.name])
        for part in stretches(value.numel(), 1):
            pair = (value.view(-1)[part].double(), exact.reshape(-1)[part].double())
            squares["lost"] += _square(pair[0] - pair[1])
        if not all(map(isfinite, squares.values())):
            raise CheckpointError(
                f"{whole.name}: the norm of its predicted update is not finite; predict a nearer "
                "step"
            )
        return _Made(value, facts, moved, squares)

    def _add(self, made: _Made) -> None:
        self.tensors |= made.facts
        self._stayed += not made.moved
        for name, square in made.squares.items():
            self._squares[name] += square

    def _facts(self) -> dict[str, float]:
        sizes = {name: sqrt(one) for name, one in self._squares.items()}
        last, base = self._found.update_norms[-1], self._found.base_norm
        facts = {
            "over_last": sizes["update"] / last,
            "moved_on": sizes["rest"] / last,
            "stayed": float(self._stayed),
        }
        if base > 0:
            facts["relative_update_norm"] = sizes["update"] / base
        if sizes["update"] > 0:
            facts["rounding"] = sizes["lost"] / sizes["update"]
        names = sorted({name for one in self.tensors.values() for name in one})
        for name in names:
            values = [one[name] for one in self.tensors.values() if name in one]
            facts[f"{name}_mean"] = sum(values) / len(values)
        return facts


def _square(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())


def _joined(
    whole: SeriesTrail, parts: list[SeriesTrail], updates: list[Floats | None]
) -> tuple[torch.Tensor, bool]:
    """The update of a stored tensor out of those of its parts, and whether any moves."""
    moved = any(one is not None for one in updates)
    if parts == [whole] and updates[0] is not None:
        return torch.from_numpy(updates[0]), moved
    out = torch.zeros(whole.shape, dtype=torch.float64)
    for part, found in zip(parts, updates, strict=True):
        if found is None:
            continue
        value = torch.from_numpy(found)
        slices = part.view.slices
        place = out if slices is None else out[tuple(slice(*bounds) for bounds in slices)]
        place = place[0] if part.view.drop_leading else place
        place.copy_(value.T if part.view.turned else value)
    return out, moved


def _copied(fit: Fitted, timeline: Timeline) -> int | None:
    """The checkpoint whose tensor the prediction is, where it is exactly one's."""
    if not isinstance(fit, Weighted):
        return None
    weights = fit.weights(timeline.at)
    used = weights.nonzero()[0]
    return int(used[0]) if len(used) == 1 and weights[used[0]] == 1 else None


def _finite(fit: Fitted) -> dict[str, float]:
    """A fit's facts as plain numbers; what is not finite is left out."""
    return {key: float(value) for key, value in fit.facts.items() if isfinite(value)}


def _options(predictor: Predictor) -> dict[str, Any]:
    """The predictor's fields, as JSON can hold them."""
    if not is_dataclass(predictor) or isinstance(predictor, type):
        return {}
    found: dict[str, Any] = json.loads(json.dumps(asdict(predictor), default=str))
    return found


def _series_told(series: Series, found: Survey) -> dict[str, Any]:
    norms = found.told()
    relative: Any = norms.pop("relative_update_norms")
    checkpoints = [
        {
            "name": point.name,
            "step": point.step,
            "score": point.score,
            "relative_update_norm": relative[t],
        }
        for t, point in enumerate(series.points)
    ]
    return {
        "base": series.base.source,
        "base_score": series.base_score,
        "checkpoints": checkpoints,
        "norms": norms,
    }


def _entries(series: Series, codes: Mapping[str, str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, code in codes.items():
        out[code] = out.get(code, 0) + series.base.specs[name].numel
    return out


def _notes(series: Series, timeline: Timeline) -> list[str]:
    if timeline.at is not None and series.points[-1].step is not None:
        last = series.points[-1].step
        if timeline.at <= last:
            return [
                f"step {timeline.at:g} is not after the last checkpoint (step {last:g}): the line "
                "is read between checkpoints, nothing is foretold"
            ]
    return []


def _silent(_: object) -> None:
    """Where nobody listens."""
