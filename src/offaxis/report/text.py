"""From untrusted strings and nullable numbers to text that is safe and pleasant to read."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

__all__ = [
    "DASH",
    "clean",
    "count",
    "decimals",
    "escape",
    "interval",
    "is_number",
    "join",
    "json_block",
    "percent",
    "plain",
    "short_labels",
    "signed",
    "small",
    "squeeze",
]

DASH = "—"
_LONGEST = 200
_SPACES = "\u00a0\u202f"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def clean(text: object, longest: int = _LONGEST) -> str:
    r"""Text with each unprintable character (controls, bidi overrides, surrogates) as `\uXXXX`.

    What is longer than `longest` characters loses its middle.
    """
    shown = "".join(c if c.isprintable() or c in _SPACES else f"\\u{ord(c):04x}" for c in str(text))
    return squeeze(shown, longest)


def squeeze(text: str, longest: int) -> str:
    """`text`, its middle replaced by an ellipsis where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def escape(text: object, longest: int = _LONGEST) -> str:
    """`clean` text that is safe in HTML, inside an element and inside a quoted attribute."""
    return html.escape(clean(text, longest), quote=True)


def json_block(data: Any) -> str:
    """Compact JSON that no HTML parser can leave: `<`, `>`, `&` are written as escapes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def plain(value: float | None, places: int = 4) -> str:
    """A number with a fixed count of decimals, or a dash."""
    return _minus(f"{value:.{places}f}") if is_number(value) else DASH


def signed(value: float | None, places: int = 4) -> str:
    """A number with its sign always shown."""
    if value is None or not is_number(value):
        return DASH
    return _minus(f"{value:+.{places}f}")


def percent(value: float | None) -> str:
    """A share as a percentage; close to 0 and 1 it keeps the digits that tell it from them."""
    if value is None or not is_number(value):
        return DASH
    distance = min(abs(value), abs(1 - value))
    places = 1 if distance >= 0.005 or distance == 0 else 3
    text = f"{100 * value:.{places}f}"
    if distance > 0 and float(text) in (0.0, 100.0):
        return f"{'<' if value < 0.5 else '>'}{'0.001' if value < 0.5 else '99.999'}\u00a0%"
    return f"{_minus(text)}\u00a0%"


def small(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, with a power of ten where that is shorter."""
    if value is None or not is_number(value):
        return DASH
    if value == 0:
        return "0"
    if 1e-2 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return _minus(f"{value:,.{decimals}f}".replace(",", "\u202f"))
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_minus(mantissa)}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(value):,}".replace(",", "\u202f") if value is not None else DASH


def interval(bounds: object, places: int = 4) -> str:
    """`[low, high]` with signs, or nothing where there is no interval."""
    pair = list(bounds) if isinstance(bounds, list | tuple) else []
    if len(pair) != 2 or not all(is_number(bound) for bound in pair):
        return ""
    return f"[{signed(pair[0], places)}, {signed(pair[1], places)}]"


def decimals(width: float | None, least: int = 4) -> int:
    """Decimals, from `least` to 7, at which a number of this size keeps its first digit."""
    if width is None or not is_number(width) or width <= 0:
        return least
    return min(7, max(least, -math.floor(math.log10(width))))


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def short_labels(names: Sequence[str]) -> list[str]:
    """The shortest path endings that tell the names apart; equal names get a number."""
    parts = [[part for part in clean(name).split("/") if part] or [clean(name)] for name in names]
    depth, deepest = 1, max((len(part) for part in parts), default=1)
    distinct = len({tuple(part) for part in parts})
    while depth < deepest and len({tuple(part[-depth:]) for part in parts}) < distinct:
        depth += 1
    labels = ["/".join(part[-depth:]) for part in parts]
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[index] = f"{label} ({seen[label]})"
    return labels
