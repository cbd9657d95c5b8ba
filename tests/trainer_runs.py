"""Small real runs of transformers' Trainer, for the tests of what rides along with one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from offaxis.lab.session import quiet_libraries
from offaxis.lab.tokenizer import build_tokenizer
from offaxis.train.checkpoints.index import Index

STEPS = 8


class Aside(TrainerCallback):  # type: ignore[misc]
    """Copies each checkpoint aside as soon as Trainer has written it."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        name = f"checkpoint-{state.global_step}"
        shutil.rmtree(self.out / name, ignore_errors=True)
        shutil.copytree(Path(args.output_dir) / name, self.out / name)


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Ends a run early, as a user would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def examples(count: int = 32, length: int = 12) -> list[dict[str, Any]]:
    """Sequences of the lab's characters, the same in every process."""
    drawn = torch.randint(4, 40, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in drawn]


def trainer(base: Path, out: Path, *callbacks: Any, **arguments: Any) -> Trainer:
    """A Trainer of `STEPS` steps that saves each of them; dropout makes random state matter."""
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "save_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 0,
    }
    torch.manual_seed(0)
    with quiet_libraries():
        config = AutoConfig.from_pretrained(base, attention_dropout=0.1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # not by from_pretrained, whose threads fail in a forked process
        model.load_state_dict(weights(base), strict=False)
        return Trainer(
            model=model,
            args=TrainingArguments(output_dir=str(out), **(settings | arguments)),
            train_dataset=examples(),
            eval_dataset=examples(8),
            processing_class=build_tokenizer(),
            callbacks=list(callbacks),
        )


def train(base: Path, out: Path, *callbacks: Any, resume: Any = None, **arguments: Any) -> Trainer:
    made = trainer(base, out, *callbacks, **arguments)
    with quiet_libraries():
        made.train(resume_from_checkpoint=resume)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def events(run: Path, step: int) -> tuple[Any, Any, None]:
    """What Trainer hands to a callback, without a Trainer."""
    state = SimpleNamespace(
        global_step=step, is_world_process_zero=True, best_model_checkpoint=None
    )
    return SimpleNamespace(output_dir=str(run)), state, None


def flip(path: Path, at: int = -100) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def whole(run: Path) -> list[int]:
    return sorted(int(one.name.removeprefix("checkpoint-")) for one in run.glob("checkpoint-*"))


def index(run: Path) -> Index:
    return Index.read(run / "deltas" / "index.json")


class Told:
    """A finished run, and its checkpoints as Trainer wrote them."""

    def __init__(self, root: Path, callback: Any) -> None:
        self.out, self.aside, self.callback = root / "run", root / "aside", callback

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.out, to / "run"))

    def original(self, step: int) -> dict[str, bytes]:
        return contents(self.aside / f"checkpoint-{step}")
