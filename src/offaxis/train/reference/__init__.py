"""The original base of a model in training: what KL is measured to, and what beta pulls to.

A model that trains all its weights has a frozen copy: TRL's `ref_model` where it made one, else
one that is loaded once. An adapter's base is the same model with adapters disabled, unless the
adapter has overwritten the base (PiSSA, OLoRA, CorDA, LoRA-GA): then that is the *residual*
W − B₀A₀ (peft#2184), and the base is the model with a frozen copy of the initial adapter. TRL
looks for such a copy under the name `ref`, and `prepare_peft_model` makes it.
"""

from offaxis.train.reference.adapters import prepare_peft_model
from offaxis.train.reference.base import Reference, reference_of
from offaxis.train.reference.trial import overwrites_base

__all__ = ["Reference", "overwrites_base", "prepare_peft_model", "reference_of"]
