"""Runs from one base by every method of the lab, with TRL: same optimizer, rate and steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from offaxis.errors import InputError
from offaxis.lab.data import DataKind, Need, longest_completion, prompt_data, solution_data
from offaxis.lab.provenance import library_versions
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.lab.tasks import DIFFICULTIES, task_named

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["METHODS", "Method", "Run", "TrainingSettings", "train_run"]


@dataclass(frozen=True)
class Method:
    """How a method trains: TRL's trainer, what sets it apart, and its data."""

    trainer: str
    """`GRPOTrainer`, `RLOOTrainer` or `SFTTrainer`."""
    arguments: Mapping[str, Any]
    """Trainer arguments that make the method what it is."""
    data: DataKind | None
    """None for RL, which samples from the model itself."""

    @property
    def on_policy(self) -> bool:
        return self.data is None


def _group(loss: str, **more: Any) -> Method:
    arguments = {"loss_type": loss, "scale_rewards": "group", "top_k": 0, **more}
    return Method("GRPOTrainer", MappingProxyType(arguments), None)


def _sft(data: DataKind) -> Method:
    arguments = {"loss_type": "nll", "completion_only_loss": True, "max_length": None}
    return Method("SFTTrainer", MappingProxyType(arguments), data)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "grpo": _group("grpo"),
        "dapo": _group("dapo", epsilon_high=0.28, mask_truncated_completions=True),
        "dr_grpo": _group("dr_grpo", scale_rewards="none"),
        "rloo": Method("RLOOTrainer", MappingProxyType({"normalize_advantages": False}), None),
        "sft": _sft("right"),
        "sft_foreign": _sft("foreign"),
        "rejection_sft": _sft("rejection"),
        "distill": _sft("distilled"),
    }
)
"""By name. RL: GRPO (rewards normalised in the group, mean over each sequence), DAPO's loss (mean
over all tokens, wider upper clip, truncated samples masked; its dynamic sampling is not here),
Dr. GRPO (neither length nor deviation normalised), RLOO (leave-one-out baseline); no KL term. The
others are SFT on the kinds of data that `offaxis.lab.data` lists."""


@dataclass(frozen=True)
class TrainingSettings:
    """What all methods share, and each one's batch. Constant learning rate, AdamW, no decay."""

    task: str = "arithmetic"
    steps: int = 60
    save_at: tuple[int, ...] = (10, 20, 30, 40, 50, 60)
    """Steps after which a checkpoint is saved; the last step is saved in any case."""
    learning_rate: float = 5e-5
    max_grad_norm: float = 1.0
    seed: int = 0
    difficulty: int = 2
    prompts_per_step: int = 16
    """RL: different prompts in a step."""
    completions_per_prompt: int = 8
    """RL: the group whose mean reward is the baseline. SFT sees as many solutions a step."""

    def __post_init__(self) -> None:
        task_named(self.task)
        if self.difficulty not in DIFFICULTIES:
            raise InputError(f"difficulty {self.difficulty}: choose one of {DIFFICULTIES}")
        if self.steps < 1 or any(not 1 <= step <= self.steps for step in self.save_at):
            raise InputError(
                f"steps {self.steps}, save_at {list(self.save_at)}: at least one step, and "
                "checkpoints within the steps"
            )
        if self.prompts_per_step < 1 or self.completions_per_prompt < 2:
            raise InputError(
                f"prompts_per_step {self.prompts_per_step}, completions_per_prompt "
                f"{self.completions_per_prompt}: at least 1 and 2"
            )

    @property
    def batch(self) -> int:
        """Completions (RL) or solutions (SFT) in one optimizer step."""
        return self.prompts_per_step * self.completions_per_prompt

    def need(self, method: Method) -> Need:
        """The data of a whole run: prompts for RL, solutions for SFT, none seen twice."""
        each = self.prompts_per_step if method.on_policy else self.batch
        return Need(self.task, self.difficulty, self.steps * each, self.seed)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory's name, its method, (step, directory) in step order."""

    name: str
    method: str
    checkpoints: tuple[tuple[int, Path], ...]
    seconds: float
    log: tuple[Mapping[str, Any], ...] = ()
    """TRL's log rows, one a logged step."""


def _arguments(method: Method, settings: TrainingSettings, out: Path) -> dict[str, Any]:
    """Trainer arguments, none left to a library's default that matters."""
    gpu = torch.cuda.is_available()
    common: dict[str, Any] = {
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
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "save_strategy": "no",  # `_Steps` says when
        "save_only_model": True,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings.seed,
        # What the first study ran with; in float32 on a CPU both take the same time.
        "model_init_kwargs": {"attn_implementation": "sdpa" if gpu else "eager"},
    }
    if method.on_policy:
        common |= {
            "beta": 0.0,
            "num_generations": settings.completions_per_prompt,
            "num_iterations": 1,
            "steps_per_generation": 1,
            "max_completion_length": longest_completion(settings.task, settings.difficulty),
            "temperature": 1.0,
            "top_p": 1.0,
        }
    return common | dict(method.arguments)


def _trainer(
    method: Method,
    base: Path,
    settings: TrainingSettings,
    arguments: dict[str, Any],
    *,
    source: Path,
    cache: Path | None,
) -> Trainer:
    """TRL's trainer for one method; `source` is the model that its data are sampled from."""
    import trl
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    given: dict[str, Any] = {"model": str(base), "processing_class": tokenizer}
    need = settings.need(method)
    if method.data is None:
        task = task_named(settings.task)

        def reward(
            prompts: list[str], completions: list[str], answer: list[str], **_: object
        ) -> list[float]:
            rows = zip(completions, prompts, answer, strict=True)
            return [task.reward(*row) for row in rows]

        given |= {"reward_funcs": reward, "train_dataset": prompt_data(need)}
    else:
        given["train_dataset"] = solution_data(method.data, need, model=source, cache=cache)
    config = getattr(trl, method.trainer.replace("Trainer", "Config"))
    trainer: Trainer = getattr(trl, method.trainer)(args=config(**arguments), **given)
    return trainer


def _steps(settings: TrainingSettings, name: str, progress: bool) -> Any:
    """A callback that saves at the chosen steps and tells how the run goes."""
    from transformers import TrainerCallback

    tell_every = max(1, settings.steps // 6)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in settings.save_at or state.global_step == settings.steps:
                control.should_save = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            shown = {k: logs[k] for k in ("reward", "loss") if logs and k in logs}
            if progress and shown and state.global_step % tell_every == 0:
                text = "  ".join(f"{key} {float(value):.3f}" for key, value in shown.items())
                print(f"{name} step {state.global_step}/{state.max_steps}  {text}")

    return Steps()


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
    name: str,
    *,
    base: Path,
    out: Path,
    settings: TrainingSettings,
    teacher: Path | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Run:
    """Train `base` by the method `name` into `out`: `checkpoint-N`, `run.json`, `log.json`.

    Weights, gradients and Adam's moments are float32, whatever the base's dtype; so are the
    checkpoints. A GPU is used if there is one. `teacher` is the model that `distill` samples, and
    `cache` a directory for samples that further runs from these models can use again.
    Everything random follows `settings.seed`; the global random state is changed.
    """
    from transformers import PrinterCallback

    if name not in METHODS:
        raise InputError(f"method {name!r}: choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.data == "distilled" and teacher is None:
        raise InputError(f"{name} needs a teacher to sample from")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    arguments = _arguments(method, settings, out)
    with quiet_libraries(), cpu_threads(1):
        source = teacher if method.data == "distilled" and teacher else base
        trainer = _trainer(method, base, settings, arguments, source=source, cache=cache)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_steps(settings, out.name, progress))
        trainer.train()
    seconds = time.monotonic() - started
    for unwanted in ("training_args.bin", "README.md"):  # a pickle, and TRL's card without a base
        for written in out.glob(f"**/{unwanted}"):
            written.unlink()  # run.json says more
    arguments.pop("output_dir")
    record = _record(name, arguments, settings) | {"seconds": round(seconds, 1)}
    (out / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    log = _finite(trainer.state.log_history)
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    found = tuple((step, out / f"checkpoint-{step}") for step in steps)
    return Run(out.name, name, found, seconds, tuple(log))


def _record(name: str, arguments: dict[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """What made a run; nothing in it names this machine."""
    return {
        "method": name,
        "trainer": f"trl.{METHODS[name].trainer}",
        "settings": asdict(settings),
        "arguments": arguments,
        "model_dtype": "float32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": 1,
        "versions": library_versions(),
    }
