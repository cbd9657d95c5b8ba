"""AdaLoRA in a Trainer: its ranks are allocated, its penalty is in the loss, its state resumes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from offaxis.errors import InputError
from offaxis.train.reference.adapters import REF

__all__ = ["AdaLoraCallback", "add_penalty", "alone", "orthogonality", "schedule"]


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls PEFT's `update_and_allocate` after each optimizer step, while gradients live.

    Neither TRL nor transformers calls it: without it AdaLoRA never prunes (section 3.2 of arXiv
    2303.10512 never runs). The pattern of ranks is kept here, not in the adapter's configuration:
    PEFT would cut the pruned rows from a checkpoint, which would then not fit the model that
    resumes. What is pruned is zero in `lora_E`.
    """

    def __init__(self, model: Any, fractions: tuple[float, float] | None) -> None:
        self.tuner = model.base_model
        self.config = self.tuner.peft_config[self.tuner.trainable_adapter_name]
        self.fractions = fractions
        self.pattern: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Fit the schedule to the length of the run."""
        if self.fractions is not None:
            schedule(self.config, state.max_steps, *self.fractions)
        elif self.config.total_step != state.max_steps:
            raise InputError(
                f"AdaLoRA's total_step is {self.config.total_step}, but the run has "
                f"{state.max_steps} steps: it would not reach its rank when it should; set it to "
                f"{state.max_steps}"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step of importance scores and, where it is due, of pruning."""
        self.config.rank_pattern = self.pattern
        try:
            self.tuner.update_and_allocate(state.global_step + 1)
        finally:
            self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def state_dict(self) -> dict[str, Any]:
        """What the allocation goes on from."""
        allocator = self.tuner.rankallocator
        return {
            "ipt": dict(allocator.ipt),
            "exp_avg_ipt": dict(allocator.exp_avg_ipt),
            "exp_avg_unc": dict(allocator.exp_avg_unc),
            "pattern": self.pattern,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        allocator = self.tuner.rankallocator
        where = {name: one.device for name, one in self.tuner.model.named_parameters()}
        for key in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            found = {name: one.to(where.get(name, one.device)) for name, one in state[key].items()}
            setattr(allocator, key, found)
        self.pattern = state["pattern"]


def schedule(config: Any, steps: int, warmup: float, cooldown: float) -> None:
    """Set the steps of AdaLoRA's three phases: all ranks, pruning, the rest at the final ranks.

    warmup, cooldown: shares of `steps`. Raises InputError where no step is left to prune in, or
    none before it to score in.
    """
    first, last = round(warmup * steps), round(cooldown * steps)
    if first < 0 or last < 0 or steps - last < max(first + 1, 2):
        raise InputError(
            f"AdaLoRA with warmup {warmup} and cooldown {cooldown} has no step of {steps} left to "
            "score and prune in; give more steps, or lower shares"
        )
    config.tinit, config.tfinal, config.total_step = first, last, steps


def alone(model: Any) -> None:
    """Let TRL's reference be the model with its adapter switched off, which is the base.

    Given a PEFT model, TRL adds a second adapter as the reference (GRPO and RLOO with beta, DPO
    always); PEFT refuses that for AdaLoRA.
    """
    kind: type = type(model)
    model.__class__ = _alone(kind)


@functools.cache
def _alone(kind: type) -> type:
    class Alone(kind):  # type: ignore[misc]
        def add_adapter(self, adapter_name: str, peft_config: Any, **more: Any) -> None:
            if adapter_name != REF:
                super().add_adapter(adapter_name, peft_config, **more)

    Alone.__name__ = Alone.__qualname__ = kind.__name__
    return Alone


def orthogonality(model: Any, adapter: str) -> torch.Tensor:
    """The mean over all A and B of ‖A Aᵀ − I‖_F and ‖BᵀB − I‖_F (eq. 4 of arXiv 2303.10512)."""
    found = []
    for name, one in model.named_parameters():
        if f".lora_A.{adapter}" in name or f".lora_B.{adapter}" in name:
            with torch.autocast(one.device.type, enabled=False):  # it would round to bfloat16
                square = one @ one.T if ".lora_A." in name else one.T @ one
            found.append(torch.linalg.norm(square - torch.eye(len(square), device=one.device)))
    return torch.stack(found).mean()


def add_penalty(trainer: Any) -> None:
    """Add the orthogonality penalty to every loss that `trainer` computes in training.

    PEFT adds it where the model itself computes a loss, from labels. RL's loss is computed from
    log-probabilities, so there it is lost; with gradient accumulation PEFT's counts once a
    micro-batch. Here it counts once an optimizer step for every trainer, and PEFT's is taken out.
    """
    model = trainer.model
    tuner = model.base_model
    adapter = tuner.trainable_adapter_name
    tuner.forward = tuner.model.forward
    plain = trainer.compute_loss

    def compute_loss(
        given: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = plain(given, inputs, return_outputs, num_items_in_batch)
        weight = tuner.peft_config[adapter].orth_reg_weight
        if not given.training or not weight:
            return found
        penalty = orthogonality(tuner.model, adapter)
        if hasattr(trainer, "note"):
            trainer.note("adalora/orthogonality", float(penalty.detach()))
        term = weight * penalty * _share(trainer, num_items_in_batch)
        return (found[0] + term, *found[1:]) if return_outputs else found + term

    trainer.compute_loss = compute_loss


def _share(trainer: Any, num_items_in_batch: Any) -> float:
    """1, or one in so many where the trainer does not divide a micro-batch's loss any more."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        scaled = (
            trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        ) or trainer.compute_loss_func is not None
    return 1.0 / trainer.current_gradient_accumulation_steps if scaled else 1.0
