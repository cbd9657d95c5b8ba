"""REINFORCE++: token returns, centred and scaled over the whole batch (arXiv 2501.03262)."""

from __future__ import annotations

from typing import Any

import torch

from offaxis.train.trainers.policy import PolicyGRPOTrainer

__all__ = ["ReinforcePPTrainer", "token_returns", "whiten"]

Inputs = dict[str, Any]


def token_returns(
    rewards: torch.Tensor, kl: torch.Tensor | None, mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """G_t = r − β Σ_{s≥t} k_s, (rows, tokens), 0 outside the mask (REINFORCE++, section 3.1).

    rewards: one number a row, given for the whole completion. kl: k_s = ln π_old − ln π_ref of
    each sampled token, or None. Discount 1.
    """
    found = rewards[:, None].expand(mask.shape)
    if kl is not None:
        found = found - beta * (kl * mask).flip(1).cumsum(1).flip(1)
    return found * mask


def whiten(returns: torch.Tensor, mask: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """(G − mean) / standard deviation over all tokens; `totals` is (Σ G, Σ G², tokens)."""
    count = totals[2].clamp(min=1)
    mean = totals[0] / count
    deviation = (totals[1] / count - mean**2).clamp(min=0).sqrt()
    return ((returns - mean) / (deviation + 1e-8) * mask).to(returns.dtype)


class ReinforcePPTrainer(PolicyGRPOTrainer):
    """TRL's GRPO with two changes: the advantage, and where the KL penalty stands.

    A_t = (G_t − mean) / deviation with G_t of `token_returns`, mean and deviation over every token
    of the batch in all processes; no baseline by group. The KL to the reference is part of the
    reward (β from `beta`), not of the loss. Loss, clip and sampling are TRL's.
    """

    beta: float

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        found = super()._generate_and_score_completions(inputs)
        rewards = self.rewards_per_function
        whole = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        scored = ~rewards.isnan().all(1)
        start = self.accelerator.process_index * len(inputs)
        mine = slice(start, start + len(inputs))
        mask = found["completion_mask"] * found.get("tool_mask", 1)
        mask = mask * scored[mine, None]
        kl = self._sampled_kl(found, mask) if self.beta != 0.0 else None
        returns = token_returns(whole[mine].double(), kl, mask, self.beta)
        sums = torch.stack([returns.sum(), returns.square().sum(), mask.sum().double()])
        totals = self.accelerator.reduce(sums, reduction="sum")
        found["advantages"] = whiten(returns, mask, totals).float()
        return found

    def _sampled_kl(self, found: Inputs, mask: torch.Tensor) -> torch.Tensor:
        """ln π_old − ln π_ref of the sampled tokens; its mean enters the log as `kl`."""
        old = found.get("old_per_token_logps")
        if old is None:
            ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
            attended = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
            with torch.no_grad():
                old = self._get_per_token_logps_and_entropies(
                    self.model,
                    ids,
                    attended,
                    found["completion_ids"].shape[1],
                    batch_size=self.args.per_device_train_batch_size,
                )[0]
        kl: torch.Tensor = (old - found["ref_per_token_logps"]).double()
        sums = torch.stack([(kl * mask).sum(), mask.sum().double()])
        totals = self.accelerator.reduce(sums, reduction="sum")
        self._metrics["train"]["kl"].append((totals[0] / totals[1].clamp(min=1)).item())
        return kl

    def _compute_loss(self, model: Any, inputs: Inputs) -> torch.Tensor:
        beta = self.beta
        self.beta = 0.0  # the penalty is in the returns
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
