"""The figures of the comparison of adapters: one colour a family, one mark an adapter in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.lab.paired import Spread, spread
from offaxis.lab.peft.geometry.series import EITHER, isotropic
from offaxis.lab.peft.geometry.series import checkpoints as measured_checkpoints
from offaxis.lab.peft.naming import (
    ADALORA,
    DORA,
    FULL,
    GEORA,
    IA3,
    LORA,
    LORA_FA,
    LORA_PLUS,
    MILORA,
    MISS,
    NORMS,
    OFF_PRINCIPAL,
    OFF_RANDOM,
    PISSA,
    RANK,
    RANK1,
    RSLORA,
    VERA,
    label,
    ordered,
    with_rank,
)
from offaxis.lab.peft.planning import RANKED, RANKS
from offaxis.lab.peft.summary import RATES, Rates, Runs, means
from offaxis.lab.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FAMILIES", "figures", "write_figures"]

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "everything": (FULL,),
    "LoRA and its rates": (LORA, RSLORA, LORA_PLUS, LORA_FA, RANK1),
    "structure": (DORA, ADALORA, MISS),
    "start": (PISSA, MILORA, GEORA),
    "kept out of directions": (OFF_PRINCIPAL, OFF_RANDOM),
    "few parameters": (VERA, IA3, NORMS),
}
"""Family -> its adapters."""
_FAMILY_COLOURS = dict(
    zip(FAMILIES, ("#111111", COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3], COLOURS[7]),
        strict=True)
)  # fmt: skip
_MARKS = "osD^v"
_TITLES = {"own": "each adapter's own rate", "shared": "LoRA's rate for all"}
_BASE = {"color": "#444444", "linewidth": 0.8, "linestyle": "--"}


def figures(runs: Runs) -> Iterator[tuple[str, Figure]]:
    """File name and figure of each."""
    yield "rates.svg", _rates(runs)
    yield "ranking.svg", _ranking(runs)
    yield "scatter.svg", _scatter(runs)
    yield "energy.svg", _energy(runs)
    yield "ranks.svg", _ranks(runs)


def write_figures(study: Any, out: str | Path) -> list[Path]:
    """Write every figure of `study.runs` into the directory `out`; return their paths."""
    from offaxis.lab.plots import save_figure

    found = []
    for name, figure in figures(study.runs):
        save_figure(figure, Path(out) / name)
        found.append(Path(out) / name)
    return found


def _family(adapter: str) -> str:
    usual = next((one for own in FAMILIES.values() for one in own if _same(one, adapter)), LORA)
    return next(name for name, own in FAMILIES.items() if usual in own)


def _same(known: str, adapter: str) -> bool:
    """The same adapter, of whatever rank."""
    return known == adapter or ("rank=" in adapter and with_rank(adapter, RANK) == known)


def _colour(adapter: str) -> str:
    return _FAMILY_COLOURS[_family(adapter)]


def _dot(adapter: str, size: float = 5) -> dict[str, Any]:
    """A point's looks."""
    own = FAMILIES[_family(adapter)]
    return {
        "marker": _MARKS[own.index(adapter) if adapter in own else 0],
        "linestyle": "none",
        "color": _colour(adapter),
        "markersize": size,
        "markeredgewidth": 0.6,
        "markeredgecolor": "white",
    }


def _empty(axis: Any) -> None:
    axis.text(0.5, 0.6, "no runs yet", transform=axis.transAxes, ha="center", fontsize=8)


def _half(pooled: Spread | None, adapter: str, seeds: int) -> float | None:
    """Half the width of a mean's 95 % interval, by what runs of this adapter vary by."""
    if pooled is None or not seeds:
        return None
    variance, degrees = pooled.of(adapter)
    return student_t(max(1, int(min(degrees, 1e6)))) * math.sqrt(variance / seeds)


def _plain_logarithm(axis: Any) -> None:
    """A logarithmic x axis that names every other decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    wide = high / low > 300
    axis.xaxis.set_major_locator(LogLocator(base=100.0 if high / low > 3e4 else 10.0,
                                            subs=(1,) if wide else (1, 3)))  # fmt: skip
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# Rates


def _rates(runs: Runs) -> Figure:
    """Accuracy by rate on the selection seeds: a panel an adapter, LoRA's curve in each."""
    adapters = runs.adapters
    figure, axes = new_figure(max(1, len(adapters)), width=2.1, height=1.75, across=6)
    last = runs.points.filter("last", stage="selection")
    tried = last["learning_rate"]
    for place, axis in enumerate(axes[: len(adapters)]):
        adapter = adapters[place]
        if adapter != LORA and LORA in adapters:
            other = _by_rate(last, LORA)
            axis.plot(list(other), list(other.values()), color="#bbbbbb", linewidth=1.0, zorder=1)
        own = last.filter(adapter=adapter)
        axis.plot(own["learning_rate"], own["accuracy"], ".", color=_colour(adapter), markersize=4,
                  alpha=0.5)  # fmt: skip
        curve = _by_rate(last, adapter)
        axis.plot(list(curve), list(curve.values()), color=_colour(adapter), linewidth=1.3)
        best = runs.rate(adapter, "own")
        if best in curve:
            axis.plot([best], [curve[best]], "o", markersize=8, markerfacecolor="none",
                      color=_colour(adapter), markeredgewidth=1.3)  # fmt: skip
        axis.axhline(runs.base["avg"], **_BASE)
        axis.set_ylim(-0.04, 1.0)
        axis.set_xlim(min(tried) / 2, max(tried) * 2)
        _plain_logarithm(axis)
        axis.tick_params(labelsize=7)
        axis.set_title(label(adapter), fontsize=8, pad=3)
    figure.supxlabel("learning rate (circle: chosen; grey: LoRA; dashed: the base)", fontsize=8)
    figure.supylabel("accuracy, selection seeds", fontsize=8)
    return figure


def _by_rate(last: pl.DataFrame, adapter: str) -> dict[float, float]:
    own = last.filter(adapter=adapter).group_by("learning_rate").agg(pl.col("accuracy").mean())
    return dict(own.sort("learning_rate").iter_rows())


# The ranking


def _ranking(runs: Runs) -> Figure:
    """Means with intervals and single runs, at both kinds of rate, in one order, scales apart."""
    tables = {rates: means(runs.measured(rates, "accuracy")) for rates in RATES}
    first = tables["own"] or tables["shared"]
    order = sorted(
        ordered({*tables["own"], *tables["shared"]}),
        key=lambda one: float(np.mean(list(first.get(one, {0: -1.0}).values()))),
    )
    height = 0.2 * max(4, len(order)) + 0.9
    figure, axes = new_figure(len(RATES), width=4.4, height=height)
    for axis, rates in zip(axes, RATES, strict=True):
        table = tables[rates]
        pooled = spread(table)
        for place, adapter in enumerate(order):
            values = list(table.get(adapter, {}).values())
            axis.plot(values, [place - 0.28] * len(values), ".", color=_colour(adapter),
                      markersize=3.5, alpha=0.6)  # fmt: skip
            half = _half(pooled, adapter, len(values))
            if half is not None:
                middle = float(np.mean(values))
                axis.plot([middle - half, middle + half], [place] * 2, color=_colour(adapter),
                          linewidth=1.4)  # fmt: skip
            if values:
                axis.plot([np.mean(values)], [place], **_dot(adapter, 6))
        if not table:
            _empty(axis)
        if LORA in table:
            axis.axvline(float(np.mean(list(table[LORA].values()))), color=_colour(LORA),
                         linewidth=0.8)  # fmt: skip
        axis.axvline(runs.base["avg"], **_BASE)
        axis.set_yticks(range(len(order)), [label(one) for one in order], fontsize=8)
        axis.set_ylim(-0.7, max(1, len(order)) - 0.3)
        axis.set_title(_TITLES[rates], fontsize=9)
        axis.set_xlabel("accuracy (line: LoRA; dashed: the base)", fontsize=8)
    return figure


def _level(axes: Sequence[Any], which: str) -> None:
    """One scale for all panels."""
    ends = [getattr(axis, f"get_{which}lim")() for axis in axes]
    for axis in axes:
        getattr(axis, f"set_{which}lim")(min(one[0] for one in ends), max(one[1] for one in ends))


# How far, and how well


def _scatter(runs: Runs) -> Figure:
    """Accuracy against KL and against ‖ΔW‖ at the ends of test runs; grey: on the way there."""
    scales = {
        "kl_tuned_base": "KL(tuned ‖ base), nats a completion",
        "relative_update_norm": "‖ΔW‖ / ‖W₀‖",
    }
    panels: list[tuple[Rates, str]] = [(rates, scale) for rates in RATES for scale in scales]
    figure, axes = new_figure(len(panels), width=4.0, height=3.0, across=2)
    for axis, (rates, scale) in zip(axes, panels, strict=True):
        drawn = False
        for adapter in runs.adapters:
            points = runs.tested(adapter, runs.rate(adapter, rates)).filter(pl.col(scale) > 0)
            before, ends = points.filter(~pl.col("last")), points.filter("last")
            axis.plot(before[scale], before["accuracy"], ".", color="#cccccc", markersize=2.5,
                      zorder=1)  # fmt: skip
            axis.plot(ends[scale], ends["accuracy"], **_dot(adapter, 6), label=label(adapter),
                      zorder=2)  # fmt: skip
            drawn |= bool(points.height)
        axis.axhline(runs.base["avg"], **_BASE)
        if drawn:
            _plain_logarithm(axis)
        else:
            _empty(axis)
        axis.set_title(_TITLES[rates], fontsize=9)
        axis.set_xlabel(scales[scale], fontsize=8)
    for axis in axes[::2]:
        axis.set_ylabel("accuracy (dashed: the base)", fontsize=8)
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend below all panels, each adapter once, in order."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    order = [label(one) for own in FAMILIES.values() for one in own]
    names = sorted(handles, key=lambda name: order.index(name) if name in order else len(order))
    if names:
        figure.legend([handles[name] for name in names], names, fontsize=7, frameon=False, ncols=6,
                      loc="outside lower center")  # fmt: skip


# Where the update goes

_OVER_TIME = {
    EITHER: "share of ‖ΔW‖² in principal\ndirections, left or right",
    "principal_overlap_top5": "of the 5 % moved most:\nprincipal, minus the null",
}


def _energy(runs: Runs) -> Figure:
    """Energy in principal directions, and overlap minus null, over training at own rates."""
    points = measured_checkpoints(runs.rows, "own")
    groups = [name for name in FAMILIES if name != "everything"]
    figure, axes = new_figure(len(_OVER_TIME) * len(groups), width=2.4, height=2.4,
                              across=len(groups))  # fmt: skip
    for number, axis in enumerate(axes):
        measure, group = list(_OVER_TIME)[number // len(groups)], groups[number % len(groups)]
        drawn = False
        for adapter in (FULL, LORA, *(one for one in FAMILIES[group] if one != LORA)):
            drawn |= _curve(axis, points, adapter, measure, behind=adapter not in FAMILIES[group])
        null = isotropic()[EITHER] if measure == EITHER else 0.0
        axis.axhline(null, **_BASE)
        if not drawn:
            _empty(axis)
        axis.tick_params(labelsize=7)
        if measure == EITHER:
            axis.set_title(group, fontsize=8)
            axis.set_ylim(-0.03, 1.0)
    _level(axes[len(groups) :], "y")
    for place, (axis, measure) in enumerate(zip(axes[:: len(groups)], _OVER_TIME, strict=True)):
        axis.set_ylabel(_OVER_TIME[measure], fontsize=8)
        for own in axes[place * len(groups) : (place + 1) * len(groups)]:
            _steps(own, points)
    _legend(figure, axes[: len(groups)])
    axes[-1 - len(groups) // 2].set_xlabel(
        "step (dashed: an update without direction; the magnitude null)", fontsize=8
    )
    return figure


def _steps(axis: Any, points: pl.DataFrame) -> None:
    saved = points["step"].unique().sort().to_list()
    if saved:
        axis.set_xscale("log", base=2)
        axis.set_xticks(saved, [str(step) for step in saved])
        axis.minorticks_off()


def _curve(axis: Any, points: pl.DataFrame, adapter: str, measure: str, *, behind: bool) -> bool:
    """Mean over seeds by step, with the range of seeds; `behind`: in grey, to compare with."""
    column = pl.col(measure)
    if measure != EITHER:
        column = column - pl.col(f"{measure}_null")
    table = (
        points.filter(adapter=adapter).select("step", y=column).drop_nulls().group_by("step")
        .agg(pl.col("y").mean(), pl.col("y").min().alias("low"), pl.col("y").max().alias("high"))
        .sort("step")
    )  # fmt: skip
    if table.is_empty():
        return False
    looks: dict[str, Any] = {"color": _colour(adapter), "linewidth": 1.2}
    looks |= {"marker": _dot(adapter)["marker"], "markersize": 3.5}
    if behind:
        looks |= {"color": "#999999", "linewidth": 0.9, "marker": None}
        looks["linestyle"] = ":" if adapter == FULL else "-"
    axis.plot(table["step"], table["y"], **looks, label=label(adapter))
    if not behind:
        axis.fill_between(table["step"], table["low"], table["high"], color=_colour(adapter),
                          alpha=0.15, linewidth=0)  # fmt: skip
    return not behind


# Ranks


def _ranks(runs: Runs) -> Figure:
    """Accuracy and the update's effective rank by the adapter's rank, at the rate of rank 8."""
    panels = {"accuracy": "accuracy", "effective_rank": "effective rank of ΔW"}
    figure, axes = new_figure(len(panels) * len(RANKED), width=2.6, height=2.3, across=len(RANKED))
    for number, axis in enumerate(axes):
        measure, adapter = list(panels)[number // len(RANKED)], RANKED[number % len(RANKED)]
        table = _by_rank(runs, adapter, measure)
        for rank, values in table.items():
            axis.plot([rank] * len(values), values, ".", color=_colour(adapter), markersize=4,
                      alpha=0.5)  # fmt: skip
        middle = {rank: float(np.mean(values)) for rank, values in table.items()}
        axis.plot(list(middle), list(middle.values()), color=_colour(adapter), linewidth=1.2,
                  marker="o", markersize=4)  # fmt: skip
        whole = runs.tested(FULL, runs.rate(FULL, "own")).filter("last")[measure].mean()
        if whole is not None and measure == "accuracy":
            axis.axhline(whole, color=_colour(FULL), linewidth=0.9)
        if measure == "accuracy":
            axis.axhline(runs.base["avg"], **_BASE)
        axis.set_xscale("log", base=2)
        ranks = sorted((RANK, *RANKS))
        axis.set_xticks(ranks, [str(rank) for rank in ranks])
        axis.minorticks_off()
        axis.set_title(label(adapter) if measure == "accuracy" else "", fontsize=9)
        if adapter == RANKED[0]:
            axis.set_ylabel(panels[measure], fontsize=8)
        if not table:
            _empty(axis)
    for place in range(len(panels)):
        _level(axes[place * len(RANKED) : (place + 1) * len(RANKED)], "y")
    figure.supxlabel("rank (line: full fine-tuning; dashed: the base)", fontsize=8)
    return figure


def _by_rank(runs: Runs, adapter: str, measure: str) -> dict[int, list[float]]:
    found = {}
    for rank in sorted((RANK, *RANKS)):
        own = runs.tested(with_rank(adapter, rank), runs.rate(adapter, "own")).filter("last")
        values = own[measure].drop_nulls().to_list()
        if values:
            found[rank] = values
    return found
