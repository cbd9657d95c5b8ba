"""Runs on an adapter: the base with it, and checkpoints that hold the weights it makes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from offaxis.checkpoint import open_checkpoint
from offaxis.train.adapters import AdapterSpec, adapt
from offaxis.train.adapters.effective import effective_tensors

__all__ = ["WholeModels", "adapted"]

_CONFIGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def adapted(base: Path, spec: AdapterSpec, loading: dict[str, Any], seed: int) -> Any:
    """The base in float32 with the adapter, whose start follows the run's seed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.float32, local_files_only=True, **loading
    )
    return adapt(model, spec, seed=seed)


class WholeModels(TrainerCallback):  # type: ignore[misc]
    """Turns each checkpoint of a run into a whole model in float32."""

    def __init__(self, base: Path, model: Any) -> None:
        self.base, self.model = base, model

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Replace the adapter that was saved by the weights that it makes of the base."""
        out = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        base = open_checkpoint(str(self.base))
        tensors = {name: base[name].float() for name in base}
        for name, tensor in effective_tensors(self.model, lambda name: base[name]):
            tensors[name] = tensor.float()
        shutil.rmtree(out)
        out.mkdir()
        save_file(
            {name: one.contiguous() for name, one in tensors.items()},
            out / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name in _CONFIGS:
            if (self.base / name).is_file():
                shutil.copyfile(self.base / name, out / name)
