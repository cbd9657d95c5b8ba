"""The figure of the causal test: what runs share, layer by layer (the paper's Fig. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.causal.words import arm_name, edit_name
from offaxis.lab.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offaxis.lab.causal import CausalStudy

__all__ = ["by_layer"]

_LINES = (
    (KINDS[0], KINDS[0], COLOURS[0], "-"),
    (KINDS[1], KINDS[1], COLOURS[1], "-"),
    (f"{KINDS[1]}: pulled back", f"{KINDS[1]}, pulled back", COLOURS[1], ":"),
)


def by_layer(study: CausalStudy) -> Figure:
    """Excess Jaccard overlap of update masks in the roles that the edit changes, by layer.

    One panel an arm and edit, at the last step; layers that were edited are shaded.
    """
    table = study.by_place.filter(pl.col("step") == pl.col("step").max())
    keys = ["method", "optimizer", "learning_rate", "edit"]
    panels = list(table.group_by(keys, maintain_order=True))
    figure, axes = new_figure(len(panels), width=3.4, height=2.6)
    for axis, (key, own) in zip(axes, panels, strict=True):
        place = dict(zip(keys, key, strict=True))
        roles = own.filter("edited")["role"].unique().to_list()
        inside = own.filter(pl.col("role").is_in(roles)).group_by("layer")
        layers = inside.agg(pl.col("edited").any(), pl.col([one[0] for one in _LINES]).mean())
        layers = layers.sort("layer")
        for layer in layers.filter("edited")["layer"]:
            axis.axvspan(layer - 0.4, layer + 0.4, color="#000000", alpha=0.07, linewidth=0)
        for column, name, colour, line in _LINES:
            axis.plot(layers["layer"], layers[column], line, marker="o", markersize=3.5,
                      color=colour, label=name)  # fmt: skip
        axis.axhline(0, color="#6b6b6b", linewidth=0.8)
        axis.set_title(f"{arm_name(place)}\n{edit_name(place['edit'])}", fontsize=8)
        axis.set_xticks(layers["layer"].to_list())
    axes[0].legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("excess overlap of masks", fontsize=8)
    axes[0].set_xlabel("layer", fontsize=8)
    return figure
