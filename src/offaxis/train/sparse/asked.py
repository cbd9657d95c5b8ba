"""The mask that a run's keys ask for: a file, or a rule that is applied to the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError, OffaxisError
from offaxis.masks import Mask, build, load
from offaxis.masks.expression import filled, parse
from offaxis.train.arguments import Arguments
from offaxis.train.sparse.refreshing import check_rule

__all__ = ["MASK", "asked_mask", "described", "foretold"]

MASK = "mask.offaxis"
"""What a run's mask is called in its output directory: not .safetensors, which loaders of models
read as weights."""


def asked_mask(arguments: Arguments) -> Mask | None:
    """The mask of a run; None where it has none.

    A rule is applied by the first process, for all. Raises InputError, before anything is written,
    for a file that is missing or of another base, for what is neither file nor rule, and for keys
    that contradict a mask.
    """
    text = arguments.extra.mask
    if text is None:
        return None
    _check_keys(arguments)
    base = _base(arguments)
    if (path := _file(text)) is not None:
        mask = load(path)
        mask.check(open_checkpoint(base))
        _check_refresh(arguments, mask.rule)
        return mask
    rule = _rule(text)
    _check_refresh(arguments, rule)
    return _built(base, rule)


def foretold(arguments: Arguments) -> dict[str, Any] | None:
    """What can be said of the mask without reading the base: of a file all, of a rule its text."""
    text = arguments.extra.mask
    if text is None:
        return None
    _check_keys(arguments)
    path = _file(text)
    if path is not None:
        return described(arguments, load(path))
    return {"rule": _rule(text), **_use(arguments)}


def described(arguments: Arguments, mask: Mask) -> dict[str, Any]:
    """The mask in numbers, for a run's record."""
    return {
        "rule": mask.rule,
        "density": mask.density,
        "selected": mask.selected,
        "entries": sum(map(mask.entries, mask)),
        "base": mask.base_digest,
        **_use(arguments),
    }


def _use(arguments: Arguments) -> dict[str, Any]:
    extra = arguments.extra
    return {
        "strategy": extra.mask_strategy,
        "others": extra.mask_others,
        "refresh": extra.mask_refresh,
    }


def _check_keys(arguments: Arguments) -> None:
    model, extra = arguments.model, arguments.extra
    if getattr(model, "use_peft", False):
        raise InputError("mask with use_peft: an adapter trains weights of its own; choose one")
    if getattr(model, "load_in_4bit", False) or getattr(model, "load_in_8bit", False):
        raise InputError(
            "mask with a quantised model: its weights cannot be trained; load bfloat16"
        )
    if extra.mask_strategy == "compressed" and extra.pure_bf16:
        raise InputError(
            "mask_strategy compressed keeps float32 masters of what it trains; leave pure_bf16 out"
        )


def _check_refresh(arguments: Arguments, rule: str) -> None:
    if arguments.extra.mask_refresh:
        check_rule(rule)


def _base(arguments: Arguments) -> str:
    name, revision = arguments.model.model_name_or_path, arguments.model.model_revision
    there = Path(name).expanduser().exists()
    return str(name) if there or revision in (None, "main") else f"{name}@{revision}"


def _file(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path if path.is_file() else None


def _rule(text: str) -> str:
    """The rule with its options set. InputError for what is none."""
    try:
        node = filled(parse(text), {})
    except InputError as error:
        raise InputError(f"mask {text}: no such file; and as a rule: {error}") from error
    for call in node.calls():
        if call.name in ("gradient", "fisher"):
            raise InputError(
                f"mask {text}: {call.name} needs scores of data; make the mask first, with "
                f"offaxis mask BASE --rule {call.name} --data FILE --out MASK, and give that file"
            )
    return str(node)


def _built(base: str, rule: str) -> Mask:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    box: list[Any] = [None]
    if state.is_main_process:
        try:
            box = [build(base, rule)]
        except OffaxisError as error:  # told by all, or the others would wait
            box = [error]
    if state.num_processes > 1:
        broadcast_object_list(box)
    if isinstance(box[0], OffaxisError):
        raise box[0]
    found: Mask = box[0]
    return found
