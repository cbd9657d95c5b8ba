"""The figure of the verdict's study: the runs, calibration, abstention, and how early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.lab.plots import COLOURS, new_figure
from offaxis.lab.verdict.rule import SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.verdict import VerdictStudy

__all__ = ["figures"]

_KINDS = {
    True: ("RL", COLOURS[0]),
    False: ("fine-tuning", COLOURS[1]),
    None: ("neither", "#555555"),
}
_MARKS = {"adamw_torch": "o", "sgd": "s", "rmsprop": "^", "adafactor": "D"}
_SET_COLOURS = dict(zip(SETS, ("#6b6b6b", COLOURS[2], COLOURS[3]), strict=True))


def figures(study: VerdictStudy) -> Iterator[tuple[str, Figure]]:
    """File name and figure."""
    figure, axes = new_figure(4, width=3.6, height=3.1, across=2)
    _runs(axes[0], study)
    _reliability(axes[1], study)
    _risk(axes[2], study)
    _steps(axes[3], study)
    yield "verdict.svg", figure


def _runs(axis: Any, study: VerdictStudy) -> None:
    """Effective rank against norm; hollow: a bfloat16 store."""
    last = study.material.test.filter("last")
    for (kind, optimizer, dtype), own in last.group_by("rl", "optimizer", "dtype"):
        colour = _KINDS[kind][1]
        axis.plot(own["relative_update_norm"], own["effective_rank"], linestyle="none",
                  marker=_MARKS.get(str(optimizer), "x"), markersize=4, color=colour,
                  markerfacecolor="none" if dtype == "bfloat16" else colour, alpha=0.8)  # fmt: skip
    for name, colour in _KINDS.values():
        axis.plot([], [], "o", color=colour, markersize=4, label=name)
    for optimizer in last["optimizer"].unique().sort():
        axis.plot(
            [], [], _MARKS.get(optimizer, "x"), color="#999999", markersize=4, label=optimizer
        )
    axis.set_xscale("log")
    axis.set_xlabel("‖ΔW‖ / ‖W₀‖ (hollow: bfloat16 store)", fontsize=8)
    axis.set_ylabel("effective rank of ΔW", fontsize=8)
    axis.legend(fontsize=6, frameon=False, ncols=2)


def _reliability(axis: Any, study: VerdictStudy) -> None:
    for name, colour in _SET_COLOURS.items():
        own = study.reliability.filter(set=name)
        axis.plot(own["predicted"], own["observed"], "o-", color=colour, markersize=4,
                  linewidth=1, label=name)  # fmt: skip
    axis.plot([0, 1], [0, 1], "--", color="#444444", linewidth=0.8)
    axis.set_xlabel("predicted P(RL)", fontsize=8)
    axis.set_ylabel("observed share of RL", fontsize=8)
    axis.legend(fontsize=7, frameon=False)


def _risk(axis: Any, study: VerdictStudy) -> None:
    for name, colour in _SET_COLOURS.items():
        own = study.risks.filter(set=name)
        axis.plot(own["coverage"], own["risk"], color=colour, linewidth=1.2)
    axis.set_xlabel("share of test runs, the surest first", fontsize=8)
    axis.set_ylabel("share called wrongly", fontsize=8)


def _steps(axis: Any, study: VerdictStudy) -> None:
    """Solid: test runs of the usual length; dotted: the first study."""
    for name, colour in _SET_COLOURS.items():
        for source, line in (("test", "-"), ("training", ":")):
            own = study.steps.filter(pl.col("steps") == 40, set=name, source=source)
            axis.plot(own["step"], own["value"], line, marker="o", markersize=3, color=colour,
                      linewidth=1.2)  # fmt: skip
    axis.axhline(0.5, color="#444444", linewidth=0.8, linestyle="--")
    axis.set_xlabel("step of 40 (dotted: first study)", fontsize=8)
    axis.set_ylabel("AUC", fontsize=8)
