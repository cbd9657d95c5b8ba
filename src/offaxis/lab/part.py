"""What of its base a run trains: all of it, a mask's entries, or an adapter."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from offaxis.masks import Mask
from offaxis.train.adapters import AdapterSpec, adapt, materialize, sample_merged, wire

__all__ = ["WHOLE", "Part"]


@dataclass(frozen=True)
class Part:
    """What is trained; nothing named: every parameter. A mask and an adapter exclude each other."""

    mask: Mask | None = None
    """Entries of matrices to train, all else frozen."""
    refresh_every: int = 0
    """Steps after which the mask's rule is applied again; 0: never."""
    adapter: AdapterSpec | None = None
    """Trained in the base's place; checkpoints hold the weights that it makes of the base."""

    def model(self, base: Path, loading: dict[str, Any], seed: int) -> Any:
        """What TRL is to train: the base's path, or the base in float32 with the adapter.

        seed: of the adapter's start. loading: arguments of `from_pretrained`.
        """
        if self.adapter is None:
            return str(base)
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            str(base), dtype=torch.float32, local_files_only=True, **loading
        )
        return adapt(model, self.adapter, seed=seed)

    def fit(self, trainer: Any, base: Path, *, samples: bool) -> None:
        """Have `trainer` train this alone. samples: it draws completions from its model."""
        if self.mask is not None:
            from offaxis.train.sparse import restrict

            restrict(trainer, self.mask, refresh_every=self.refresh_every)
        if self.adapter is not None:
            wire(trainer)
            trainer.add_callback(_WholeModels(base, trainer.model))
            if samples:
                sample_merged(trainer)

    def told(self) -> dict[str, Any]:
        """For a run's record."""
        return {
            "mask": None if self.mask is None else self.mask.rule,
            "mask_refresh": self.refresh_every,
            "adapter": None if self.adapter is None else asdict(self.adapter),
        }


WHOLE = Part()
"""Every parameter."""


class _WholeModels(TrainerCallback):  # type: ignore[misc]
    """Turns each checkpoint of an adapter's run into a whole model in float32."""

    def __init__(self, base: Path, model: Any) -> None:
        self.base, self.model = base, model

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Replace the adapter that was saved by the weights that it makes of the base."""
        out = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        shutil.rmtree(out)
        materialize(self.model, out, base=self.base, dtype="float32")
