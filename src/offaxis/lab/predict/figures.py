"""The study's figure: what predictions from each fraction of a run score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from offaxis.lab.naming import NAMES
from offaxis.lab.plots import COLOURS, new_figure
from offaxis.lab.predict.candidates import STOP
from offaxis.lab.predict.pooling import FULL
from offaxis.lab.predict.words import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.predict import PredictStudy

__all__ = ["accuracy_by_fraction"]

_SHOWN = (STOP, "scale_chosen", "scale", "linear", "relex", "alpharl", "alpharl_oracle")


def accuracy_by_fraction(study: PredictStudy) -> Figure:
    """Accuracy of each prediction over the step that it was made at, a panel a method and task.

    Bars: Student's t interval over seeds. Dashed: the run's real end.
    """
    table = study.scores.filter(measure="accuracy").filter(
        pl.col("target") == pl.col("target").max(), pl.col("origin") < pl.col("target")
    )
    panels = list(table.group_by("method", "task", maintain_order=True))
    figure, axes = new_figure(len(panels), width=3.4, height=2.8)
    for axis, ((method, task), own) in zip(axes, panels, strict=True):
        for number, arm in enumerate(_SHOWN):
            line = own.filter(predictor=arm).sort("origin")
            if line.is_empty():
                continue
            x = [step * 1.03**number for step in line["origin"]]
            low, high = (line[end].fill_null(line["value"]) for end in ("low", "high"))
            axis.errorbar(x, line["value"], [line["value"] - low, high - line["value"]],
                          color=COLOURS[number], marker="o", markersize=3, linewidth=1,
                          elinewidth=0.7, label=label(arm))  # fmt: skip
        end = own.filter(predictor=FULL)["value"].mean()
        axis.axhline(end, color="#000000", linewidth=0.8, linestyle="--", label="the run's end")
        axis.set_xscale("log")
        steps = own["origin"].unique().sort().to_list()
        axis.set_xticks(steps, [str(step) for step in steps])
        axis.minorticks_off()
        axis.set_title(f"{NAMES[str(method)]}, {task}", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=7, frameon=False)  # fmt: skip
    axes[0].set_ylabel("avg@k of the predicted end", fontsize=8)
    axes[0].set_xlabel("last step that was seen", fontsize=8)
    return figure
