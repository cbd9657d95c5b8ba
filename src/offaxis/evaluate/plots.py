"""The curve of pass@k (and maj@k) along k, with its intervals, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from offaxis.evaluate.scores import ScoreRow
from offaxis.output import staged_file

__all__ = ["draw_curve"]

_COLOURS = {"pass": "#0072b2", "maj": "#d55e00"}  # Okabe and Ito


def draw_curve(scores: Sequence[ScoreRow], path: Path) -> None:
    """Write the curves as SVG; the same scores give the same bytes."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axis = figure.subplots()
    for kind, colour in _COLOURS.items():
        rows = [row for row in scores if row.metric.startswith(f"{kind}@")]
        ks = [row.k or 0 for row in rows]
        axis.plot(ks, [row.value for row in rows], "o-", color=colour, markersize=3.5,
                  linewidth=1, label=f"{kind}@k")  # fmt: skip
        lows, highs = [row.low or 0.0 for row in rows], [row.high or 0.0 for row in rows]
        axis.fill_between(ks, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("k", fontsize=8)
    axis.set_ylabel("share of problems", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    settings = {"svg.hashsalt": "offaxis", "svg.fonttype": "none"}
    with staged_file(path) as staged, mpl.rc_context(settings):
        figure.savefig(staged, metadata={"Date": None})
