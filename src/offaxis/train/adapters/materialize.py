"""The weights that an adapter makes of its base, written as a model like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offaxis.checkpoint import Checkpoint, open_checkpoint
from offaxis.checkpoint.rewriting import Rewriting, check_target
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.checkpoint.tied import find_head
from offaxis.errors import CheckpointError, InputError
from offaxis.names import pieces, place, rename, unwrap
from offaxis.output import check_output, explained, staged_directory
from offaxis.train.adapters.effective import check_config, effective_tensors, sites
from offaxis.train.adapters.loading import hollow, open_adapter
from offaxis.train.adapters.loading import place as put_on

__all__ = ["materialize"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_OTHER_BASE = "give the base that the adapter was trained on (base=)"


def materialize(
    source: Any,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model that an adapter makes of its base into the directory `out`; return it.

    source: an adapter's directory, a Trainer's checkpoint of one, or a PEFT model in memory. base:
    the original base (directory, file or Hub id); by default what the adapter names. dtype:
    float16, bfloat16, float32 or float64 for every floating-point tensor; None: as each is stored
    in the base.

    The files are the base's: the same names, tensors in the same places, configuration and
    tokenizer copied. The weights that the adapter changes are computed in float64 (for PiSSA and
    kin W₀ + s (BA − B₀A₀), which needs `ref`) and rounded once; with dtype None every other
    tensor is the base's byte for byte. A head that was tied to the embedding, and is another now,
    is written as a tensor of its own. `out` appears whole or not at all. Memory: the adapter and
    a few copies of one module in float64; the base is mapped, and no model is loaded: PEFT's
    modules are built around one zero for each matrix.

    Raises InputError or CheckpointError where the base is not the adapter's, or the adapter is no
    fixed change of the base's tensors; OutputError where `out` cannot be written.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(_DTYPES)}, or leave it out")
    target = Path(out)
    check_output(target, overwrite=overwrite)
    model, adapter, found = _opened(source, base)
    check_target(found, target.expanduser())
    plan = _plan(model, adapter, found)
    with staged_directory(target, overwrite=overwrite) as staged:
        files = Rewriting(found, staged, changed=plan.changed, new=plan.new, dtype=dtype)
        with explained(target):
            files.begin()
        for name, value in effective_tensors(model, plan.read, adapter=adapter):
            if name in plan.names:  # else it is tied to one that is written
                with explained(target):
                    files.put(plan.names[name], value)
        with explained(target):
            if plan.copied_head is not None:
                files.put(plan.copied_head, plan.read(plan.copied_head))
            files.finish(untied=plan.untied)
    return target


def _opened(source: Any, base: str | Path | None) -> tuple[Any, str, StoredCheckpoint]:
    """(a PEFT model, its adapter's name, the original base)."""
    if hasattr(source, "peft_config"):
        adapter = _active(source)
        return source, adapter, _base(base or _named(source, adapter))
    stored = open_adapter(source)
    check_config(stored.config)
    found = _base(base or stored.config.base_model_name_or_path)
    return put_on(hollow(_config(found)), stored, empty=True), "default", found


def _active(model: Any) -> str:
    active = model.active_adapter
    if isinstance(active, str):
        return active
    if len(active) == 1:
        return str(active[0])
    raise InputError(f"{len(active)} adapters are active; set one (set_adapter)")


def _named(model: Any, adapter: str) -> str | None:
    named = model.peft_config[adapter].base_model_name_or_path
    return named or getattr(model.get_base_model().config, "name_or_path", None)


def _base(source: str | Path | None) -> StoredCheckpoint:
    if not source:
        raise InputError("the adapter does not name its base; give base=, a directory or a Hub id")
    found = open_checkpoint(source)
    if not isinstance(found, StoredCheckpoint):
        raise CheckpointError(f"{source}: an adapter, not a base; give the base's weights (base=)")
    return found


def _config(base: StoredCheckpoint) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(base.root), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{base.source}: transformers makes no model of its config.json ({error}); give a base "
            "with one, or the PEFT model in memory"
        ) from error


@dataclass(frozen=True)
class _Plan:
    """Where the effective tensors go, made from names and shapes alone."""

    base: Checkpoint
    names: Mapping[str, str]
    """In the model's memory → in the files that are written."""
    new: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and dtype code of tensors that the base does not store."""
    homes: Mapping[str, str]
    """In the model's memory → in the base's files."""
    untied: bool
    copied_head: str | None = None
    """A head that stays what the embedding was."""

    @property
    def changed(self) -> frozenset[str]:
        """Stored tensors that get other values."""
        return frozenset(self.names.values())

    def read(self, name: str) -> torch.Tensor:
        return self.base[self.homes[name]]


def _plan(model: Any, adapter: str, base: StoredCheckpoint) -> _Plan:
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    touched = {
        f"{site.name}.{part}" if site.name else part: shape
        for site in sites(model, adapter)
        for part, shape in site.shapes.items()
    }
    landed = rename({unwrap(name): shape for name, shape in shapes.items()}, touched).names
    stored = {unwrap(name): name for name in shapes}
    homes = {name: stored[landed[name]] for name in touched if name in landed}
    head = find_head(base, pieces(shapes, config=base.config))
    embedding = head.embedding.name if head.embedding is not None and head.tied() else None
    heads = [one for one in touched if place(one, touched[one]).role == "lm_head"]
    names, new = dict(homes), {}
    copied, untied = None, False
    if embedding is not None:
        embedded = embedding in homes.values()
        both = bool(heads) and embedded and _stay_tied(model, adapter)
        untied = (bool(heads) or embedded) and not both
        for one in heads:
            homes.setdefault(one, embedding)
            if one not in names and not both:
                names[one] = one
                new[one] = (touched[one], base.specs[embedding].dtype)
        if embedded and not heads and head.head is None:
            copied = _head_of(model)
            homes[copied] = embedding
            new[copied] = (shapes[embedding], base.specs[embedding].dtype)
    _check_homes(model, touched, homes, base)
    return _Plan(base, names, new, homes, untied, copied)


def _stay_tied(model: Any, adapter: str) -> bool:
    return getattr(model.peft_config[adapter], "ensure_weight_tying", False) is True


def _head_of(model: Any) -> str:
    inner = model.get_base_model()
    head = inner.get_output_embeddings()
    return next(f"{name}.weight" for name, one in inner.named_modules() if one is head)


def _check_homes(
    model: Any, touched: Mapping[str, Any], homes: Mapping[str, str], base: Checkpoint
) -> None:
    for name, shape in touched.items():
        if name not in homes:
            raise CheckpointError(
                f"the adapter changes {name} {tuple(shape)}, which {base.source} does not store "
                f"under any name ({type(model.get_base_model()).__name__} may join or split it on "
                f"loading, as experts are stacked); {_OTHER_BASE}, or merge with PEFT"
            )
        found = base.specs[homes[name]].shape
        if found != tuple(shape):
            raise CheckpointError(
                f"the adapter changes {name} {tuple(shape)}, but {homes[name]} in {base.source} is "
                f"{found}; {_OTHER_BASE}"
            )
