"""Adapters that took a part out of their base, as plain LoRAs on the original base."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offaxis.checkpoint import AdapterCheckpoint
from offaxis.checkpoint.lora import LoraSettings, overwrites
from offaxis.errors import InputError
from offaxis.output import check_output, explained, staged_directory
from offaxis.train.adapters.loading import open_adapter
from offaxis.train.reference.adapters import REF

__all__ = ["export_lora"]

_DROPPED = ("avoid_rank", "avoid", "avoid_seed", "low_share", "corda_config", "lora_ga_config")
_DOWN, _UP = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B")


def export_lora(source: Any, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write an adapter that overwrote its base as a plain LoRA of rank 2 r; return `out`.

    source: the directory of a PiSSA, MiLoRA, GeoRA, OLoRA, CorDA or LoRA-GA adapter with its `ref`,
    or such a PEFT model in memory. The factors are [B, B₀] (out, 2r) and [A; −A₀] (2r, in), so
    that s [B, B₀][A; −A₀] = s (BA − B₀A₀) on the original base, with nothing rounded; s is kept as
    alpha′ / 2r, of every module (for rsLoRA within a float64's last bit, and no longer as rsLoRA).
    What the adapter holds beside its factors is kept as it is. Every reader of LoRA understands
    the result: PEFT, vLLM.

    Raises InputError for an adapter that is a LoRA on its base already, or none (DoRA);
    CheckpointError where the directory is not whole or has no `ref`.
    """
    target = Path(out)
    check_output(target, overwrite=overwrite)
    if hasattr(source, "peft_config"):
        if REF not in source.peft_config:
            raise InputError(
                "the model has no adapter ref, so its base was never overwritten; save_pretrained"
            )
        with tempfile.TemporaryDirectory() as folder:
            source.save_pretrained(folder, selected_adapters=["default", REF])
            return _export(folder, target, overwrite=overwrite)
    return _export(source, target, overwrite=overwrite)


def _export(source: str | Path, out: Path, *, overwrite: bool) -> Path:
    from safetensors.torch import save_file

    stored = open_adapter(source)
    told = stored.weights.adapter
    if not overwrites(told.get("init_lora_weights")) or stored.initial is None:
        raise InputError(
            f"{source}: its base was never overwritten, so it is what it is on the original base "
            "already; use it there"
        )
    if told.get("use_dora"):
        raise InputError(
            f"{source}: DoRA scales W₀ + s (BA − B₀A₀) as a whole and is no LoRA of any rank; "
            "write its weights with offaxis.train.adapters.materialize"
        )
    settings = LoraSettings.parse(stored.source, told, initial=True)
    tensors = _joined(stored.weights, stored.initial)
    config = {key: value for key, value in told.items() if key not in _DROPPED}
    config |= _ranks(settings, stored.weights)
    config |= {"init_lora_weights": True, "use_rslora": False, "inference_mode": True}
    with staged_directory(out, overwrite=overwrite) as staged, explained(out):
        save_file(tensors, staged / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        (staged / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return out


def _joined(weights: AdapterCheckpoint, initial: AdapterCheckpoint) -> dict[str, torch.Tensor]:
    found = {}
    for name in weights:
        one = weights[name]
        if name.endswith(_DOWN):
            one = torch.cat([one, -initial[name].to(one.dtype)], dim=0)
        elif name.endswith(_UP):
            one = torch.cat([one, initial[name].to(one.dtype)], dim=1)
        found[name] = one.contiguous()
    return found


def _ranks(settings: LoraSettings, weights: AdapterCheckpoint) -> Mapping[str, Any]:
    """r, alpha and their patterns, each module's s as it was and its rank twice what it was."""
    rank = 2 * settings.rank
    scale = settings.alpha / (
        math.sqrt(settings.rank) if settings.rank_stabilised else settings.rank
    )
    alpha = _number(scale * rank)
    ranks, alphas = {}, {}
    for name in weights:
        for ending in _DOWN:
            if not name.endswith(ending):
                continue
            module = name.removeprefix("base_model.model.").removesuffix(f".{ending}")
            own = weights.specs[name].shape[0]
            if 2 * own != rank:
                ranks[module] = 2 * own
            if (wanted := _number(settings.scaling(module, own) * 2 * own)) != alpha:
                alphas[module] = wanted
    return {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas}


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value
