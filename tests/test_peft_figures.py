"""The figures of the comparison of adapters: small, legible, the same bytes, whatever is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from offaxis.lab.peft.figures import FAMILIES, figures, write_figures
from offaxis.lab.peft.naming import label
from offaxis.lab.peft.summary import Runs
from offaxis.lab.plots import save_figure
from peft_rows import World, make_rows
from test_peft_geometry import ADAPTERS, NORMS, planted

NAMES = ["rates.svg", "ranking.svg", "scatter.svg", "energy.svg", "ranks.svg"]
KNOWN = [one for own in FAMILIES.values() for one in own]


@dataclass(frozen=True)
class Study:
    """What `write_figures` is given."""

    runs: Runs


def with_geometry(table: pl.DataFrame) -> pl.DataFrame:
    """Rows of every adapter, each with the planted geometry of one of a few."""
    found = []
    for row in table.iter_rows(named=True):
        adapter = row["adapter"]
        twin = adapter if adapter in ADAPTERS else ADAPTERS[1 + len(adapter or "") % 5]
        for one in row["checkpoints"]:
            if adapter:
                one.update(planted(twin if adapter != NORMS else NORMS, row["seed"], one["step"]))
        found.append(row)
    return pl.DataFrame(found, schema=table.schema)


@pytest.fixture(scope="module")
def study() -> Study:
    world = World(accuracy={one: -0.02 * place for place, one in enumerate(KNOWN)}, run=0.02)
    return Study(Runs(with_geometry(make_rows(world))))


@pytest.fixture(scope="module")
def written(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_figures(study, tmp_path_factory.mktemp("figures"))


def texts(path: Path) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8")))


def test_every_figure_is_small_and_names_every_adapter(written: list[Path]) -> None:
    assert [path.name for path in written] == NAMES
    for path in written:
        assert path.stat().st_size < 300_000, path.name
    labels = {label(one) for one in KNOWN}
    for path in written[:3]:
        assert labels <= texts(path), path.name
    assert labels - {label(NORMS)} <= texts(written[3]), "norm tuning moves no matrix"


def test_the_same_rows_give_the_same_bytes(
    study: Study, written: list[Path], tmp_path: Path
) -> None:
    name, figure = next(figures(study.runs))
    save_figure(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes() == written[0].read_bytes()


def visible_texts(figure: Any) -> list[Any]:
    from matplotlib.text import Text

    return [
        one
        for one in figure.findobj(Text)
        if one.get_text().strip() and one.get_visible() and one.get_window_extent().width > 0
    ]


def test_no_text_lies_on_another(study: Study) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, figure in figures(study.runs):
        FigureCanvasAgg(figure).draw()
        boxes = [(one.get_text(), one.get_window_extent().padded(-1)) for one in _drawn(figure)]
        for (first, a), (second, b) in combinations(boxes, 2):
            assert not a.overlaps(b), f"{name}: {first!r} lies on {second!r}"


def _drawn(figure: Any) -> list[Any]:
    """Texts inside the figure that are drawn: ticks beyond an axis' ends are not."""
    found = visible_texts(figure)
    hidden = set()
    for axis in figure.axes:
        for which, ends in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            low, high = sorted(ends)
            for tick in (*which.get_major_ticks(), *which.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [one for one in found if one not in hidden]


@pytest.mark.parametrize("left", ["selection", "one adapter"])
def test_partial_rows_are_drawn_as_far_as_they_go(study: Study, left: str, tmp_path: Path) -> None:
    rows = study.runs.rows
    base = pl.col("method") == "base"
    if left == "selection":
        rows = rows.filter(base | (pl.col("seed") >= 100))
    else:
        rows = rows.filter(base | (pl.col("adapter") == KNOWN[1]))
    written = write_figures(Study(Runs(rows)), tmp_path)
    assert [path.name for path in written] == NAMES
    if left == "selection":
        assert "no runs yet" in texts(written[2])
