"""Small real runs under a mask: a two-layer model, transformers' Trainer, seconds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.lab.session import quiet_libraries
from offaxis.masks import Mask, build

WORDS, LENGTH = 40, 12
MATRIX = "model.layers.1.mlp.up_proj.weight"

SETTINGS: dict[str, Any] = {
    "max_steps": 100,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "max_grad_norm": 0.5,
    "optim": "adamw_torch",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "seed": 3,
}


def model(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Qwen3ForCausalLM:
    """About 50 k parameters, with a minus zero in every matrix."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=WORDS, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
        max_position_embeddings=64,
    )  # fmt: skip
    made = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter[0, 0] = parameter[1, 2] = -0.0
    return made.to(dtype)


def examples(count: int = 64) -> list[dict[str, torch.Tensor]]:
    drawn = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in drawn]


def mask(rule: str = "random(density=0.3, seed=1)", *, of: Any = None, **options: Any) -> Mask:
    named = dict((of if of is not None else model()).named_parameters())
    return build(MemoryCheckpoint(named), rule, **options)


def trainer(
    out: Path, *callbacks: Any, of: Any = None, kind: Any = Trainer, **settings: Any
) -> Any:
    """A trainer of `model()`; `optimizers` and `kind` go to it, the rest are its arguments."""
    given = {key: settings.pop(key) for key in ("optimizers",) if key in settings}
    with quiet_libraries():
        made = kind(
            model=of if of is not None else model(),
            args=TrainingArguments(output_dir=str(out), **(SETTINGS | settings)),
            train_dataset=examples(),
            callbacks=list(callbacks),
            **given,
        )
    made.remove_callback(PrinterCallback)
    return made


def run(made: Any, **more: Any) -> dict[str, torch.Tensor]:
    """Train, and the weights after it."""
    with quiet_libraries():
        made.train(**more)
    return weights(made.model)


def weights(of: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in of.named_parameters()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The words that an equal-looking -0.0 or NaN could hide."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(bits(a[n]), bits(b[n])) for n in a)


def held(after: dict[str, torch.Tensor], chosen: Mask, *, base: dict[str, torch.Tensor]) -> None:
    """Frozen entries of the masked tensors are the base's, to the bit; some others have moved."""
    for name, flags in chosen.items():
        frozen = ~flags
        assert torch.equal(bits(after[name])[frozen], bits(base[name])[frozen]), name
    moved = sum(int((bits(after[n]) != bits(base[n])).sum()) for n in chosen)
    assert moved > 0.9 * chosen.selected, "what may move did not"


class Poison(TrainerCallback):  # type: ignore[misc]
    """Plants infinities and NaNs into frozen entries' gradients, before anything masks them."""

    def __init__(self, chosen: Mask) -> None:
        self.chosen, self.planted = chosen, 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        for name, flags in self.chosen.items():
            parameter = model.get_parameter(name)
            if not parameter.requires_grad:
                continue
            at = (~flags).nonzero()[:: max(1, int((~flags).sum()) // 7)]

            def plant(gradient: torch.Tensor, at: torch.Tensor = at) -> torch.Tensor:
                odd = gradient.clone()
                values = torch.tensor([float("inf"), float("nan"), -float("inf")]).repeat(len(at))
                odd[at[:, 0], at[:, 1]] = values[: len(at)].to(odd.dtype)
                self.planted += len(at)
                return odd

            parameter.register_hook(plant)
