"""The result of a comparison, of one base or of many, and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.output import staged_directory

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Comparison", "ManyComparison"]


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
            _write(staged, self.measurements, self.curves, self._summary, page)
        return out


@dataclass(frozen=True)
class ManyComparison:
    """The result of `compare_manifest`: a table of pairs, two long tables and a summary.

    pairs: one row a pair, in the manifest's order: its columns, then every summary number and
    interval (`offaxis.comparison.pairs.flat`). measurements, curves: as in `Comparison`, with the
    pair's name as `tuned`. columns: the leading columns of `pairs`, which are the manifest's.
    """

    pairs: pl.DataFrame
    measurements: pl.DataFrame
    curves: pl.DataFrame
    columns: tuple[str, ...]
    _summary: dict[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds, `base` being the manifest's path and `across` None."""
        return self._summary

    def report(self) -> str:
        """The table of all pairs as one HTML page."""
        from offaxis.report.pairs import render_pairs

        own = self.pairs.select(self.columns)
        return render_pairs(own, self.measurements, self._summary)

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write pairs.parquet, pairs.csv and the files that a `Comparison` writes, atomically.

        Returns the directory. Raises OutputError where it is not empty (unless `overwrite`) or
        cannot be written; then nothing is left behind.
        """
        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            _write(staged, self.measurements, self.curves, self._summary, self.report())
            self.pairs.write_parquet(staged / "pairs.parquet", compression="zstd")
            self.pairs.write_csv(staged / "pairs.csv")
        return out


def _write(
    staged: Path,
    measurements: pl.DataFrame,
    curves: pl.DataFrame,
    summary: dict[str, Any],
    page: str,
) -> None:
    measurements.write_parquet(staged / "measurements.parquet", compression="zstd")
    curves.write_parquet(staged / "curves.parquet", compression="zstd")
    (staged / "report.html").write_text(page, encoding="utf-8")
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (staged / "summary.json").write_text(text + "\n", encoding="utf-8")
