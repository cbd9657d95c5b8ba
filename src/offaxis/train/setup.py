"""The trainer of a run: its class, model, rewards and callbacks, put together."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import CheckpointError, InputError
from offaxis.train.adapters import adapt, wire
from offaxis.train.adapters.asked import asked_adapter
from offaxis.train.arguments import Arguments
from offaxis.train.divergence import DivergenceCallback
from offaxis.train.extras import mapping
from offaxis.train.leash import LeashCallback, leash_named
from offaxis.train.methods import Method
from offaxis.train.observed import observed
from offaxis.train.precision import give_masters
from offaxis.train.reference import overwrites_base, prepare_peft_model
from offaxis.train.rewards import reward_functions, reward_weights

if TYPE_CHECKING:
    from offaxis.masks import Mask

__all__ = ["build_trainer", "reward_setup"]

Rewards = tuple[list[Any], list[float]]


def reward_setup(arguments: Arguments, more: Sequence[Callable[..., Any]] = ()) -> Rewards:
    """Reward functions with their weights: ours by name, TRL's `reward_funcs`, and `more`."""
    extra, config = arguments.extra, arguments.config
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own rewards, as TRL's scripts find them
    named = reward_functions(_specs(extra.rewards, config))
    functions = [*named, *_of_trl(getattr(arguments.script, "reward_funcs", None)), *more]
    if getattr(arguments.script, "reward_model_name_or_path", None):
        functions.append(arguments.script.reward_model_name_or_path)
    if arguments.method.rewarded and not functions:
        raise InputError(f"{arguments.method.name} needs a reward: name one with rewards")
    weights = reward_weights(functions)
    given = getattr(config, "reward_weights", None)
    if given is not None:
        if len(given) != len(functions):
            raise InputError(
                f"reward_weights has {len(given)} numbers for {len(functions)} rewards"
            )
        weights = [float(weight) for weight in given]
    if arguments.method.name == "dapo" and (cache := _cache(arguments)):
        functions += reward_functions(
            [{"name": "overlong", "max_length": config.max_completion_length, "cache": cache}]
        )
        weights.append(1.0)
    return functions, weights


def _specs(rewards: list[Any] | None, config: Any) -> list[Any]:
    """Names and mappings, with what the run knows filled in."""
    found = []
    for spec in rewards or ():
        one = {"name": spec} if isinstance(spec, str) else dict(spec)
        if one.get("name") == "majority":
            one.setdefault("num_generations", getattr(config, "num_generations", None))
        if one.get("name") == "overlong":
            longest = int(getattr(config, "max_completion_length", None) or 0)
            one = {"max_length": longest, "cache": longest // 5, **one}
        found.append(one)
    return found


def _cache(arguments: Arguments) -> int:
    cache, longest = arguments.extra.overlong_cache, arguments.config.max_completion_length
    if cache is None:
        return int(longest // 5)
    if cache >= longest:
        raise InputError(f"overlong_cache {cache}: fewer than max_completion_length, {longest}")
    return int(cache)


def _of_trl(names: Sequence[str] | None) -> list[Any]:
    """TRL's reward functions by their names, or any function by its dotted path."""
    import trl.rewards

    found: list[Any] = []
    for name in names or ():
        if name == "get_soft_overlong_punishment":  # with the values of TRL's own script
            found.append(
                trl.rewards.get_soft_overlong_punishment(
                    max_completion_len=1280, soft_punish_cache=256
                )
            )
        elif hasattr(trl.rewards, name):
            found.append(getattr(trl.rewards, name))
        elif "." in name:
            found += reward_functions([name])
        else:
            raise InputError(f"reward_funcs {name!r}: neither one of TRL's nor a dotted path")
    return found


def build_trainer(
    arguments: Arguments,
    data: Any,
    eval_data: Any,
    rewards: Rewards,
    *,
    tell: Callable[[str], None],
    mask: Mask | None = None,
) -> Any:
    """The trainer, ready for `.train()`. mask: what of the model it is to train."""
    from trl import get_quantization_config

    method, config = arguments.method, arguments.config
    config.model_init_kwargs = _loading(arguments)
    name, options = _leash(arguments)
    leash = leash_named(name, **options)
    given: dict[str, Any] = {
        "args": config,
        "train_dataset": data,
        "eval_dataset": eval_data,
        "quantization_config": get_quantization_config(arguments.model),
    }
    if method.rewarded:
        # TRL makes its reference only where beta is not 0.
        config.beta = leash.arguments.get("beta", config.beta)
        config.reward_weights = rewards[1]
        given["reward_funcs"] = rewards[0]
    if method.family == "distillation":
        given["teacher_model"] = _teacher(arguments)
    try:
        trainer = _trainer_class(method)(**given, **_model(arguments))
    except OSError as error:
        raise CheckpointError(f"{arguments.model.model_name_or_path}: {error}") from error
    except ValueError as error:
        raise InputError(f"{method.name}: {error}") from error
    _restrict(arguments, trainer, mask, tell)
    wire(trainer)
    for reward in rewards[0]:
        if hasattr(reward, "attach"):
            reward.attach(trainer)
    _dynamic_sampling(arguments, trainer)
    trainer.leash = leash
    trainer.add_callback(LeashCallback())
    _watch_divergence(arguments, trainer, data, tell)
    return trainer


def _restrict(
    arguments: Arguments, trainer: Any, mask: Mask | None, tell: Callable[[str], None]
) -> None:
    """The mask, and masters for what is trained; a compressed optimizer keeps its own."""
    extra = arguments.extra
    if mask is not None:
        from offaxis.train.sparse import restrict

        restrict(
            trainer,
            mask,
            strategy=extra.mask_strategy,
            others=extra.mask_others,
            refresh_every=extra.mask_refresh,
        )
        if extra.mask_strategy == "compressed":
            return
    warning = give_masters(
        trainer.model, learning_rate=arguments.config.learning_rate, insist=extra.pure_bf16
    )
    if warning:
        tell(f"WARNING: {warning}")


def _trainer_class(method: Method) -> Any:
    import trl

    if method.trainer is None:
        return observed(getattr(trl, f"{method.prefix}Trainer"))
    return getattr(importlib.import_module("offaxis.train.trainers"), method.trainer)


def _loading(arguments: Arguments) -> dict[str, Any]:
    """How TRL is to load the model, as its own scripts do it."""
    model, config = arguments.model, arguments.config
    found = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return found | (config.model_init_kwargs or {})


def _leash(arguments: Arguments) -> tuple[str, dict[str, Any]]:
    name = arguments.extra.leash
    options = mapping("leash_options", arguments.extra.leash_options) or {}
    beta = float(getattr(arguments.config, "beta", 0.0) or 0.0)
    if name == "clip" and beta and arguments.method.rewarded:
        return "fixed", {"beta": beta}
    if name in ("fixed", "adaptive") and beta:
        options = {"beta": beta, **options}
    return name, options


def _model(arguments: Arguments) -> dict[str, Any]:
    """`model` and `peft_config` for TRL: a name where TRL may load it."""
    import peft
    from trl import get_peft_config

    spec = asked_adapter(arguments)
    name = arguments.model.model_name_or_path
    if spec is not None and spec.about.make is None:
        return {"model": name}
    if spec is not None:
        return {"model": adapt(_base(arguments), spec)}
    options = mapping("adapter", arguments.extra.adapter)
    if options is not None:
        try:
            adapter = peft.get_peft_config({"task_type": "CAUSAL_LM", **options})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"adapter {options}: {type(error).__name__}: {error}") from error
    else:
        adapter = get_peft_config(arguments.model)
    if adapter is None or not _may_overwrite(adapter):
        return {"model": name, "peft_config": adapter}
    return {"model": prepare_peft_model(_base(arguments), adapter)}


def _base(arguments: Arguments) -> Any:
    """The base in memory, the random state at the run's seed."""
    from transformers import AutoModelForCausalLM, set_seed
    from trl import get_quantization_config

    name, loading = arguments.model.model_name_or_path, dict(arguments.config.model_init_kwargs)
    if (quantised := get_quantization_config(arguments.model)) is not None:
        loading["quantization_config"] = quantised
    set_seed(arguments.config.seed)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **loading)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {error}") from error


def _may_overwrite(adapter: Any) -> bool:
    try:
        return overwrites_base(adapter)
    except InputError:  # it cannot be tried on one layer; the real weights decide
        return True


def _teacher(arguments: Arguments) -> str:
    teacher = arguments.extra.teacher or arguments.config.teacher_model_name_or_path
    if teacher is None:
        raise InputError(f"{arguments.method.name} needs a teacher: name a model with teacher")
    config = arguments.config
    config.teacher_model_init_kwargs = {
        "dtype": arguments.model.dtype,
        "attn_implementation": arguments.model.attn_implementation,
        **(config.teacher_model_init_kwargs or {}),
    }
    return str(teacher)


def _dynamic_sampling(arguments: Arguments, trainer: Any) -> None:
    extra = arguments.extra
    if hasattr(trainer, "dynamic_sampling_rounds"):
        trainer.dynamic_sampling_rounds = (
            extra.dynamic_sampling_rounds if extra.dynamic_sampling else 0
        )
        trainer.dynamic_sampling_metric = extra.dynamic_sampling_metric
    elif extra.dynamic_sampling:
        raise InputError(f"{arguments.method.name} has no dynamic sampling: that is dapo")


def _watch_divergence(
    arguments: Arguments, trainer: Any, data: Any, tell: Callable[[str], None]
) -> None:
    """KL to the base on the first prompts of the training data."""
    extra, config = arguments.extra, arguments.config
    if extra.kl_every == 0:
        return
    count = min(extra.kl_prompts, len(data)) if hasattr(data, "__len__") else extra.kl_prompts
    rows = data.select(range(count)) if hasattr(data, "select") else data.take(count)
    prompts = [_prompt(row) for row in rows]
    if None in prompts:
        tell("KL to the base is not measured: the data have no prompts to sample from")
        return
    longest = extra.kl_max_new_tokens or getattr(config, "max_completion_length", None)
    trainer.add_callback(
        DivergenceCallback(
            prompts,
            every=extra.kl_every,
            max_new_tokens=int(longest or extra.sample_max_new_tokens),
            seed=config.seed,
        )
    )


def _prompt(row: Mapping[str, Any]) -> Any:
    """What comes before the answer: the row's prompt, or a conversation up to its last turn."""
    if "prompt" in row:
        return row["prompt"]
    turns = list(row.get("messages") or [])
    return turns[:-1] if len(turns) > 1 and turns[-1]["role"] == "assistant" else None
