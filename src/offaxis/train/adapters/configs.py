"""MiLoRA, GeoRA and off-principal LoRA as a PEFT configuration: a LoRA with three more keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig
from torch import nn

from offaxis.errors import InputError
from offaxis.train.adapters.layers import AVOIDED, STARTS, GeometricLinear

__all__ = ["GeometricLoraConfig"]


@dataclass
class GeometricLoraConfig(LoraConfig):  # type: ignore[misc]
    """A `peft.LoraConfig` whose adapter starts from, or keeps out of, the base's subspaces.

    Give it to `get_peft_model`, to a TRL trainer or, to keep the reference policy, to
    `offaxis.train.prepare_peft_model`. Its `peft_type` is LORA, and so is what it saves.

    init_lora_weights, besides LoRA's own:

    - "milora" (MiLoRA, arXiv 2406.09044): s B₀A₀ is the part of W₀ on its last r singular values.
    - "geora" (after GeoRA, arXiv 2601.09361): s B₀A₀ is the best rank-r fit of W₀ ⊙ M, where M
      selects the `low_share` smallest entries of |W₀⁽ʳ⁾| and those of |W₀|.

    Both overwrite the base by W₀ − s B₀A₀, s = alpha / r, as PiSSA does: the update is
    s (BA − B₀A₀).

    avoid_rank: with k > 0 the update is s (I − UₖUₖᵀ) B A (I − VₖVₖᵀ), and so never reaches into
    the span of the base's first k left, or right, singular vectors. 0: LoRA, bit for bit. None:
    `offaxis.linalg.principal_rank` of each weight. What is saved is (I − UₖUₖᵀ) B and
    A (I − VₖVₖᵀ): a LoRA that every reader of LoRA understands.
    avoid: "principal", "minor" (the last k) or, as the control, "random" (by `avoid_seed`).

    Raises InputError for values that are none of these, and for what does not go together.
    """

    avoid_rank: int | None = field(default=0, metadata={"help": "Directions to keep out of."})
    avoid: str = field(default="principal", metadata={"help": f"One of {', '.join(AVOIDED)}."})
    avoid_seed: int = field(default=0, metadata={"help": "Seed of random directions."})
    low_share: float = field(default=0.2, metadata={"help": "Share of small entries (GeoRA)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._register_custom_module({nn.Linear: GeometricLinear, _conv1d(): GeometricLinear})
        if self.avoid not in AVOIDED:
            raise InputError(f"avoid {self.avoid!r}: choose one of {', '.join(AVOIDED)}")
        if self.avoid_rank is not None and self.avoid_rank < 0:
            raise InputError(f"avoid_rank {self.avoid_rank}: give a number of directions, or null")
        if not 0 < self.low_share <= 1:
            raise InputError(f"low_share {self.low_share}: give a share above 0, at most 1")
        taken = self.init_lora_weights in STARTS
        projects = self.avoid_rank != 0
        if taken and projects:
            raise InputError(
                f"init_lora_weights {self.init_lora_weights!r} with avoid_rank {self.avoid_rank}: "
                "the start would not be kept; choose one of them"
            )
        if projects and self.init_lora_weights not in (True, "gaussian", "orthogonal"):
            raise InputError(
                f"avoid_rank with init_lora_weights {self.init_lora_weights!r}: the projection "
                "would change the start; leave init_lora_weights at true"
            )
        if (taken or projects) and (self.use_dora or self.lora_bias):
            raise InputError("use_dora and lora_bias do not go with these starts and projections")


def _conv1d() -> Any:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
