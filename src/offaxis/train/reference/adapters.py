"""Adapters that overwrite their base, made so that the base can be given back."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from offaxis.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["REF", "add_reference", "prepare_peft_model"]

_log = logging.getLogger("offaxis.train")
REF = "ref"
"""The adapter that TRL takes for the reference, where a model has it."""


def prepare_peft_model(model: Any, peft_config: Any, *, seed: int | None = None) -> PeftModel:
    """`peft.get_peft_model`, with a way back to the original base; give the result to TRL.

    Where the adapter's initialisation overwrites base weights, the model gets a second adapter
    `ref`: a frozen copy of the initial one. It is neither trained nor active; TRL uses it as the
    reference; checkpoints hold it in a folder `ref`, which is also the initial adapter that
    turning PiSSA into LoRA needs. It costs the adapter's memory once more, and no second model.
    Where not even that gives the base back (KaSA truncates it), the base is loaded as a copy for
    measuring, and a KL term is refused by `FixedLeash` and `AdaptiveLeash`.

    seed: for the initialisation; the global random state is then left as it was. A randomised one
    (`pissa_niter_4`) has to come out the same when a run is resumed; InputError where it does not.
    """
    from peft import get_peft_model

    before, start = _fingerprints(model), _outputs(model)
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(seed)
        made = get_peft_model(model, peft_config)
    after = _fingerprints(made.get_base_model())
    if all(after.get(name, value) == value for name, value in before.items()):
        made.offaxis_base = "kept"
    elif hasattr(peft_config, "init_lora_weights") and _restores(made, start):
        add_reference(made)
        made.offaxis_base = REF
    else:
        made.offaxis_base = "copy"
        _log.warning("the adapter has changed the base for good: the model starts elsewhere")
    return made


def _restores(model: Any, start: torch.Tensor | None) -> bool:
    """Whether the adapter makes up for what it has taken from the base, but for rounding."""
    if start is None:
        return True
    now = _outputs(model)
    with model.disable_adapter():
        without = _outputs(model)
    if now is None or without is None:
        return True
    return _kl(start, now) < 0.1 * _kl(start, without)


def _fingerprints(model: Any) -> dict[str, int]:
    """A hash of every parameter that is no adapter's, by its name in the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = {
        id(one)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for one in _adapter_parameters(module)
    }
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): int(
            torch.hash_tensor(one.detach().flatten()).view(torch.int64)
        )
        for name, one in model.named_parameters()
        if id(one) not in adapters and one.device.type != "meta"
    }


def _adapter_parameters(layer: Any) -> Iterator[Any]:
    for name in layer.adapter_layer_names:
        found = getattr(layer, name, None)
        if isinstance(found, torch.nn.Module):
            yield from found.parameters()
        elif isinstance(found, torch.nn.Parameter):
            yield found


@torch.no_grad()
def _outputs(model: Any) -> torch.Tensor | None:
    """Log-probabilities after a few fixed tokens; None where the model does not run so."""
    was = [(one, one.training) for one in model.modules()]
    try:
        text = model.config.get_text_config()
        longest = getattr(text, "max_position_embeddings", None) or 64
        count = min(64, int(text.vocab_size), int(longest))
        ids = torch.arange(count, device=model.device)[None] % count
        model.eval()
        found: torch.Tensor = torch.log_softmax(model(input_ids=ids).logits.double(), dim=-1)
    except (AttributeError, NotImplementedError):
        return None
    finally:
        for module, mode in was:
            module.training = mode
    return found


def _kl(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.exp() * (a - b)).sum(-1).mean())


def add_reference(model: Any) -> None:
    """Add the adapter `ref`, equal to `default` and frozen; a later `add_adapter` keeps it."""
    config = copy.deepcopy(model.peft_config["default"])
    config.init_lora_weights = True  # the base must not be overwritten a second time
    config.inference_mode = True
    with torch.random.fork_rng():
        model.add_adapter(REF, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default" in name:
                twin = model.get_parameter(name.replace(".default", f".{REF}", 1))
                twin.copy_(parameter)
                twin.requires_grad_(False)
    kind: type = type(model)
    model.__class__ = _keeping(kind)


@functools.cache
def _keeping(kind: type) -> type:
    """A PeftModel that keeps its `ref`: TRL would add one, and overwrite the base again."""

    class Keeping(kind):  # type: ignore[misc]
        def add_adapter(self, adapter_name: str, peft_config: Any, **more: Any) -> None:
            if adapter_name != REF or REF not in self.peft_config:
                super().add_adapter(adapter_name, peft_config, **more)

        def load_adapter(self, model_id: Any, adapter_name: str, **more: Any) -> Any:
            found = {n: p for n, p in self.named_parameters() if f".{REF}" in n}
            was = {n: p.detach().clone() for n, p in found.items() if adapter_name == REF}
            result = super().load_adapter(model_id, adapter_name, **more)
            for name, old in was.items():
                if not torch.allclose(old, found[name].detach(), rtol=1e-3, atol=1e-5):
                    raise InputError(
                        f"{model_id}: its initial adapter is not what the initialisation gives "
                        f"now ({name}), so the base would be another; give the seed and the "
                        "libraries of the run that is resumed"
                    )
            return result

    Keeping.__name__ = Keeping.__qualname__ = kind.__name__
    return Keeping
