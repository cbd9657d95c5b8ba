"""One run's kept checkpoints as a series, with its validation scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.predict.standing import Stand, Updates, right
from offaxis.lab.queue import Store
from offaxis.lab.queue.grid import RunConfig
from offaxis.predict.methods import Predictor, Timeline
from offaxis.predict.series import Series, open_series

__all__ = ["History"]


@dataclass(frozen=True, eq=False)
class History:
    """What predictions of one run are made from, and held against."""

    store: Store
    config: RunConfig

    @property
    def name(self) -> str:
        return self.config.identity(self.store.base_digest)

    @property
    def row(self) -> Path:
        """The queue's row of the run."""
        return self.store.row(self.name)

    @cached_property
    def paths(self) -> dict[int, Path]:
        """Step -> checkpoint. InputError where they were not kept."""
        kept = self.store.directory / "checkpoints" / self.name
        found = {
            int(one.name.removeprefix("checkpoint-")): one for one in kept.glob("checkpoint-*")
        }
        if not found:
            raise InputError(
                f"{kept}: holds no checkpoints of run {self.name}, from which all is measured; "
                "queue it with keep = true"
            )
        return dict(sorted(found.items()))

    @cached_property
    def series(self) -> Series:
        return open_series(self.store.base, list(self.paths.values()), steps=list(self.paths))

    def until(self, origin: int) -> Series:
        """The checkpoints up to a step."""
        return self.series.subset([n for n, step in enumerate(self.paths) if step <= origin])

    def update(self, step: int) -> Updates:
        """θ_step − θ_base."""
        place = list(self.paths).index(step)
        return {trail.name: trail[place] for trail in self.series.trails()}

    def curve(self, stand: Stand) -> pl.DataFrame:
        """Columns `rows.CURVE`: the base and every checkpoint on the validation problems."""
        rows: list[dict[str, Any]] = []
        for step in (0, *self.paths):
            stand.put(self.update(step) if step else {})
            sitting = stand.validation()
            told = {"run": self.name, "step": step, "validation": sitting.score.value}
            rows.append(told | right(sitting))
        return pl.DataFrame(rows)

    def timeline(self, origin: int, curve: pl.DataFrame, at: float) -> Timeline:
        """Steps and validation scores up to `origin`; later ones are not handed over."""
        scores = dict(curve.select("step", "validation").iter_rows())
        steps = [step for step in self.paths if step <= origin]
        known = np.array([scores[step] for step in steps], dtype=np.float64)
        return Timeline(np.array(steps, dtype=np.float64), at, known, scores[0])

    def predicted(
        self, predictor: Predictor, origin: int, *, curve: pl.DataFrame, at: list[float]
    ) -> Iterator[Updates]:
        """What a method makes of the checkpoints up to `origin`, for each of some steps."""
        timeline = self.timeline(origin, curve, at[0])
        trails = self.until(origin).trails(cut=predictor.cuts)
        fits = {trail.name: predictor.fit(trail, timeline) for trail in trails}
        for step in at:
            updates = {name: fit.update(step) for name, fit in fits.items()}
            yield {name: one for name, one in updates.items() if one is not None}
