"""A TRL trainer that can be leashed and told numbers, and is otherwise what it was."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import InputError

if TYPE_CHECKING:
    import torch

    from offaxis.train.leash import Leash

__all__ = ["observed"]


@functools.cache
def observed(trainer_class: type) -> type:
    """A subclass of a TRL trainer with `leash`, `note` and `tell`; one for each class.

    trainer_class: `GRPOTrainer`, `RLOOTrainer`, `SFTTrainer`, `DPOTrainer`,
    `DistillationTrainer`, a subclass of theirs, or any `transformers.Trainer`. Its constructor,
    arguments and, without a leash, its steps are unchanged.

    Raises InputError for anything else.
    """
    from transformers import Trainer

    if not (isinstance(trainer_class, type) and issubclass(trainer_class, Trainer)):
        raise InputError(f"{trainer_class!r}: give a class of trainers, such as trl.GRPOTrainer")
    if issubclass(trainer_class, _Observed):
        return trainer_class
    name = trainer_class.__name__
    return type(name, (_Observed, trainer_class), {"__doc__": trainer_class.__doc__})


class _Observed:
    """What `observed` puts before a trainer's own methods."""

    leash: Leash | None = None
    """Holds the model near its base. Set it before `train`, beside a `LeashCallback`."""
    resumed_from: Path | None = None
    """The checkpoint that this run went on from."""

    def note(self, name: str, value: float) -> None:
        """Add a number to the next log row of training: there stands the mean of all since."""
        notes: dict[str, list[float]] = self.__dict__.setdefault("_notes", {})
        notes.setdefault(name, []).append(float(value))

    def tell(self, numbers: Mapping[str, float]) -> None:
        """Log a row of its own at once."""
        self.log(dict(numbers))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, and the notes with them where they are a row of training."""
        if "loss" in logs or "train_loss" in logs:
            notes: dict[str, list[float]] = self.__dict__.get("_notes", {})
            logs.update({name: sum(values) / len(values) for name, values in notes.items()})
            notes.clear()
        super().log(logs, start_time)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with callbacks that have an `attach` told whose they are."""
        self.resumed_from = None
        for callback in self.callback_handler.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "attach"):
                callback.attach(self)
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The trainer's loss, and in training this micro-batch's share of the leash's penalty."""
        leash = self.leash if model.training else None
        # Before the forward pass: after it, FSDP may still show gathered parameters.
        penalty = leash.penalty(self.model) if leash else None  # type: ignore[attr-defined]
        found = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if leash is not None:
            leash.observe(self, inputs)
        if penalty is None:
            return found
        share = penalty / self._shares(num_items_in_batch)
        if return_outputs:
            return found[0] + share, found[1]
        return found + share

    def _shares(self, num_items_in_batch: torch.Tensor | int | None) -> int:
        """By how much Trainer leaves it to `compute_loss` to divide.

        Trainer sums the gradients of a step's micro-batches, and divides each loss by their number
        itself, except where the loss says that it has done so. Gradients of several processes are
        averaged, and each adds the same penalty.
        """
        scaled = self.loss_is_scaled_for_ga  # type: ignore[attr-defined]
        if scaled is None:  # the rule of transformers.Trainer.training_step
            scaled = self.compute_loss_func is not None or (  # type: ignore[attr-defined]
                self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
            )
        steps: int = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        return steps if scaled else 1

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Note the checkpoint, whose leash has a state too."""
        self.resumed_from = Path(checkpoint) if checkpoint else None
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
