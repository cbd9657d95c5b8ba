"""The keys that offaxis adds to TRL's own, in the same YAML file and on the same command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from offaxis.errors import InputError

__all__ = ["ExtraArguments"]


def _told(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ExtraArguments:
    """What TRL's dataclasses have no key for. Every name differs from all of theirs."""

    data: str | None = _told(
        "Training data: a JSONL, JSON, CSV or Parquet file, or lab:TASK. TRL's dataset_name and "
        "datasets work too."
    )
    preset: str | None = _told(
        "Benchmark whose columns and answers the data have (gsm8k, math500, ...); alone, its Hub "
        "data set."
    )
    data_split: str | None = _told("Split of a preset's Hub data set.", "train")
    eval_data: str | None = _told("Data for eval_strategy, in the same forms.")
    prompt_column: str = _told("Column of the prompt.", "prompt")
    answer_column: str = _told("Column of the right answer, which rewards read.", "answer")
    completion_column: str = _told("Column of the completion (sft).", "completion")
    chosen_column: str = _told("Column of the better completion (dpo).", "chosen")
    rejected_column: str = _told("Column of the worse completion (dpo).", "rejected")
    prompt_template: str | None = _told("Text with {prompt}, which takes the prompt's place.")
    system_prompt: str | None = _told("System message; makes prompts conversations.")
    chat: bool = _told("Make each prompt a user's message, for the model's chat template.", False)
    rewards: list[str] | None = _told(
        "Rewards by name (math, numeric, exact, format, overlong, code, ...), in YAML also as "
        "mappings with options. TRL's reward_funcs work too."
    )
    dynamic_sampling: bool = _told(
        "Replace groups whose rewards are all equal by samples of further prompts (dapo).", False
    )
    dynamic_sampling_rounds: int = _told("Rounds of further prompts for a batch, at most.", 4)
    dynamic_sampling_metric: str | None = _told(
        "What must differ in a group: reward (their sum), or one reward's name; by default the "
        "first one's."
    )
    overlong_cache: int | None = _told(
        "Tokens before max_completion_length over which the punishment of long completions grows "
        "from 0 to -1 (dapo: a fifth of max_completion_length; 0: none)."
    )
    leash: str = _told("What holds the model near its base: clip, fixed, adaptive, target, ewc.",
                       "clip")  # fmt: skip
    leash_options: dict[str, Any] | str | None = _told(
        "Options of the leash, a mapping (JSON on a command line)."
    )
    kl_every: int = _told("Steps between two measurements of KL to the base; 0: none.", 20)
    kl_prompts: int = _told("Prompts on which KL is measured.", 16)
    kl_max_new_tokens: int | None = _told("Length of its samples, at most.")
    teacher: str | None = _told("Model that distillation learns from.")
    samples_per_prompt: int = _told("Samples drawn for a prompt (rejection_sft, distill, dpo).", 4)
    keep_per_prompt: int = _told("Solutions or pairs kept for a prompt, at most.", 1)
    sample_max_new_tokens: int = _told("Length of these samples, at most.", 512)
    sample_batch_size: int = _told("Samples drawn at once.", 256)
    adapter: dict[str, Any] | str | None = _told(
        "An adapter by name, such as lora or milora?rank=16, a mapping with method, or a PEFT "
        "configuration with peft_type (JSON on a command line). TRL's use_peft and lora_ keys work "
        "too."
    )
    mask: str | None = _told(
        "Train only a mask's entries: a file of offaxis mask, or a rule, such as safe or "
        "random(density=0.01), which is applied to the base."
    )
    mask_strategy: str = _told(
        "projected (any optimizer, gradients masked) or compressed (an AdamW that keeps state for "
        "the mask's entries alone).", "projected"
    )  # fmt: skip
    mask_others: str = _told(
        "What the mask does not cover (embeddings, head, norms, biases): frozen or trained.",
        "frozen"
    )  # fmt: skip
    mask_refresh: int = _told(
        "Optimizer steps after which the mask's rule is applied again, to the weights as they are "
        "then; 0: never.", 0
    )  # fmt: skip
    pure_bf16: bool = _told(
        "Train bf16 weights without float32 masters, which loses small steps for good.", False
    )
    overwrite: bool = _told("Write into an output_dir that is not empty.", False)

    def __post_init__(self) -> None:
        self.leash_options = mapping("leash_options", self.leash_options)
        self.adapter = _adapter(self.adapter)
        self._check_mask()
        for name in ("dynamic_sampling_rounds", "kl_every", "overlong_cache", "mask_refresh"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name} {value}: 0 or more is needed")
        for name in ("kl_prompts", "samples_per_prompt", "keep_per_prompt",
                     "sample_max_new_tokens", "sample_batch_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: at least 1 is needed")
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise InputError(f"prompt_template {self.prompt_template!r} has no {{prompt}} in it")

    def _check_mask(self) -> None:
        for name, values in (
            ("mask_strategy", ("projected", "compressed")),
            ("mask_others", ("frozen", "trained")),
        ):
            if getattr(self, name) not in values:
                raise InputError(f"{name} {getattr(self, name)!r}: choose {' or '.join(values)}")
        asked = {"mask_strategy": "projected", "mask_others": "frozen", "mask_refresh": 0}
        alone = [name for name, default in asked.items() if getattr(self, name) != default]
        if self.mask is None and alone:
            raise InputError(f"{alone[0]} without a mask: name a file or a rule with mask")
        if self.mask is not None and self.adapter not in (None, "full"):
            raise InputError("mask with adapter: an adapter trains weights of its own; choose one")


def _adapter(value: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
    """A mapping, or the text that names one of offaxis's adapters, checked."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        from offaxis.train.adapters.methods import AdapterSpec

        AdapterSpec.parse(value)
        return value
    return mapping("adapter", value)


def mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """A mapping, given as one or as JSON; None stays None."""
    if value is None or isinstance(value, dict):
        return value
    try:
        found = json.loads(value)
    except (TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{name} {value!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} {value!r}: a mapping is needed")
    return found
