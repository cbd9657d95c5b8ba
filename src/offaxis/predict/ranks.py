"""`rank_study`: models rebuilt from a few singular directions of an update, and what those hold."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from offaxis.errors import InputError
from offaxis.linalg import gram
from offaxis.masks import Progress
from offaxis.output import check_output, explained, staged_directory
from offaxis.predict.injecting import Injection, added, replaced, stored_parts
from offaxis.predict.rank_tables import Row, frame, summary
from offaxis.predict.rebuilding import (
    Directions,
    RankLike,
    Recipe,
    directions,
    parse_recipes,
    percent_rank,
)
from offaxis.predict.series import Series, open_series
from offaxis.predict.surveying import survey
from offaxis.predict.trails import SeriesTrail
from offaxis.predict.writing import check_place, codes_of

if TYPE_CHECKING:
    import polars as pl

__all__ = ["GROUPS", "RankStudy", "group_of", "rank_study"]

AnyPath = str | PathLike[str]
_Told = Callable[[Progress], None]

GROUPS = ("matrices", "embeddings", "norms", "head", "biases", "other")
"""Kinds of parameters. A study rebuilds matrices; the others stay at the base unless asked for."""

_OF_ROLE = {
    "embed": "embeddings",
    "position_embed": "embeddings",
    "norm": "norms",
    "bias": "biases",
    "lm_head": "head",
    "classifier": "head",
    "value_head": "head",
}


def group_of(trail: SeriesTrail) -> str:
    """Which of `GROUPS` a part belongs to."""
    if trail.is_matrix:
        return "matrices"
    return _OF_ROLE.get(trail.part.role.rpartition(".")[2], "other")


@dataclass(frozen=True, eq=False)
class RankStudy:
    """What a study found. directory: where its models are; None where none were written."""

    directory: Path | None
    recipes: tuple[Recipe, ...]
    models: tuple[Path, ...]
    """One directory a recipe, in order; empty where none were written."""
    measurements: pl.DataFrame
    """Long form, one row a number (`rank_tables.COLUMNS`)."""
    _summary: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What `ranks.json` holds."""
        return self._summary


def rank_study(
    base: AnyPath,
    tuned: AnyPath,
    *,
    ranks: Sequence[RankLike] = (1, "1%"),
    components: Sequence[int] = (),
    scales: Sequence[float] = (),
    rescale: bool = True,
    include: Sequence[str] = (),
    step: float | None = None,
    at: float | None = None,
    score: float | None = None,
    out: str | Path | None = None,
    dtype: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: _Told | None = None,
) -> RankStudy:
    """Rebuild `tuned` from parts of ΔW = θ_tuned − θ_BASE, matrix by matrix, and measure the parts.

    ΔW = Σ σᵢuᵢvᵢᵀ. A rank k (`4`, `"1%"` = max(1, ⌊min(m, n)/100⌋), `"full"`) keeps i ≤ k, a
    component keeps one i, both made ‖ΔW‖_F long unless `rescale` is False (AlphaRL, eqs. 2, 3); a
    scale s is s·‖ΔW‖_F·u₁v₁ᵀ (section 2.2, Fig. 4b). Everything that is no matrix stays at the base
    but for the groups in `include` (`embeddings`, `norms`, `head`, `biases`, `other`), which are
    `tuned`'s values. at: all of it is grown in proportion to the step, times at / step; step: of
    `tuned`, where its name does not tell. score: `tuned`'s, for the record. Float64, rounded once
    to `tuned`'s dtypes or `dtype`.

    out: one recipe: a model in `out`; several: one in `out/<recipe>` each; beside them
    `ranks.parquet` and `ranks.json`. None: numbers alone. seed: of the permuted null.

    Raises InputError for a recipe or a group that is not known; AlignmentError, CheckpointError for
    checkpoints that do not belong together or hold NaN; OutputError where `out` cannot be written.
    Source: AlphaRL (arXiv 2510.00553), section 2, tables 7 and 8 for the norms.
    """
    recipes = parse_recipes(ranks, components=components, scales=scales, rescale=rescale)
    _check_groups(include)
    steps = None if step is None else [step]
    series = open_series(base, [tuned], steps=steps, scores=[score], allow_pickle=allow_pickle)
    growth = 1.0 if at is None else at / float(series.timeline(at).steps[-1])
    codes_of(series, dtype)
    if out is not None:
        check_output(Path(out), overwrite=overwrite)
        check_place(series, Path(out))
    study = _Study(series, recipes, frozenset(include), growth, seed, dtype, at)
    told = progress or (lambda _: None)
    found = survey(series, progress=told, ahead=study.entries)
    study.told, study.done = told, found.parameters
    if out is None:
        study.run(())
        return study.result(None, ())
    return _written(study, Path(out), overwrite)


def _written(study: _Study, out: Path, overwrite: bool) -> RankStudy:
    """Run the study with its models, table and summary written into `out`, whole or not at all."""
    names = [""] if len(study.recipes) == 1 else [one.name for one in study.recipes]
    with staged_directory(out, overwrite=overwrite) as staged:
        study.run([staged / name for name in names])
        made = study.result(out, [out / name for name in names])
        with explained(out):
            made.measurements.write_parquet(staged / "ranks.parquet")
            text = json.dumps(made.summary(), indent=2, ensure_ascii=False, allow_nan=False)
            (staged / "ranks.json").write_text(text + "\n", encoding="utf-8")
    return made


def _check_groups(include: Sequence[str]) -> None:
    if unknown := sorted(set(include) - set(GROUPS[1:])):
        raise InputError(
            f"include {', '.join(unknown)}: choose from {', '.join(GROUPS[1:])}; matrices are "
            "always rebuilt"
        )


class _Study:
    """One pass over the stored tensors: each matrix is decomposed once for all recipes."""

    def __init__(
        self,
        series: Series,
        recipes: tuple[Recipe, ...],
        include: frozenset[str],
        growth: float,
        seed: int,
        dtype: str | None,
        at: float | None,
    ) -> None:
        self.series, self.recipes, self.include = series, recipes, include
        self.growth, self.seed, self.dtype, self.at = growth, seed, dtype, at
        self.parts = list(stored_parts(series))
        self.entries = sum(prod(t.shape) for _, parts in self.parts for t in parts)
        self.rows: list[Row] = []
        self.told: _Told = lambda _: None
        self.done = 0

    @property
    def changed(self) -> set[str]:
        """Stored tensors that hold a matrix, or belong to an included group."""
        wanted = {"matrices", *self.include}
        return {name for name, parts in self.parts if any(group_of(t) in wanted for t in parts)}

    def run(self, directories: Sequence[Path]) -> None:
        """Measure every part; write the recipes' models into `directories` where given."""
        with ExitStack() as stack:
            changed = self.changed
            files = [
                stack.enter_context(Injection(self.series, one, changed=changed, dtype=self.dtype))
                for one in directories
            ]
            total = self.done + self.entries
            for name, parts in self.parts:
                found = [(trail, self._measured(trail)) for trail in parts]
                for recipe, file in zip(self.recipes, files, strict=bool(files)):
                    if name in changed:
                        file.put(name, self._value(name, found, recipe))
                self.done += sum(prod(trail.shape) for trail in parts)
                self.told(Progress(self.done, total, name))

    def _value(
        self, name: str, found: Sequence[tuple[SeriesTrail, Directions | None]], recipe: Recipe
    ) -> torch.Tensor:
        """A stored tensor of one recipe's model, float64."""
        whole = [trail for trail, one in found if one is None and group_of(trail) in self.include]
        if whole and self.growth == 1:  # tuned's values to the last bit
            return replaced(self.series, name, [(t, t.stored(0).double()) for t in whole])
        changes = [(t, self.growth * torch.from_numpy(t[0])) for t in whole]
        changes += [
            (trail, self.growth * recipe.rebuild(one)) for trail, one in found if one is not None
        ]
        return added(self.series, name, changes)

    def _measured(self, trail: SeriesTrail) -> Directions | None:
        """Note one part's numbers; the directions of a matrix."""
        update = torch.from_numpy(trail[0])
        size = float(torch.linalg.vector_norm(trail.ground().double()))
        group = group_of(trail)
        own = Row.of(trail, group, included=group == "matrices" or group in self.include)
        if not trail.is_matrix:
            norm = float(torch.linalg.vector_norm(update))
            self.rows += own.numbers({"update_norm": norm, "base_norm": size})
            return None
        percent = percent_rank(1, trail.shape)
        most = max(percent, *(one.reach(trail.shape) for one in self.recipes))
        found = directions(update, most=most, name=trail.name)
        numbers = {"update_norm": found.norm, "base_norm": size, "rank1pct_rank": float(percent)}
        self.rows += own.numbers(numbers)
        self.rows += own.shares(self._shares(trail, update, found, percent), moved=found.norm > 0)
        return found

    def _shares(
        self, trail: SeriesTrail, update: torch.Tensor, found: Directions, percent: int
    ) -> dict[str, float]:
        """Shares of ‖ΔW‖_F, and by what each recipe lengthens its part."""
        moved = found.norm > 0
        size = found.norm if moved else 1.0
        seed = [self.seed, zlib.crc32(trail.name.encode())]
        out = {
            "rank1_norm_share": found.part_norm(0, 1) / size,
            "rank1pct_norm_share": found.part_norm(0, percent) / size,
            "rank1_norm_share_null": _permuted_share(update, seed) if moved else 0.0,
        }
        for recipe in self.recipes:
            own = found.part_norm(*recipe.stretch(trail.shape))
            out[f"norm_share[{recipe.name}]"] = own / size
            out[f"factor[{recipe.name}]"] = self.growth * recipe.factor_of(found)
        return out

    def result(self, out: Path | None, models: Sequence[Path]) -> RankStudy:
        series = self.series
        last = series.points[0]
        about = {
            "base": series.base.source, "tuned": last.name, "step": last.step, "score": last.score,
            "at": self.at, "growth": self.growth, "dtype": self.dtype,
            "include": sorted(self.include),
        }  # fmt: skip
        table = frame(self.rows)
        told = summary(
            table, self.recipes, about, models=models, notes=series.notes, seed=self.seed
        )
        return RankStudy(out, self.recipes, tuple(models), table, told)


def _permuted_share(update: torch.Tensor, seed: list[int]) -> float:
    """σ₁/‖·‖_F of the same entries in another order: what size alone gives a matrix."""
    drawn = np.random.default_rng(seed).permutation(update.numel())
    mixed = update.reshape(-1)[torch.from_numpy(drawn)].reshape(update.shape)
    mixed = mixed / float(mixed.abs().max())
    squares = torch.linalg.eigvalsh(gram(mixed))
    return math.sqrt(max(0.0, float(squares[-1]))) / float(torch.linalg.vector_norm(mixed))
