"""One RL run and one SFT run from the same base, with TRL: same optimizer, rate and steps."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import torch

from offaxis.errors import InputError
from offaxis.lab.arithmetic import MIXTURE, STYLES, problems, worked_solution
from offaxis.lab.provenance import library_versions
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.verifiers import integer_reward

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

__all__ = ["MAX_NEW_TOKENS", "Method", "Run", "TrainingSettings", "train_run"]

Method = Literal["rl", "sft"]

MAX_NEW_TOKENS = 28
"""Longest completion, in characters: the longest right solution at difficulty 2 has 22."""


@dataclass(frozen=True)
class TrainingSettings:
    """What both runs share, and each one's batch. Constant learning rate, AdamW, no decay."""

    steps: int = 60
    save_every: int = 10
    learning_rate: float = 5e-5
    max_grad_norm: float = 1.0
    seed: int = 0
    difficulty: int = 2
    prompts_per_step: int = 16
    """RL: different prompts in a step."""
    completions_per_prompt: int = 8
    """RL: the group whose mean reward is the baseline. SFT sees as many solutions a step."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.save_every < 1:
            raise InputError(f"steps {self.steps}, save_every {self.save_every}: at least 1 each")

    @property
    def batch(self) -> int:
        """Completions (RL) or solutions (SFT) in one optimizer step."""
        return self.prompts_per_step * self.completions_per_prompt


@dataclass(frozen=True)
class Run:
    """A finished run: its method and its checkpoints, (step, directory), in step order."""

    method: Method
    checkpoints: tuple[tuple[int, Path], ...]
    seconds: float


def _common(settings: TrainingSettings, out: Path) -> dict[str, Any]:
    """Trainer arguments that both methods share, none left to a library's default that matters."""
    return {
        "output_dir": str(out),
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": settings.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_only_model": True,
        "logging_steps": settings.save_every,
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def _rl_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """GRPO as published but for the KL term: group-normalised rewards, mean over each sequence."""
    return {
        "loss_type": "grpo",
        "beta": 0.0,
        "scale_rewards": "group",
        "num_generations": settings.completions_per_prompt,
        "num_iterations": 1,
        "steps_per_generation": 1,
        "max_completion_length": MAX_NEW_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }


def _rl_data(settings: TrainingSettings) -> Dataset:
    """Prompts with their answers, enough that none comes twice."""
    from datasets import Dataset

    drawn = problems(
        settings.steps * settings.prompts_per_step,
        seed=settings.seed,
        split="train",
        difficulty=settings.difficulty,
    )
    return Dataset.from_dict(
        {"prompt": [p.prompt for p in drawn], "answer": [p.answer for p in drawn]}
    )


def _sft_data(settings: TrainingSettings) -> Dataset:
    """Right worked solutions, in the shares that the styles have in the pretraining mixture."""
    from datasets import Dataset

    drawn = problems(
        settings.steps * settings.batch,
        seed=settings.seed,
        split="train",
        difficulty=settings.difficulty,
    )
    rng = Random(f"sft/{settings.seed}")
    weights = [MIXTURE.share[style] for style in STYLES]
    texts = [
        worked_solution(problem, style=style, right=True, rng=rng)
        for problem, style in zip(drawn, rng.choices(STYLES, weights, k=len(drawn)), strict=True)
    ]
    return Dataset.from_dict({"prompt": [p.prompt for p in drawn], "completion": texts})


def _reward(completions: list[str], answer: list[int], **_: object) -> list[float]:
    """TRL's reward signature around the verifier."""
    pairs = zip(completions, answer, strict=True)
    return [integer_reward(completion, right) for completion, right in pairs]


def _trainer(
    method: Method, base: Path, out: Path, settings: TrainingSettings
) -> tuple[Trainer, dict[str, Any]]:
    """TRL's trainer for one method, and the arguments that it was given."""
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    arguments = _common(settings, out)
    model: dict[str, Any] = {"model": str(base), "processing_class": tokenizer}
    if method == "rl":
        arguments |= _rl_arguments(settings)
        trainer: Trainer = GRPOTrainer(
            **model,
            reward_funcs=_reward,
            args=GRPOConfig(**arguments),
            train_dataset=_rl_data(settings),
        )
    else:
        arguments |= {"loss_type": "nll", "completion_only_loss": True, "max_length": None}
        trainer = SFTTrainer(
            **model, args=SFTConfig(**arguments), train_dataset=_sft_data(settings)
        )
    return trainer, arguments


def _finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log rows with NaN and infinity as None, which JSON can say."""
    return [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def train_run(
    method: Method, *, base: Path, out: Path, settings: TrainingSettings, progress: bool = True
) -> Run:
    """Train `base` by one method into `out`: `checkpoint-N` directories, `run.json`, `log.json`.

    Weights, gradients and Adam's moments are float32, whatever the base's dtype; so are the
    checkpoints. A GPU is used if there is one. A checkpoint is saved every `save_every` steps and
    at the end. Everything random follows `settings.seed`; the global random state is changed.
    """
    from transformers import PrinterCallback, TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            shown = {k: logs[k] for k in ("reward", "loss") if logs and k in logs}
            if progress and shown:
                text = "  ".join(f"{key} {float(value):.3f}" for key, value in shown.items())
                print(f"{method} step {state.global_step}/{state.max_steps}  {text}")

    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with quiet_libraries(), cpu_threads(1):
        trainer, arguments = _trainer(method, base, out, settings)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress())
        trainer.train()
    seconds = time.monotonic() - started
    for name in ("training_args.bin", "README.md"):  # a pickle, and TRL's card without a base
        for written in out.glob(f"**/{name}"):
            written.unlink()  # run.json says more
    arguments.pop("output_dir")
    record = _record(method, arguments, settings) | {"seconds": round(seconds, 1)}
    (out / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    log = _finite(trainer.state.log_history)
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    return Run(method, tuple((step, out / f"checkpoint-{step}") for step in steps), seconds)


def _record(
    method: Method, arguments: dict[str, Any], settings: TrainingSettings
) -> dict[str, Any]:
    """What made a run; nothing in it names this machine."""
    return {
        "method": method,
        "trainer": {"rl": "trl.GRPOTrainer", "sft": "trl.SFTTrainer"}[method],
        "settings": asdict(settings),
        "arguments": arguments,
        "model_dtype": "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": 1,
        "versions": library_versions(),
    }
