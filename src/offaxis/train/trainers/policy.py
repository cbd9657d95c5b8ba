"""What every policy-gradient run of offaxis adds to TRL's trainer: it is observed, and resumes."""

from __future__ import annotations

from typing import Any

import torch
import trl

from offaxis.train.observed import observed
from offaxis.train.trainers.sampler import epoch_sampler

__all__ = ["PolicyGRPOTrainer", "PolicyRLOOTrainer"]

Inputs = dict[str, Any]


class _Policy:
    """Before a TRL trainer with a clipped ratio in the order of bases."""

    rewards_per_function: torch.Tensor
    """Rewards of the last batch of samples, (rows of all processes, functions); NaN where None."""
    _logps: torch.Tensor | None = None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        found: Any = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return epoch_sampler(found)

    def _calculate_rewards(self, *given: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(*given)  # type: ignore[misc]
        self.rewards_per_function = found
        return found

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        found: Any = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            *given, **named
        )
        if torch.is_grad_enabled():
            self._logps = found[0].detach()
        return found

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        found: Inputs = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        self._note_mismatch(found)
        return found

    def _compute_loss(self, model: Any, inputs: Inputs) -> torch.Tensor:
        self._logps = None
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if self._logps is not None:
            self._note_ratio(inputs, self._logps)
        return loss

    def _note_ratio(self: Any, inputs: Inputs, logps: torch.Tensor) -> None:
        """Share of ratios outside [1 − ε_low, 1 + ε_high], whatever their advantage's sign.

        Clipping takes the gradient from the ratios that went too far; it keeps none inside. TRL's
        clip_ratio counts those alone whose gradient it took.
        """
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        if "old_logps" in inputs:  # RLOO: whole sequences
            logs, weights = (logps * mask).sum(1) - inputs["old_logps"], mask.any(1)
        elif (old := inputs.get("old_per_token_logps")) is None:
            self.note("ratio/outside", 0.0)  # the samples are the model's own: every ratio is 1
            return
        elif self.importance_sampling_level == "sequence":
            logs, weights = ((logps - old) * mask).sum(1) / mask.sum(1).clamp(min=1), mask.any(1)
        else:
            logs, weights = logps - old, mask
        ratio = logs.exp()
        outside = (ratio < 1 - self.epsilon_low) | (ratio > 1 + self.epsilon_high)
        counts = torch.stack([(outside * weights).sum().float(), weights.sum().float()])
        found = self.accelerator.reduce(counts, reduction="sum")
        self.note("ratio/outside", (found[0] / found[1].clamp(min=1)).item())

    def _note_mismatch(self: Any, found: Inputs) -> None:
        """|log p of the sampler − log p of the trainer| on sampled tokens, where TRL has none.

        With vLLM and its correction TRL logs `sampling/sampling_logp_difference`; without the
        correction nobody does. In nats a token: mean and largest.
        """
        sampled = found.get("sampling_per_token_logps")
        if sampled is None or getattr(self, "vllm_importance_sampling_correction", False):
            return
        ours = found.get("old_per_token_logps")
        if ours is None:
            ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
            mask = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
            with torch.no_grad():
                ours = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, found["completion_ids"].shape[1]
                )[0]
        where = found["completion_mask"].bool() & sampled.isfinite()
        if where.any():
            apart = (sampled - ours).abs()[where]
            self.note("sampling/sampling_logp_difference/mean", apart.mean().item())
            self.note("sampling/sampling_logp_difference/max", apart.max().item())


class PolicyGRPOTrainer(_Policy, observed(trl.GRPOTrainer)):  # type: ignore[misc]
    """TRL's GRPOTrainer, observed; resumes with the right prompts in any epoch."""


class PolicyRLOOTrainer(_Policy, observed(trl.RLOOTrainer)):  # type: ignore[misc]
    """TRL's RLOOTrainer, observed; resumes with the right prompts in any epoch."""
