"""What a user knows about the run behind a checkpoint, and what it says the weights can be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from offaxis.errors import InputError

__all__ = ["DATA", "DTYPES", "RunInfo", "RunInfoLike", "reach", "run_info"]

DATA = ("on_policy", "demonstrations", "rejection_sampled", "distilled", "preferences")
DTYPES = ("float32", "bfloat16", "float16")
_SAME = {
    "adam": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
}  # fmt: skip
_LARGEST = 1e15
"""Above every setting that a run has had; sums over it stay finite."""
_SETTLED = 50_000
"""Steps after which 1 − 0.999ᵗ is 1 in float64."""
_NUMBERS: Mapping[str, type] = {"learning_rate": float, "steps": int, "batch": int}
_CHOICES: Mapping[str, tuple[str, ...]] = {"data": DATA, "dtype": DTYPES}


@dataclass(frozen=True)
class RunInfo:
    """A run's settings as far as they are known; None where not."""

    method: str | None = None
    """Any name; stored, and used for nothing."""
    data: str | None = None
    """One of `DATA`: what it was trained on."""
    learning_rate: float | None = None
    """The highest of the run."""
    steps: int | None = None
    """Optimizer steps up to the checkpoint."""
    optimizer: str | None = None
    """`adamw`, `sgd` (without momentum), `rmsprop` or any other name."""
    dtype: str | None = None
    """One of `DTYPES`: in which the weights were stored while they were trained."""
    batch: int | None = None
    """Sequences in one optimizer step."""

    @staticmethod
    def parse(text: str) -> RunInfo:
        """From `key=value,key=value`, or from a JSON file that holds one object of them.

        Raises InputError that names the key, its value and what is allowed.
        """
        if "=" not in text or _is_file(text):
            return RunInfo.of(_read(Path(text)), where=text)
        told: dict[str, Any] = {}
        for one in text.split(","):
            key, equals, value = one.partition("=")
            if not equals or not value.strip():
                raise InputError(f"run info {one!r}: write key=value, with commas between them")
            if key.strip() in told:
                raise InputError(f"run info: {key.strip()} is given twice; give it once")
            told[key.strip()] = value.strip()
        return RunInfo.of(told)

    @staticmethod
    def of(told: Mapping[str, Any], *, where: str = "run info") -> RunInfo:
        """From a mapping, checked. Numbers may be text."""
        known = [one.name for one in fields(RunInfo)]
        for key in told:
            if key not in known:
                raise InputError(f"{where}: {key!r} is not known; choose among {', '.join(known)}")
        found = {key: _value(key, value, where) for key, value in told.items()}
        return RunInfo(**{key: value for key, value in found.items() if value is not None})

    def told(self) -> dict[str, Any]:
        """What is known."""
        return {
            one.name: value
            for one in fields(self)
            if (value := getattr(self, one.name)) is not None
        }


RunInfoLike = RunInfo | Mapping[str, Any] | str | PathLike[str] | None


def run_info(given: RunInfoLike) -> RunInfo:
    """A `RunInfo` of whatever names one."""
    if given is None:
        return RunInfo()
    if isinstance(given, RunInfo):
        return RunInfo.of(given.told())
    if isinstance(given, Mapping):
        return RunInfo.of(given)
    return RunInfo.parse(str(given))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name can be
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise InputError(
            f"run info {str(path)!r}: neither key=value,... nor a file that can be read "
            f"({error.strerror}); write for example steps=40,optimizer=adamw"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file: {error}; write one object") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}; write one object of settings")
    return found


def _once(told: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(told)
    if len(found) < len(told):
        raise ValueError("a key is given twice")
    return found


def _value(key: str, value: Any, where: str) -> Any:
    """The value of a key, of its type, or InputError."""
    if value is None:
        return None
    kind = _NUMBERS.get(key)
    if kind is not None:
        return _number(key, value, kind, where)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InputError(f"{where}: {key} = {value!r}; a name is needed, on one line")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise InputError(f"{where}: {key} = {value!r}; choose among {', '.join(_CHOICES[key])}")
    return _SAME.get(value.lower(), value.lower()) if key == "optimizer" else value


def _number(key: str, value: Any, kind: type, where: str) -> float | int:
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= _LARGEST or (kind is int and number != int(number)):
        what = "a whole number" if kind is int else "a number"
        raise InputError(
            f"{where}: {key} = {repr(value)[:40]}; {what} above 0 (to {_LARGEST:.0e}) is needed"
        )
    return int(number) if kind is int else number


def reach(info: RunInfo, *, rounded: bool) -> float | None:
    """The furthest that any entry can have moved: lr · Σ_t B_t. None where that is not known.

    AdamW (β₁ 0.9, β₂ 0.999, no weight decay): |m̂_t| / √v̂_t ≤ B_t by Cauchy and Schwarz, where

    B_t² = Σ_{k<t} w_k² / u_k = (1−β₁)²/(1−β₂) · (1−rᵗ)/(1−r) · (1−β₂ᵗ)/(1−β₁ᵗ)²,  r = β₁²/β₂,

    w and u the weights of past gradients in m̂ and v̂: 1 at the first step, below 7.3 ever. RMSprop
    (α 0.99): B = 1/√(1−α) = 10. SGD steps are as large as its gradients, which are not known.

    rounded: the weights are stored in bfloat16 or narrower. Rounding moves an entry that stood on a
    representable value at most twice as far, whether at each step or once at the end.
    """
    if info.learning_rate is None or info.steps is None:
        return None
    if info.optimizer == "adamw":
        first, second = 0.9, 0.999
        ratio, t = first**2 / second, np.arange(1, min(info.steps, _SETTLED) + 1.0)
        squares = (1 - ratio**t) / (1 - ratio) * (1 - second**t) / (1 - first**t) ** 2
        most = np.sqrt((1 - first) ** 2 / (1 - second) * squares)
        total = float(most.sum() + max(info.steps - _SETTLED, 0) * most[-1])
    elif info.optimizer == "rmsprop":
        total = info.steps / math.sqrt(1 - 0.99)
    else:
        return None
    return info.learning_rate * total * (2 if rounded else 1)
