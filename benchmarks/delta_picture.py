"""Size against speed, one panel a pair: packing is a filled mark, applying the hollow one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delta_report import DIGESTS, FILES, Result
from offaxis.lab.plots import new_figure, save_figure

_LOOKS: dict[str, tuple[str, str, int]] = {
    "offaxis small": ("#0072b2", "o", 10),
    "offaxis fast": ("#d55e00", "o", 10),
    "zstd -3": ("#8c8c8c", "X", 6),
    "XOR planes zstd -3": ("#8c8c8c", "s", 6),
    "PULSE-like": ("#009e73", "^", 7),
    "zstd -3 --patch-from": ("#8c6bb1", "v", 6),
    "zstd -19 --patch-from": ("#8c6bb1", "D", 5),
    "xdelta3": ("#4d4d4d", "P", 6),
}
"""Colour, mark, size."""
_BOUND = "entropy given the exponent"


def _points(one: Result, method: str) -> tuple[list[float], float] | None:
    """Speeds of packing and applying (MB/s), and the file's share of the model."""
    file, fastest = one.row(method, FILES), one.row(method, DIGESTS) or one.row(method, FILES)
    if file is None or fastest is None or not file.bytes:
        return None
    speeds = [one.speed(seconds) / 1e6 for seconds in (fastest.pack, fastest.apply)]
    return speeds, file.bytes / one.stats.model_bytes


def _panel(axis: Any, one: Result, seen: dict[str, Any]) -> None:
    for method, (colour, mark, size) in _LOOKS.items():
        found = _points(one, method)
        if found is None:
            continue
        speeds, share = found
        front = 4 if method.startswith("offaxis") else 3
        axis.plot(speeds, [share] * 2, color=colour, linewidth=1, alpha=0.7, zorder=front - 1)
        line = axis.plot(speeds[:1], [share], mark, color=colour, markersize=size, zorder=front,
                         markeredgecolor=colour, linestyle="none")[0]  # fmt: skip
        axis.plot(speeds[1:], [share], mark, color="white", markersize=size, zorder=front,
                  markeredgecolor=colour, markeredgewidth=1.5)  # fmt: skip
        tool = one.row(method, DIGESTS) is None
        seen.setdefault(f"{method} (files)" if tool else method, line)
    bound = one.stats.by_exponent.bytes / one.stats.model_bytes
    if bound:
        line = axis.axhline(bound, color="#0072b2", linestyle="--", linewidth=1, zorder=1)
        seen.setdefault(_BOUND, line)
    megabytes = one.stats.model_bytes / 1e6
    axis.set_title(f"{one.pair.name}\n{megabytes:,.0f} MB, {one.stats.changed:.1%} changed",
                   fontsize=9)  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")


def _limits(axes: Sequence[Any], which: str) -> tuple[float, float]:
    """What all panels have room in."""
    found = [getattr(axis, f"get_{which}lim")() for axis in axes]
    return min(low for low, _ in found), max(high for _, high in found)


def _share_axes(axes: Sequence[Any], across: int) -> None:
    """One scale for all panels, in plain numbers, labelled at the left and at the bottom."""
    widest, (low, high) = _limits(axes, "x"), _limits(axes, "y")
    highest = (low / 1.15, high * 1.15)
    speeds = [10**power for power in range(-2, 6) if widest[0] <= 10**power <= widest[1]]
    steps = [digit * 10.0**power for power in range(-7, 2) for digit in (1, 2, 5)]
    shares = [step for step in steps if highest[0] <= step <= highest[1]]
    if len(shares) > 9:
        shares = [step for step in shares if f"{step:e}".startswith("1")]
    for index, axis in enumerate(axes):
        axis.set_xlim(widest)
        axis.set_ylim(highest)
        left, bottom = index % across == 0, index + across >= len(axes)
        axis.set_xticks(speeds, [f"{speed:,g}" if bottom else "" for speed in speeds])
        axis.set_yticks(shares, [f"{100 * share:g} %" if left else "" for share in shares])
        axis.minorticks_off()


def _across(panels: int) -> int:
    """Columns that leave the fewest gaps."""
    if panels <= 4:
        return panels
    return min((5, 4, 3), key=lambda columns: -panels % columns)


def _order(seen: dict[str, Any]) -> list[str]:
    """offaxis and the bound first, then the rest as in `_LOOKS`."""
    first, second, *rest = _LOOKS
    names = [first, second, _BOUND, *rest]
    return sorted(seen, key=lambda label: names.index(label.removesuffix(" (files)")))


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the picture; the panels share both axes."""
    across = _across(len(results))
    figure, axes = new_figure(len(results), width=3.2, height=3.1, across=across)
    seen: dict[str, Any] = {}
    for axis, one in zip(axes, results, strict=True):
        _panel(axis, one, seen)
    _share_axes(axes, across)
    words = (
        "MB of model a second: pack filled, apply hollow;{}in memory with digests (tools: files)"
    )
    figure.supxlabel(words.format("\n" if across < 3 else " "), fontsize=10)
    figure.supylabel("delta file / model", fontsize=10)
    names = _order(seen)
    figure.legend([seen[name] for name in names], names, loc="outside upper center",
                  ncols=5 if across > 3 else 3, fontsize=9, frameon=False)  # fmt: skip
    save_figure(figure, path)
