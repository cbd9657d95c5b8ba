"""The base of a model in training, as something that runs."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from offaxis.errors import CheckpointError, InputError
from offaxis.train.reference.adapters import REF
from offaxis.train.reference.trial import overwrites_base

__all__ = ["Reference", "reference_of"]

_log = logging.getLogger("offaxis.train")


class Reference:
    """The base that a model started from, as something that runs.

    kind: `copy` (weights of its own), `disabled` (the trained model, adapters disabled) or `ref`
    (the trained model with its frozen initial adapter).
    """

    def __init__(self, kind: str, model: Any) -> None:
        self.kind = kind
        self._model = model

    @contextlib.contextmanager
    def model(self) -> Iterator[Any]:
        """The model whose forward pass is the base's, until the block ends.

        Where it is the trained model itself, its active adapter and `requires_grad` are restored.
        """
        if self.kind == "copy":
            yield self._model
            return
        trained = [(one, one.requires_grad) for one in self._model.parameters()]
        active = self._model.active_adapter
        try:
            if self.kind == "disabled":
                with self._model.disable_adapter():
                    yield self._model
            else:
                self._model.set_adapter(REF)
                yield self._model
        finally:
            if self.kind == REF:
                self._model.set_adapter(active)
            for parameter, wanted in trained:
                parameter.requires_grad_(wanted)


def reference_of(owner: Any, *, source: str | Path | None = None) -> Reference:
    """The base of a trainer's model, or of a model; made once for each trainer.

    owner: a TRL trainer, or a model. source: the base, where the model does not know it (its
    `name_or_path`); for weights of its own, it is loaded in the trained weights' dtype and onto
    their device, and costs as much memory as they do.

    Raises InputError for an adapter that overwrote its base and has no `ref`, and where a copy is
    needed and there is no source; CheckpointError where the source cannot be loaded.
    """
    from transformers import Trainer

    trainer = owner if isinstance(owner, Trainer) else None
    made: Reference | None = owner.__dict__.get("_offaxis_reference") if trainer else None
    if made is not None:
        return made
    model = trainer.model if trainer else owner
    if hasattr(model, "peft_config"):
        found = _of_adapter(model, trainer, source)
    else:
        found = _of_weights(model, trainer, source)
    if trainer is not None:
        trainer._offaxis_reference = found
    return found


def _of_adapter(model: Any, trainer: Any, source: str | Path | None) -> Reference:
    if REF in model.peft_config:
        return Reference(REF, model)
    for name, config in model.peft_config.items():
        try:
            lost = overwrites_base(config)
        except InputError as error:
            _log.warning("%s; the base is taken to be the model with adapters disabled", error)
            continue
        if lost and getattr(model, "offaxis_base", "") == "copy":
            inner = model.get_base_model()
            return Reference("copy", _load(source or _source(inner), type(inner), inner, trainer))
        if lost:
            raise InputError(
                f"adapter {name!r} has overwritten the base, and with adapters disabled the model "
                "is not the base but what is left of it; make the model with "
                "offaxis.train.reference.prepare_peft_model, which keeps the initial adapter"
            )
    return Reference("disabled", model)


def _of_weights(model: Any, trainer: Any, source: str | Path | None) -> Reference:
    own = getattr(trainer, "ref_model", None)
    if own is not None and source is None and not getattr(trainer.args, "sync_ref_model", False):
        return Reference("copy", own)
    if source is None and not _source(model) and (trainer is None or not trainer.state.global_step):
        return Reference("copy", _prepared(_twin(model), model, trainer))
    return Reference("copy", _load(source or _source(model), type(model), model, trainer))


def _source(model: Any) -> str:
    return str(getattr(model.config, "name_or_path", "") or "")


def _load(source: str | Path, kind: Any, model: Any, trainer: Any) -> Any:
    """A frozen copy of the base in the trained weights' dtype."""
    if not str(source):
        raise InputError(
            "the trained model does not say which base it started from; give base=, a directory "
            "or a Hub id"
        )
    args = getattr(trainer, "args", None)
    revision = (getattr(args, "model_init_kwargs", None) or {}).get("revision")
    try:
        with torch.random.fork_rng(), torch.no_grad():
            base = _unsharded(kind).from_pretrained(
                str(source),
                dtype=model.dtype,
                attn_implementation=model.config._attn_implementation,
                use_safetensors=True,
                local_files_only=Path(source).is_dir(),
                **({"revision": revision} if revision else {}),
            )
    except Exception as error:  # transformers, safetensors and the Hub raise many kinds
        raise CheckpointError(
            f"{source}: the base cannot be loaded ({type(error).__name__}: {error}); give base="
        ) from error
    return _prepared(base, model, trainer)


def _twin(model: Any) -> Any:
    """A new model with the weights of one that was built in memory and is not trained yet.

    Not by deepcopy: TRL and accelerate put closures over the model in the place of its `forward`.
    """
    kind = _unsharded(type(model))
    if kind is not type(model):
        raise InputError("a sharded model that was built in memory has no base on disk; give base=")
    with torch.random.fork_rng(devices=[]):
        twin = kind._from_config(  # not .to(dtype): some buffers stay float32
            copy.deepcopy(model.config),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    twin.load_state_dict(model.state_dict())
    return twin


def _prepared(base: Any, model: Any, trainer: Any) -> Any:
    """Frozen, on the trained model's device, and wrapped as TRL wraps its own reference."""
    base.eval().requires_grad_(False)
    if trainer is None:
        return base.to(model.device)
    if trainer.is_deepspeed_enabled:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(base, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        from trl.models import prepare_fsdp

        return prepare_fsdp(base, trainer.accelerator)
    return trainer.accelerator.prepare_model(base, evaluation_mode=True)


def _unsharded(kind: Any) -> Any:
    """The class itself: FSDP2 puts one of its own before it."""
    from torch.distributed.fsdp import FSDPModule

    return next(one for one in kind.__mro__ if not issubclass(one, FSDPModule))
