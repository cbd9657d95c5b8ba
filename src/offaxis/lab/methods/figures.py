"""The figures of the table of methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.lab.methods.summary import last_checkpoints
from offaxis.lab.naming import NAMES
from offaxis.lab.plots import COLOURS, new_figure
from offaxis.lab.queue.grid import BASE_METHOD
from offaxis.lab.training import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.methods import MethodTable

__all__ = ["figures"]

_SHAPES = ("o", "s")
"""One for the first palette of methods, one for the second."""


def figures(found: MethodTable) -> Iterator[tuple[str, Figure]]:
    """File name and figure of each."""
    yield "accuracy-kl.svg", _accuracy(found)
    if found.passes is not None:
        yield "passk.svg", _passes(found.passes)


def _looks(methods: list[str]) -> dict[str, tuple[str, str]]:
    """Method -> colour and marker, the same whichever methods were run."""
    order = [name for name in METHODS if name != "sft_foreign"] + ["sft_foreign"]
    most = len(COLOURS)
    looks = {
        name: (COLOURS[place % most], _SHAPES[place // most]) for place, name in enumerate(order)
    }
    return {name: looks[name] for name in order if name in methods}


def _accuracy(found: MethodTable) -> Figure:
    """Accuracy against the distance from the base, one point a run."""
    last = last_checkpoints(found.rows)
    base = last.filter(pl.col("method") == BASE_METHOD)["avg"][0]
    runs = last.filter(pl.col("method") != BASE_METHOD)
    rates = runs["learning_rate"].unique().sort().to_list()
    figure, axes = new_figure(len(rates), width=4.6, height=3.9)
    for axis, rate in zip(axes, rates, strict=True):
        for method, (colour, shape) in _looks(runs["method"].unique().to_list()).items():
            own = runs.filter(method=method, learning_rate=rate)
            axis.plot(own["kl_tuned_base"], own["avg"], shape, color=colour, markersize=5,
                      alpha=0.8, label=NAMES[method])  # fmt: skip
        axis.axhline(base, color="#444444", linewidth=0.8, linestyle="--")
        _same_scale(axis, runs["kl_tuned_base"].to_list(), [base, *runs["avg"].to_list()])
        axis.set_title(f"learning rate {rate:g}", fontsize=9)
        axis.set_xlabel("KL(tuned ‖ base), nats a completion", fontsize=8)
    axes[0].set_ylabel("accuracy (dashed: the base)", fontsize=8)
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=6,
                  loc="outside lower center")  # fmt: skip
    return figure


def _same_scale(axis: Any, distances: list[float], scores: list[float]) -> None:
    """Axes that hold all runs, the first logarithmic with few round ticks."""
    low, high = min(distances) / 1.3, max(distances) * 1.3
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [one * 10.0**power for power in range(-5, 3) for one in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_ylim(min(scores) - 0.03, max(scores) + 0.03)


def _passes(passes: pl.DataFrame) -> Figure:
    """pass@k minus the base's, one panel a method; harder problems dashed."""
    methods = passes["method"].unique(maintain_order=True).to_list()
    rates = passes["learning_rate"].unique().sort().to_list()
    figure, axes = new_figure(len(methods), width=2.7, height=2.3)
    low = math.floor(10 * min(passes["low"].to_list())) / 10
    high = math.ceil(10 * max(passes["high"].to_list())) / 10
    for axis, method in zip(axes, methods, strict=True):
        for rate, colour in zip(rates, COLOURS, strict=False):
            for exam, style in (("own", "-"), ("harder", "--")):
                own = passes.filter(method=method, learning_rate=rate, exam=exam)
                _curve(axis, own, colour, style, f"{rate:g}, {exam}")
        axis.axhline(0, color="#444444", linewidth=0.8)
        axis.set_xscale("log", base=2)
        ticks = passes["k"].unique().sort().to_list()
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.set_ylim(low, high)
        axis.set_title(NAMES[method], fontsize=9)
        axis.set_xlabel("k", fontsize=8)
    axes[0].set_ylabel("pass@k minus the base's", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=4,
                  loc="outside lower center")  # fmt: skip
    return figure


def _curve(axis: Any, own: pl.DataFrame, colour: str, style: str, label: str) -> None:
    """Differences by k with their band."""
    if own.is_empty():
        return
    own = own.sort("k")
    axis.plot(own["k"], own["difference"], style, color=colour, linewidth=1.2, label=label)
    axis.fill_between(own["k"].to_list(), own["low"].to_list(), own["high"].to_list(),
                      color=colour, alpha=0.13, linewidth=0)  # fmt: skip
