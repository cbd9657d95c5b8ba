"""Every method of a queue side by side, from its rows: one table, its words and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.lab.methods.passing import against_base
from offaxis.lab.methods.summary import MEASURES, summarise
from offaxis.lab.methods.words import markdown
from offaxis.lab.queue import read_rows
from offaxis.output import staged_directory

__all__ = ["MethodTable"]


@dataclass(frozen=True)
class MethodTable:
    """A queue's rows; everything else follows from them."""

    rows: pl.DataFrame

    @staticmethod
    def read(source: str | Path) -> MethodTable:
        """From a queue's directory, a directory that `save` wrote, or a table of rows.

        Raises InputError where it is none of them.
        """
        path = Path(source)
        saved = path / "runs.parquet"
        return MethodTable(read_rows(saved if saved.is_file() else path))

    @cached_property
    def summary(self) -> pl.DataFrame:
        """Means over seeds of every measure: columns `SUMMARY`."""
        return summarise(self.rows)

    @cached_property
    def passes(self) -> pl.DataFrame | None:
        """pass@k against the base's: columns `PASSING`; None where rows hold no counts."""
        if "right" not in self.rows.schema["checkpoints"].inner.to_schema():  # type: ignore[attr-defined]
            return None
        return against_base(self.rows)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read: a row a method and rate, a column a measure."""
        for part in dict.fromkeys(one.part for one in MEASURES):
            names = [one.name for one in MEASURES if one.part == part]
            own = self.summary.filter(pl.col("measure").is_in(names))
            keys = ["method", "learning_rate"]
            table = own.pivot(on="measure", index=keys, values="value")
            yield part, table.select(*keys, *(name for name in names if name in table.columns))
        if self.passes is not None:
            columns = ("exam", "method", "learning_rate", "k", "value", "difference", "low", "high")
            yield "pass@k against the base's", self.passes.select(columns)

    def markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.summary, self.passes)

    def told(self) -> dict[str, Any]:
        """What `offaxis lab methods --json` prints."""
        return {
            "schema": 1,
            "runs": self.rows.height,
            "measures": {one.name: one.meaning for one in MEASURES},
            "summary": self.summary.to_dicts(),
            "passes": [] if self.passes is None else self.passes.to_dicts(),
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write rows, tables and figures; the directory can be read again.

        `runs.parquet`, `summary.parquet`, `passes.parquet`, `methods.md` and figures. Raises
        OutputError where it is not empty (unless `overwrite`).
        """
        from offaxis.lab.methods.figures import figures
        from offaxis.lab.plots import save_figure

        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            frames = {"runs": self.rows, "summary": self.summary, "passes": self.passes}
            for name, frame in frames.items():
                if frame is not None:
                    frame.write_parquet(staged / f"{name}.parquet", compression="zstd")
            (staged / "methods.md").write_text(self.markdown(), encoding="utf-8")
            for name, figure in figures(self):
                save_figure(figure, staged / name)
        return out
