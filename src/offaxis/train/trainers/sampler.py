"""Prompts in the same order whether a run was interrupted or not."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

__all__ = ["EpochRepeatSampler", "epoch_sampler"]


class EpochRepeatSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's RepeatSampler, whose order in an epoch depends on the seed and the epoch alone.

    TRL's draws one permutation after another from one generator, so a run that resumes in its
    second epoch starts with the first epoch's order again. This one draws the same permutations
    and, told the epoch by transformers' Trainer, starts at its own.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def epoch_sampler(sampler: Any) -> Any:
    """`sampler` with its order by epoch, where it is TRL's; anything else as it is."""
    if type(sampler) is not RepeatSampler:
        return sampler
    return EpochRepeatSampler(
        sampler.data_source,
        mini_repeat_count=sampler.mini_repeat_count,
        batch_size=sampler.batch_size,
        repeat_count=sampler.repeat_count,
        shuffle=sampler.shuffle,
        seed=sampler.seed,
    )
