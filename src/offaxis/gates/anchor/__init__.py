"""Gate I on models that run: the KL leash, its quadratic form, and which way is flat."""

from offaxis.gates.anchor.bound import Bound
from offaxis.gates.anchor.curvature import Confined, Contrast, Quotient
from offaxis.gates.anchor.intervals import Estimate
from offaxis.gates.anchor.measuring import Settings, anchor, measure
from offaxis.gates.anchor.move import Move, load_move, move_of
from offaxis.gates.anchor.result import Anchor, Leash, anchor_summary
from offaxis.gates.anchor.scopes import Scope
from offaxis.gates.anchor.shrinking import Shrinking

__all__ = [
    "Anchor",
    "Bound",
    "Confined",
    "Contrast",
    "Estimate",
    "Leash",
    "Move",
    "Quotient",
    "Scope",
    "Settings",
    "Shrinking",
    "anchor",
    "anchor_summary",
    "load_move",
    "measure",
    "move_of",
]
