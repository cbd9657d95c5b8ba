"""`offaxis train`: TRL's trainers, set up as each method's paper has it, measured and resumable."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from offaxis.train import Arguments, Outcome

__all__ = ["train"]

EXTRA_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="grpo, dapo, dr_grpo, gspo, rloo, reinforce_pp, sft, rejection_sft, distill, "
            "distill_on_policy or dpo.",
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with TRL's keys and offaxis's.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Train only the entries of a mask: a file of offaxis mask, or a rule, such as "
            "'safe' or 'random(density=0.01)'. Beside it: --mask_strategy, --mask_others, "
            "--mask_refresh."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration, and stop.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a non-empty output_dir.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model. Every key of the YAML file can also be given as a flag, --KEY VALUE.

    TRL's keys are those of its own scripts: the trainer's configuration, the model, LoRA, the data
    set. Under `accelerate launch -m offaxis train ...` it runs on several processes.
    """
    import contextlib
    import sys

    from offaxis.provenance import require_training_libraries
    from offaxis.train import read_arguments

    require_training_libraries("training")
    flags = [*context.args, *(["--overwrite", "true"] if overwrite else [])]
    flags += [] if mask is None else ["--mask", mask]
    with contextlib.redirect_stdout(sys.stderr):
        arguments = read_arguments(method, config, flags=flags)
        _from_lab(arguments)
    if dry_run:
        _show(arguments, as_json)
        return
    with contextlib.redirect_stdout(sys.stderr):
        from offaxis.lab.data import named_data
        from offaxis.train import run
        from offaxis.train.running import main_process

        outcome = run(arguments, sources={"lab": named_data})
    if not main_process():
        return
    _print(outcome, as_json)


def _print(outcome: "Outcome", as_json: bool) -> None:
    import json

    told = _told(outcome)
    if as_json:
        print(json.dumps(told, indent=1))
        return
    print(f"{outcome.steps} steps of {outcome.method} in {outcome.seconds:.0f} s")
    for name, value in told["last"].items():
        print(f"  {name} {value:.6g}")
    print(f"The model is in {outcome.output}")


def _from_lab(arguments: "Arguments") -> None:
    """`lab` as the name of a model or a teacher is the base that comes with offaxis."""
    from offaxis.lab import BASE

    if arguments.model.model_name_or_path == "lab":
        arguments.model.model_name_or_path = str(BASE)
    if arguments.extra.teacher == "lab":
        arguments.extra.teacher = str(BASE)


def _show(arguments: "Arguments", as_json: bool) -> None:
    """The method, what of it is fixed, how samples are used, and every key."""
    import json

    import yaml

    from offaxis.train.adapters.asked import foretold_adapter
    from offaxis.train.boundary import boundary_period
    from offaxis.train.sparse.asked import foretold

    config, method = arguments.config, arguments.method
    each = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found: dict[str, Any] = {
        "method": method.name,
        "says": method.says,
        "fixed": dict(method.fixed),
        "defaults": dict(method.defaults),
        "given": dict(arguments.given),
        "derived": {
            "rows_per_step": each * config.world_size,
            "processes": config.world_size,
            "updates_per_generation": arguments.updates_per_generation,
            "resumes_exactly_every": boundary_period(config),
            "mask": foretold(arguments),
            "adapter": foretold_adapter(arguments),
        },
        "arguments": arguments.resolved(),
    }
    if as_json:
        print(json.dumps(found, indent=1, default=str))
    else:
        print(yaml.safe_dump(json.loads(json.dumps(found, default=str)), sort_keys=False), end="")


def _told(outcome: "Outcome") -> dict[str, Any]:
    """The outcome as JSON: the last value of each number that was logged."""
    from offaxis.train.record import finite

    last: dict[str, float] = {}
    for row in outcome.log:
        last |= {key: float(one) for key, one in row.items() if isinstance(one, int | float)}
    return {
        "schema": 1,
        "method": outcome.method,
        "output_dir": str(outcome.output),
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "messages": list(outcome.messages),
        "last": {key: value for key, value in finite(last).items() if value is not None},
    }
