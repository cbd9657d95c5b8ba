"""A leash that ends the run where it would leave a ball around the base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from offaxis.train.leash.leash import Leash, positive

__all__ = ["TargetLeash"]

_log = logging.getLogger("offaxis.train")


class TargetLeash(Leash):
    """Stop as soon as a probe finds kl_tuned_base above `target` nats a completion.

    The step is logged, with `leash/stopped` 1, and saved. Between two probes the model may have
    gone further: probe more often where that matters. Any trainer will do.
    """

    name = "target"
    needs_probe = True

    def __init__(self, *, target: float) -> None:
        self.target = positive("target", target)
        self.stopped_at: int | None = None

    def prepare(self, trainer: Any) -> None:
        """Any trainer will do."""
        self.stopped_at = None

    def update(self, trainer: Any, reading: Mapping[str, float], control: Any) -> None:
        """Stop where a probe's `kl_tuned_base` is above the target."""
        kl = reading.get("kl_tuned_base")
        if kl is None or not kl > self.target:
            return
        self.stopped_at = trainer.state.global_step
        _log.warning(
            "leash target: kl_tuned_base is %.4g nats a completion after step %d, above %.4g; "
            "training stops here and the step is saved",
            kl, self.stopped_at, self.target,
        )  # fmt: skip
        trainer.note("leash/stopped", 1.0)
        control.should_training_stop = True
        control.should_save = True
        control.should_log = True

    def state_dict(self) -> dict[str, Any]:
        return {"target": self.target, "stopped_at": self.stopped_at}
