"""Saved adapters put on a model again, exactly, and on a model of no weights to read them by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from offaxis.checkpoint import AdapterCheckpoint, open_checkpoint
from offaxis.checkpoint.lora import overwrites
from offaxis.errors import CheckpointError, InputError
from offaxis.train.precision import give_masters
from offaxis.train.reference.adapters import REF, add_reference

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

__all__ = ["StoredAdapter", "hollow", "load_adapted", "open_adapter", "place", "take_out"]

_OURS = ("avoid_rank", "avoid", "avoid_seed", "low_share")
_TOLD = ("auto_mapping", "peft_version", "runtime_config")
"""Keys of `adapter_config.json` that change nothing."""
_OTHER_BASE = "give the base that the adapter was trained on"


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's directory: tensors not read yet, and what `adapter_config.json` says."""

    weights: AdapterCheckpoint
    config: Any
    initial: AdapterCheckpoint | None
    """What its start took out of the base, where it took anything."""

    @property
    def source(self) -> str:
        return self.weights.source


def load_adapted(base_model: Any, directory: str | Path, *, trainable: bool = False) -> PeftModel:
    """The adapter of a directory on `base_model`, as the model that was saved.

    base_model: the *original* base (a transformers model), which is changed in place. directory:
    a PEFT adapter of any method, or a Trainer's checkpoint. trainable: to train on; otherwise
    frozen and in evaluation mode.

    Where the adapter's start overwrote the base (PiSSA, OLoRA, CorDA, LoRA-GA, MiLoRA, GeoRA),
    what it took is read from the subfolder `ref`: the base becomes W₀ − s B₀A₀, rounded once to
    its dtype, and the model keeps `ref` (`prepare_peft_model`). PEFT's own `from_pretrained` takes
    it anew, by an SVD, and refuses MiLoRA and GeoRA. Off-principal LoRA is a plain LoRA here,
    unless it is to be trained on: then its factors are projected once more. The trainer's
    optimizer and `wire` belong to a method as they did.

    Raises CheckpointError for a directory that holds no whole adapter, for an unknown method, for
    a start without its `ref`, and where the adapter does not fit the base; InputError for a model
    that has an adapter already.
    """
    if hasattr(base_model, "peft_config"):
        raise InputError("the model has an adapter already; give the base itself")
    stored = open_adapter(directory)
    if stored.config.is_prompt_learning or stored.config.is_adaption_prompt:
        from peft import PeftModel

        return PeftModel.from_pretrained(base_model, str(directory), is_trainable=trainable)
    return place(base_model, stored, trainable=trainable)


def open_adapter(directory: str | Path) -> StoredAdapter:
    """Open an adapter's directory. Raises CheckpointError as `load_adapted` does."""
    if not isinstance(directory, str | PathLike):
        raise CheckpointError(
            f"a {type(directory).__name__} is neither an adapter's directory nor a PEFT model; a "
            "model without an adapter is saved with its own save_pretrained"
        )
    weights = open_checkpoint(directory)
    if not isinstance(weights, AdapterCheckpoint):
        raise CheckpointError(
            f"{directory}: not a PEFT adapter (no adapter_config.json); give the directory that "
            "the adapter was saved in"
        )
    config = _config(weights.source, weights.adapter)
    initial = weights.initial()
    if initial is None and overwrites(getattr(config, "init_lora_weights", None)):
        raise CheckpointError(
            f"{directory}: init_lora_weights = {config.init_lora_weights!r} took a part out of the "
            "base, and the initial adapter that says which is not in the subfolder ref; train with "
            "offaxis.train.adapters.adapt or offaxis.train.prepare_peft_model, which keep it, or "
            "copy the adapter's directory with all its folders"
        )
    return StoredAdapter(weights, config, initial)


def _config(source: str, told: Mapping[str, object]) -> Any:
    """The PEFT configuration, ours where it has our keys. Nothing that it says is left out."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from offaxis.train.adapters.configs import GeometricLoraConfig

    kind = str(told.get("peft_type") or "").upper()
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(
            f"{source}: the PEFT method {kind or '(none named)'} is not known to this version of "
            "PEFT; upgrade it, or repair adapter_config.json"
        )
    ours = kind == "LORA" and any(key in told for key in _OURS)
    made: Any = GeometricLoraConfig if ours else PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = {one.name for one in fields(made)} - set(_TOLD)
    if strange := [key for key in told if key not in (*known, *_TOLD) and told[key]]:
        raise CheckpointError(
            f"{source}: adapter_config.json says {strange[0]} = {told[strange[0]]!r}, which this "
            "version of PEFT does not know; upgrade it"
        )
    try:
        return made(**{key: value for key, value in told.items() if key in known})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{source}: adapter_config.json is no configuration of {kind} ({error}); repair it, or "
            "save the adapter again"
        ) from error


def place(
    model: Any, stored: StoredAdapter, *, trainable: bool = False, empty: bool = False
) -> PeftModel:
    """`stored` on `model`; with `empty`, a `hollow` one, whose base is left as it is."""
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    config = _neutral(stored, trainable=trainable)
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    pruned = getattr(config, "rank_pattern", None) if config.peft_type == "ADALORA" else None
    if pruned is not None:
        config.rank_pattern = None  # PEFT reads it as LoRA's first, and warns
    with torch.random.fork_rng(devices=[]):
        try:
            made = kind(model, config, "default")
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{stored.source}: cannot be put on a {type(model).__name__} ({error}); "
                f"{_OTHER_BASE}"
            ) from error
        if stored.initial is not None:
            _fill(made, stored.initial, empty=empty)
            if not empty:
                take_out(made)
            add_reference(made)
            made.offaxis_base = REF
        if pruned is not None:
            config.rank_pattern = pruned
        if trainable:
            give_masters(made, learning_rate=0.0, insist=False)
        _fill(made, stored.weights, empty=empty)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = stored.config.init_lora_weights
    if hasattr(config, "avoid_rank"):
        config.avoid_rank = stored.config.avoid_rank
    made.train(trainable)
    return made


def _neutral(stored: StoredAdapter, *, trainable: bool) -> Any:
    """The configuration without a start of its own: all of it is loaded."""
    config = copy.deepcopy(stored.config)
    config.inference_mode = not trainable
    if overwrites(getattr(config, "init_lora_weights", None)) or (
        getattr(config, "init_lora_weights", None) == "eva"
    ):
        config.init_lora_weights = True
    if hasattr(config, "avoid_rank") and not trainable:
        config.avoid_rank = 0
    return config


def _fill(model: Any, weights: AdapterCheckpoint, *, empty: bool) -> None:
    """Load an adapter's tensors into `default`, all of them, and nothing is left at its start."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import set_peft_model_state_dict

    state = {name: weights[name] for name in weights}
    if empty:
        _own_memory(model, state)
    try:
        found = set_peft_model_state_dict(model, state)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [one.strip() for one in str(error).splitlines()]
        said = next((one for one in lines if "mismatch" in one), lines[0])
        raise CheckpointError(
            f"{weights.source}: does not fit the base ({type(error).__name__}: {said}); "
            f"{_OTHER_BASE}"
        ) from error
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config["default"].peft_type]
    absent = [one for one in found.missing_keys if prefix in one and ".default" in one]
    if found.unexpected_keys:
        raise CheckpointError(
            f"{weights.source}: {found.unexpected_keys[0]!r} fits no module of the base "
            f"({len(found.unexpected_keys)} such tensors); {_OTHER_BASE}"
        )
    if absent:
        raise CheckpointError(
            f"{weights.source}: has no tensor for {absent[0]!r} ({len(absent)} such); {_OTHER_BASE}"
            ", or save the adapter again"
        )


@torch.no_grad()
def take_out(model: Any) -> None:
    """W₀ becomes W₀ − s B₀A₀, computed in float64 and rounded once."""
    from peft.tuners.lora import LoraLayer

    from offaxis.train.adapters.effective import rounded

    for module in model.modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            weight = module.get_base_layer().weight
            start = copy.deepcopy(module).double().get_delta_weight("default")
            weight.copy_(rounded(weight.double() - start, weight.dtype))


def hollow(config: Any) -> Any:
    """A model of a transformers configuration that holds no weights, but takes adapters.

    Its matrices are one zero each, seen many times: on the CPU, so that PEFT puts adapters on it as
    on any model (on the meta device it would move them there, and lose what was loaded), and in
    float64, so that none of an adapter's tensors is rounded. Vectors are zeros.
    """
    import transformers

    name = next(iter(config.architectures or ()), "")
    kind = getattr(transformers, name, None)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = (
            transformers.AutoModelForCausalLM.from_config(config)
            if kind is None
            else kind._from_config(config)
        )
    seen: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in model.modules():
        for part, one in module._parameters.items():
            if one is not None:
                seen.setdefault(id(one), (one, _zeros(one)))
                module._parameters[part] = seen[id(one)][1]
    return model


def _zeros(like: nn.Parameter) -> nn.Parameter:
    if like.ndim <= 1:
        return nn.Parameter(torch.zeros(like.shape, dtype=torch.float64), requires_grad=False)
    zero = torch.zeros((), dtype=torch.float64)
    return nn.Parameter(zero.expand(like.shape), requires_grad=False)


def _own_memory(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Move parameters of the base that the adapter has stored into a hollow model."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name in [one for one in state if one in known]:
        value = state.pop(name).double()
        if value.shape != known[name].shape:
            raise CheckpointError(
                f"{name!r} is {tuple(value.shape)}, in the base {tuple(known[name].shape)}; "
                f"{_OTHER_BASE}"
            )
        path, _, part = name.rpartition(".")
        model.get_submodule(path)._parameters[part] = nn.Parameter(value)
