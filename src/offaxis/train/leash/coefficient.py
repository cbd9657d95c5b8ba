"""Leashes by the coefficient of a KL term: none, fixed, or following a target."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from offaxis.errors import InputError
from offaxis.train.leash.leash import Leash, has_kl_term, positive
from offaxis.train.reference import reference_of

__all__ = ["AdaptiveLeash", "ClipLeash", "FixedLeash", "NoLeash"]

_log = logging.getLogger("offaxis.train")


class NoLeash(Leash):
    """Nothing of ours; whatever the trainer does by itself stays."""

    name = "none"

    def prepare(self, trainer: Any) -> None:
        """Any trainer will do."""


class ClipLeash(Leash):
    """No KL term: at most the clip of the ratio holds the policy, by zeroing gradients.

    The clip does not bound the ratio, and at one update a batch it does nothing at all.
    """

    name = "clip"

    def prepare(self, trainer: Any) -> None:
        """Raise InputError where a KL term of the trainer's own would pull as well."""
        if has_kl_term(trainer) and trainer.beta != 0.0:
            raise InputError(
                f"leash clip, but beta is {trainer.beta}, a KL term; set beta to 0, or choose "
                "the leash fixed"
            )


class FixedLeash(Leash):
    """TRL's own KL term with a constant coefficient.

    GRPO adds β k₃ to every token's loss, k₃ = r − ln r − 1, r = π_base/π (Schulman's estimator of
    KL(π ‖ base)); RLOO subtracts β Σ_t ln(π/π_base) from a completion's reward.
    """

    name = "fixed"

    def __init__(self, *, beta: float = 0.04) -> None:
        self.beta = positive("beta", beta)

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"beta": self.beta}

    def prepare(self, trainer: Any) -> None:
        """Set the trainer's beta. InputError where it has no KL term, or made no reference."""
        _check_kl_term(self.name, self.beta, trainer)
        trainer.beta = self.beta

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta}


class AdaptiveLeash(Leash):
    """A KL coefficient that follows a target by a proportional controller.

    After every optimizer step, with the mean KL(π ‖ base) of the step's own completions, in nats a
    completion: e = clip(KL / target − 1, −0.2, 0.2) and β ← β (1 + K e). (Ziegler et al. 2019,
    arXiv 1909.08593, section 2.2, with K = 0.1; the update was once a PPO batch there.)

    The KL is the trainer's own estimate summed over each completion's tokens: k₃ in GRPO
    (non-negative), ln(π/π_base) in RLOO, where one batch of samples is read once.

    target: nats a completion. beta: where the coefficient starts. gain: K, in (0, 5).
    """

    name = "adaptive"
    _reach: ClassVar[float] = 0.2

    def __init__(self, *, target: float, beta: float = 0.04, gain: float = 0.1) -> None:
        self.target = positive("target", target)
        self.beta = positive("beta", beta)
        self.gain = positive("gain", gain)
        if self.gain * self._reach >= 1:
            raise InputError(f"gain {gain}: below 5, or one step could turn beta negative")
        self._seen: list[tuple[float, float]] = []
        self._source: tuple[Any, int] = (None, 0)

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"beta": self.beta}

    def prepare(self, trainer: Any) -> None:
        """Set the trainer's beta. InputError where it has no KL term, or made no reference."""
        _check_kl_term(self.name, self.beta, trainer)
        trainer.beta = self.beta

    def observe(self, trainer: Any, inputs: Any) -> None:
        """Keep Σ KL and the number of completions behind each new figure in TRL's metrics."""
        values = trainer._metrics["train"].get("kl", [])
        source, known = self._source
        new = values[known if source is values else 0 :]
        self._source = (values, len(values))
        if not new:
            return
        if "old_logps" in inputs:  # RLOO: one figure for the whole batch of samples
            length = trainer._metrics["train"]["completions/mean_length"][-1]
            self._seen.append((new[-1] * length, 1.0))
        else:
            tokens, rows = _completion_tokens(trainer, inputs)
            self._seen.append((new[-1] * tokens, rows))

    def reading(self) -> Mapping[str, float]:
        """`kl_sequence`: mean KL of a completion since the last call."""
        rows = sum(count for _, count in self._seen)
        total = sum(kl for kl, _ in self._seen)
        self._seen = []
        return {"kl_sequence": total / rows} if rows else {}

    def update(self, trainer: Any, reading: Mapping[str, float], control: Any) -> None:
        """One step of the controller, where the reading has a `kl_sequence`."""
        if "kl_sequence" not in reading:
            return
        kl = reading["kl_sequence"]
        trainer.note("leash/beta", self.beta)
        trainer.note("leash/kl_sequence", kl)
        error = min(max(kl / self.target - 1, -self._reach), self._reach)
        self.beta *= 1 + self.gain * error
        trainer.beta = self.beta

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta, "target": self.target, "gain": self.gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the stored coefficient; target and gain are those of this run."""
        self.beta = float(state["beta"])
        for name in ("target", "gain"):
            if state[name] != getattr(self, name):
                _log.warning(
                    "leash adaptive: %s was %s and is %s", name, state[name], getattr(self, name)
                )


def _check_kl_term(name: str, beta: float, trainer: Any) -> None:
    """Raise InputError where the trainer's loss has no KL term, or it made no reference."""
    kind = type(trainer).__name__
    if not has_kl_term(trainer):
        raise InputError(
            f"leash {name}: the loss of {kind} has no KL term to weigh; choose the leash ewc, or "
            "target"
        )
    if trainer.beta == 0.0:
        raise InputError(
            f"leash {name}: {kind} was made with beta 0 and so without a reference; give "
            f"beta {beta} to its configuration"
        )
    if getattr(trainer.model, "offaxis_base", "") == "copy":
        raise InputError(
            f"leash {name}: the adapter has changed the base for good, and TRL would pull to what "
            "is left of it; choose the leash ewc or target, or another adapter"
        )
    reference_of(trainer)  # raises where an adapter has overwritten the base, and none was kept


def _completion_tokens(trainer: Any, inputs: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens of completions in this micro-batch that count in the loss, and rows; all processes."""
    mask = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    counts = mask.new_tensor([int(mask.sum()), mask.shape[0]]).float()
    tokens, rows = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    return tokens, rows
