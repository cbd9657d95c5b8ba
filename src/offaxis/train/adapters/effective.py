"""The weights that an adapted model computes with, in float64, one module at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offaxis.checkpoint.lora import unsupported
from offaxis.checkpoint.rewriting import rounded
from offaxis.errors import InputError
from offaxis.train.reference.adapters import REF

__all__ = ["Site", "check_config", "effective_tensors", "merged_parts", "rounded", "sites"]

Read = Callable[[str], torch.Tensor]
Parts = Mapping[str, torch.Tensor]

_METHODS = ("LORA", "ADALORA", "MISS", "VERA", "IA3", "LN_TUNING")
"""What PEFT merges into the base's parameters as the method says, checked by tests."""


@dataclass(frozen=True)
class Site:
    """One module of the base, some parameters of which the adapter changes."""

    name: str
    """Its path in the unadapted model."""
    module: Any
    shapes: Mapping[str, tuple[int, ...]]
    """Of its parameters, by their names in the module."""


@torch.no_grad()
def effective_tensors(
    model: Any, read: Read, *, adapter: str = "default"
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the unadapted model, weight) of every parameter that the adapter changes, float64.

    model: a PEFT model with unmerged adapters. read: gives a parameter of the *original* base by
    that name; the model's own base may have been overwritten. Parameters that are trained beside
    the adapter (biases, what the user unfroze) come from the model. On the CPU; memory: a few
    copies of one module in float64.

    Where the adapter's start has overwritten the base, the model has the initial adapter as `ref`
    (`prepare_peft_model`), and the weight is W₀ + s (BA − B₀A₀); without it, InputError, as for
    methods and variants that are no fixed change of the base's parameters, and for sharded models.
    """
    found = list(sites(model, adapter))
    own = _own(model, adapter)
    for site in found:
        for part, value in _effective(site, read, own, adapter):
            yield f"{site.name}.{part}" if site.name else part, value


def sites(model: Any, adapter: str = "default") -> Iterator[Site]:
    """The modules that `effective_tensors` goes through, in its order. Raises as it does."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    _check(model, adapter)
    inner, own = model.get_base_model(), _own(model, adapter)
    held: list[str] = []
    for path, module in inner.named_modules():
        if any(path.startswith(f"{one}.") for one in held):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            held.append(path)
            if adapter in module.modules_to_save:
                yield Site(path, module, _shapes(module.modules_to_save[adapter]))
        elif isinstance(module, BaseTunerLayer):
            held.append(path)
            if module.merged:
                raise InputError(f"{path} is merged: unmerge the adapter first (unmerge_adapter)")
            if adapter in module._get_available_adapters():
                yield Site(path, module, _shapes(module.get_base_layer()))
            elif beside := _shapes(module.get_base_layer(), own, path):
                yield Site(path, module.get_base_layer(), beside)
    for name in own:
        if any(name.startswith(f"{one}.") for one in held):
            continue
        path, _, part = name.rpartition(".")
        module = inner.get_submodule(path)
        yield Site(path, module, {part: tuple(module.get_parameter(part).shape)})


def _shapes(
    module: nn.Module, own: Mapping[str, Any] | None = None, path: str = ""
) -> dict[str, tuple[int, ...]]:
    return {
        part: tuple(one.shape)
        for part, one in module.named_parameters()
        if own is None or f"{path}.{part}" in own
    }


def _check(model: Any, adapter: str) -> None:
    if getattr(model, "offaxis_base", "") == "copy":
        raise InputError("this adapter changes the base for good: save the merged model with PEFT")
    if adapter not in model.peft_config:
        has = ", ".join(model.peft_config)
        raise InputError(f"the model has no adapter {adapter!r}; it has {has}")
    check_config(model.peft_config[adapter])
    for name, one in model.named_parameters():
        if hasattr(one, "full_tensor") or hasattr(one, "ds_id"):
            raise InputError(
                f"{name} is sharded over processes; save a checkpoint, and give its directory"
            )


def check_config(config: Any) -> None:
    """Raise InputError for methods and variants whose effective weights are not known."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _METHODS:
        raise InputError(
            f"{kind}: its effective weights are not known here (known are {', '.join(_METHODS)}); "
            "merge the adapter with PEFT (merge_and_unload) and save the model"
        )
    if kind == "LORA" and (reason := unsupported(config.to_dict())):
        raise InputError(f"{reason}; merge the adapter with PEFT (merge_and_unload) and save that")


def _own(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Parameters of the base, by their names there, that are trained beside the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner = model.get_base_model()
    bias = getattr(model.peft_config[adapter], "bias", "none")
    layers, adapters = [], []
    for path, module in inner.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            layers.append(f"{path}.")
            kept = ("base_layer", "original_module")
            adapters += [f"{path}.{one}." for one in module._modules if one not in kept]
    within, without = tuple(layers), tuple(adapters)
    found = {}
    for name, one in inner.named_parameters():
        if name.startswith(without) or name.rpartition(".")[0].endswith("original_module"):
            continue
        biased = name.endswith("bias") and (
            bias == "all" or (bias == "lora_only" and name.startswith(within))
        )
        if one.requires_grad or biased:
            found[name.replace(".base_layer.", ".")] = one.detach()
    return found


def _effective(
    site: Site, read: Read, own: Parts, adapter: str
) -> Iterator[tuple[str, torch.Tensor]]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(site.module, ModulesToSaveWrapper):
        for part, one in site.module.modules_to_save[adapter].named_parameters():
            yield part, one.detach().to("cpu", torch.float64)
        return
    base = {}
    for part in site.shapes:
        name = f"{site.name}.{part}" if site.name else part
        found = own[name] if name in own else read(name)
        base[part] = found.detach().to("cpu", torch.float64)
    if not isinstance(site.module, BaseTunerLayer):
        yield from base.items()
        return
    if REF in getattr(site.module, "lora_A", {}):
        base["weight"] = _without_start(site.module, base["weight"], adapter)
        if adapter not in site.module.lora_variant:
            yield from base.items()
            return
    yield from merged_parts(site.module, base, [adapter]).items()


def _without_start(layer: Any, weight: torch.Tensor, adapter: str) -> torch.Tensor:
    """W₀ + s (BA − B₀A₀); for DoRA, which goes on from there, W₀ − s B₀A₀."""
    twin = _twin(layer)
    start: torch.Tensor = twin.get_delta_weight(REF)
    if adapter in layer.lora_variant:
        return weight - start
    return _unless_equal(weight, weight + (twin.get_delta_weight(adapter) - start))


def merged_parts(layer: Any, base: Parts, names: list[str]) -> dict[str, torch.Tensor]:
    """The parameters of a PEFT layer's base with the adapters `names` merged, float64.

    base: those parameters before, float64, on the device to compute on. PEFT's own arithmetic, on
    a copy of the layer. Where an adapter changes nothing, the bits of `base` are kept.
    """
    twin = _twin(layer, base)
    twin.merge(adapter_names=names)
    after = dict(twin.get_base_layer().named_parameters())
    return {part: _unless_equal(value, after[part].detach()) for part, value in base.items()}


def _twin(layer: Any, base: Parts | None = None) -> Any:
    """A copy of a layer in float64, on a copy of `base` (None: on no weights, on the CPU)."""
    device = torch.device("cpu") if base is None else next(iter(base.values())).device
    memo = {
        id(one): nn.Parameter(torch.empty(0) if base is None else base[part].clone(), False)
        for part, one in layer.get_base_layer().named_parameters()
    }
    twin = copy.deepcopy(layer, memo).to(device, torch.float64)
    twin.__class__ = getattr(type(twin), "offaxis_plain", type(twin))  # see merging.py
    twin.merged_adapters = []
    return twin


def _unless_equal(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`after`, with the zeros of `before`: −0 + 0 is +0."""
    return torch.where(before == after, before, after)
