"""A model with an adapter by name, checked to train what its row of the table says."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from offaxis.errors import InputError
from offaxis.linalg import principal_rank
from offaxis.train.adapters.adalora import alone
from offaxis.train.adapters.layers import freeze
from offaxis.train.adapters.loading import take_out
from offaxis.train.adapters.methods import ADAPTERS, AdapterMethod, AdapterSpec
from offaxis.train.adapters.targets import Targets, targets_of
from offaxis.train.precision import give_masters
from offaxis.train.reference import prepare_peft_model
from offaxis.train.reference.adapters import REF

__all__ = ["Adapted", "adapt", "adapter_config", "check_adapted"]

_log = logging.getLogger("offaxis.train")


@dataclass(frozen=True)
class Adapted:
    """What an adapted model trains."""

    modules: tuple[str, ...]
    """Paths of the adapted modules, in the unadapted model."""
    trainable: int
    """Parameters that get gradients."""
    adapter: int
    """Parameters that the adapter has, frozen ones included; VeRA's projections are buffers."""
    total: int
    """Parameters of the unadapted model."""
    experts: int = 0
    """Parameters of stacked experts among them: no method here adapts them."""


def adapter_config(spec: AdapterSpec | str, model: Any) -> Any:
    """The PEFT configuration of `spec` for a model; None for full fine-tuning.

    spec: text is read as by `AdapterSpec.parse`. model: the base, not yet adapted.

    It is not the whole method where that needs more than PEFT: `wire(trainer, spec)` gives LoRA+
    and LoRA-FA their optimizers, and `adapt` keeps the reference of PiSSA and kin.

    Raises InputError for targets that it does not have, and ranks that do not fit them.
    """
    spec = AdapterSpec.parse(spec) if isinstance(spec, str) else spec
    if spec.about.make is None:
        return None
    return _config(spec, model, _targets(spec, model))


def _config(spec: AdapterSpec, model: Any, targets: Targets) -> Any:
    assert spec.about.make is not None
    for name in targets.modules:
        _check_fit(spec, name, model.get_submodule(name))
    config = spec.about.make(spec, targets)
    config.base_model_name_or_path = getattr(model.config, "name_or_path", None) or None
    if targets.stacked:
        _check_experts(spec, config, model)
    return config


def _targets(spec: AdapterSpec, model: Any) -> Targets:
    asked = spec.target_modules
    return targets_of(model, asked, spec.about.targets)


def _check_fit(spec: AdapterSpec, name: str, module: Any) -> None:
    """InputError where a weight has not as many directions as the method takes of it."""
    if spec.about.targets != "linear":
        return
    turned = not hasattr(module, "in_features")  # Conv1D
    shape = tuple(module.weight.shape[::-1])
    shape = shape if turned else (module.out_features, module.in_features)
    least, rank = shape[1] if spec.method == "miss" else min(shape), spec.used_rank
    if (spec.about.overwrites or spec.method == "miss") and rank > least:
        raise InputError(
            f"rank {rank}: {name} is {shape[0]}x{shape[1]}, and {spec.method} takes {rank} "
            "directions of it; choose a lower rank, or other target_modules"
        )
    if spec.method == "off_principal_lora":
        given = spec.option("avoid_rank")
        avoided = principal_rank(*shape) if given is None else given
        if avoided >= least:
            raise InputError(
                f"avoid_rank {avoided}: {name} is {shape[0]}x{shape[1]}, so nothing would be left "
                "to train; choose fewer, or other target_modules"
            )


def _check_experts(spec: AdapterSpec, config: Any, model: Any) -> None:
    """InputError where PEFT would put LoRA on stacked experts, which it does for LoRA alone."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    tried = copy.deepcopy(config)
    convert_peft_config_for_transformers(tried, model, None)
    if reached := getattr(tried, "target_parameters", None):
        raise InputError(
            f"{spec.method}: on a {model.config.model_type} model PEFT takes target_modules for "
            f"its stacked experts ({', '.join(sorted(reached))}), which no other method reaches; "
            'name target_modules that are in no MLP, such as ["q_proj", "o_proj"]'
        )


def adapt(model: Any, spec: AdapterSpec | str, *, seed: int | None = None) -> Any:
    """`model` with the adapter `spec`; give the result to TRL, and the trainer to `wire`.

    The true reference policy is kept where the adapter overwrites the base
    (`offaxis.train.prepare_peft_model`); `full` gives the model back with everything trainable.
    seed: for the start; the global random state is then left as it was. Adapters train in float32;
    in half precision the base of a PiSSA is W₀ − s B₀A₀ rounded once, of B₀ and A₀ as stored.

    Raises InputError where the adapter cannot be put on what was asked for, or would train
    anything else than its row of `ADAPTERS` says. A warning tells of stacked experts (3-D
    parameters of mixtures of experts), which no method here adapts.
    """
    spec = AdapterSpec.parse(spec) if isinstance(spec, str) else spec
    if hasattr(model, "peft_config"):
        raise InputError("the model has an adapter already; merge it first, or load the base")
    if spec.about.make is None:
        model.requires_grad_(True)
        return model
    _check_here(spec, model)
    targets = _targets(spec, model)
    config = _config(spec, model, targets)
    total = sum(one.numel() for one in model.parameters())
    experts = sum(model.get_parameter(name).numel() for name in targets.stacked)
    if experts and spec.about.targets == "linear":
        share = f"{experts} of {total} parameters"
        _log.warning("%s does not adapt the stacked experts: %s stay frozen", spec.method, share)
    before = _halves(model, targets.modules) if spec.method == "pissa" else {}
    made = _put_on(model, spec, config, seed)
    if before:
        _start_again(made, before)
    freeze(made, spec.about.frozen)
    give_masters(made, learning_rate=0.0, insist=False)  # PEFT gives none to norms
    if spec.method == "adalora":
        alone(made)
    made.offaxis_adapter = spec
    found = check_adapted(made, spec.about, targets.modules, total=total)
    made.offaxis_adapted = replace(found, experts=experts)
    return made


def _check_here(spec: AdapterSpec, model: Any) -> None:
    """InputError where this process does not hold all of the base's weights."""
    for name, one in model.named_parameters():
        if isinstance(one, DTensor) or hasattr(one, "ds_id"):
            raise InputError(
                f"{spec.method}: {name} is sharded over processes already; load the base whole (no "
                "distributed_config, no ZeRO-3), and use DDP or FSDP2 (configs/fsdp2.yaml), which "
                "shards the model with its adapter"
            )
        if one.is_meta:
            raise InputError(
                f"{spec.method}: {name} is on the meta device; load the base's weights, under FSDP "
                "in every process (fsdp_cpu_ram_efficient_loading: false)"
            )


def _put_on(model: Any, spec: AdapterSpec, config: Any, seed: int | None) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # of every RMSNorm
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # PEFT puts it right
            return prepare_peft_model(model, config, seed=seed)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{spec.method}: PEFT cannot put it on {type(model).__name__} ({error}); choose "
            "another method, or other target_modules"
        ) from error


def _halves(model: Any, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The weights of `modules`, where any of them is in half precision."""
    found = {name: model.get_submodule(name).weight.detach() for name in modules}
    return found if any(one.element_size() < 4 for one in found.values()) else {}


def _start_again(model: Any, before: dict[str, torch.Tensor]) -> None:
    """W₀ − s B₀A₀ with the factors as they are stored.

    PEFT's PiSSA takes float32 factors out of a half-precision weight, and rounds them afterwards.
    """
    for name, weight in before.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        layer.get_base_layer().weight.data = weight
    take_out(model)


def check_adapted(
    model: Any, about: AdapterMethod, modules: tuple[str, ...], *, total: int
) -> Adapted:
    """What `model` trains; InputError unless it is each part of the method at each module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [
        name.removeprefix("base_model.model.")
        for name, one in model.named_modules()
        if isinstance(one, BaseTunerLayer)
    ]
    if missing := sorted(set(modules) - set(found)):
        raise InputError(f"{about.name} has not adapted {missing[0]} ({len(missing)} such modules)")
    if beyond := sorted(set(found) - set(modules)):
        raise InputError(f"{about.name} has adapted {beyond[0]} too, which was not asked for")
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    wanted = {(module, part) for module in modules for part in about.trains}
    for name in trained:
        pair = _owner(name, about.trains)
        if pair is None:
            raise InputError(f"{about.name} would train {name}, which is none of its parts")
        wanted.discard(pair)
    if wanted:
        module, part = min(wanted)
        raise InputError(f"{about.name} would not train {part} of {module}")
    adapter = sum(
        one.numel()
        for name, one in model.named_parameters()
        if _owner(name, _PARTS) is not None and f".{REF}" not in name.partition(".lora_")[2]
    )
    return Adapted(modules, sum(one.numel() for one in trained.values()), adapter, total)


def _owner(name: str, parts: tuple[str, ...]) -> tuple[str, str] | None:
    """(path of the module, part) of an adapter's parameter."""
    plain = name.removeprefix("base_model.model.")
    for part in parts:
        module, found, _ = plain.partition(f".{part}.")
        if found:
            return module, part
    return None


_PARTS = tuple(
    dict.fromkeys(part for one in ADAPTERS.values() for part in (*one.trains, *one.frozen))
)
