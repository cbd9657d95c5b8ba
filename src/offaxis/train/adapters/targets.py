"""Which modules of a model an adapter is put on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from offaxis.errors import InputError
from offaxis.names import place

__all__ = ["EVERY", "Targets", "targets_of"]

EVERY = {"linear": "all-linear", "norm": "all-norms"}
"""What all modules of a kind are called."""

_HEADS = ("lm_head", "classifier", "value_head", "embed", "position_embed")


_AS_LIST = ' (one text is a regular expression of whole paths; names are a list, ["q_proj"])'


@dataclass(frozen=True)
class Targets:
    """The modules that were asked for, found in a model."""

    given: str | list[str]
    """What PEFT is told: "all-linear", names, or a regular expression."""
    modules: tuple[str, ...]
    """Their paths, in the model's order."""
    down: tuple[str, ...] = ()
    """Those that end an MLP: (IA)³ scales their inputs."""
    stacked: tuple[str, ...] = ()
    """Paths of the model's stacked experts: 3-D parameters in no linear module, never adapted."""


def targets_of(model: Any, asked: str | Iterable[str] | None, kind: str) -> Targets:
    """The modules of `model` that `asked` names, all of one kind.

    model: not yet adapted. asked: "all-linear", "all-norms", a regular expression of whole paths,
    or names, each the end of a path; None: all of the kind. kind: `linear` or `norm`.

    The same modules whatever the method: PEFT's "all-linear" would reach stacked experts for LoRA
    alone, on some models. A tied head is a head, and is not adapted.

    Raises InputError where a name matches nothing, or what is no such module.
    """
    everything = EVERY[kind]
    known = {name: one for name, one in model.named_modules() if _is(kind, name, one)}
    if asked is None or asked == everything:
        if not known:
            raise InputError(
                f"{type(model).__name__} has no {kind} modules to adapt; choose another method"
            )
        short = kind == "linear" and _is_shorthand(model, known)
        return _targets(model, "all-linear" if short else list(known), known)
    if isinstance(asked, str) and asked.startswith("all-"):
        raise InputError(
            f"target_modules {asked!r}: this method adapts {kind} modules; give {everything!r}, or "
            "leave it out"
        )
    names = [asked] if isinstance(asked, str) else list(asked)
    chosen: set[str] = set()
    for name in names:
        found = _matching(model, name, whole=isinstance(asked, str))
        if not found:
            raise InputError(
                f"target_modules {name!r} matches no module{_about_experts(model)}; the model has "
                f"{_ends(known)}{_AS_LIST if isinstance(asked, str) else ''}"
            )
        if strange := [one for one in found if one not in known]:
            raise InputError(
                f"target_modules {name!r} matches {strange[0]}, which is no {kind} module that "
                f"this method can adapt{_about_experts(model)}; choose among {_ends(known)}"
            )
        chosen |= set(found)
    ordered = {name: one for name, one in known.items() if name in chosen}
    return _targets(model, asked if isinstance(asked, str) else names, ordered)


def _targets(model: Any, given: str | list[str], modules: dict[str, Any]) -> Targets:
    down = tuple(name for name in modules if _role(name, modules[name]) == "down_proj")
    return Targets(given, tuple(modules), down, _stacked(model))


def _is_shorthand(model: Any, known: Iterable[str]) -> bool:
    """Whether PEFT's "all-linear" stands for these modules and nothing else."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {name for name, one in model.named_modules() if _linear(one) and one is not head}
    return linear == set(known) and not _stacked(model)


def _stacked(model: Any) -> tuple[str, ...]:
    return tuple(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for name, one in module.named_parameters(recurse=False)
        if one.ndim == 3 and min(one.shape) > 1
    )


def _about_experts(model: Any) -> str:
    found = _stacked(model)
    return f" (its experts are stacked, as {found[0]}, and not adapted)" if found else ""


def _is(kind: str, name: str, module: Any) -> bool:
    if kind == "norm":
        weight = getattr(module, "weight", None)
        return (
            isinstance(weight, nn.Parameter) and weight.ndim == 1 and _role(name, module) == "norm"
        )
    return _linear(module) and _role(name, module) not in _HEADS


def _linear(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _role(name: str, module: Any) -> str:
    return place(f"{name}.weight", tuple(module.weight.shape)).kind


def _matching(model: Any, pattern: str, *, whole: bool) -> list[str]:
    """As PEFT matches: a string is a regular expression, a list has ends of paths."""
    names = [name for name, _ in model.named_modules() if name]
    if not whole:
        return [name for name in names if name == pattern or name.endswith(f".{pattern}")]
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise InputError(f"target_modules {pattern!r}: no regular expression ({error})") from error


def _ends(known: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in known)) or "none"
