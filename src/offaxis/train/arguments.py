"""From a YAML file and flags to one checked set of arguments: TRL's keys, and ours beside them."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from offaxis.errors import InputError
from offaxis.train.extras import ExtraArguments
from offaxis.train.methods import Method, method_named

__all__ = ["Arguments", "read_arguments"]


@dataclass
class Arguments:
    """Everything that decides a run."""

    method: Method
    script: Any
    """TRL's script arguments: data set, split, `reward_funcs`."""
    config: Any
    """TRL's trainer configuration, a `transformers.TrainingArguments`."""
    model: Any
    """TRL's `ModelConfig`: the model, its dtype, LoRA."""
    mixture: Any
    """TRL's `DatasetMixtureConfig`: `datasets`."""
    extra: ExtraArguments
    given: Mapping[str, Any]
    """What the user said, by key."""

    def resolved(self) -> dict[str, Any]:
        """Every key with the value that is used, as YAML and JSON can hold it."""
        found: dict[str, Any] = {}
        for part in (self.model, self.mixture, self.script, self.config, self.extra):
            whole = part.to_dict() if hasattr(part, "to_dict") else asdict(part)
            known = {one.name for one in fields(part) if one.init}
            found |= {key: _plain(value) for key, value in whole.items() if key in known}
        for key in ("hub_token", "push_to_hub_token"):
            found.pop(key, None)
        return found

    @property
    def updates_per_generation(self) -> float:
        """Optimizer steps that use one batch of samples; the ratio is 1 in the first of them."""
        if self.method.family not in ("grpo", "rloo"):
            return 1.0
        reuse = self.config.steps_per_generation * self.config.num_iterations
        return float(reuse / self.config.gradient_accumulation_steps)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read_arguments(
    method: str | Method,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    flags: Sequence[str] = (),
) -> Arguments:
    """The arguments of a run: the method's own settings, then `config`, then `flags`.

    config: a YAML file or a mapping, with TRL's keys (those of its script, trainer configuration,
    `ModelConfig` and `datasets`) and offaxis's (`ExtraArguments`). `env` in it sets environment
    variables, as TRL has it. flags: the same keys as `--key value`.

    Raises InputError for an unknown key (naming the nearest), a value that TRL refuses, and a key
    that contradicts the method.
    """
    chosen = method if isinstance(method, Method) else method_named(method)
    said, where = _read(config)
    for name, value in said.pop("env", {}).items():
        os.environ[str(name)] = str(value)
    parser = _parser(chosen)
    known = {action.dest for action in parser._actions} - {"help"}
    given = said | _flagged(flags, known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else f" of {chosen.name}'s arguments"
            raise InputError(f"{where}: {key!r} is not one{hint}")
    _contradictions(chosen, given, where)
    settings = {**chosen.defaults, **chosen.fixed, **_machine(given), **said}
    settings |= _reuse(chosen, given)
    parser.set_defaults_with_config(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            script, trainer, model, mixture, extra = parser.parse_args_into_dataclasses(
                args=list(flags)
            )
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(f"{where}: {error}") from error
    return Arguments(chosen, script, trainer, model, mixture, extra, given)


def _read(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The mapping, and what to call it in an error."""
    import yaml

    if config is None:
        return {}, "flags"
    if isinstance(config, Mapping):
        return dict(config), "config"
    path = Path(config)
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    if not isinstance(said, dict):
        raise InputError(f"{path}: holds no mapping of keys to values")
    if not isinstance(said.get("env", {}), dict):
        raise InputError(f"{path}: env must be a mapping of names to values")
    return said, str(path)


def _parser(method: Method) -> Any:
    """TRL's parser for the method's script, with our keys."""
    import importlib

    import trl

    script = importlib.import_module(f"trl.scripts.{method.family}")
    named = getattr(script, f"{method.prefix}ScriptArguments", trl.ScriptArguments)
    config = getattr(trl, f"{method.prefix}Config")
    return trl.TrlParser(
        [named, config, trl.ModelConfig, trl.DatasetMixtureConfig, ExtraArguments],
        prog=f"offaxis train {method.name}",
    )


def _flagged(flags: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Which keys the flags name, with the text that follows."""
    found: dict[str, Any] = {}
    for index, word in enumerate(flags):
        if not word.startswith("--"):
            continue
        key, _, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if key not in known and key.startswith("no_") and key[3:] in known:
            key, value = key[3:], "false"
        after = flags[index + 1] if index + 1 < len(flags) else "true"
        found[key] = value or (after if not after.startswith("--") else "true")
    return found


def _contradictions(method: Method, given: Mapping[str, Any], where: str) -> None:
    for key, value in method.fixed.items():
        if key in given and str(given[key]).lower() != str(value).lower():
            raise InputError(
                f"{where}: {key} {given[key]!r}, but {method.name} is {key} {value!r}; leave it "
                "out, or choose another method"
            )


def _machine(given: Mapping[str, Any]) -> dict[str, Any]:
    """On a machine without an accelerator: the CPU, in float32, unless the user says otherwise."""
    import torch

    if torch.accelerator.is_available() or "use_cpu" in given:
        return {}
    found = {"use_cpu": True, "dataloader_pin_memory": False}
    return found if {"bf16", "fp16"} & set(given) else found | {"bf16": False}


def _reuse(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Where the method lives by several updates a batch of samples, and nobody said how many."""
    said = {"steps_per_generation", "generation_batch_size", "num_iterations"} & set(given)
    if method.updates_per_generation == 1 or said:
        return {}
    try:
        accumulation = int(given.get("gradient_accumulation_steps", 1))
    except (TypeError, ValueError):
        return {}  # TRL's parser says what is wrong with it
    return {"steps_per_generation": method.updates_per_generation * accumulation}
