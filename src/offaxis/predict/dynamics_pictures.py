"""Pictures of linear dynamics, each beside its null, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from offaxis.output import staged_file
from offaxis.predict.trajectories import KINDS
from offaxis.predict.walks import WALK_PC1, principal_path

if TYPE_CHECKING:
    from offaxis.predict.dynamics import Dynamics, Module

__all__ = ["pictures", "save_picture"]

Floats = NDArray[np.float64]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#a6761d")
_GREY = "#6b6b6b"
_MOST = 8
_SIZE = 8


def pictures(found: Dynamics) -> dict[str, Figure]:
    """`r2.svg`, `components.svg` and `trajectories-KIND.svg`."""
    out = {"r2.svg": _by_module(found), "components.svg": _components(found)}
    return out | {f"trajectories-{kind}.svg": _paths(found, kind) for kind in KINDS}


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    settings = {"svg.hashsalt": "offaxis", "svg.fonttype": "none"}
    with staged_file(path) as staged, mpl.rc_context(settings):
        figure.savefig(staged, metadata={"Date": None})


def _panels(count: int, *, across: int = 4, width: float = 2.6) -> tuple[Figure, list[Any]]:
    columns = min(count, across)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, width * 0.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=_SIZE - 1)
    return figure, axes[:count]


def _by_module(found: Dynamics) -> Figure:
    """R² and Q² of each matrix by layer, one line a role; the band is what walks do."""
    rival = found.summary()["step_line"]
    figure, axes = _panels(4, across=2, width=4.2)
    cells = [(kind, what) for kind in KINDS for what in ("r2", "q2")]
    for axis, (kind, what) in zip(axes, cells, strict=True):
        for number, (role, own) in enumerate(_roles(found.modules).items()):
            points = [
                (one.path.layer or 0, getattr(line, what))
                for one in own
                if (line := one.linear[kind]) is not None
            ]
            layers, values = zip(*points, strict=True) if points else ((), ())
            axis.plot(layers, values, "o-", markersize=3, linewidth=0.9, label=role,
                      color=_COLOURS[number % len(_COLOURS)])  # fmt: skip
        _null_band(axis, found.modules, kind, what)
        axis.axhline(rival[what], color="black", linestyle="--", linewidth=0.9, label="step alone")
        title = {"r2": "R², in-sample", "q2": "Q², a checkpoint left out"}[what]
        axis.set_title(f"{title}: {kind} u₁", fontsize=_SIZE)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("layer", fontsize=_SIZE)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=_SIZE - 1, frameon=False, ncols=5,
                  loc="outside lower center")  # fmt: skip
    return figure


def _null_band(axis: Any, modules: Sequence[Module], kind: str, what: str) -> None:
    """Mean and 95 % quantile of norm-matched walks, over all matrices."""
    lines = [line for one in modules if (line := one.linear[kind]) is not None]
    if lines:
        middle = float(np.mean([getattr(one, f"walk_{what}") for one in lines]))
        high = float(np.mean([getattr(one, f"walk_{what}_q95") for one in lines]))
        axis.axhspan(middle, high, color=_GREY, alpha=0.25, linewidth=0,
                     label="random walks: mean to 95 %")  # fmt: skip


def _roles(modules: Sequence[Module]) -> dict[str, list[Module]]:
    out: dict[str, list[Module]] = {}
    for one in modules:
        out.setdefault(one.path.role, []).append(one)
    return out


def _chosen(found: Dynamics, kind: str) -> list[Module]:
    """Up to eight matrices, evenly from the highest R² to the lowest."""
    ranked = [(line.r2, one) for one in found.modules if (line := one.linear[kind]) is not None]
    ranked.sort(key=lambda pair: -pair[0])
    places = np.unique(np.linspace(0, len(ranked) - 1, min(_MOST, len(ranked))).round().astype(int))
    return [ranked[place][1] for place in places] if ranked else []


def _paths(found: Dynamics, kind: str) -> Figure:
    """Each chosen trajectory in its first two components, and a walk with its step lengths."""
    chosen = _chosen(found, kind)
    figure, axes = _panels(max(1, len(chosen)))
    steps = found.timeline.steps
    for axis, one in zip(axes, chosen, strict=False):
        walk, _ = principal_path(one.walk[kind])
        path, shares = principal_path(one.path.rows(kind))
        axis.plot(*_facing(walk).T, "-", color=_GREY, linewidth=0.9, alpha=0.8,
                  label="random walk, the same step lengths")  # fmt: skip
        axis.plot(*_facing(path).T, "-", color=_COLOURS[0], linewidth=0.9, label="u₁")
        axis.scatter(*_facing(path).T, c=steps, cmap="viridis", s=14, zorder=3)
        axis.set_xticks([])
        axis.set_yticks([])
        line = one.linear[kind]
        assert line is not None  # it was chosen
        axis.set_title(
            f"{_short(one.path.tensor)}\nR² {line.r2:.2f}, walks {line.walk_r2:.2f}; "
            f"PC1 {shares[0]:.2f}, walks {one.walk_pc1[kind]:.2f}",
            fontsize=_SIZE - 2,
        )
    axes[0].set_xlabel("PC1", fontsize=_SIZE)
    axes[0].set_ylabel("PC2", fontsize=_SIZE)
    axes[0].legend(fontsize=_SIZE - 3, frameon=False)
    return figure


def _components(found: Dynamics) -> Figure:
    """PC1 along the checkpoints, of every matrix and of its walk, and half a cosine."""
    figure, axes = _panels(2, across=2, width=4.2)
    count = len(found.timeline.steps)
    place = (np.arange(count) + 0.5) / count
    for axis, kind in zip(axes, KINDS, strict=True):
        for number, one in enumerate(found.modules):
            for rows, colour in ((one.walk[kind], _GREY), (one.path.rows(kind), _COLOURS[0])):
                first = _facing(principal_path(rows)[0])[:, 0]
                size = float(np.linalg.norm(first)) or 1.0
                word = "walks" if colour == _GREY else "u₁"
                axis.plot(found.timeline.steps, first / size * np.sqrt(count / 2), color=colour,
                          linewidth=0.6, alpha=0.5, label=None if number else word)  # fmt: skip
        axis.plot(found.timeline.steps, -np.cos(np.pi * place), color="black", linestyle="--",
                  linewidth=1, label="half a cosine")  # fmt: skip
        own, null = (
            float(np.nanmean([getattr(one, name)[kind] for one in found.modules]))
            for name in ("pc1", "walk_pc1")
        )
        axis.set_title(
            f"{kind} u₁: PC1 holds {own:.2f} of the variance, of walks {null:.2f} "
            f"(6/π² = {WALK_PC1:.2f})",
            fontsize=_SIZE - 1,
        )
        axis.set_xlabel("step", fontsize=_SIZE)
    axes[0].set_ylabel("first principal component", fontsize=_SIZE)
    axes[0].legend(fontsize=_SIZE - 2, frameon=False)
    return figure


def _facing(path: Floats) -> Floats:
    """The path with its end to the right and above its middle: components have no sign."""
    signs = np.array([
        -1.0 if path[-1, 0] < path[0, 0] else 1.0,
        -1.0 if path[-1, 1] < path[len(path) // 2, 1] else 1.0,
    ])  # fmt: skip
    found: Floats = path * signs
    return found


def _short(tensor: str) -> str:
    return tensor.removeprefix("model.").removesuffix(".weight")
