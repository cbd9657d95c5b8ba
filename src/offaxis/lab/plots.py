"""Plots of the queue's rows: one number against another, coloured by a setting, in panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.query import query
from offaxis.output import staged_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Look", "draw", "new_figure", "save_figure"]

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#a6761d",
)  # fmt: skip
"""Okabe and Ito's palette, readable by the colour-blind, with grey and brown for the seventh and
eighth group."""

_MARKERS = "osD^vPX*"
_MOST_GROUPS = 8
_MOST_PANELS = 12
_KINDS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Look:
    """What a plot shows. x, y: number columns. colour, panel: columns of few values."""

    x: str
    y: str
    colour: str = "method"
    panel: str | None = "task"
    where: str | None = None
    join: bool = True
    """Join each run's checkpoints by a line."""


def new_figure(
    panels: int, *, width: float = 4.2, height: float = 3.4, across: int = 4
) -> tuple[Figure, Any]:
    """A quiet figure of panels, at most `across` in a row; axes come as a flat list."""
    from matplotlib.figure import Figure

    columns = min(panels, across)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=8)
    return figure, axes[:panels]


def _groups(table: pl.DataFrame, column: str, most: int) -> list[Any]:
    values = table[column].unique().sort().to_list()
    if len(values) > most:
        raise InputError(
            f"{column} has {len(values)} values, and {most} can be told apart: narrow the plot "
            "with --where or choose another column"
        )
    return values


def _scale(axis: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where all values are positive and span more than a factor of 20."""
    if values and min(values) > 0 and max(values) > 20 * min(values):
        getattr(axis, f"set_{which}scale")("log")


def draw(source: str | Path, look: Look) -> Figure:
    """The figure. A null of y that has a column of its own (`y_magnitude_null`) is drawn dashed.

    Raises InputError for unknown columns, columns that are no numbers, too many groups, or where
    nothing is left to draw.
    """
    sql = f"SELECT * FROM checkpoints WHERE {look.where or 'true'}"
    table = query(source, sql)
    wanted = [look.x, look.y, look.colour, *([look.panel] if look.panel else [])]
    if unknown := [name for name in wanted if name not in table.columns]:
        raise InputError(
            f"no column {', '.join(unknown)}; there are {', '.join(sorted(table.columns))}"
        )
    for name in (look.x, look.y):
        if not table.schema[name].is_numeric():
            raise InputError(f"{name} holds {table.schema[name]}, and a number is needed")
    table = table.drop_nulls([look.x, look.y])
    if table.is_empty():
        raise InputError(f"no checkpoint has both {look.x} and {look.y} (with this --where)")
    panels = _groups(table, look.panel, _MOST_PANELS) if look.panel else [None]
    colours = dict(zip(_groups(table, look.colour, _MOST_GROUPS), COLOURS, strict=False))
    figure, axes = new_figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        shown = table.filter(pl.col(look.panel) == panel) if look.panel else table
        _panel(axis, shown, look, colours)
        if panel is not None:
            axis.set_title(str(panel), fontsize=9)
    axes[0].legend(fontsize=7, frameon=False, title=look.colour, title_fontsize=7)
    return figure


def _panel(axis: Any, table: pl.DataFrame, look: Look, colours: dict[Any, str]) -> None:
    null = f"{look.y}_magnitude_null"
    for number, (value, colour) in enumerate(colours.items()):
        named = False
        for _, run in table.filter(pl.col(look.colour) == value).group_by("run"):
            points = run.sort("step")
            axis.plot(
                points[look.x], points[look.y], marker=_MARKERS[number % len(_MARKERS)],
                markersize=3.5, linewidth=0.8 if look.join else 0, alpha=0.75, color=colour,
                label=None if named else str(value),
            )  # fmt: skip
            named = True
            if null in points.columns and points[null].count():
                axis.plot(points[look.x], points[null], "--", linewidth=0.8, color=colour,
                          alpha=0.5)  # fmt: skip
    _scale(axis, "x", table[look.x].to_list())
    _scale(axis, "y", table[look.y].to_list())
    axis.set_xlabel(look.x.replace("_", " "), fontsize=8)
    axis.set_ylabel(look.y.replace("_", " "), fontsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, PNG or PDF by the file's ending; the same figure gives the same bytes.

    Raises InputError for another ending.
    """
    import matplotlib

    if path.suffix.lower() not in _KINDS:
        raise InputError(f"{path}: a plot is written as one of {', '.join(_KINDS)}")
    stamp = {"Date": None} if path.suffix.lower() == ".svg" else {}
    settings = {"svg.hashsalt": "offaxis", "svg.fonttype": "none"}
    with staged_file(path) as staged, matplotlib.rc_context(settings):
        figure.savefig(staged, dpi=130, metadata=stamp)
