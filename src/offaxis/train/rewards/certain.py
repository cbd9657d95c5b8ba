"""The reward of certainty: Intuitor's, which needs no gold but the model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from offaxis.errors import InputError
from offaxis.train.rewards.base import Completion, Reward
from offaxis.verifiers.certainty import self_certainty

__all__ = ["SelfCertaintyReward"]


class SelfCertaintyReward(Reward):
    """Mean KL(uniform ‖ p) over a response's tokens under the model in training (`self_certainty`).

    Needs `attach(trainer)` once the trainer exists. The model runs again over prompt and response,
    in evaluation mode, without gradients and without the sampling temperature, `batch_size` rows
    at a time. None for a response without tokens. Not for parameters that are sharded over
    processes (ZeRO-3, FSDP), which no single forward pass of one rank can use.
    """

    def __init__(self, *, batch_size: int = 8, weight: float = 1.0) -> None:
        super().__init__("self_certainty", weight=weight)
        if batch_size < 1:
            raise InputError(f"reward 'self_certainty': batch_size {batch_size}; choose 1 or more")
        self.batch_size = batch_size
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Use this trainer's model and tokenizer."""
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer: a copy must be attached again."""
        return {key: None if key == "_trainer" else value for key, value in vars(self).items()}

    def _prompt_ids(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Tokens of the prompts as TRL's trainers make them."""
        tokenizer = self._trainer.processing_class
        if isinstance(prompts[0], str):
            return [list(ids) for ids in tokenizer(text=list(prompts))["input_ids"]]
        made = tokenizer.apply_chat_template(
            conversation=list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            chat_template=getattr(self._trainer, "chat_template", None),
            **getattr(self._trainer, "chat_template_kwargs", {}),
        )
        return [list(ids) for ids in made["input_ids"]]

    def rewards(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """One reward a row."""
        if self._trainer is None:
            raise InputError("reward 'self_certainty' needs the model: call attach(trainer) first")
        if completion_ids is None:
            raise InputError("reward 'self_certainty' reads tokens: pass completion_ids")
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        pairs = list(zip(self._prompt_ids(prompts), map(list, completion_ids), strict=True))
        training = model.training
        model.eval()
        try:
            values = [
                value
                for start in range(0, len(pairs), self.batch_size)
                for value in _certainty(model, pairs[start : start + self.batch_size])
            ]
        finally:
            model.train(training)
        return values


def _certainty(model: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float | None]:
    """Self-certainty of each completion behind its prompt; the batch is padded on the left."""
    longest = max(len(prompt) + len(said) for prompt, said in pairs)
    kept = max(len(said) for _, said in pairs)
    if kept == 0:
        return [None] * len(pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    seen = torch.zeros(len(pairs), longest, dtype=torch.long)
    mask = torch.zeros(len(pairs), kept, dtype=torch.bool)
    for row, (prompt, said) in enumerate(pairs):
        length = len(prompt) + len(said)
        if length:
            ids[row, -length:] = torch.tensor(prompt + said)
            seen[row, -length:] = 1
        mask[row, kept - len(said) :] = True
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=seen.to(model.device),
            position_ids=positions.to(model.device),
            logits_to_keep=kept + 1,
            use_cache=False,
        ).logits[:, :-1]
    found = self_certainty(logits, mask.to(logits.device))
    return [None if math.isnan(value) else float(value) for value in found.tolist()]
