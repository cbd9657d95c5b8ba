"""What every leash is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from offaxis.errors import InputError

__all__ = ["Leash", "has_kl_term"]


def has_kl_term(trainer: Any) -> bool:
    """Whether the trainer's `beta` weighs a KL penalty: true of TRL's GRPO and RLOO.

    DPO's `beta` is the temperature of its implicit reward, and distillation's mixes two models.
    """
    from trl import GRPOTrainer, RLOOTrainer

    return isinstance(trainer, GRPOTrainer | RLOOTrainer)


class Leash(ABC):
    """Something that holds a model near the one it started from, while it trains.

    `LeashCallback` calls `prepare` when training begins, then `load_state_dict` in a resumed run
    (or `begin` in a fresh one), `update` after every step, and stores `state_dict` and
    `tensors` with every checkpoint; `observed(...)` calls `penalty` and `observe` in every
    micro-batch, and `DivergenceCallback` calls `update` with what it measured.
    """

    name: ClassVar[str]
    needs_probe: ClassVar[bool] = False
    """Whether it reads `kl_tuned_base`, so that a `DivergenceCallback` must be there."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Trainer arguments that it needs when the trainer is made."""
        return {}

    @abstractmethod
    def prepare(self, trainer: Any) -> None:
        """Check that this trainer can be leashed so, and take hold. InputError where it cannot."""

    def begin(self, trainer: Any) -> None:  # noqa: B027  # most have nothing to do
        """Do, once a run and not again where it is resumed, what needs the untrained model."""

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """A scalar that is added to the loss of one optimizer step, or None."""
        return None

    def observe(self, trainer: Any, inputs: Any) -> None:  # noqa: B027
        """See a micro-batch of training after its loss is known."""

    def update(self, trainer: Any, reading: Mapping[str, float], control: Any) -> None:  # noqa: B027
        """React to what was measured: after every step, and after every probe."""

    def reading(self) -> Mapping[str, float]:
        """What `observe` has seen since the last call: `kl_sequence`, where there is any."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, floats exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up such values."""

    def save_tensors(self, folder: Path, trainer: Any) -> None:  # noqa: B027
        """Write what JSON cannot hold into a checkpoint. Every process calls it."""

    def load_tensors(self, folder: Path, trainer: Any) -> None:  # noqa: B027
        """Read it back. Every process calls it."""


def positive(name: str, value: float) -> float:
    """`value`, or InputError where it is not a positive finite number."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name} {value}: a leash needs a positive number")
    return float(value)
