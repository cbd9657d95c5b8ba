"""The causal test of The Path Not Taken (section 4.3), from a queue with kept checkpoints.

Runs from a base, from the same base in other coordinates (`offaxis.intervene`), and independent
ones: which entries and which directions do they share, in edited layers and elsewhere?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.causal.avoidance import avoidance
from offaxis.lab.causal.by_place import by_place
from offaxis.lab.causal.levels import Cell, cells, levels
from offaxis.lab.causal.measuring import measured
from offaxis.lab.causal.pairs import PAIRS
from offaxis.lab.causal.principal import PRINCIPAL
from offaxis.lab.causal.readings import falls, one_seed, readings
from offaxis.lab.causal.subjects import trained
from offaxis.lab.causal.words import blocks
from offaxis.lab.queue import Store, read_rows
from offaxis.lab.saved import SavedStudy

__all__ = ["CausalStudy"]


@dataclass(frozen=True)
class CausalStudy(SavedStudy):
    """A queue's rows with what was measured on its checkpoints; everything else follows."""

    pairs: pl.DataFrame
    """`pairs.PAIRS`: pairs of runs, matrix by matrix."""
    principal: pl.DataFrame
    """`principal.PRINCIPAL`: runs against principal entries, matrix by matrix."""

    name = "causal"
    saved = ("pairs", "principal")

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """From a queue's directory (its checkpoints kept), or one that `save` wrote.

        Raises InputError where it is neither, or no run of it started from an edited base.
        """
        path = Path(source)
        if (path / "queue.json").is_file():
            store = Store.open(path)
            rows = read_rows(store.directory)
            return cls(rows, *measured(store, rows))
        files = [path / f"{name}.parquet" for name in ("runs", *cls.saved)]
        if absent := [file.name for file in files if not file.is_file()]:
            raise InputError(
                f"{path}: neither a queue nor a saved study ({', '.join(absent)} is not there); "
                "name the directory of one"
            )
        rows = read_rows(files[0])
        study = cls(rows, *(pl.read_parquet(file) for file in files[1:]))
        study.check()
        return study

    def check(self) -> None:
        """InputError for rows without an edited run, or tables that are not this study's."""
        trained(self.rows)
        for name, schema in (("pairs", PAIRS), ("principal", PRINCIPAL)):
            table: pl.DataFrame = getattr(self, name)
            if absent := sorted(set(schema) - set(table.columns)):
                raise InputError(
                    f"{name}.parquet: lacks {', '.join(absent)}, so it is of another version; "
                    "measure the queue again"
                )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Arms, edits, steps and scopes with their pairs."""
        return tuple(cells(self.rows, self.pairs))

    @cached_property
    def levels(self) -> pl.DataFrame:
        """Columns `levels.LEVELS`."""
        return levels(self.cells)

    @cached_property
    def falls(self) -> pl.DataFrame:
        """Columns `readings.FALLS`."""
        return falls(self.cells)

    @cached_property
    def readings(self) -> pl.DataFrame:
        """What each arm, edit and step says, by the rule of `readings`."""
        return readings(self.falls)

    @cached_property
    def one_seed(self) -> pl.DataFrame:
        """Columns `readings.ONE`."""
        return one_seed(self.cells)

    @cached_property
    def avoidance(self) -> pl.DataFrame:
        """Columns `avoidance.AVOIDANCE`."""
        return avoidance(self.rows, self.principal)

    @cached_property
    def by_place(self) -> pl.DataFrame:
        """Columns `by_place.PLACES`."""
        return by_place(self.rows, self.pairs)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables to read."""
        yield "Falls of likeness (level − reference)", self.falls.drop("reference_low", "seeds")
        yield "Readings", self.readings
        yield "Runs of one seed: cosine of updates", self.one_seed
        yield "Overlap with principal entries − magnitude null", self.avoidance

    def blocks(self) -> Mapping[str, str]:
        """Markdown by the name of the block that it stands in."""
        return blocks(self)

    def markdown(self) -> str:
        """All tables as Markdown, in named blocks."""
        return "\n\n".join(self.blocks().values()) + "\n"

    def told(self) -> dict[str, Any]:
        """What `offaxis lab causal --json` prints."""
        names = ("levels", "falls", "readings", "one_seed", "avoidance", "by_place")
        return {"schema": 1, "runs": self.rows.height} | {
            name: getattr(self, name).fill_nan(None).to_dicts() for name in names
        }

    def draw(self, out: Path) -> None:
        """Write the figure into a directory; none where no two seeds can be compared."""
        if self.by_place.is_empty():
            return
        from offaxis.lab.causal.figures import by_layer
        from offaxis.lab.plots import save_figure

        save_figure(by_layer(self), out / "layers.svg")
