"""DAPO: groups that carry no signal are replaced while sampling (arXiv 2503.14476, section 3.2)."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch

from offaxis.errors import InputError
from offaxis.train.trainers.policy import PolicyGRPOTrainer
from offaxis.train.trainers.rows import Pick, assemble

__all__ = ["DAPOTrainer"]

Inputs = dict[str, Any]

_LEAST_RATE = 0.25  # share of groups with a signal that a refill counts on, at least


class DAPOTrainer(PolicyGRPOTrainer):
    """GRPO whose batches hold only groups in which rewards differ, as far as that can be had.

    A group whose rewards are all equal has advantage 0 and teaches nothing. Its place is taken by
    a group of a further prompt, drawn at random from the training data; this is tried at most
    `dynamic_sampling_rounds` times a batch (DAPO samples without bound; verl stops with an error).
    What is still without signal then stays, with advantage 0. Each round samples as many prompts
    as are expected to fill the gaps, at most a whole batch.

    Rows of the log, `reward` among them, tell of the first round alone: fresh prompts, as in GRPO.
    `dynamic_sampling/...`: share of groups with a signal before and after, rounds, and samples
    drawn for each sample used. Which prompts are drawn follows from the seed and the step, so a
    resumed run draws the same.
    """

    dynamic_sampling_rounds = 4
    """Rounds of further prompts; 0: none, as TRL's loss_type dapo."""
    dynamic_sampling_metric: str | None = None
    """What must differ within a group: `reward`, the weighted sum, or one function's name. None:
    the first function, so that a format or a length alone does not make a group informative."""

    def _generate_and_score_completions(self, inputs: list[Inputs]) -> Inputs:
        first = super()._generate_and_score_completions(inputs)
        if not self.model.training or self.dynamic_sampling_rounds == 0:
            return first
        self._check(first, len(inputs))
        groups = len(inputs) // self.num_generations
        batches, signals = [first], [self._signal(groups)]
        slots: list[Pick | None] = [
            Pick(0, group) if has else None for group, has in enumerate(signals[0])
        ]
        before = {name: len(rows) for name, rows in self._metrics["train"].items()}
        rate, drawn, rounds = self._share(signals[0]), groups, 0
        while rounds < self.dynamic_sampling_rounds:
            gaps = self._most(slots.count(None))
            if gaps == 0:
                break
            count = min(groups, math.ceil(gaps / max(rate, _LEAST_RATE)))
            batches.append(super()._generate_and_score_completions(self._further(count, rounds)))
            signals.append(self._signal(count))
            rounds, drawn = rounds + 1, drawn + count
            rate = (rate + self._share(signals[-1])) / 2
            fresh = (Pick(rounds, group) for group, has in enumerate(signals[-1]) if has)
            slots = [slot or next(fresh, None) for slot in slots]
        self._forget(before)
        filled = sum(slot is not None for slot in slots)
        self._tell(self._share(signals[0]), filled, groups, rounds, drawn)
        picks = [slot or Pick(0, group) for group, slot in enumerate(slots)]
        if rounds == 0:
            return first
        found = assemble(batches, picks, self.num_generations, self._tokenizer.pad_token_id)
        mask = found["completion_mask"] * found.get("tool_mask", 1)
        found["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        return found

    def _check(self, first: Inputs, rows: int) -> None:
        """Whole groups in each process, plain text, data that can be indexed."""
        if rows % self.num_generations:
            raise InputError(
                f"dynamic sampling: {rows} samples a process are no whole groups of "
                f"{self.num_generations}; make per_device_train_batch_size times "
                "steps_per_generation a multiple of num_generations, or set dynamic_sampling: false"
            )
        if "num_images" in first or not hasattr(self.train_dataset, "__getitem__"):
            raise InputError(
                "dynamic sampling needs text prompts from data that are not streamed; "
                "set dynamic_sampling: false"
            )

    def _signal(self, groups: int) -> list[bool]:
        """Which of this process's groups in the last batch hold different rewards."""
        rewards = self.rewards_per_function
        names = list(self.reward_func_names)
        metric = self.dynamic_sampling_metric or names[0]
        if metric == "reward" and metric not in names:
            weighed = rewards * self.reward_weights.to(rewards.device)
            chosen = weighed.nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)
        elif metric in names:
            chosen = rewards[:, names.index(metric)]
        else:
            raise InputError(
                f"dynamic_sampling_metric {metric!r}: choose reward, or one of {', '.join(names)}"
            )
        table = chosen.view(-1, self.num_generations)
        low = table.nan_to_num(nan=torch.inf).amin(1)
        high = table.nan_to_num(nan=-torch.inf).amax(1)
        differs = high - low > 1e-6 * torch.maximum(high.abs(), torch.ones_like(high))
        start = self.accelerator.process_index * groups
        found: list[bool] = differs[start : start + groups].tolist()
        return found

    def _further(self, count: int, rounds: int) -> list[Inputs]:
        """This process's part of `count` further prompts a process, each repeated for its group."""
        number = self.accelerator.num_processes * count
        total = len(self.train_dataset)
        place = self._step % self.args.gradient_accumulation_steps
        name = f"further/{self.args.seed}/{self.state.global_step}/{place}/{rounds}"
        generator = torch.Generator().manual_seed(Random(name).getrandbits(63))
        order = torch.randperm(total, generator=generator)
        chosen = order.repeat(-(-number // total))[:number]
        mine = chosen[self.accelerator.process_index * count :][:count].tolist()
        rows = (self.train_dataset[index] for index in mine)
        return [dict(row) for row in rows for _ in range(self.num_generations)]

    def _reduced(self, value: float, how: str) -> float:
        one = torch.tensor([value], device=self.accelerator.device, dtype=torch.float32)
        return float(getattr(self.accelerator.gather(one), how)())

    def _most(self, count: int) -> int:
        return int(self._reduced(count, "max"))

    def _share(self, signals: list[bool]) -> float:
        return self._reduced(sum(signals) / len(signals), "mean")

    def _forget(self, before: dict[str, int]) -> None:
        """Drop what the further rounds wrote into the log row; tokens seen stay counted."""
        for name, rows in self._metrics["train"].items():
            if name != "num_tokens":
                del rows[before.get(name, 0) :]

    def _tell(self, share: float, filled: int, groups: int, rounds: int, drawn: int) -> None:
        self.note("dynamic_sampling/signal_before", share)
        self.note("dynamic_sampling/signal_after", self._reduced(filled / groups, "mean"))
        self.note("dynamic_sampling/rounds", rounds)
        self.note("dynamic_sampling/drawn_per_used", drawn / groups)
