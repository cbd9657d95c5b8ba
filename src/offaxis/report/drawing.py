"""Small charts as SVG text, drawn when the page is written: no script has to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from offaxis.report.text import escape

__all__ = ["SYMBOLS", "Chart", "both_widths", "key", "ticks"]

Point = tuple[float, float]

SYMBOLS = ("circle", "square", "diamond", "up", "down", "cross")
"""Marks of the series, in order; series i also has the class `s{i % 6}`, which gives its colour."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 12.0, 12.0, 42.0


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high` (1, 2, 2.5 and 5 times a power of ten)."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 2.5, 5, 10, 20) if power * one >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(one * step, 12) for one in range(first, last + 1)]


@dataclass
class Chart:
    """One chart with linear axes; what is drawn is kept in order and comes out of `svg`.

    x, y: the ends of the axes. label: what a screen reader says of the whole chart.
    """

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    label: str
    _parts: list[str] = field(default_factory=list)

    @property
    def inner(self) -> float:
        """Width of the drawing area."""
        return self.width - _LEFT - _RIGHT

    def at_x(self, value: float) -> float:
        low, high = self.x
        return round(_LEFT + self.inner * (value - low) / ((high - low) or 1.0), 1)

    def at_y(self, value: float) -> float:
        low, high = self.y
        tall = self.height - _TOP - _BOTTOM
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        return round(_TOP + tall * (1 - share), 1)

    def axes(
        self,
        across: Sequence[tuple[float, str]],
        up: Sequence[tuple[float, str]],
        *,
        below: str,
    ) -> None:
        """Ticks with words, faint rules from those of the y axis, and what x is."""
        bottom = self.height - _BOTTOM
        for value, words in up:
            y = self.at_y(value)
            self._line(_LEFT, y, self.width - _RIGHT, y, "rule")
            self._text(_LEFT - 7, y + 4, words, "end")
        for value, words in across:
            self._text(self.at_x(value), bottom + 17, words, "middle")
        self._line(_LEFT, bottom, self.width - _RIGHT, bottom, "axis")
        self._text(_LEFT + self.inner / 2, self.height - 6, below, "middle")

    def level(self, value: float, kind: str = "zero") -> None:
        """A rule across at y = value."""
        y = self.at_y(value)
        self._line(_LEFT, y, self.width - _RIGHT, y, kind)

    def upright(self, value: float, words: str, kind: str = "asked") -> None:
        """A rule up at x = value with words at its head."""
        x = self.at_x(value)
        self._line(x, _TOP, x, self.height - _BOTTOM, kind)
        side = "end" if x > _LEFT + self.inner / 2 else "start"
        self._text(x + (-5 if side == "end" else 5), _TOP + 11, words, side)

    def stripe(self, low: float, high: float, kind: str = "stripe") -> None:
        """The strip between two x."""
        left, right = self.at_x(low), self.at_x(high)
        tall = self.height - _TOP - _BOTTOM
        self._parts.append(
            f'<rect class="{kind}" x="{left}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{tall}"/>'
        )

    def band(self, low: Sequence[Point], high: Sequence[Point], kind: str) -> None:
        """The area between two lines of points in x order."""
        path = [*low, *reversed(high)]
        self._parts.append(f'<polygon class="{kind}" points="{self._points(path)}"/>')

    def curve(self, points: Sequence[Point], kind: str) -> None:
        self._parts.append(f'<polyline class="{kind}" points="{self._points(points)}"/>')

    def span(self, x: float, low: float, high: float, kind: str) -> None:
        """An upright bar from `low` to `high`."""
        place = self.at_x(x)
        self._line(place, self.at_y(low), place, self.at_y(high), kind)

    def dot(self, x: float, y: float, series: int, words: str) -> None:
        """One symbol, with words that appear when it is pointed at."""
        shape = _symbol(SYMBOLS[series % len(SYMBOLS)], self.at_x(x), self.at_y(y))
        self._parts.append(
            f'<g class="dot s{series % 6}"><title>{escape(words, 400)}</title>{shape}</g>'
        )

    def svg(self) -> str:
        """The chart. Its size follows the page's width."""
        return (
            f'<svg class="chart" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{escape(self.label, 400)}">{"".join(self._parts)}</svg>'
        )

    def _points(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.at_x(x)},{self.at_y(y)}" for x, y in points)

    def _line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._parts.append(f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')

    def _text(self, x: float, y: float, words: str, anchor: str) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )


def _symbol(name: str, x: float, y: float) -> str:
    if name == "circle":
        return f'<circle cx="{x}" cy="{y}" r="4.5"/>'
    shapes = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        "up": ((0, -5), (5, 4), (-5, 4)),
        "down": ((0, 5), (5, -4), (-5, -4)),
        "cross": ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2),
                  (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)),
    }  # fmt: skip
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[name])
    return f'<polygon points="{corners}"/>'


def key(entries: Sequence[tuple[int, str]]) -> str:
    """A legend: the symbol of each series with its name."""
    spans = "".join(
        f'<span><svg viewBox="0 0 26 12" aria-hidden="true"><g class="dot s{series % 6}">'
        f"{_symbol(SYMBOLS[series % len(SYMBOLS)], 13, 6)}</g></svg>{escape(name)}</span>"
        for series, name in entries
    )
    return f'<div class="legend">{spans}</div>'


def both_widths(wide: str, narrow: str) -> str:
    """Two drawings of one chart; the style sheet shows the one that fits."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
