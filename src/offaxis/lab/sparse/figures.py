"""The figures of the sparse study: one colour a family of masks, one look a kind of control."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.lab.naming import NAMES
from offaxis.lab.paired import Spread, spread
from offaxis.lab.plots import COLOURS, new_figure
from offaxis.lab.sparse.naming import (
    ALL,
    EVERYTHING,
    LIFT,
    LOW,
    NON_PRINCIPAL,
    ONE,
    PRINCIPAL,
    SAFE,
    SUBNETWORK,
    family,
    kind,
    label,
    ordered,
    random_like,
)
from offaxis.lab.sparse.recovery import MEASURES as AGREEING
from offaxis.lab.sparse.recovery import agreeing
from offaxis.lab.sparse.summary import RATES, Rates, Runs, kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.sparse import SparseStudy

__all__ = ["figures"]

_COLOURS = {
    EVERYTHING: COLOURS[6],
    ALL: "#111111",
    PRINCIPAL: COLOURS[1],
    NON_PRINCIPAL: COLOURS[0],
    LOW: COLOURS[2],
    SAFE: COLOURS[3],
    LIFT: COLOURS[4],
    ONE: COLOURS[5],
    SUBNETWORK: COLOURS[7],
}
_LINES = {"itself": "-", "random": "--", "matched": ":"}
_MARKERS = {"itself": "o", "random": "s", "matched": "D"}
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "the paper's masks (Fig. 7)": (PRINCIPAL, NON_PRINCIPAL, LOW, SAFE, random_like(SAFE)),
    "principal or not, and controls": (PRINCIPAL, NON_PRINCIPAL),
    "small weights, union, and controls": (LOW, SAFE),
    "LIFT, one in a hundred, and controls": (LIFT, ONE),
}
"""Panels: the first shows just these masks, the others those and their controls."""
_TITLES = {"own": "each mask's own rate", "shared": "dense's rate"}


def figures(study: SparseStudy) -> Iterator[tuple[str, Figure]]:
    """File name and figure of each."""
    yield "kl.svg", _kl(study.runs)
    yield "accuracy.svg", _accuracy(study.runs)
    yield "rates.svg", _rates(study.by_rate)
    yield "subnetwork.svg", _subnetwork(study.runs)
    yield "scatter.svg", _scatter(study.runs)


def _colour(mask: str) -> str:
    return _COLOURS.get(family(mask), COLOURS[7])


def _look(mask: str) -> dict[str, Any]:
    """A line's looks: controls are dashed or dotted in their family's colour."""
    return {"color": _colour(mask), "linestyle": _LINES[kind(mask)], "linewidth": 1.3}


def _dot(mask: str, size: float = 5) -> dict[str, Any]:
    """A point's looks: controls are hollow."""
    own = kind(mask) == "itself"
    return {
        "marker": _MARKERS[kind(mask)],
        "linestyle": "none",
        "color": _colour(mask),
        "markerfacecolor": _colour(mask) if own else "white",
        "markersize": size,
        "markeredgewidth": 1.0,
    }


def _members(group: str, masks: Sequence[str]) -> list[str]:
    """The masks of a panel among those that were trained, dense last so that it lies on top."""
    chosen = _GROUPS[group]
    if group == next(iter(_GROUPS)):
        own = [mask for mask in masks if mask in chosen]
    else:
        own = [mask for mask in masks if family(mask) in chosen]
    return [*own, *([ALL] if ALL in masks else [])]


def _legend(figure: Figure, axes: Sequence[Any], columns: int) -> None:
    """One legend below all panels, each label once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        figure.legend(list(handles.values()), list(handles), fontsize=7, frameon=False,
                      ncols=columns, loc="outside lower center")  # fmt: skip


def _empty(axis: Any) -> None:
    axis.text(0.5, 0.6, "no runs yet", transform=axis.transAxes, ha="center", fontsize=8)


# Fig. 7's counterpart


def _kl(runs: Runs) -> Figure:
    """KL(tuned ‖ base) over training: a row a kind of rate, a panel a group of masks."""
    figure, axes = new_figure(2 * len(_GROUPS), width=3.3, height=2.9, across=len(_GROUPS))
    places = iter(axes)
    for rates in RATES:
        curves = {mask: _logs(runs, mask, rates) for mask in runs.masks("grpo")}
        curves = {mask: steps for mask, steps in curves.items() if steps}
        bands = _bands(curves)
        for group in _GROUPS:
            axis = next(places)
            axis.set_title(f"{group}\n{_TITLES[rates]}", fontsize=8)
            members = [mask for mask in _members(group, ordered(curves)) if mask in curves]
            for mask in members:
                _curve(axis, mask, curves[mask], bands)
            if members:
                axis.set_yscale("log")
            else:
                _empty(axis)
            axis.set_xlabel("step", fontsize=8)
        axes[axes.index(axis) - len(_GROUPS) + 1].set_ylabel(
            "KL(tuned ‖ base), nats a completion", fontsize=8
        )
    for column in range(len(_GROUPS)):
        _level(axes[column :: len(_GROUPS)], "y")
    for axis in axes:
        if axis.lines:
            _logarithmic(axis, "y")
    _legend(figure, axes, 4)
    return figure


def _level(axes: Sequence[Any], which: str) -> None:
    """One scale for all panels that hold something."""
    used = [axis for axis in axes if axis.lines]
    ends = [getattr(axis, f"get_{which}lim")() for axis in used]
    for axis in used:
        getattr(axis, f"set_{which}lim")(min(end[0] for end in ends), max(end[1] for end in ends))


def _logarithmic(axis: Any, which: str, *, marks: Sequence[int] = (1, 2, 5)) -> None:
    """A logarithmic axis with plain numbers at these digits, at 1 alone over many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axis, f"set_{which}scale")("log")
    low, high = getattr(axis, f"get_{which}lim")()
    own = getattr(axis, f"{which}axis")
    own.set_major_locator(LogLocator(subs=marks if high / low < 200 else (1,)))
    own.set_minor_locator(NullLocator())
    own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _logs(runs: Runs, mask: str, rates: Rates) -> dict[int, dict[int, float]]:
    """Step -> seed -> ln KL."""
    found: dict[int, dict[int, float]] = {}
    known = runs.tested("grpo", mask, rates).filter(pl.col("kl_tuned_base") > 0)
    for step, seed, value in known.select("step", "seed", "kl_tuned_base").iter_rows():
        found.setdefault(step, {})[seed] = math.log(value)
    return dict(sorted(found.items()))


def _bands(curves: Mapping[str, Mapping[int, Mapping[int, float]]]) -> dict[int, float]:
    """Step -> half the width of one run's 95 % interval, by the spread pooled over masks."""
    found = {}
    for step in sorted({step for steps in curves.values() for step in steps}):
        pooled = spread({mask: steps[step] for mask, steps in curves.items() if step in steps})
        if pooled is not None:
            found[step] = _half(pooled)
    return found


def _half(pooled: Spread) -> float:
    """Half the width of one run's 95 % interval."""
    return student_t(max(1, int(pooled.degrees))) * math.sqrt(pooled.variance)


def _curve(
    axis: Any, mask: str, steps: Mapping[int, Mapping[int, float]], bands: Mapping[int, float]
) -> None:
    means = {step: float(np.mean(list(seeds.values()))) for step, seeds in steps.items()}
    axis.plot(list(means), np.exp(list(means.values())), **_look(mask), label=label(mask))
    if means.keys() <= bands.keys():
        half = [bands[step] / len(steps[step]) ** 0.5 for step in means]
        level = np.array(list(means.values()))
        axis.fill_between(list(means), np.exp(level - half), np.exp(level + half), linewidth=0,
                          color=_colour(mask), alpha=0.12)  # fmt: skip


# Accuracy


def _accuracy(runs: Runs) -> Figure:
    """Every mask beside its controls: means, pooled intervals and single runs, a panel a rate."""
    most = max(len(runs.masks(method)) for method in runs.methods)
    panels = [(method, rates) for method in runs.methods for rates in kinds(method)]
    figure, axes = new_figure(len(panels), width=4.2, height=0.2 * most + 0.9, across=3)
    for axis, (method, rates) in zip(axes, panels, strict=True):
        found = runs.measured(method, rates, "accuracy")
        table = {mask: {s: float(v.mean()) for s, v in row.items()} for mask, row in found.items()}
        masks = runs.masks(method)
        pooled = spread(table)
        for place, mask in enumerate(reversed(masks)):
            values = list(table.get(mask, {}).values())
            axis.plot(values, [place] * len(values), ".", color=_colour(mask), markersize=3,
                      alpha=0.5)  # fmt: skip
            if values:
                mean = float(np.mean(values))
                if pooled is not None:
                    half = _half(pooled) / len(values) ** 0.5
                    axis.plot([mean - half, mean + half], [place] * 2, color=_colour(mask),
                              linewidth=1.4)  # fmt: skip
                axis.plot([mean], [place], **_dot(mask))
        if ALL in table:
            axis.axvline(float(np.mean(list(table[ALL].values()))), color="#111111", linewidth=0.9)
        axis.axvline(runs.base["avg"], color="#444444", linewidth=0.8, linestyle="--")
        axis.set_yticks(range(len(masks)), [label(mask) for mask in reversed(masks)], fontsize=7)
        axis.set_ylim(-0.7, len(masks) - 0.3)
        axis.set_title(f"{NAMES[method]}, {_TITLES[rates]}", fontsize=9)
        axis.set_xlabel("accuracy (line: dense; dashed: the base)", fontsize=8)
    for method in runs.methods:
        own = [axis for axis, panel in zip(axes, panels, strict=True) if panel[0] == method]
        _level(own, "x")
    return figure


# Rates


def _rates(table: pl.DataFrame) -> Figure:
    """Accuracy by rate on the selection seed: a row a method, a panel a group."""
    groups = list(_GROUPS)[1:]
    methods = table["method"].unique(maintain_order=True).to_list()
    figure, axes = new_figure(max(1, len(methods)) * len(groups), width=3.6, height=2.7,
                              across=len(groups))  # fmt: skip
    for number, axis in enumerate(axes[: len(methods) * len(groups)]):
        method, group = methods[number // len(groups)], groups[number % len(groups)]
        own = table.filter(method=method)
        masks = ordered(own["mask"])
        members = _members(group, masks)
        for mask in [*([EVERYTHING] if EVERYTHING in masks else []), *members]:
            tried = own.filter(mask=mask).sort("learning_rate")
            axis.plot(tried["learning_rate"], tried["accuracy"], **_look(mask), marker=".",
                      label=label(mask))  # fmt: skip
            best = tried.filter("chosen")
            axis.plot(best["learning_rate"], best["accuracy"], **_dot(mask, 6))
        _logarithmic(axis, "x", marks=(1, 3))
        axis.set_title(f"{NAMES[method]}: {group}", fontsize=8)
        axis.set_xlabel("learning rate (marked: chosen)", fontsize=8)
        axis.set_ylim(-0.02, 1)
    axes[0].set_ylabel("accuracy, selection seed", fontsize=8)
    _legend(figure, axes, 4)
    return figure


# Subnetworks


def _subnetwork(runs: Runs) -> Figure:
    """Agreement with the full run: a panel a measure; rows are what was trained, by rate."""
    table = agreeing(runs)
    figure, axes = new_figure(len(AGREEING), width=3.2, height=3.6)
    cells = list(dict.fromkeys((one[0], one[1]) for one in table))
    names = list(dict.fromkeys(one[2] for one in table))
    rows = [(cell, mask) for cell in cells for mask in ordered(names)]
    for axis, (measure, text) in zip(axes, AGREEING.items(), strict=True):
        for place, (cell, mask) in enumerate(reversed(rows)):
            values = table.get((*cell, mask), {}).get(measure, [])
            axis.plot(values, [place] * len(values), **_dot(mask, 4), alpha=0.8)
            if values:
                axis.plot([np.mean(values)], [place], "|", color=_colour(mask), markersize=13)
        axis.axvline(0 if measure == "twin_distance" else 1, color="#444444", linewidth=0.8)
        for number in range(1, len(cells)):
            axis.axhline(number * len(names) - 0.5, color="#bbbbbb", linewidth=0.6)
        words = [_trained(cell, mask) if axis is axes[0] else "" for cell, mask in reversed(rows)]
        axis.set_yticks(range(len(rows)), words, fontsize=7)
        axis.set_title(text.replace(", of", ",\nof"), fontsize=8)
        axis.set_xlabel("line: the full run against itself", fontsize=7)
        if not rows:
            _empty(axis)
    return figure


def _trained(cell: tuple[str, float], mask: str) -> str:
    name = "full run, another seed" if mask == ALL else label(mask)
    return f"{NAMES[cell[0]]} {cell[1]:g}: {name}"


# How far, and how well


def _scatter(runs: Runs) -> Figure:
    """Accuracy against KL and against ‖ΔW‖: ends of test runs; grey: their checkpoints before."""
    scales = {
        "kl_tuned_base": "KL(tuned ‖ base), nats a completion",
        "relative_update_norm": "‖ΔW‖ / ‖W₀‖",
    }
    panels = [(method, scale) for method in runs.methods for scale in scales]
    figure, axes = new_figure(len(panels), width=4.6, height=3.5, across=2)
    for axis, (method, scale) in zip(axes, panels, strict=True):
        drawn = 0
        for mask in runs.masks(method):
            own = [runs.tested(method, mask, rates) for rates in kinds(method)]
            points = pl.concat(own).unique(["run", "step"], maintain_order=True)
            before = points.filter(~pl.col("last"))
            axis.plot(before[scale], before["accuracy"], ".", color="#bbbbbb", markersize=2.5,
                      zorder=1)  # fmt: skip
            ends = points.filter("last")
            drawn += ends[scale].count()
            axis.plot(ends[scale], ends["accuracy"], **_dot(mask, 4.5), alpha=0.85,
                      label=label(mask), zorder=2)  # fmt: skip
        axis.axhline(runs.base["avg"], color="#444444", linewidth=0.8, linestyle="--")
        if drawn:
            _logarithmic(axis, "x")
        else:
            _empty(axis)
        axis.set_title(NAMES[method], fontsize=9)
        axis.set_xlabel(scales[scale], fontsize=8)
        axis.set_ylabel("accuracy (dashed: the base)", fontsize=8)
    _legend(figure, axes, 4)
    return figure
