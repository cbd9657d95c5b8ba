"""The result of a comparison, and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.output import staged_directory

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: two tables and a summary, in memory.

    measurements: one row a number (`offaxis.table.MEASUREMENTS`). curves: one row a list.
    """

    measurements: pl.DataFrame
    curves: pl.DataFrame
    _summary: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds (DESIGN, section 2)."""
        return self._summary

    def report(
        self, *, scores: pl.DataFrame | None = None, contrasts: pl.DataFrame | None = None
    ) -> str:
        """The report as one HTML page. scores, contrasts: further tables that it shows."""
        from offaxis.report import render

        return render(
            self.measurements, self.curves, self._summary, scores=scores, contrasts=contrasts
        )

    def save(
        self,
        directory: str | PathLike[str],
        *,
        overwrite: bool = False,
        scores: pl.DataFrame | None = None,
        contrasts: pl.DataFrame | None = None,
    ) -> Path:
        """Write measurements.parquet, curves.parquet, summary.json and report.html, atomically.

        Returns the directory. Raises OutputError where it is not empty (unless `overwrite`) or
        cannot be written; then nothing is left behind.
        """
        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            page = self.report(scores=scores, contrasts=contrasts)
            self.measurements.write_parquet(staged / "measurements.parquet", compression="zstd")
            self.curves.write_parquet(staged / "curves.parquet", compression="zstd")
            (staged / "report.html").write_text(page, encoding="utf-8")
            text = json.dumps(self._summary, indent=2, ensure_ascii=False, allow_nan=False)
            (staged / "summary.json").write_text(text + "\n", encoding="utf-8")
        return out
