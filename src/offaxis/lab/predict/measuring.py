"""One run: its validation curve, and every prediction of its weights made, scored and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from offaxis.errors import InputError, OffaxisError
from offaxis.lab.predict.candidates import (
    CONTESTANTS,
    FRACTIONS,
    REBUILT,
    STOP,
    Contestant,
    places,
)
from offaxis.lab.predict.history import History
from offaxis.lab.predict.linearity import linear
from offaxis.lab.predict.rows import CURVE, MODELS
from offaxis.lab.predict.standing import Stand, Updates, against
from offaxis.lab.queue.rows import by_checkpoint, read_rows
from offaxis.lab.tasks import TASKS
from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.goal import Goal
from offaxis.predict.linear import Linear
from offaxis.predict.methods import Predictor
from offaxis.predict.rebuilding import RankK
from offaxis.predict.relex import Relex
from offaxis.predict.scale import LADDER, Scale

__all__ = ["Key", "asked", "check_steps", "measure_run", "missing"]

Row = dict[str, Any]
_LOSSES = ("mixture_loss", *(f"mixture_loss_{task}" for task in TASKS))
_PATIENCE = 2
"""Reaches of the ladder that may be worse than the best before the search ends."""


class Key(NamedTuple):
    """One model of the study."""

    predictor: str
    origin: int
    target: int


@dataclass(frozen=True, eq=False)
class Bench:
    """A run's history, the model that stands in for its predictions, and its validation curve."""

    history: History
    stand: Stand
    curve: pl.DataFrame
    real: dict[int, Updates] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.history.paths)

    def validation(self, step: int) -> float:
        """The real score on the validation problems."""
        return float(self.curve.filter(step=step)["validation"].item())

    def step(self, fraction: float) -> int:
        return round(fraction * self.last)

    def update(self, step: int) -> Updates:
        """The real update at a step, read once."""
        if step not in self.real:
            self.real[step] = self.history.update(step)
        return self.real[step]


def asked(last: int) -> list[Key]:
    """Every model that is made of a run of `last` steps."""
    found: list[Key] = []
    for origin, target in places(last):
        found.append(Key(STOP, origin, target))
        found += [
            Key(name, origin, target)
            for name, one in CONTESTANTS.items()
            if one.everywhere or target == last
        ]
    return found + [Key(name, last, last) for name in REBUILT]


def missing(last: int, models: pl.DataFrame | None) -> list[Key]:
    """Those of `asked` that a run's table of models lacks."""
    known = set() if models is None else set(models.select(Key._fields).rows())
    return [key for key in asked(last) if tuple(key) not in known]


def measure_run(
    history: History, known: Mapping[str, pl.DataFrame] | None = None
) -> dict[str, pl.DataFrame]:
    """The tables `rows.TABLES` of one run. known: its tables so far, of which nothing is redone.

    InputError for a run whose kept checkpoints do not serve (`check_steps`).
    """
    check_steps(history)
    stand = Stand(history.store, history.config)
    curve = known["curve"] if known else history.curve(stand)
    bench = Bench(history, stand, curve)
    rows = [] if known else list(_real(bench))
    for key in missing(bench.last, known["models"] if known else None):
        if key.predictor == STOP:
            rows.append(_stopped(bench, key))
        elif key.predictor in REBUILT:
            rows.append(_rebuilt(bench, key))
        else:
            rows.append(_row(bench, key))
    models = pl.DataFrame([{"run": history.name} | row for row in rows], schema=MODELS)
    if known:
        models = pl.concat([known["models"], models])
    lines = known.get("linearity") if known else None
    return {
        "curve": curve.select(pl.col(name).cast(kind) for name, kind in CURVE.items()),
        "models": models,
        "linearity": linear(history, curve) if lines is None else lines,
    }


def check_steps(history: History) -> None:
    """InputError where a step that predictions start or end at was not kept.

    Those of the run's end are judged by the queue's scores, so that their origins need some.
    """
    config, kept = history.config, history.paths
    ends = places(config.steps)
    judged = {step for place in ends if place[1] == config.steps for step in place}
    needed = sorted({step for place in ends for step in place})
    lacking = [
        step for step in needed if step not in kept or (step in judged and not config.scores(step))
    ]
    if lacking:
        raise InputError(
            f"run {history.name}: predictions start and end at steps {needed} of its "
            f"{config.steps}, and {lacking} were not kept and scored; queue it with keep = true "
            "and all of them in save_at"
        )


def _real(bench: Bench) -> Iterator[Row]:
    """The run's own checkpoints, as the queue scored them; the last origin and the end, beyond."""
    further = {bench.step(FRACTIONS[-1]), bench.last}
    for row in by_checkpoint(read_rows(bench.history.row)).iter_rows(named=True):
        step = row["step"]
        told = {name: row[name] for name in ("avg", "right", *_LOSSES)}
        if step in further:
            bench.stand.put(bench.update(step))
            told |= bench.stand.beyond()
        yield {"kind": "real", "origin": step, "target": step} | told


def _stopped(bench: Bench, key: Key) -> Row:
    """What stopping at the origin leaves between the weights; its scores are the checkpoint's."""
    found = against(bench.update(key.origin), bench.update(key.target))
    return {"kind": "stopped"} | key._asdict() | found


def _row(bench: Bench, key: Key) -> Row:
    """One prediction; those of the end from the last origin are scored beyond their task too."""
    told: Row = {"kind": "predicted"} | key._asdict()
    try:
        updates, found = _made(bench, CONTESTANTS[key.predictor], key.origin, key.target)
    except OffaxisError as error:  # a method may have nothing to say; that is a result
        return told | {"refused": str(error)}
    bench.stand.put(updates)
    told |= found | bench.stand.judged() | against(updates, bench.update(key.target))
    further = (key.origin, key.target) == (bench.step(FRACTIONS[-1]), bench.last)
    return told | bench.stand.beyond() if further else told


def _made(bench: Bench, who: Contestant, origin: int, target: int) -> tuple[Updates, Row]:
    """The predicted update, and the score that it aims at."""
    if who.goal == "chosen":
        return _chosen(bench, who, origin)
    predictor = _METHODS[who.method](_goal(bench, who, target))
    aims: float | None = None
    if isinstance(predictor, AlphaRL) and who.goal != "step":
        timeline = bench.history.timeline(origin, bench.curve, float(target))
        aims = predictor.factor * predictor.target.target(timeline).value
    (updates,) = bench.history.predicted(predictor, origin, curve=bench.curve, at=[float(target)])
    return updates, {"goal": aims}


def _goal(bench: Bench, who: Contestant, target: int) -> Goal:
    if who.goal == "oracle":
        return Goal("oracle", bench.validation(target))
    return Goal("extrapolated" if who.goal == "extrapolated" else "step")


def _chosen(bench: Bench, who: Contestant, origin: int) -> tuple[Updates, Row]:
    """The reach of `LADDER` that scores best on the validation problems; of equals the shorter.

    The search ends as `predict.scale.climb` does: two reaches in a row are worse than the best.
    """
    best: tuple[float, float, Updates] | None = None
    worse = 0
    predictor, at = _METHODS[who.method](Goal("step")), [origin * factor for factor in LADDER]
    reaches = bench.history.predicted(predictor, origin, curve=bench.curve, at=at)
    for factor, updates in zip(LADDER, reaches, strict=True):
        bench.stand.put(updates)
        score = bench.stand.validation().score.value
        if best is None or score > best[0]:
            best, worse = (score, factor, updates), 0
        else:
            worse = worse + 1 if score < best[0] else 0
        if worse == _PATIENCE:
            break
    assert best is not None
    return best[2], {"validation": best[0], "factor": best[1]}


_METHODS: Mapping[str, Callable[[Goal], Predictor]] = {
    "scale": lambda _: Scale(),
    "linear": lambda _: Linear(),
    "relex": lambda _: Relex(),
    "rank": lambda _: RankK(),
    "alpharl": lambda goal: AlphaRL(target=goal),
    "alpharl-code": lambda goal: AlphaRL("code", goal),
}
"""Method -> its predictor."""


def _rebuilt(bench: Bench, key: Key) -> Row:
    """The final update's matrices from a few of their directions, all else left at the base."""
    (updates,) = bench.history.predicted(
        REBUILT[key.predictor], key.origin, curve=bench.curve, at=[float(key.target)]
    )
    bench.stand.put(updates)
    told: Row = {"kind": "rebuilt"} | key._asdict()
    real = bench.update(key.target)
    return told | bench.stand.judged() | against(updates, real)
