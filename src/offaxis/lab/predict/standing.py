"""One model that stands in for many: the base's, with updates put into it, and its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offaxis.checkpoint import open_checkpoint
from offaxis.lab.predict.exams import harder, judging, validation
from offaxis.lab.queue import Store
from offaxis.lab.queue.grid import RunConfig
from offaxis.lab.scoring import Sitting, mixture_losses, sit
from offaxis.live import load_live

__all__ = ["Stand", "Updates", "against"]

Updates = Mapping[str, NDArray[np.float64]]
"""Stored tensor -> θ − θ_base; a tensor that is not there stays at the base."""


class Stand:
    """The base as a live model whose weights are exchanged in place."""

    def __init__(self, store: Store, config: RunConfig) -> None:
        self.config = config
        self.live = load_live(store.base)
        checkpoint = open_checkpoint(str(store.base))
        self.base = {name: checkpoint[name].double() for name in checkpoint}
        self._places = dict(self.live.model.state_dict(keep_vars=False))

    def put(self, updates: Updates) -> None:
        """Be the base with these updates, rounded to float32 as the runs' checkpoints are."""
        for name, weights in self.base.items():
            moved = weights if name not in updates else weights + torch.from_numpy(updates[name])
            self._places[name].copy_(moved)

    def validation(self) -> Sitting:
        """Answers to the validation problems."""
        return sit(self.live, validation(self.config))

    def judged(self) -> dict[str, Any]:
        """Accuracy on the judging exam and right answers to each problem."""
        return {"avg": (found := sit(self.live, judging(self.config))).score.value, **right(found)}

    def beyond(self) -> dict[str, Any]:
        """Right answers one difficulty up, and losses on the pretraining mixture."""
        exam = harder(self.config)
        found = {} if exam is None else {"right_harder": right(sit(self.live, exam))["right"]}
        losses = {
            "mixture_loss" if family == "all" else f"mixture_loss_{family}": loss[0]
            for family, loss in mixture_losses(self.live).items()
        }
        return found | losses


def right(sitting: Sitting) -> dict[str, list[int]]:
    """Right answers to each problem, in the exam's order."""
    return {"right": sitting.correct.sum(axis=1).tolist()}


def against(updates: Updates, real: Updates) -> dict[str, float]:
    """`relative_error`, `moved` and `cosine` of a predicted update beside the real one.

    Over all tensors of `real`, in float64. NaN where the real one, or for the cosine either, is 0.
    """
    apart = own = whole = both = 0.0
    for name, there in real.items():
        here = updates.get(name)
        whole += float(np.vdot(there, there))
        if here is None:
            apart += float(np.vdot(there, there))
            continue
        apart += float(np.square(here - there).sum())
        own += float(np.vdot(here, here))
        both += float(np.vdot(here, there))
    if whole == 0:
        return dict.fromkeys(("relative_error", "moved", "cosine"), math.nan)
    return {
        "relative_error": math.sqrt(apart / whole),
        "moved": math.sqrt(own / whole),
        "cosine": both / (math.sqrt(own) * math.sqrt(whole)) if own > 0 else math.nan,
    }
