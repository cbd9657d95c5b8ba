"""The charts of the page of a prediction: scores with their curve, and gains by horizon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offaxis.report.drawing import Chart, both_widths, key, ticks
from offaxis.report.predict_tables import asked_horizon, band_words
from offaxis.report.text import is_number, percent, plain

__all__ = ["accuracy", "gains"]

Told = Mapping[str, Any]

_SIZES = ((1120.0, 380.0, 8), (360.0, 300.0, 4))
"""Width, height and most ticks across, of the two drawings."""
_DEEPEST = -1.0
"""Gains below are drawn here, and the page says so."""


def accuracy(told: Told) -> str:
    """Scores at their steps, the curve with its interval, the step asked for."""
    points = [(one["step"], one["score"], str(one["name"])) for one in told["checkpoints"]]
    points = [one for one in points if is_number(one[0]) and is_number(one[1])]
    if is_number(told.get("base_score")):
        points.insert(0, (0.0, told["base_score"], "base"))
    drawn = (told.get("curve") or {}).get("drawn") or []
    wide, narrow = (_accuracy(told, points, drawn, *size) for size in _SIZES)
    return f"<figure>{both_widths(wide, narrow)}</figure>"


def _accuracy(
    told: Told,
    points: Sequence[tuple[float, float, str]],
    drawn: Sequence[Sequence[float]],
    width: float,
    height: float,
    most: int,
) -> str:
    at = told.get("at")
    ends = [step for step, _, _ in points] + [row[0] for row in drawn]
    right = max([*ends, at] if is_number(at) else ends, default=1.0)
    heights = [score for _, score, _ in points] + [v for row in drawn for v in row[1:]]
    low, high = _room(heights)
    chart = Chart(width, height, (0.0, 1.02 * right), (low, high), "Accuracy over training steps")
    up = [(value, plain(value, 2)) for value in ticks(low, high, 5)]
    across = [(value, f"{value:g}") for value in ticks(0, right, most)]
    chart.axes(across, up, below="training step")
    if drawn:
        chart.band([(s, b) for s, _, b, _ in drawn], [(s, t) for s, _, _, t in drawn], "area")
        last = max((step for step, _, _ in points), default=0.0)
        inside = [(s, v) for s, v, _, _ in drawn if s <= last]
        beyond = [(s, v) for s, v, _, _ in drawn if s >= last]
        chart.curve(inside, "within")
        chart.curve([*inside[-1:], *beyond], "beyond")
    if is_number(at):
        chart.upright(at, f"step {at:g}")
    for step, score, name in points:
        chart.dot(step, score, 0, f"{name}: step {step:g}, score {plain(score, 4)}")
    return chart.svg()


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis of shares, with some room around the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = max(0.02, 0.08 * (high - low))
    return max(0.0, low - pad), min(1.0, high + pad)


def gains(told: Told) -> str:
    """Median gain over stopping with its range, by band of horizons and method."""
    rows = [row for row in told["backtest"]["summary"] if row.get("part", "all") == "all"]
    rows = [row for row in rows if row["method"] != "stop" and is_number(row["gain_over_stop"])]
    if not rows:
        return ""
    methods = [name for name in told["backtest"]["methods"] if name != "stop"]
    wide, narrow = (_gains(told, rows, methods, *size) for size in _SIZES)
    legend = key([(place, name) for place, name in enumerate(methods)])
    deep = any(row["gain_over_stop_least"] < _DEEPEST for row in rows)
    note = f'<p class="fine">Gains below {_share(_DEEPEST)} are drawn there.</p>' if deep else ""
    return f"<figure>{both_widths(wide, narrow)}{legend}{note}</figure>"


def _share(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%".replace("-", "−")


def _gains(
    told: Told,
    rows: Sequence[Told],
    methods: Sequence[str],
    width: float,
    height: float,
    most: int,
) -> str:
    bands = list(dict.fromkeys((row["above"], band_words(row)) for row in rows))
    lows = [max(_DEEPEST, row["gain_over_stop_least"]) for row in rows]
    highs = [row["gain_over_stop_greatest"] for row in rows]
    low, high = min(0.0, *lows) - 0.05, max(0.0, *highs) + 0.05
    chart = Chart(width, height, (0.0, float(len(bands))), (low, high), "Gain over stopping")
    asked = asked_horizon(told)
    for place, (above, _) in enumerate(bands):
        mine = next(row for row in rows if row["above"] == above)
        upto = mine["upto"] if is_number(mine.get("upto")) else math.inf
        if asked is not None and above < asked <= upto:
            chart.stripe(place, place + 1)
    up = [(value, _share(value)) for value in ticks(low, high, 6)]
    across = [(place + 0.5, words) for place, (_, words) in enumerate(_shown(bands, most))]
    chart.axes(across, up, below="horizon: target step over origin step")
    chart.level(0.0)
    places = {above: place for place, (above, _) in enumerate(bands)}
    for row in rows:
        series = methods.index(row["method"])
        x = places[row["above"]] + (series + 1) / (len(methods) + 1)
        low_end, high_end = row["gain_over_stop_least"], row["gain_over_stop_greatest"]
        words = (
            f"{row['method']}, {band_words(row)}: median {percent(row['gain_over_stop'])}, "
            f"{percent(low_end)} to {percent(high_end)}"
        )
        chart.span(x, max(_DEEPEST, low_end), high_end, f"range s{series % 6}")
        chart.dot(x, max(_DEEPEST, row["gain_over_stop"]), series, words)
    return chart.svg()


def _shown(bands: Sequence[tuple[float, str]], most: int) -> list[tuple[float, str]]:
    """Words of the bands, shorter where there is little room."""
    if len(bands) <= most:
        return list(bands)
    return [(above, f">{above:g}×") for above, _ in bands]
