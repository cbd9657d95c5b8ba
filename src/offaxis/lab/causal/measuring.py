"""From a queue with kept checkpoints to the two tables that everything else follows from."""

from __future__ import annotations

from typing import Any

import polars as pl

from offaxis.checkpoint import open_checkpoint
from offaxis.lab.causal.pairs import PAIRS, pair_rows
from offaxis.lab.causal.principal import PRINCIPAL, principal_entries, principal_row
from offaxis.lab.causal.subjects import Flags, Subject, look, matrices, subjects
from offaxis.lab.queue import Store

__all__ = ["measured"]


def measured(store: Store, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `PAIRS` and `PRINCIPAL` of all finished runs of a queue.

    Matrix by matrix; of one arm's runs at one step all are in memory at once. InputError where
    checkpoints were not kept.
    """
    base = open_checkpoint(str(store.base))
    arms = subjects(store, rows)
    pairs: list[dict[str, Any]] = []
    principal: list[dict[str, Any]] = []
    for part in matrices(base):
        place = {"tensor": part.tensor, "layer": part.layer, "role": part.role}
        original = base[part.tensor]
        fixed: dict[str | None, Flags] = {None: principal_entries(original)}
        for runs in arms.values():
            for step in _common_steps(runs):
                seen = [look(one, step, part.tensor, original) for one in runs]
                told = place | {"step": step}
                pairs += [told | row for row in pair_rows(runs, seen)]
                for run, one in zip(runs, seen, strict=True):
                    key = run.edit if one.edited else None
                    if key not in fixed:
                        fixed[key] = principal_entries(one.ground)
                    row = principal_row(one, fixed[key], fixed[None])
                    principal.append(told | {"run": run.run} | row)
    return _frame(pairs, PAIRS), _frame(principal, PRINCIPAL)


def _common_steps(runs: list[Subject]) -> list[int]:
    """Steps at which every run of an arm has a checkpoint."""
    return sorted(set.intersection(*(set(run.steps) for run in runs)))


def _frame(rows: list[dict[str, Any]], schema: dict[str, Any]) -> pl.DataFrame:
    """Undefined numbers as null; 32 bits are more than any of these are good for."""
    found = pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)
    narrow = [name for name, kind in schema.items() if kind == pl.Float64()]
    return found.with_columns(pl.col(narrow).fill_nan(None).cast(pl.Float32))
