"""Checkpoints from which a run resumes exactly: those between two batches of samples.

TRL samples a batch and uses it for several micro-batches and steps. What is left of it when a
checkpoint is written is not in the checkpoint: a run that resumes there samples anew with other
weights. At a generation boundary nothing is left, and on a CPU the resumed run is the
uninterrupted one, bit for bit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from offaxis.errors import InputError

__all__ = ["BoundaryCallback", "boundary_period", "resume_point"]


def boundary_period(config: Any) -> int:
    """Optimizer steps from one generation boundary to the next.

    lcm(g, a) / a, where a batch of samples serves g = steps_per_generation · num_iterations
    micro-batches, and a = gradient_accumulation_steps of them make a step. 1 without sampling.
    """
    steps = getattr(config, "steps_per_generation", None)
    if not steps:
        return 1
    uses = steps * getattr(config, "num_iterations", 1)
    accumulation = int(config.gradient_accumulation_steps)
    return math.lcm(uses, accumulation) // accumulation


class BoundaryCallback(TrainerCallback):  # type: ignore[misc]
    """Moves each save that falls between boundaries to the next one, and says so once.

    The save at the very end of training is left where it is.
    """

    def __init__(self, period: int, *, tell: Any = None) -> None:
        self.period = period
        self.waiting = False
        self._tell = tell or (lambda text: None)
        self._told = False

    def _moved(self, state: Any, control: Any) -> None:
        step = state.global_step
        if step % self.period == 0 or step >= state.max_steps:
            control.should_save = control.should_save or self.waiting
            self.waiting = False
        elif control.should_save:
            control.should_save, self.waiting = False, True
            if not self._told:
                after = -(-step // self.period) * self.period
                self._tell(
                    f"step {step} lies inside a batch of samples (one serves {self.period} "
                    f"steps), from where no run resumes exactly: saving after step {after} "
                    "instead, and so on"
                )
                self._told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._moved(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._moved(state, control)


def resume_point(output: Path, wanted: str | bool | None, period: int) -> tuple[Path | None, str]:
    """The checkpoint to resume from, and a message where it is not the one that was asked for.

    wanted: nothing or `false`; `true` or `latest`, the newest whole checkpoint in `output` at a
    generation boundary (none at all: the run starts from the beginning); or a checkpoint's
    directory, from which the nearest earlier boundary is taken.
    """
    if wanted is None or str(wanted).lower() in ("", "false", "none"):
        return None, ""
    newest = str(wanted).lower() in ("true", "latest")
    asked = None if newest else Path(str(wanted))
    if asked is not None and not asked.is_dir():
        raise InputError(f"resume_from_checkpoint {wanted}: no such directory")
    found = _whole(output if asked is None else asked.parent)
    if asked is not None:
        step = _step(asked)
        if step is None:
            raise InputError(
                f"{asked}: no whole checkpoint of a Trainer (trainer_state.json and optimizer "
                "state are needed; save_only_model leaves the latter out)"
            )
        found = {number: path for number, path in found.items() if number <= step} | {step: asked}
    fitting = [number for number in found if number % period == 0]
    last = max(found, default=None)
    if not fitting:
        if last is None or asked is None:
            return None, "no whole checkpoint at a generation boundary: starting from the beginning"
        raise InputError(
            f"{asked}: step {last} lies inside a batch of samples (one serves {period} steps), and "
            "no earlier checkpoint is at a boundary: a run cannot be resumed exactly from here"
        )
    best = max(fitting)
    if best == last:
        return found[best], ""
    return found[best], (
        f"step {last} lies inside a batch of samples (one serves {period} steps): resuming from "
        f"step {best} instead"
    )


def _whole(folder: Path) -> dict[int, Path]:
    found = {path: _step(path) for path in folder.glob("checkpoint-*") if path.is_dir()}
    return {step: path for path, step in found.items() if step is not None}


def _step(folder: Path) -> int | None:
    """The step of a checkpoint that has all it needs to resume; None otherwise."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        step = int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a save that was cut short, or none
    engines = ("optimizer.pt", "optimizer.bin", "optimizer_0", f"global_step{step}")
    return step if any((folder / name).exists() for name in engines) else None
