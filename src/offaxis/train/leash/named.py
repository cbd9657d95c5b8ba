"""Leashes by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.train.leash.coefficient import AdaptiveLeash, ClipLeash, FixedLeash, NoLeash
from offaxis.train.leash.ewc import EwcLeash
from offaxis.train.leash.leash import Leash
from offaxis.train.leash.target import TargetLeash

__all__ = ["LEASHES", "leash_named"]

LEASHES: Mapping[str, type[Leash]] = MappingProxyType(
    {
        one.name: one
        for one in (NoLeash, ClipLeash, FixedLeash, AdaptiveLeash, TargetLeash, EwcLeash)
    }
)
"""Every leash by its name."""


def leash_named(name: str, **options: Any) -> Leash:
    """The leash `name` (none, clip, fixed, adaptive, target, ewc) with its options.

    Raises InputError for an unknown name or option, and for a value that cannot be used.
    """
    if name not in LEASHES:
        raise InputError(f"leash {name!r}: choose one of {', '.join(LEASHES)}")
    kind = LEASHES[name]
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            words = f"its options are {', '.join(known)}" if known else "it has no options"
            raise InputError(f"leash {name}: {option!r} is no option of it; {words}")
    missing = [
        one.name for one in known.values() if one.default is one.empty and one.name not in options
    ]
    if missing:
        raise InputError(f"leash {name}: give {' and '.join(missing)}")
    return kind(**options)
