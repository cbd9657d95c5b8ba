"""`LeashCallback`: prepares a trainer's leash, feeds it, and keeps its state with checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from offaxis.errors import CheckpointError, InputError
from offaxis.output import staged_file
from offaxis.train.leash.leash import Leash

__all__ = ["LeashCallback"]

_log = logging.getLogger("offaxis.train")
_FILE = "leash.json"


class LeashCallback(TrainerCallback):  # type: ignore[misc]
    """Drives the leash of an observed trainer.

    Add it to an `observed(...)` trainer; `trainer.leash` is read when training begins. Every
    checkpoint gets `leash.json` with the leash's name and state (and its tensors, where it has
    any), from which a resumed run goes on exactly.

    Raises InputError when training begins where the trainer is not observed, cannot be leashed so,
    or resumes from a checkpoint with another leash.
    """

    def __init__(self) -> None:
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Take the trainer; `observed(...).train` calls this."""
        self._trainer = trainer

    @property
    def _leash(self) -> Leash | None:
        found: Leash | None = self._trainer.leash
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prepare the leash, and restore it in a resumed run."""
        if self._trainer is None:
            raise InputError(
                "LeashCallback on a trainer that is not observed; make the trainer with "
                "offaxis.train.observed.observed(TRAINER)(...)"
            )
        leash = self._leash
        if leash is None:
            return
        if leash.needs_probe and not self._probed():
            raise InputError(
                f"leash {leash.name} reads kl_tuned_base, which nothing measures here; add a "
                "DivergenceCallback"
            )
        if self._trainer.resumed_from is not None:
            self._restore(leash, self._trainer.resumed_from)
        leash.prepare(self._trainer)
        if self._trainer.resumed_from is None:
            leash.begin(self._trainer)
        _log.info("leash %s %s", leash.name, leash.state_dict() or "")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand the step's own reading to the leash."""
        if self._leash is not None:
            self._leash.update(self._trainer, self._leash.reading(), control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Store the leash's state in the checkpoint that Trainer has just written."""
        leash = self._leash
        if leash is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        leash.save_tensors(folder, self._trainer)
        if state.is_world_process_zero:
            told = {"leash": leash.name, "state": leash.state_dict()}
            with staged_file(folder / _FILE) as staged:
                staged.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def _probed(self) -> bool:
        callbacks = self._trainer.callback_handler.callbacks
        return any(getattr(one, "measures_kl", False) for one in callbacks)

    def _restore(self, leash: Leash, folder: Path) -> None:
        path = folder / _FILE
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            name, state = told["leash"], told["state"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: the leash's state cannot be read ({error}); resume from a checkpoint of "
                "a run with a leash, or without one"
            ) from error
        if name != leash.name:
            raise CheckpointError(
                f"{path}: saved with the leash {name}, resumed with {leash.name}; choose {name}"
            )
        leash.load_state_dict(state)
        leash.load_tensors(folder, self._trainer)
