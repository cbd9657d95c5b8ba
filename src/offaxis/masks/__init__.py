"""Which weights to train: masks of a model's matrices, by rule, exact, saved small.

`build` makes a mask from a base and a rule, `load` reads a saved one; a `Mask` is a mapping from
stored tensor name to boolean tensor, and masks of one base are joined with `|`, `&`, `-`, `^`, `~`.
`info` says what is in one, `inspect` how far it is another, beside the nulls.
"""

from offaxis.masks.building import Progress, build
from offaxis.masks.describing import info
from offaxis.masks.file import load
from offaxis.masks.inspecting import inspect, mask_or_rule
from offaxis.masks.making import make
from offaxis.masks.mask import Mask, Origin
from offaxis.masks.rules import RULES, Rule

__all__ = [
    "RULES",
    "Mask",
    "Origin",
    "Progress",
    "Rule",
    "build",
    "info",
    "inspect",
    "load",
    "make",
    "mask_or_rule",
]
