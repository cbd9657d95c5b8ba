"""What the lab's studies have in common: rows read, tables and figures saved, documents renewed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.blocks import refreshed
from offaxis.lab.queue import read_rows
from offaxis.output import staged_directory, staged_file

__all__ = ["SavedStudy"]


@dataclass(frozen=True)
class SavedStudy(ABC):
    """A queue's rows; everything else follows from them. Runs may still be missing."""

    rows: pl.DataFrame

    name: ClassVar[str]
    """Of the Markdown file that `save` writes."""
    saved: ClassVar[tuple[str, ...]]
    """Attributes that are tables, each saved as a Parquet file."""

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """From a queue's directory, a directory that `save` wrote, or a table of rows.

        Raises InputError where it is none of them, or holds no base or no run of the study.
        """
        path = Path(source)
        kept = path / "runs.parquet"
        study = cls(read_rows(kept if kept.is_file() else path))
        study.check()
        return study

    @abstractmethod
    def check(self) -> None:
        """InputError for rows that answer nothing."""

    @abstractmethod
    def blocks(self) -> Mapping[str, str]:
        """Markdown by the name of the block that it stands in."""

    @abstractmethod
    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""

    @abstractmethod
    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What the command prints as JSON."""

    @abstractmethod
    def draw(self, out: Path) -> None:
        """Write the figures into a directory."""

    def refresh(self, path: str | Path) -> None:
        """Make the marked blocks of a Markdown file new (`blocks.refreshed`).

        InputError where there is no such file, or where it asks for a block that is not known.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as a text file: {error}") from error
        new = refreshed(text, self.blocks(), where=str(file))
        with staged_file(file) as staged:
            staged.write_text(new, encoding="utf-8")

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write rows, tables and figures; the directory can be read again.

        `runs.parquet`, a Parquet file a table, `NAME.md` and figures. Raises OutputError where it
        is not empty (unless `overwrite`).
        """
        out = Path(directory)
        with staged_directory(out, overwrite=overwrite) as staged:
            self.rows.write_parquet(staged / "runs.parquet", compression="zstd")
            for name in self.saved:
                table: pl.DataFrame = getattr(self, name)
                table.write_parquet(staged / f"{name}.parquet", compression="zstd")
            (staged / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
            self.draw(staged)
        return out
