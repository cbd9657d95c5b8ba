"""The first study's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from offaxis.lab.plots import COLOURS, new_figure
from offaxis.lab.study.answers import MATCHINGS, RL, TUNING, prepare
from offaxis.lab.study.words import NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.study import Study

__all__ = ["figures"]

_GROUP_COLOURS = {"rl": COLOURS[0]} | dict(zip(TUNING, COLOURS[1:], strict=False))
_WORD_COLOURS = {"holds": COLOURS[2], "does not": COLOURS[1], "cannot tell": COLOURS[6]}


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """File name and figure of each."""
    yield "trajectories.svg", _trajectories(study)
    yield "nulls.svg", _nulls(study)
    yield "contrasts.svg", _contrasts(study)
    yield "footprints.svg", _footprints(study)


def _group(method: str) -> str:
    return "rl" if method in RL else method


def _trajectories(study: Study) -> Figure:
    """How measures grow with the size of the step; RL in one colour, fine-tuning in others.

    A line is a method at one learning rate on one task, the mean over seeds.
    """
    table, _, _ = prepare(study.rows)
    shown = (
        ("unchanged_bf16", "share of entries unchanged in bf16", "linear"),
        ("nss", "spectral shift (nss)", "log"),
        ("rotation_left_deg", "rotation of left subspaces (°)", "log"),
        ("effective_rank", "effective rank of ΔW", "linear"),
        ("avg", "accuracy", "linear"),
        ("forgetting", "rise of loss on the other tasks (nats)", "symlog"),
        ("kl_tuned_base", "KL(tuned ‖ base), nats a completion", "log"),
        ("principal_overlap_excess", "principal overlap − magnitude null", "linear"),
    )
    lines = ("method", "task", "learning_rate")
    means = (
        table.filter(pl.col("relative_update_norm") > 0)
        .group_by(*lines, "step")
        .agg(pl.col("relative_update_norm", *(name for name, _, _ in shown)).mean())
        .sort(*lines, "step")
    )
    figure, axes = new_figure(len(shown), width=3.3, height=2.8)
    for axis, (measure, label, scale) in zip(axes, shown, strict=True):
        for (method, *_), points in means.group_by(lines, maintain_order=True):
            colour = _GROUP_COLOURS[_group(str(method))]
            axis.plot(points["relative_update_norm"], points[measure],
                      linewidth=0.7, alpha=0.6, color=colour)  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale(scale, **({"linthresh": 0.01} if scale == "symlog" else {}))
        axis.set_xlabel("‖ΔW‖ / ‖W₀‖", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
    for group, colour in _GROUP_COLOURS.items():
        axes[0].plot([], [], color=colour, label=NAMES[group])
    axes[0].legend(fontsize=6.5, frameon=False)
    return figure


def _nulls(study: Study) -> Figure:
    """Each method's overlaps minus their nulls, with intervals over units."""
    table = study.nulls.filter(pl.col("learning_rate").is_null())
    methods = [name for name in (*RL, *TUNING, "rl") if name in table["method"].to_list()]
    claims = table["claim"].unique(maintain_order=True).to_list()
    figure, axes = new_figure(len(claims), width=3.8, height=2.6, across=3)
    for axis, claim in zip(axes, claims, strict=True):
        rows = {row["method"]: row for row in table.filter(claim=claim).iter_rows(named=True)}
        for place, method in enumerate(methods):
            _whisker(axis, place, rows[method], _GROUP_COLOURS[_group(method)])
        axis.axvline(0, color="#444444", linewidth=0.8)
        axis.set_yticks(range(len(methods)), [NAMES[name] for name in methods], fontsize=7)
        axis.set_title(claim, fontsize=8)
        axis.set_xlabel("overlap minus its null", fontsize=8)
        axis.locator_params(axis="x", nbins=5)
    return figure


def _whisker(axis: Any, place: float, row: Mapping[str, Any], colour: str) -> None:
    """A mean with its interval; a mean alone where there is none."""
    value, low, high = row["value"], row["low"], row["high"]
    if value is None or math.isnan(value):
        return
    if low is not None:
        axis.plot([low, high], [place, place], color=colour, linewidth=1.4)
    axis.plot([value], [place], "o", color=colour, markersize=3.5)


def _contrasts(study: Study) -> Figure:
    """Every answer: one row a claim, one panel an opponent, three matchings each."""
    table = study.contrasts
    claims = table["claim"].unique(maintain_order=True).to_list()
    figure, axes = new_figure(len(TUNING), width=3.9, height=0.42 * len(claims) + 0.9)
    for axis, other in zip(axes, TUNING, strict=True):
        for place, claim in enumerate(reversed(claims)):
            for shift, matching in enumerate(MATCHINGS):
                chosen = table.filter(claim=claim, against=other, matching=matching)
                for row in chosen.iter_rows(named=True):
                    _cell(axis, place + 0.25 - 0.25 * shift, row)
        axis.axvline(0, color="#444444", linewidth=0.8)
        axis.set_ylim(-0.7, len(claims) - 0.3)
        labels = list(reversed(claims)) if axis is axes[0] else [""] * len(claims)
        axis.set_yticks(range(len(claims)), labels, fontsize=7)
        axis.set_title(f"RL against {NAMES[other]}", fontsize=8)
        axis.set_xlabel("against the claim  ←  in its favour →\n(widths of the interval's half)",
                        fontsize=7)  # fmt: skip
        axis.set_xscale("symlog", linthresh=1)
    for word, colour in _WORD_COLOURS.items():
        axes[-1].plot([], [], "o", color=colour, label=word, markersize=4)
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=7, frameon=False, ncols=3,
                  loc="outside upper right")  # fmt: skip
    return figure


def _cell(axis: Any, place: float, row: Mapping[str, Any]) -> None:
    """One answer in units of half its interval, positive in the claim's favour."""
    if row["low"] is None or row["high"] is None:
        return
    half = (row["high"] - row["low"]) / 2
    if half <= 0:
        return
    value = row["direction"] * row["value"] / half
    colour = _WORD_COLOURS[row["word"]]
    axis.plot([value - 1, value + 1], [place, place], color=colour, linewidth=1.1)
    axis.plot([value], [place], "o", color=colour, markersize=2.6)


def _footprints(study: Study) -> Figure:
    """Excess Jaccard overlap of runs with different seeds by pair of methods, a panel a rate."""
    table = study.footprints.filter(over="algorithms")
    rates = table["learning_rate"].unique().sort().to_list()
    names = [*RL, *TUNING]
    figure, axes = new_figure(max(1, len(rates)), width=3.4, height=3.4)
    largest = max([0.001, *(abs(v) for v in table["jaccard_excess"].to_list())])
    for axis, rate in zip(axes, rates, strict=False):
        grid = np.full((len(names), len(names)), np.nan)
        for row in table.filter(learning_rate=rate).iter_rows(named=True):
            i, j = names.index(row["method_a"]), names.index(row["method_b"])
            grid[i, j] = grid[j, i] = row["jaccard_excess"]
        for row in study.footprints.filter(over="seeds", learning_rate=rate).iter_rows(named=True):
            i = names.index(row["method_a"])
            grid[i, i] = row["jaccard_excess"]
        axis.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest)
        for (i, j), value in np.ndenumerate(grid):
            if not math.isnan(value):
                axis.text(j, i, f"{100 * value:.1f}", ha="center", va="center", fontsize=5.5,
                          color="white" if abs(value) > 0.6 * largest else "black")  # fmt: skip
        axis.set_xticks(range(len(names)), [NAMES[n] for n in names], fontsize=6, rotation=60,
                        ha="right")  # fmt: skip
        axis.set_yticks(range(len(names)), [NAMES[n] for n in names], fontsize=6)
        axis.grid(visible=False)
        axis.set_title(f"learning rate {rate:g} (percent)", fontsize=8)
    return figure
