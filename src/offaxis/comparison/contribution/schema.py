"""The shape of a contribution: `schema.json` (JSON Schema, draft 2020-12), and what holds to it.

`check` knows the keywords that this schema uses and no other; a library for all of them is no
dependency of offaxis. A test holds that no keyword of the schema is left unread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["KEYWORDS", "faults", "schema"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_LARGEST = 2**63 - 1
KEYWORDS = frozenset(
    {
        "$schema", "$ref", "$defs", "title", "description", "type", "const", "required",
        "properties", "additionalProperties", "propertyNames", "items", "prefixItems", "minItems",
        "maxItems", "pattern", "minimum", "maximum",
    }
)  # fmt: skip
"""Every keyword that `faults` understands or may pass over."""


@cache
def schema() -> dict[str, Any]:
    """The schema, as it ships in the package."""
    path = Path(__file__).with_name("schema.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def faults(value: object, rule: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Where `value` breaks `rule`, in words: nothing for a value that holds to it.

    A number that is not finite, or an integer that 64 bits do not hold, breaks every rule.
    """
    while "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    place = where or "the file"
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is not finite"
    elif isinstance(value, int) and abs(value) > _LARGEST:
        yield f"{place} is out of range"
    elif "const" in rule and (value != rule["const"] or type(value) is not type(rule["const"])):
        yield f"{place} is {_short(value)}, not {rule['const']!r}"
    elif "type" in rule and not _is_a(value, rule["type"]):
        yield f"{place} is {_short(value)}, not of type {rule['type']}"
    elif isinstance(value, str):
        if "pattern" in rule and re.search(rule["pattern"].replace("$", r"\Z"), value) is None:
            yield f"{place} is {_short(value)}, which is not written like {rule['pattern']}"
    elif isinstance(value, dict):
        yield from _object(value, rule, where)
    elif isinstance(value, list):
        yield from _array(value, rule, where)
    elif _out_of_range(value, rule):
        yield f"{place} is {value}, out of range"


def _out_of_range(value: object, rule: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf)


def _is_a(value: object, names: str | list[str]) -> bool:
    for name in [names] if isinstance(names, str) else names:
        if isinstance(value, bool):
            if name == "boolean":
                return True
        elif isinstance(value, _TYPES[name]):
            return True
    return False


def _object(value: dict[Any, Any], rule: Mapping[str, Any], where: str) -> Iterator[str]:
    known = rule.get("properties", {})
    for name in rule.get("required", ()):
        if name not in value:
            yield f"{where or 'the file'} lacks {name!r}"
    for name, inner in value.items():
        place = f"{where}.{name}" if where else str(name)
        if "propertyNames" in rule:
            yield from faults(name, rule["propertyNames"], f"the name of {_short(place)}")
        other = rule.get("additionalProperties", {})
        if name in known:
            yield from faults(inner, known[name], place)
        elif other is False:
            yield f"{_short(place)} is not of this format"
        else:
            yield from faults(inner, other, place)


def _array(value: list[Any], rule: Mapping[str, Any], where: str) -> Iterator[str]:
    if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
        yield f"{where} has {len(value)} entries"
    first = rule.get("prefixItems", ())
    for index, inner in enumerate(value):
        one = first[index] if index < len(first) else rule.get("items", {})
        yield from faults(inner, one, f"{where}[{index}]")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
