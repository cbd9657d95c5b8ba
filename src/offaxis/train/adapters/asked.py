"""The adapter that a run's keys ask for by name."""

from __future__ import annotations

from typing import Any

from offaxis.errors import InputError
from offaxis.train.adapters.methods import AdapterSpec
from offaxis.train.adapters.targets import EVERY
from offaxis.train.arguments import Arguments
from offaxis.train.extras import mapping

__all__ = ["asked_adapter", "foretold_adapter"]


def asked_adapter(arguments: Arguments) -> AdapterSpec | None:
    """The adapter that the key `adapter` names; None for a PEFT configuration, or without one.

    `METHOD`, `METHOD?key=value&...`, or a mapping with `method`. InputError for what is none.
    """
    given = arguments.extra.adapter
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        spec = AdapterSpec.parse(given)
    else:
        options = mapping("adapter", given)
        if options is None or "method" not in options:
            return None
        if "peft_type" in options:
            raise InputError("adapter has method and peft_type: name one of offaxis's, or PEFT's")
        spec = AdapterSpec.of(options)
    if getattr(arguments.model, "use_peft", False):
        raise InputError("adapter and use_peft: a run has one of them")
    return spec


def foretold_adapter(arguments: Arguments) -> dict[str, Any] | None:
    """What can be said of the adapter without the model."""
    spec = asked_adapter(arguments)
    if spec is None:
        return None
    about = spec.about
    shared = {
        "rank": spec.used_rank,
        "alpha": spec.used_alpha,
        "dropout": spec.dropout,
        "target_modules": spec.target_modules or EVERY.get(about.targets),
    }
    return {
        "method": spec.method,
        "says": about.says,
        "source": about.source,
        "trains": list(about.trains) or ["all"],
        **{name: one for name, one in shared.items() if name not in about.lacks},
        **{name: spec.option(name) for name in about.options},
    }
