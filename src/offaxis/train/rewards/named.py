"""Rewards by name, for configurations and the command line."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.train.rewards.base import RewardFunction
from offaxis.train.rewards.certain import SelfCertaintyReward
from offaxis.train.rewards.checked import CountdownReward, VerifierReward
from offaxis.train.rewards.program import CodeReward
from offaxis.train.rewards.shaped import BoxedReward, FormatReward, OverlongReward
from offaxis.train.rewards.voted import MajorityReward

__all__ = ["REWARDS", "reward_functions", "reward_named", "reward_weights"]

REWARDS: Mapping[str, Callable[..., RewardFunction]] = MappingProxyType(
    {
        "math": functools.partial(VerifierReward, "math"),
        "numeric": functools.partial(VerifierReward, "numeric"),
        "exact": functools.partial(VerifierReward, "exact"),
        "integer": functools.partial(VerifierReward, "integer"),
        "countdown": CountdownReward,
        "format": FormatReward,
        "boxed": BoxedReward,
        "overlong": OverlongReward,
        "code": CodeReward,
        "majority": MajorityReward,
        "self_certainty": SelfCertaintyReward,
    }
)
"""What `reward_named` makes; any other name is a dotted path to a function of the user's."""


def reward_named(name: str, **options: Any) -> RewardFunction:
    """The reward `name` with its options, or the user's `module.path:function`.

    A class found at a path is made with the options, a function takes `weight` alone.
    InputError lists the names, or says what is wrong with the options or the path.
    """
    if name not in REWARDS:
        return _own(name, options)
    try:
        return REWARDS[name](**options)
    except TypeError as error:
        raise InputError(
            f"reward {name!r}: {error}; see its options in the documentation"
        ) from error


def _own(path: str, options: dict[str, Any]) -> RewardFunction:
    """The user's reward at a dotted path."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise InputError(
            f"reward {path!r}: choose one of {', '.join(REWARDS)}, or a path as module:function"
        )
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"reward {path!r}: {error}; check the path and sys.path") from error
    if inspect.isclass(found):
        found = _made(path, found, options)
    elif options.keys() - {"weight"}:
        raise InputError(f"reward {path!r} is a function: it takes no option but weight")
    if not callable(found):
        raise InputError(f"reward {path!r} is not callable; name a function or a class")
    if "weight" in options and getattr(found, "weight", None) != options["weight"]:
        found = functools.wraps(found)(functools.partial(found))
        found.weight = options["weight"]
    own: RewardFunction = found
    return own


def _made(path: str, made: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return made(**options)
    except TypeError as error:
        raise InputError(f"reward {path!r}: {error}; check its options") from error


def reward_functions(specs: Sequence[str | Mapping[str, Any]]) -> list[RewardFunction]:
    """Rewards of names and of mappings `{"name": ..., option: value}`, in order."""
    found = []
    for spec in specs:
        options = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise InputError(f"reward {spec!r} has no name: give it one of {', '.join(REWARDS)}")
        found.append(reward_named(name, **options))
    return found


def reward_weights(functions: Sequence[Callable[..., Any]]) -> list[float]:
    """The weights that rewards carry, for TRL's `reward_weights`; 1.0 where one carries none."""
    return [float(getattr(function, "weight", 1.0)) for function in functions]
