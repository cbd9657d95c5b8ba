"""One run: its validation curve, and every prediction of its weights made, scored and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from offaxis.errors import OffaxisError
from offaxis.lab.predict.candidates import CONTESTANTS, FRACTIONS, REACHES, REBUILT, Contestant
from offaxis.lab.predict.history import History
from offaxis.lab.predict.rows import CURVE, MODELS
from offaxis.lab.predict.standing import Stand, Updates, against
from offaxis.lab.queue.rows import by_checkpoint, read_rows
from offaxis.lab.tasks import TASKS
from offaxis.predict.curve import fit_curve
from offaxis.predict.linear import Linear
from offaxis.predict.methods import Predictor
from offaxis.predict.rebuilding import RankK
from offaxis.predict.relex import Relex
from offaxis.predict.scale import LADDER, Scale

__all__ = ["measure_run"]

Row = dict[str, Any]
_LOSSES = ("mixture_loss", *(f"mixture_loss_{task}" for task in TASKS))
_CODE_TARGET = 1.7
"""What the authors' code aims at, as a multiple of the final score."""
_PATIENCE = 2
"""Reaches of the ladder that may be worse than the best before the search ends."""


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


def measure_run(history: History) -> dict[str, pl.DataFrame]:
    """The tables `rows.TABLES` of one run."""
    stand = Stand(history.store, history.config)
    curve = history.curve(stand)
    bench = Bench(history, stand, curve)
    found = [*_real(bench), *_predicted(bench), *_rebuilt(bench)]
    models = pl.DataFrame([{"run": history.name} | row for row in found], schema=MODELS)
    return {"curve": curve.select(pl.col(name).cast(kind) for name, kind in CURVE.items()),
            "models": models}  # fmt: skip


def _real(bench: Bench) -> Iterator[Row]:
    """The run's own checkpoints, as the queue scored them; the last origin and the end, beyond."""
    asked = {bench.step(FRACTIONS[-1]), bench.last}
    for row in by_checkpoint(read_rows(bench.history.row)).iter_rows(named=True):
        step = row["step"]
        told = {name: row[name] for name in ("avg", "right", *_LOSSES)}
        if step in asked:
            bench.stand.put(bench.update(step))
            told |= bench.stand.beyond()
        yield {"kind": "real", "origin": step, "target": step} | told


def _predicted(bench: Bench) -> Iterator[Row]:
    for fraction in FRACTIONS:
        origin = bench.step(fraction)
        for contestant in CONTESTANTS.values():
            last = fraction == FRACTIONS[-1]
            yield _row(bench, contestant, origin, bench.last, beyond=last)
    for start, end in REACHES:
        for contestant in CONTESTANTS.values():
            if contestant.everywhere:
                yield _row(bench, contestant, bench.step(start), bench.step(end), beyond=False)


def _row(bench: Bench, who: Contestant, origin: int, target: int, *, beyond: bool) -> Row:
    told: Row = {"kind": "predicted", "predictor": who.name, "origin": origin, "target": target}
    try:
        updates, found = _made(bench, who, origin, target)
    except OffaxisError as error:  # a method may have nothing to say; that is a result
        return told | {"refused": str(error)}
    bench.stand.put(updates)
    told |= found | bench.stand.judged() | against(updates, bench.update(target))
    return told | bench.stand.beyond() if beyond else told


def _made(bench: Bench, who: Contestant, origin: int, target: int) -> tuple[Updates, Row]:
    """The predicted update, and what its goal was."""
    if who.goal == "chosen":
        return _chosen(bench, who, origin)
    goal, at = None, float(target)
    if who.goal == "extrapolated":
        known = bench.curve.filter(pl.col("step").is_between(1, origin))
        steps, scores = known["step"].to_list(), known["validation"].to_list()
        curve = fit_curve(steps, scores, base=bench.validation(0))
        goal = curve.at(target)[0]
    elif who.goal == "oracle":
        goal = bench.validation(target) * (_CODE_TARGET if who.method == "alpharl-code" else 1)
    (updates,) = _asked(bench, who, origin, [at], goal)
    return updates, {"goal": goal}


def _chosen(bench: Bench, who: Contestant, origin: int) -> tuple[Updates, Row]:
    """The reach of `LADDER` that scores best on the validation problems; of equals the shorter.

    The search ends as `predict.scale.climb` does: two reaches in a row are worse than the best.
    """
    best: tuple[float, float, Updates] | None = None
    worse = 0
    reaches = _asked(bench, who, origin, [origin * factor for factor in LADDER], None)
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


def _asked(
    bench: Bench, who: Contestant, origin: int, at: list[float], goal: float | None
) -> Iterator[Updates]:
    return bench.history.predicted(_METHODS[who.method](goal), origin, curve=bench.curve, at=at)


def _alpharl(goal: float | None) -> Predictor:
    return AlphaRL(goal=STEP if goal is None else given(goal))


_METHODS: Mapping[str, Callable[[float | None], Predictor]] = {
    "scale": lambda _: Scale(),
    "linear": lambda _: Linear(),
    "relex": lambda _: Relex(),
    "rank": lambda _: RankK(),
    "alpharl": _alpharl,
    "alpharl-code": lambda goal: AlphaRL(variant="code", goal=given(goal or 1.0)),
}
"""Method -> its predictor, told the score to reach."""


def _rebuilt(bench: Bench) -> Iterator[Row]:
    """The final update's matrices from a few of their directions, all else left at the base."""
    real = bench.update(bench.last)
    for name, predictor in REBUILT.items():
        (updates,) = bench.history.predicted(
            predictor, bench.last, curve=bench.curve, at=[float(bench.last)]
        )
        bench.stand.put(updates)
        told = {"kind": "rebuilt", "predictor": name, "origin": bench.last, "target": bench.last}
        yield told | bench.stand.judged() | bench.stand.beyond() | against(updates, real)
