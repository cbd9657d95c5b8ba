"""Masks of the study as a reader knows them: families, controls, order, names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Literal

from offaxis.errors import InputError
from offaxis.masks.expression import Call, Node, parse

__all__ = [
    "ALL",
    "EVERYTHING",
    "KINDS",
    "LIFT",
    "LOW",
    "NON_PRINCIPAL",
    "ONE",
    "PRINCIPAL",
    "SAFE",
    "SUBNETWORK",
    "Kind",
    "controls",
    "family",
    "kind",
    "label",
    "matched_like",
    "ordered",
    "random_like",
]

Kind = Literal["itself", "random", "matched"]
"""A mask by a rule; a random one of its density; a random one of its density in each magnitude."""

KINDS: tuple[Kind, ...] = ("itself", "random", "matched")

EVERYTHING = ""  # no mask: embeddings and norms are trained too
ALL = "all"
PRINCIPAL = "principal"
NON_PRINCIPAL = "non_principal"
LOW = "low_magnitude(threshold='mean')"
SAFE = "safe(threshold='mean')"
LIFT = "lift(budget_rank=6)"
ONE = "random(density=0.01)"
SUBNETWORK = "subnetwork"

_NAMES = {
    EVERYTHING: "all parameters",
    ALL: "dense (all matrices)",
    PRINCIPAL: "principal",
    NON_PRINCIPAL: "non-principal",
    LOW: "small weights",
    SAFE: "safe (union)",
    LIFT: "LIFT",
    ONE: "random 1 %",
    SUBNETWORK: "subnetwork",
}
_CONTROLS: Mapping[str, Kind] = {"random": "random", "magnitude_random": "matched"}
_SAME = 1e-3  # densities that differ by less are one


def random_like(mask: str) -> str:
    """The rule of a random mask of its density in each matrix."""
    return f"random(like={mask})"


def matched_like(mask: str) -> str:
    """The rule of a random mask of its density in each bin of magnitude."""
    return f"magnitude_random(like={mask})"


@lru_cache(maxsize=256)
def _like(mask: str) -> tuple[Kind, str] | None:
    """What a control is a control of."""
    if not mask:
        return None
    try:
        node: Node = parse(mask)
    except InputError:  # of a later version, say: it stands for itself
        return None
    if not isinstance(node, Call) or node.name not in _CONTROLS or "like" not in node.options:
        return None
    return _CONTROLS[node.name], str(node.options["like"])


def family(mask: str) -> str:
    """The rule that a mask belongs to: that of which it is a control, or its own."""
    found = _like(mask)
    return found[1] if found else mask


def kind(mask: str) -> Kind:
    """Is it a rule itself, or a control?"""
    found = _like(mask)
    return found[0] if found else "itself"


def label(mask: str) -> str:
    """A mask's name; a rule that the study does not know keeps its text."""
    name = _NAMES.get(family(mask), family(mask))
    return {"itself": name, "random": f"random like {name}", "matched": f"matched to {name}"}[
        kind(mask)
    ]


def ordered(masks: Iterable[str]) -> list[str]:
    """By family in the study's order, each rule before its controls; unknown rules last."""
    known = list(_NAMES)

    def place(mask: str) -> tuple[int, str, int]:
        of = family(mask)
        return (known.index(of) if of in known else len(known), of, KINDS.index(kind(mask)))

    return sorted(set(masks), key=place)


def controls(mask: str, densities: Mapping[str, float | None]) -> dict[Kind, str]:
    """The controls of a mask among those that were trained (mask -> density).

    A random mask serves every rule of its density; a matched one only the rule that it was drawn
    for, since it has that rule's magnitudes.
    """
    found: dict[Kind, str] = {}
    own = densities.get(mask)
    for other in ordered(densities):
        which, of = kind(other), densities[other]
        same = which == "random" and None not in (own, of) and abs(own - of) < _SAME  # type: ignore[operator]
        if family(other) == mask and which != "itself":
            found[which] = other
        elif same and family(other) != other:
            found.setdefault(which, other)
    return found
