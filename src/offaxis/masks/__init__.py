"""Which weights to train: masks of a model's matrices, by rule, exact, saved small.

`build` makes a mask from a base and a rule, `load` reads a saved one; a `Mask` is a mapping from
stored tensor name to boolean tensor, and masks of one base are joined with `|`, `&`, `-`, `^`, `~`.
"""

from offaxis.masks.building import build
from offaxis.masks.file import load
from offaxis.masks.mask import Mask, Origin
from offaxis.masks.rules import RULES, Rule

__all__ = ["RULES", "Mask", "Origin", "Rule", "build", "load"]
