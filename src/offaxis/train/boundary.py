"""Checkpoints from which a run resumes exactly: saved to their end, between two batches of samples.

A kill during a save leaves a directory with the weights, the optimizer and Trainer's state, but
without what is written after them. So the last thing written is a mark, `whole.json`, and in the
directory of an `offaxis train` run only checkpoints that have it are gone on from.

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
from offaxis.output import staged_file
from offaxis.train.record import CONFIG

__all__ = ["BoundaryCallback", "WholeCallback", "boundary_period", "resume_point"]

_MARK = "whole.json"


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


class WholeCallback(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint as whole when every process has written its part of it.

    Add it after the callbacks that write into checkpoints.
    """

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shared = getattr(args, "distributed_state", None)
        if shared is not None:
            shared.wait_for_everyone()
        if state.is_world_process_zero:
            step = state.global_step
            with staged_file(Path(args.output_dir) / f"checkpoint-{step}" / _MARK) as staged:
                staged.write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


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
    found, cut = _found(output if asked is None else asked.parent)
    if asked is not None:
        step = _step(asked)
        if step is None:
            raise InputError(
                f"{asked}: no whole checkpoint of a Trainer (trainer_state.json and optimizer "
                "state are needed; save_only_model leaves the latter out; a save that was cut "
                "short lacks whole.json)"
            )
        found = {number: path for number, path in found.items() if number <= step} | {step: asked}
        cut = []
    told = [f"{', '.join(sorted(cut))}: not saved to the end, left out"] if cut else []
    fitting = [number for number in found if number % period == 0]
    last = max(found, default=None)
    if not fitting:
        if last is None or asked is None:
            told.append("no whole checkpoint at a generation boundary: starting from the beginning")
            return None, "; ".join(told)
        raise InputError(
            f"{asked}: step {last} lies inside a batch of samples (one serves {period} steps), and "
            "no earlier checkpoint is at a boundary: a run cannot be resumed exactly from here"
        )
    best = max(fitting)
    if best != last:
        told.append(
            f"step {last} lies inside a batch of samples (one serves {period} steps): resuming "
            f"from step {best} instead"
        )
    return found[best], "; ".join(told)


def _found(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """Whole checkpoints by step, and the names of the others."""
    steps = {path: _step(path) for path in folder.glob("checkpoint-*") if path.is_dir()}
    whole = {step: path for path, step in steps.items() if step is not None}
    return whole, [path.name for path, step in steps.items() if step is None]


def _step(folder: Path) -> int | None:
    """The step of a checkpoint that has all it needs to resume; None otherwise."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        step = int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a save that was cut short, or none
    if (folder.parent / CONFIG).is_file() and not (folder / _MARK).is_file():
        return None  # of a run of ours, whose saves end with the mark
    engines = ("optimizer.pt", "optimizer.bin", "optimizer_0", f"global_step{step}")
    return step if any((folder / name).exists() for name in engines) else None
