"""Runs from one base by every method of `offaxis.train`, alike in all but what is asked for."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from offaxis.errors import InputError
from offaxis.lab.data import DataKind, Need, longest_completion, material
from offaxis.lab.part import WHOLE, Part
from offaxis.lab.provenance import library_versions
from offaxis.lab.session import cpu_threads, quiet_libraries
from offaxis.lab.tasks import DIFFICULTIES, Task, task_named
from offaxis.train.extras import ExtraArguments
from offaxis.train.methods import METHODS as RECIPES
from offaxis.train.methods import Method as Recipe
from offaxis.train.observed import observed
from offaxis.train.record import finite

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["DTYPES", "METHODS", "OPTIMIZERS", "Method", "Run", "TrainingSettings", "train_run"]

OPTIMIZERS = ("adamw_torch", "sgd", "rmsprop", "adafactor")
"""Of those that transformers names: what a run's steps may be made with."""
DTYPES = ("float32", "bfloat16")
_FURTHER_PROMPTS = 4  # times the prompts of a run, from which DAPO draws further groups


@dataclass(frozen=True)
class Method:
    """A method of `offaxis.train` and what the lab trains it on."""

    recipe: Recipe
    """TRL's trainer, and the settings that make the method."""
    data: DataKind
    revision: int = 0
    """Raised where the name comes to stand for another way of training: earlier rows stay, under
    their own identities. dapo: 0 was its loss alone, with truncated samples masked."""

    @property
    def on_policy(self) -> bool:
        return self.recipe.on_policy

    @property
    def needs_teacher(self) -> bool:
        """Does it learn from the stronger lab model?"""
        return self.recipe.sampler == "teacher" or self.recipe.family == "distillation"

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Trainer arguments that make the method what it is."""
        ours = {one.name for one in fields(ExtraArguments)}
        told = {**self.recipe.defaults, **self.recipe.fixed}
        return {name: value for name, value in told.items() if name not in ours}

    @property
    def trainer(self) -> str:
        """The trainer's class, `trl.SFTTrainer` or the like."""
        if self.recipe.trainer is not None:
            return f"offaxis.train.trainers.{self.recipe.trainer}"
        return f"trl.{self.recipe.prefix}Trainer"


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "grpo": Method(RECIPES["grpo"], "prompts"),
        "dapo": Method(RECIPES["dapo"], "prompts", revision=1),
        "dr_grpo": Method(RECIPES["dr_grpo"], "prompts"),
        "gspo": Method(RECIPES["gspo"], "prompts"),
        "rloo": Method(RECIPES["rloo"], "prompts"),
        "reinforce_pp": Method(RECIPES["reinforce_pp"], "prompts"),
        "sft": Method(RECIPES["sft"], "right"),
        "sft_foreign": Method(RECIPES["sft"], "foreign"),
        "rejection_sft": Method(RECIPES["rejection_sft"], "rejection"),
        "distill": Method(RECIPES["distill"], "distilled"),
        "distill_on_policy": Method(RECIPES["distill_on_policy"], "prompts"),
        "dpo": Method(RECIPES["dpo"], "pairs"),
    }
)
"""By name: every method of `offaxis.train`, and SFT in a style that the base never saw. What each
optimises is told there; the data are those of `offaxis.lab.data`. None has a KL term."""


@dataclass(frozen=True)
class TrainingSettings:
    """What all methods share, and each one's batch. Constant learning rate, no decay."""

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
    """RL: the group whose mean reward is the baseline. Other methods see as many different
    prompts a step as RL sees completions, each with one solution (DPO: one pair)."""
    optimizer: str = "adamw_torch"
    """One of `OPTIMIZERS`; `sgd` has no momentum."""
    dtype: str = "float32"
    """In which the weights are stored while they are trained. bfloat16: no float32 masters, every
    step is rounded into the store (and checkpoints are bfloat16)."""

    def __post_init__(self) -> None:
        task_named(self.task)
        if self.difficulty not in DIFFICULTIES:
            raise InputError(f"difficulty {self.difficulty}: choose one of {DIFFICULTIES}")
        if self.steps < 1 or any(not 1 <= step <= self.steps for step in self.save_at):
            raise InputError(
                f"steps {self.steps}, save_at {list(self.save_at)}: at least one step, and "
                "checkpoints within the steps"
            )
        if self.optimizer not in OPTIMIZERS or self.dtype not in DTYPES:
            raise InputError(
                f"optimizer {self.optimizer!r}, dtype {self.dtype!r}: choose among "
                f"{', '.join(OPTIMIZERS)} and {', '.join(DTYPES)}"
            )
        if self.prompts_per_step < 1 or self.completions_per_prompt < 2:
            raise InputError(
                f"prompts_per_step {self.prompts_per_step}, completions_per_prompt "
                f"{self.completions_per_prompt}: at least 1 and 2"
            )

    @property
    def batch(self) -> int:
        """Completions (RL), solutions (SFT) or pairs (DPO) in one optimizer step."""
        return self.prompts_per_step * self.completions_per_prompt

    def need(self, method: Method) -> Need:
        """The data of a whole run, none seen twice.

        Rewarded methods: prompts, whole batches of samples even where the last is not used up, and
        for DAPO as many again and again as it may draw further ones from. Others: one row a
        completion.
        """
        recipe = method.recipe
        each = self.prompts_per_step if recipe.rewarded else self.batch
        steps = -(-self.steps // recipe.updates_per_generation) * recipe.updates_per_generation
        further = _FURTHER_PROMPTS if recipe.defaults.get("dynamic_sampling") else 1
        return Need(self.task, self.difficulty, steps * each * further, self.seed)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory's name, its method, (step, directory) in step order."""

    name: str
    method: str
    checkpoints: tuple[tuple[int, Path], ...]
    seconds: float
    log: tuple[Mapping[str, Any], ...] = ()
    """TRL's log rows, one a logged step."""
    cpu_seconds: float = 0.0
    """CPU time of the training itself, without loading and without sampling data beforehand."""
    sampled: int | None = None
    """Completions that models were sampled for, for the data or in training."""
    trainable: int | None = None
    """Parameters that got gradients."""


def _arguments(method: Method, settings: TrainingSettings, out: Path) -> dict[str, Any]:
    """Trainer arguments, none left to a library's default that matters."""
    gpu = torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": settings.optimizer,
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
    if settings.dtype != "float32":  # what TRL loads by default
        common["model_init_kwargs"]["dtype"] = settings.dtype
    longest = longest_completion(settings.task, settings.difficulty)
    if method.on_policy:
        common |= {
            "max_completion_length": longest,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }
    if method.recipe.rewarded:
        common |= {
            "num_generations": settings.completions_per_prompt,
            "num_iterations": 1,
            "steps_per_generation": method.recipe.updates_per_generation,
        }
    if method.recipe.family == "distillation":
        common["teacher_model_init_kwargs"] = {**common["model_init_kwargs"], "dtype": "float32"}
    return common | dict(method.arguments)


def _right(task: Task[Any]) -> Callable[..., list[float]]:
    """The reward: 1 where the task's verifier finds the answer right."""

    def reward(
        prompts: list[str], completions: list[str], answer: list[str], **_: object
    ) -> list[float]:
        rows = zip(completions, prompts, answer, strict=True)
        return [task.reward(*row) for row in rows]

    return reward


def _rewards(method: Method, settings: TrainingSettings) -> list[Callable[..., Any]]:
    """What samples are rewarded for; DAPO also punishes those in the last fifth of the length."""
    found: list[Callable[..., Any]] = [_right(task_named(settings.task))]
    if method.recipe.name == "dapo":
        from offaxis.train.rewards import reward_named

        longest = longest_completion(settings.task, settings.difficulty)
        found.append(reward_named("overlong", max_length=longest, cache=longest // 5))
    return found


def _trainer(
    method: Method,
    base: Path,
    settings: TrainingSettings,
    arguments: dict[str, Any],
    *,
    source: Path,
    cache: Path | None,
    part: Part = WHOLE,
) -> Trainer:
    """The trainer of one method; `source` is the model that its data, or it, learn from."""
    import trl
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    found = material(method.data, settings.need(method), model=source, cache=cache)
    given: dict[str, Any] = {
        "model": part.model(base, arguments["model_init_kwargs"], settings.seed),
        "processing_class": tokenizer,
        "train_dataset": found.data,
    }
    if method.recipe.rewarded:
        given["reward_funcs"] = _rewards(method, settings)
    if method.recipe.family == "distillation":
        given["teacher_model"] = str(source)
    module, _, name = method.trainer.rpartition(".")
    trainer_class = observed(getattr(importlib.import_module(module), name))
    config = getattr(trl, f"{method.recipe.prefix}Config")
    if part.adapter is not None:  # the model is loaded
        arguments = {k: v for k, v in arguments.items() if k != "model_init_kwargs"}
    trainer: Trainer = trainer_class(args=config(**arguments), **given)
    trainer.sampled_before = found.sampled
    part.fit(trainer, base, samples=method.recipe.rewarded)
    return trainer


def _sampled(method: Method, settings: TrainingSettings, trainer: Any) -> int | None:
    """Completions that models were sampled for: for the data, or in each step of training."""
    if not method.on_policy:
        before: int | None = trainer.sampled_before
        return before
    updates = method.recipe.updates_per_generation
    each: list[float] = [
        settings.batch * row.get("dynamic_sampling/drawn_per_used", 1.0)
        for row in trainer.state.log_history
        if "loss" in row
    ]
    return round(updates * sum(each[::updates]))


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


def train_run(
    name: str,
    *,
    base: Path,
    out: Path,
    settings: TrainingSettings,
    teacher: Path | None = None,
    cache: Path | None = None,
    part: Part = WHOLE,
    progress: bool = True,
) -> Run:
    """Train `base` by the method `name` into `out`: `checkpoint-N`, `run.json`, `log.json`.

    Weights, gradients, the optimizer's moments and checkpoints are of `settings.dtype`, whatever
    the base's. A GPU is used if there is one. `teacher` is the model that distillation learns
    from, `cache` a directory for samples that further runs from these models can use again, `part`
    what of the base is trained. Everything random follows `settings.seed`; the global random state
    is changed.
    """
    from transformers import PrinterCallback

    if name not in METHODS:
        raise InputError(f"method {name!r}: choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.needs_teacher and teacher is None:
        raise InputError(f"{name} needs a teacher to learn from: see offaxis lab teacher")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    arguments = _arguments(method, settings, out)
    with quiet_libraries(), cpu_threads(1):
        source = teacher if method.needs_teacher and teacher else base
        trainer = _trainer(method, base, settings, arguments, source=source, cache=cache, part=part)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_steps(settings, out.name, progress))
        cpu_started = time.process_time()
        trainer.train()
    cpu_seconds, seconds = time.process_time() - cpu_started, time.monotonic() - started
    for unwanted in ("training_args.bin", "README.md"):  # a pickle, and TRL's card without a base
        for written in out.glob(f"**/{unwanted}"):
            written.unlink()  # run.json says more
    log = tuple(finite(trainer.state.log_history))
    trainable = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    sampled = _sampled(method, settings, trainer)
    found = _checkpoints(out)
    run = Run(out.name, name, found, seconds, log, cpu_seconds, sampled, trainable)
    arguments.pop("output_dir")
    _write(out, run, _record(name, arguments, settings) | part.told())
    return run


def _checkpoints(out: Path) -> tuple[tuple[int, Path], ...]:
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    return tuple((step, out / f"checkpoint-{step}") for step in steps)


def _write(out: Path, run: Run, record: dict[str, Any]) -> None:
    """`run.json` and `log.json`."""
    told = record | {
        "trainable": run.trainable,
        "seconds": round(run.seconds, 1),
        "cpu_seconds": round(run.cpu_seconds, 2),
        "sampled": run.sampled,
    }
    (out / "run.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / "log.json").write_text(json.dumps(list(run.log), indent=1) + "\n")


def _record(name: str, arguments: dict[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """What made a run; nothing in it names this machine."""
    return {
        "method": name,
        "trainer": METHODS[name].trainer,
        "revision": METHODS[name].revision,
        "settings": asdict(settings),
        "arguments": arguments,
        "model_dtype": settings.dtype,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": 1,
        "versions": library_versions(),
    }
