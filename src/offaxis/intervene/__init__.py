"""Edits of attention that change a model's coordinates and not what it computes.

`rotate` turns the values of a layer's heads into another basis, `permute` puts the heads in another
order; both write a model and, beside it, an `Intervention`: what was drawn, and the way back for
updates and masks. The causal test of The Path Not Taken (section 4.3) trains the edited model.
"""

from offaxis.intervene.editing import permute, rotate
from offaxis.intervene.families import FAMILIES, SEEING
from offaxis.intervene.record import Intervention
from offaxis.intervene.selecting import Layer, parse_layers

__all__ = ["FAMILIES", "SEEING", "Intervention", "Layer", "parse_layers", "permute", "rotate"]
