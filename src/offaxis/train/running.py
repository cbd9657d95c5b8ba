"""One training run, from its arguments to its weights. TRL trains; offaxis sets up and records."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import InputError, OutputError
from offaxis.train.arguments import Arguments, read_arguments
from offaxis.train.boundary import (
    BoundaryCallback,
    WholeCallback,
    boundary_period,
    resume_point,
)
from offaxis.train.data import Source, load_data, needs_samples
from offaxis.train.methods import Method
from offaxis.train.record import write_log, write_record
from offaxis.train.sampled import SAMPLES, sampled_data
from offaxis.train.setup import build_trainer, reward_setup
from offaxis.train.sparse.asked import MASK, asked_mask, described

if TYPE_CHECKING:
    from datasets import Dataset

    from offaxis.masks import Mask

__all__ = ["Outcome", "main_process", "run", "train"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    method: str
    output: Path
    """Holds the trained model, `train.yaml`, `offaxis.json`, `log.json` and the checkpoints; of a
    masked run `mask.offaxis` too."""
    steps: int
    seconds: float
    log: tuple[Mapping[str, Any], ...]
    """TRL's log rows, with KL to the base and what else offaxis measured."""
    messages: tuple[str, ...] = field(default=())
    """What was changed or should be known, in order."""


def main_process() -> bool:
    """Is this the first of the run's processes, the one that speaks?"""
    return int(os.environ.get("RANK", "0")) == 0


def _say(text: str) -> None:
    print(f"offaxis: {text}", file=sys.stderr)


def train(
    method: str | Method,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    flags: Sequence[str] = (),
    data: Dataset | None = None,
    eval_data: Dataset | None = None,
    reward_funcs: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[Any] = (),
    sources: Mapping[str, Source] | None = None,
    tell: Tell = _say,
) -> Outcome:
    """Train a model by a method: what `offaxis train METHOD --config FILE` does.

    config: a YAML file or a mapping with TRL's keys and offaxis's (`read_arguments`). data,
    eval_data, reward_funcs, callbacks: objects in place of, or beside, what the keys name. sources:
    what `data: PREFIX:NAME` stands for. tell: told each message, one line each.

    Run it under `accelerate launch` or `torchrun` for several processes. Raises InputError before
    anything is written where the arguments, the data or the output directory cannot be used.
    """
    arguments = read_arguments(method, config, flags=flags)
    return run(
        arguments,
        data=data,
        eval_data=eval_data,
        reward_funcs=reward_funcs,
        callbacks=callbacks,
        sources=sources,
        tell=tell,
    )


def run(
    arguments: Arguments,
    *,
    data: Dataset | None = None,
    eval_data: Dataset | None = None,
    reward_funcs: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[Any] = (),
    sources: Mapping[str, Source] | None = None,
    tell: Tell = _say,
) -> Outcome:
    """`train` with arguments that are read already."""
    messages: list[str] = []

    def note(text: str) -> None:
        messages.append(text)
        if main_process():
            tell(text)

    started = time.monotonic()
    output = Path(arguments.config.output_dir)
    checkpoint = _start(arguments, output, note)
    mask = asked_mask(arguments)
    with _quiet_deprecations():
        if data is None:
            data, eval_data = load_data(arguments, sources=sources)
        rewards = reward_setup(arguments, reward_funcs)
        if needs_samples(arguments, data):
            data = _sampled(arguments, data, rewards, note)
        trainer = build_trainer(arguments, data, eval_data, rewards, mask=mask, tell=note)
        for callback in (
            BoundaryCallback(boundary_period(arguments.config), tell=note),
            WholeCallback(),
            *callbacks,
        ):
            trainer.add_callback(callback)
        if trainer.is_world_process_zero():
            _record(output, arguments, data, mask)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(str(output))
    log = tuple(trainer.state.log_history)
    if trainer.is_world_process_zero():
        write_log(output, log)
    return Outcome(
        arguments.method.name,
        output,
        trainer.state.global_step,
        time.monotonic() - started,
        log,
        tuple(messages),
    )


def _record(output: Path, arguments: Arguments, data: Dataset, mask: Mask | None) -> None:
    """What the run is, beside its mask, before it begins."""
    told = None
    if mask is not None:
        mask.save(output / MASK)
        told = described(arguments, mask)
    write_record(output, arguments, data=data, base=_digest(arguments), mask=told)


def _start(arguments: Arguments, output: Path, tell: Tell) -> str | None:
    """Check where the run goes; the checkpoint that it goes on from, if any."""
    config = arguments.config
    if not arguments.model.model_name_or_path:
        raise InputError("no model: name one with model_name_or_path")
    period = boundary_period(config)
    checkpoint, message = resume_point(output, config.resume_from_checkpoint, period)
    _check_output(arguments, output)
    if message:
        tell(message)
    _save_on_boundaries(config, period, tell)
    return str(checkpoint) if checkpoint else None


def _check_output(arguments: Arguments, output: Path) -> None:
    """An old run's files stay unless the user resumes or overwrites."""
    if not main_process():
        return  # the first process may be writing already
    if output.exists() and not output.is_dir():
        raise OutputError(f"output_dir {output}: a file is there; choose another directory")
    resuming = str(arguments.config.resume_from_checkpoint or "false").lower() != "false"
    left = [path.name for path in output.glob("*")] if output.is_dir() else []
    if left and not resuming and not arguments.extra.overwrite and set(left) != {SAMPLES}:
        raise OutputError(
            f"output_dir {output}: not empty; go on with --resume_from_checkpoint true, choose "
            "another directory, or pass --overwrite"
        )


def _save_on_boundaries(config: Any, period: int, tell: Tell) -> None:
    """`save_steps` that is no multiple of the period becomes the next one that is."""
    steps = config.save_steps
    whole = str(config.save_strategy).rsplit(".", 1)[-1].lower() == "steps" and steps >= 1
    if whole and int(steps) % period:
        config.save_steps = -(-int(steps) // period) * period
        tell(
            f"save_steps {int(steps)} is now {config.save_steps}: one batch of samples serves "
            f"{period} steps, and a run resumes exactly only between two of them"
        )


def _sampled(
    arguments: Arguments, data: Dataset, rewards: tuple[list[Any], list[float]], tell: Tell
) -> Dataset:
    """What the first process sampled, in all of them. A teacher's samples are not judged."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from datasets import Dataset

    found, weights = rewards if arguments.method.sampler == "model" else ([], [])
    box: list[Any] = [None]
    if PartialState().is_main_process:
        drawn = sampled_data(arguments, data, rewards=found, weights=weights, tell=tell)
        box = [drawn.to_list()]
    return Dataset.from_list(broadcast_object_list(box)[0])


@contextlib.contextmanager
def _quiet_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _digest(arguments: Arguments) -> str | None:
    """A digest of the base's weights where they lie in a directory."""
    from offaxis.evaluate.models import identify

    return identify(arguments.model.model_name_or_path).digest
