"""Asking the queue's rows: SQL over runs and checkpoints, and a short table by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.queue import by_checkpoint, read_rows

__all__ = ["DEFAULT_COLUMNS", "checkpoint_table", "grouped", "query"]

DEFAULT_COLUMNS = (
    "avg",
    "relative_update_norm",
    "unchanged_bf16",
    "nss",
    "rotation_left_deg",
    "principal_overlap_excess",
    "effective_rank",
    "kl_tuned_base",
    "mixture_loss",
)
"""What `lab table` shows unless it is told otherwise."""


def checkpoint_table(source: str | Path) -> pl.DataFrame:
    """One row a checkpoint; `last` is true at each run's last step."""
    table = by_checkpoint(read_rows(source))
    return table.with_columns((pl.col("step") == pl.col("step").max().over("run")).alias("last"))


def query(source: str | Path, sql: str) -> pl.DataFrame:
    """The answer to a SQL query over two tables, `runs` and `checkpoints` (polars' dialect)."""
    rows = read_rows(source)
    context = pl.SQLContext({"runs": rows, "checkpoints": checkpoint_table(source)})
    try:
        return context.execute(sql, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.SQLInterfaceError) as error:
        raise InputError(f"this query cannot be answered: {error}") from error


def grouped(
    source: str | Path,
    *,
    by: Sequence[str] = ("method", "task", "learning_rate"),
    columns: Sequence[str] = DEFAULT_COLUMNS,
    where: str | None = None,
) -> pl.DataFrame:
    """Mean and standard deviation of columns in each group, over runs at their last checkpoint.

    where: a SQL condition on the columns of `checkpoints`; with one, all checkpoints that meet it
    count, not the last alone. Columns are `by`, `n`, and for each of `columns` its mean and its
    standard deviation between runs as `NAME` and `NAME_sd` (null for a single run).
    """
    condition = where or '"last"'
    table = query(source, f"SELECT * FROM checkpoints WHERE {condition}")
    unknown = [name for name in (*by, *columns) if name not in table.columns]
    if unknown:
        raise InputError(
            f"no column {', '.join(unknown)}; there are {', '.join(sorted(table.columns))}"
        )
    numbers = [name for name in columns if table.schema[name].is_numeric()]
    if len(numbers) < len(columns):
        raise InputError(f"{', '.join(set(columns) - set(numbers))}: not numbers, so no mean")
    found = table.group_by(by, maintain_order=True).agg(
        pl.len().alias("n"),
        *(pl.col(name).mean() for name in numbers),
        *(pl.col(name).std().alias(f"{name}_sd") for name in numbers),
    )
    return found.sort(by)
