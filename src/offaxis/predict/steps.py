"""When a checkpoint was saved: from its name, from trainer_state.json, or as the user says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from offaxis.errors import InputError

__all__ = ["named_step", "recorded_step", "steps_of"]

_STEP = re.compile(
    r"(?:^|(?<=[-_/.@\\]))(?:checkpoint|ckpt|global_step|steps?|iter(?:ation)?|it|epoch)[-_=]?"
    r"(\d{1,12})(?=[-_/.@\\]|$)"
)
_BARE = re.compile(r"(?:^|[/\\])(\d{1,12})[/\\]*$")
_STATE = "trainer_state.json"


def named_step(name: str) -> float | None:
    """The step in a name: `checkpoint-20`, `rl/global_step_40/actor`, `iter_0000100`, `step60`,
    or a last segment that is a number (`run/80`). The last one counts; None where there is none.
    """
    found = _STEP.findall(name) or _BARE.findall(name)
    return float(found[-1]) if found else None


def recorded_step(name: str) -> float | None:
    """`global_step` of the trainer_state.json in or beside a checkpoint, or None."""
    path = Path(name).expanduser()
    state = (path if path.is_dir() else path.parent) / _STATE
    try:
        value = json.loads(state.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return float(value) if isinstance(value, int) and value > 0 else None


def steps_of(names: Sequence[str], given: Sequence[float] | None = None) -> list[float | None]:
    """One step a checkpoint, strictly increasing where known.

    given: what `--steps` says. Else the name's, else trainer_state.json's; a bare number in a name
    gives way to the file, and where a name and the file contradict each other InputError asks for
    `--steps`. Raises InputError as well for another count of steps than of checkpoints, steps that
    are not positive numbers, equal steps, and checkpoints that are not in step order.
    """
    if given is not None:
        if len(given) != len(names):
            raise InputError(
                f"--steps has {len(given)} numbers for {len(names)} checkpoints; give one for each,"
                " in the order of the checkpoints"
            )
        for step in given:
            if not (math.isfinite(step) and step > 0):
                raise InputError(f"--steps: {step:g} is no step; BASE is step 0, give numbers > 0")
        found: list[float | None] = [float(step) for step in given]
    else:
        found = [_step(name) for name in names]
    _check_order(names, found, given is not None)
    return found


def _step(name: str) -> float | None:
    named, recorded = named_step(name), recorded_step(name)
    sure = _STEP.findall(name) and "epoch" not in name
    if sure and recorded is not None and named != recorded:
        raise InputError(
            f"{name}: its name says step {named:g} and its {_STATE} {recorded:g}; pass --steps"
        )
    step = recorded if recorded is not None else named
    if step == 0:
        raise InputError(f"{name}: step 0 is BASE, which is no row of the series; leave it out")
    return step


def _check_order(names: Sequence[str], steps: Sequence[float | None], given: bool) -> None:
    known = [(name, step) for name, step in zip(names, steps, strict=True) if step is not None]
    for (one, before), (other, after) in pairwise(known):
        if before == after:
            raise InputError(
                f"{one} and {other} are both at step {before:g}; give checkpoints of one run, each "
                "at a step of its own (--steps)"
            )
    for (one, before), (other, after) in pairwise(known):
        if after < before:
            order = ", ".join(name for name, _ in sorted(known, key=lambda row: row[1]))
            remedy = (
                "put --steps and the checkpoints in one, increasing order"
                if given
                else f"give them in step order ({order}), or pass --steps"
            )
            raise InputError(
                f"{other} (step {after:g}) comes after {one} (step {before:g}), which is later; "
                f"{remedy}"
            )
