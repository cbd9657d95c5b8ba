"""Gate I on models that run: the KL leash, its quadratic form, and which way is flat."""

from offaxis.gates.fisher.bound import Bound
from offaxis.gates.fisher.curvature import Confined, Contrast, Quotient
from offaxis.gates.fisher.intervals import Estimate
from offaxis.gates.fisher.measuring import Settings, anchor, measure
from offaxis.gates.fisher.move import Move, load_move, move_of
from offaxis.gates.fisher.paired import Versus, versus, versus_summary
from offaxis.gates.fisher.result import Anchor, Leash, anchor_summary
from offaxis.gates.fisher.scopes import Scope
from offaxis.gates.fisher.shrinking import Shrinking

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
    "Versus",
    "anchor",
    "anchor_summary",
    "load_move",
    "measure",
    "move_of",
    "versus",
    "versus_summary",
]
