"""Small real runs of TRL's trainers from a lab base, for the tests of KL and leashes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from offaxis.lab.data import Need, prompt_data
from offaxis.lab.session import quiet_libraries
from offaxis.lab.tasks import task_named
from offaxis.train.leash import LeashCallback
from offaxis.train.observed import observed

BUNDLED = Path(__file__).parents[1] / "src" / "offaxis" / "lab" / "base"
"""The base that ships with the package: 1.0 M parameters, right about every second time."""
FAMILIES = ("GRPO", "RLOO", "SFT", "DPO", "Distillation")
TASK, DIFFICULTY, LENGTH = "arithmetic", 2, 24


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients that the first optimizer step sees."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not self.found:
            model = more["model"]
            self.found = {
                name: parameter.grad.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }


def reward(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    task = task_named(TASK)
    return [task.reward(*row) for row in zip(completions, prompts, answer, strict=True)]


def prompts(count: int, *, seed: int = 0) -> Dataset:
    return prompt_data(Need(TASK, DIFFICULTY, count, seed))


def solutions(count: int) -> Dataset:
    """Right and wrong solutions of many lengths."""
    task, rng = task_named(TASK), Random(0)
    drawn = task.problems(count, seed=0, split="train", difficulty=DIFFICULTY)
    rows = []
    for problem in drawn:
        right, wrong = (
            task.solution(problem, style="steps", right=one, rng=rng) for one in (True, False)
        )
        rows.append({"prompt": problem.prompt, "right": right, "wrong": wrong})
    return Dataset.from_list(rows)


def make(
    family: str,
    base: Path | Any,
    out: Path,
    *callbacks: Any,
    leash: Any = None,
    bare: bool = False,
    rows: int = 8,
    **arguments: Any,
) -> Any:
    """A trainer of one of TRL's families over `rows` completions a step; `bare`: not observed."""
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 1, "learning_rate": 1e-4,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "bf16": False,
        "use_cpu": True, "dataloader_pin_memory": False, "save_strategy": "no",
        "logging_steps": 1, "report_to": [], "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    given: dict[str, Any] = {}
    named = family in ("GRPO", "RLOO")
    if named:
        settings |= {"num_generations": 4, "max_completion_length": LENGTH, "beta": 0.0,
                     "top_k": 0}  # fmt: skip
        given = {"reward_funcs": reward}
    steps = arguments.get("max_steps", 1)
    if named or family == "Distillation":
        data = prompts(max(8, rows * steps))
    else:
        data = solutions(max(8, rows * steps))
        keys = {"SFT": {"right": "completion"}, "DPO": {"right": "chosen", "wrong": "rejected"}}
        data = data.rename_columns(keys[family])
        data = data.remove_columns("wrong") if family == "SFT" else data
        settings |= {"max_length": None}
    if family == "GRPO":
        settings |= {"loss_type": "grpo"}
    if family == "Distillation":
        settings |= {"max_completion_length": LENGTH}
        given = {"teacher_model": str(BUNDLED)}
    if "peft_config" in arguments:
        given["peft_config"] = arguments.pop("peft_config")
    trainer_class = getattr(trl, f"{family}Trainer")
    home = base if isinstance(base, Path) else BUNDLED
    with quiet_libraries():
        trainer = (trainer_class if bare else observed(trainer_class))(
            model=str(base) if isinstance(base, Path) else base,
            args=getattr(trl, f"{family}Config")(**(settings | arguments)),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(home),
            callbacks=list(callbacks),
            **given,
        )
    trainer.remove_callback(PrinterCallback)
    if leash is not None:
        trainer.leash = leash
        trainer.add_callback(LeashCallback())
    return trainer


def run(family: str, base: Any, out: Path, *callbacks: Any, **arguments: Any) -> Any:
    """The same, trained."""
    resume = arguments.pop("resume", None)
    trainer = make(family, base, out, *callbacks, **arguments)
    with quiet_libraries():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def column(trainer: Any, name: str) -> list[float]:
    """One number of every log row that has it."""
    return [row[name] for row in trainer.state.log_history if name in row]
