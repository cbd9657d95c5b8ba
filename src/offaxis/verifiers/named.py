"""Verifiers by name, for configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.verifiers.lab import CountdownVerifier, IntegerVerifier
from offaxis.verifiers.literal import ExactVerifier, NumericVerifier
from offaxis.verifiers.mark import Verifier
from offaxis.verifiers.match import Match
from offaxis.verifiers.mathematics import MathVerifier
from offaxis.verifiers.programs import CodeVerifier

__all__ = ["VERIFIERS", "verifier_named"]

VERIFIERS: Mapping[str, Callable[..., Verifier]] = MappingProxyType(
    {
        "math": MathVerifier,
        "numeric": NumericVerifier,
        "exact": ExactVerifier,
        "integer": IntegerVerifier,
        "countdown": CountdownVerifier,
        "code": CodeVerifier,
    }
)
"""What `verifier_named` makes."""


def _checked(what: str, made: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(made).parameters if name != "self"]
    if unknown := sorted(options.keys() - set(known)):
        raise InputError(
            f"{what} has no option {', '.join(unknown)}: choose from {', '.join(known)}"
        )


def verifier_named(name: str, **options: Any) -> Verifier:
    """The verifier `name` with its options; those of `Match` may be given as a mapping `match`.

    InputError lists the names, or the options, where there is none such.
    """
    if name not in VERIFIERS:
        raise InputError(f"verifier {name!r}: choose one of {', '.join(VERIFIERS)}")
    made = VERIFIERS[name]
    _checked(f"verifier {name!r}", made, options)
    if isinstance(options.get("match"), Mapping):
        _checked("match", Match, options["match"])
        options = options | {"match": Match(**options["match"])}
    return made(**options)
