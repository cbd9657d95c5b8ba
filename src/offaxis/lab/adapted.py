"""Runs on an adapter: the base with it, and checkpoints that hold the weights it makes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from offaxis.train.adapters import AdapterSpec, adapt, materialize

__all__ = ["WholeModels", "adapted"]


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
        shutil.rmtree(out)
        materialize(self.model, out, base=self.base, dtype="float32")
