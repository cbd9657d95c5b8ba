"""`merge_adapter` and `unmerge_adapter` that round once, and give the base back bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import torch

from offaxis.errors import InputError
from offaxis.train.adapters.effective import merged_parts, rounded

__all__ = ["exact_merges"]


def exact_merges(model: Any, *, keep_on: torch.device | str | None = None) -> None:
    """Make merging and unmerging the adapters of one PEFT model exact.

    PEFT adds s BA to the stored weight and later subtracts it: in bfloat16 the base is another
    after each pair (trl#6688), and TRL does one at every step to send the weights to vLLM. From
    here on `merge_adapter`, `unmerge_adapter`, `merge_and_unload` and each layer's own `merge` and
    `unmerge` set the weight to the float64 result, rounded once to its dtype, and put the very
    bits of the base back.

    What is merged into is the base *in memory*: the model that trains computes with it, and the
    policy that samples has to be that model. Where an adapter's start overwrote the base, the
    result is R + s BA with the residual R as it is stored, not W₀ + s (BA − B₀A₀): they differ by
    the rounding of R. `materialize` writes the latter, on the original base.

    keep_on: where the base lies while it is merged (such as "cpu"), by default beside the weight.
    Memory: the adapted weights once more, in their dtype, from merging to unmerging, and a
    few copies of one module in float64. LayerNorm tuning exchanges modules and is exact as it is.
    Not for weights that are sharded over processes (DTensor).

    Raises InputError where a weight is shared with a module that the adapter does not change (a
    tied embedding): merging would change both.
    """
    from peft.tuners.ln_tuning.layer import LNTuningLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {
        path: one
        for path, one in model.named_modules()
        if isinstance(one, BaseTunerLayer) and not isinstance(one, LNTuningLayer)
    }
    _check(model, layers)
    for layer in layers.values():
        kind: type = type(layer)
        if not hasattr(kind, "offaxis_plain"):
            layer.__class__ = _exact(kind)
        layer.offaxis_keep_on = keep_on


def _check(model: Any, layers: dict[str, Any]) -> None:
    owners: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(one), []).append(name)
    for path, layer in layers.items():
        if layer.merged:
            raise InputError(f"{path} is merged already: unmerge first (unmerge_adapter)")
        if getattr(layer, "quantization_backend", None) is not None:
            raise InputError(f"{path} has a quantised base, which cannot hold a merged weight")
        for one in layer.get_base_layer().parameters():
            if hasattr(one, "full_tensor"):
                raise InputError(f"{path} is sharded over processes; merge a saved checkpoint")
            shared = [name for name in owners[id(one)] if not name.startswith(f"{path}.")]
            if shared:
                raise InputError(
                    f"{path} shares its weight with {shared[0]}, so merging would change both; "
                    "adapt neither, or untie them (tie_word_embeddings)"
                )


@functools.cache
def _exact(kind: type) -> type:
    """A PEFT layer's class with exact `merge` and `unmerge`."""

    class Exact(kind):  # type: ignore[misc]
        offaxis_plain = kind
        offaxis_keep_on: torch.device | str | None = None
        offaxis_kept: dict[str, torch.Tensor] | None = None

        @torch.no_grad()
        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            from peft.tuners.tuners_utils import check_adapters_to_merge

            names = check_adapters_to_merge(self, adapter_names)
            names = [one for one in names if one in self._get_available_adapters()]
            if not names:
                return
            stored = dict(self.get_base_layer().named_parameters())
            kept = self.offaxis_kept or {
                part: one.detach().to(self.offaxis_keep_on or one.device, copy=True)
                for part, one in stored.items()
            }
            wide = {part: kept[part].to(one.device).double() for part, one in stored.items()}
            merged = merged_parts(self, wide, [*self.merged_adapters, *names])
            if safe_merge and not all(bool(one.isfinite().all()) for one in merged.values()):
                raise ValueError(f"merging {', '.join(names)} gives weights that are not finite")
            self.offaxis_kept = kept
            for part, one in stored.items():
                one.data.copy_(rounded(merged[part], one.dtype))
            self.merged_adapters.extend(names)

        @torch.no_grad()
        def unmerge(self) -> None:
            if not self.merged or self.offaxis_kept is None:
                super().unmerge()  # says that there is nothing to do
                return
            for part, one in self.get_base_layer().named_parameters():
                one.data.copy_(self.offaxis_kept[part])
            self.offaxis_kept = None
            self.merged_adapters.clear()

    Exact.__name__ = Exact.__qualname__ = kind.__name__
    return Exact
