"""The first study: its questions put to a queue's rows, its tables and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.queue import Store, read_rows
from offaxis.lab.study.answers import against_nulls, contrasts
from offaxis.lab.study.overlaps import PAIRS, overlap_pairs
from offaxis.lab.study.reproducibility import footprints, reproducibility
from offaxis.lab.study.words import markdown
from offaxis.output import staged_directory

__all__ = ["Study"]

_ANSWER = ("value", "low", "high", "units", "word")


@dataclass(frozen=True)
class Study:
    """A queue's rows with the overlaps of its runs' masks; everything else follows from them."""

    rows: pl.DataFrame
    pairs: pl.DataFrame
    """`overlaps.PAIRS`: which runs change the same entries."""

    @staticmethod
    def read(source: str | Path) -> Study:
        """From a queue's directory, or from a directory that `save` wrote.

        Raises InputError where it is neither, or where rows and masks do not belong together.
        """
        path = Path(source)
        if (path / "queue.json").is_file():
            store = Store.open(path)
            return Study(read_rows(store.directory), overlap_pairs(store))
        runs, pairs = path / "runs.parquet", path / "pairs.parquet"
        if not (runs.is_file() and pairs.is_file()):
            raise InputError(f"{path}: neither a queue nor a saved study (runs and pairs .parquet)")
        found = pl.read_parquet(pairs)
        if set(PAIRS) - set(found.columns):
            raise InputError(f"{pairs}: lacks {', '.join(sorted(set(PAIRS) - set(found.columns)))}")
        return Study(read_rows(runs), found)

    @cached_property
    def contrasts(self) -> pl.DataFrame:
        """RL against each kind of fine-tuning, reproducibility among the questions."""
        first, second = contrasts(self.rows), reproducibility(self.rows, self.pairs)
        return pl.concat([first, second.select(first.columns)], how="vertical_relaxed")

    @cached_property
    def nulls(self) -> pl.DataFrame:
        """Each method's overlaps minus their nulls."""
        return against_nulls(self.rows)

    @cached_property
    def footprints(self) -> pl.DataFrame:
        """Excess Jaccard overlap of pairs of runs."""
        return footprints(self.rows, self.pairs)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read, intervals as columns."""
        shown = ("claim", "against", "matching", "scale", *_ANSWER, "pairs")
        yield (
            "RL against fine-tuning (ratio: ln of RL over the other)",
            self.contrasts.select(shown),
        )
        own = self.nulls.filter(pl.col("learning_rate").is_null())
        yield "Each method against the nulls", own.select("method", "claim", *_ANSWER)
        yield "Shared footprints: Jaccard overlap minus its magnitude null", self.footprints

    def markdown(self) -> str:
        """The answers as Markdown tables."""
        return markdown(self.contrasts, self.nulls)

    def told(self) -> dict[str, Any]:
        """What `offaxis lab study --json` prints."""
        return {
            "schema": 1,
            "runs": self.rows.height,
            "contrasts": _plain(self.contrasts),
            "nulls": _plain(self.nulls),
            "footprints": _plain(self.footprints),
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the rows, the tables and the figures; the directory can be read again.

        `runs.parquet`, `pairs.parquet`, `contrasts.parquet`, `nulls.parquet`,
        `footprints.parquet` and figures. Raises OutputError where it is not empty (unless
        `overwrite`).
        """
        from offaxis.lab.plots import save_figure
        from offaxis.lab.study.figures import figures

        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            frames = {
                "runs": self.rows,
                "pairs": self.pairs,
                "contrasts": self.contrasts,
                "nulls": self.nulls,
                "footprints": self.footprints,
            }
            for name, frame in frames.items():
                frame.write_parquet(staged / f"{name}.parquet", compression="zstd")
            for name, figure in figures(self):
                save_figure(figure, staged / name)
        return out


def _plain(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, NaN as null."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in frame.iter_rows(named=True)
    ]
