"""The methods that `offaxis train` knows: TRL's trainer, and the settings that make each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from offaxis.errors import InputError

__all__ = ["METHODS", "Data", "Method", "method_named"]

Data = Literal["prompts", "solutions", "pairs"]


def _frozen(settings: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    return MappingProxyType(dict(settings or {}))


@dataclass(frozen=True)
class Method:
    """How a method trains: its trainer, what may not be changed in it, and its paper's settings."""

    name: str
    says: str
    """One line: what the method optimises, and where it is from."""
    family: Literal["grpo", "rloo", "sft", "dpo", "distillation"]
    """TRL's script, trainer and configuration class."""
    data: Data
    """What a row of its data holds: a prompt (and what verifies an answer), a prompt and its
    completion, or a prompt, a chosen and a rejected completion."""
    fixed: Mapping[str, Any] = field(default_factory=_frozen)
    """Trainer arguments without which it would be another method."""
    defaults: Mapping[str, Any] = field(default_factory=_frozen)
    """Arguments that replace TRL's defaults and that a user may replace."""
    sampler: Literal["model", "teacher"] | None = None
    """Who writes the completions before training starts, where the data has none."""
    updates_per_generation: int = 1
    """Optimizer steps for each batch of samples, unless the user says otherwise."""
    trainer: str | None = None
    """A class of `offaxis.train.trainers`; None: TRL's own trainer, observed."""

    @property
    def on_policy(self) -> bool:
        """Does the model that is trained write the completions while it is trained?"""
        return self.family in ("grpo", "rloo", "distillation")

    @property
    def rewarded(self) -> bool:
        """Does training need reward functions?"""
        return self.family in ("grpo", "rloo")

    @property
    def prefix(self) -> str:
        """What TRL's names begin with."""
        return {"distillation": "Distillation"}.get(self.family, self.family.upper())


def _group(name: str, says: str, loss: str, **more: Any) -> Method:
    fixed = {"loss_type": loss, **more.pop("fixed", {})}
    defaults = {"beta": 0.0, "epsilon": 0.2, **more.pop("defaults", {})}
    trainer = more.pop("trainer", "PolicyGRPOTrainer")
    return Method(
        name, says, "grpo", "prompts", _frozen(fixed), _frozen(defaults), trainer=trainer, **more
    )


def _tuning(name: str, says: str, sampler: Literal["model", "teacher"] | None = None) -> Method:
    defaults = {"max_length": None, "completion_only_loss": True}
    fixed = {"loss_type": "nll"}
    return Method(name, says, "sft", "solutions", _frozen(fixed), _frozen(defaults), sampler)


_ALL = (
    _group(
        "grpo",
        "Group-relative policy optimisation: rewards centred and scaled in each group, mean over "
        "each completion's tokens (DeepSeekMath, arXiv 2402.03300, section 4.1)",
        "grpo",
        fixed={"scale_rewards": "group", "importance_sampling_level": "token"},
    ),
    _group(
        "dapo",
        "GRPO with a wider upper clip, a mean over all tokens, groups without signal replaced "
        "while sampling, and a soft punishment of overlong answers (arXiv 2503.14476, section 3)",
        "dapo",
        fixed={"scale_rewards": "group", "importance_sampling_level": "token"},
        defaults={"epsilon_high": 0.28, "dynamic_sampling": True},
        trainer="DAPOTrainer",
    ),
    _group(
        "dr_grpo",
        "GRPO without its two normalisations, by length and by standard deviation "
        "(arXiv 2503.20783, section 3.2)",
        "dr_grpo",
        fixed={"scale_rewards": "none", "importance_sampling_level": "token"},
    ),
    _group(
        "gspo",
        "GRPO with one ratio a sequence, the geometric mean of its tokens', clipped "
        "(arXiv 2507.18071, section 4)",
        "grpo",
        fixed={"scale_rewards": "group", "importance_sampling_level": "sequence"},
        defaults={"epsilon": 3e-4, "epsilon_high": 4e-4},
        updates_per_generation=4,
    ),
    _group(
        "reinforce_pp",
        "REINFORCE with PPO's clip; no group baseline: token returns, less the KL penalty, centred "
        "and scaled over the whole batch (REINFORCE++, arXiv 2501.03262, section 3)",
        "dapo",
        fixed={"importance_sampling_level": "token"},
        trainer="ReinforcePPTrainer",
    ),
    Method(
        "rloo",
        "REINFORCE with the other samples' mean reward as the baseline (arXiv 2402.14740)",
        "rloo",
        "prompts",
        _frozen({"normalize_advantages": False}),
        _frozen({"beta": 0.0}),
        trainer="PolicyRLOOTrainer",
    ),
    _tuning("sft", "Supervised fine-tuning on the data's completions"),
    _tuning(
        "rejection_sft",
        "Supervised fine-tuning on the base's own samples that the reward passes (RAFT, "
        "arXiv 2304.06767; STaR, arXiv 2203.14465)",
        "model",
    ),
    _tuning(
        "distill",
        "Supervised fine-tuning on a teacher's samples (sequence-level knowledge distillation, "
        "arXiv 1606.07947, section 3.2)",
        "teacher",
    ),
    Method(
        "distill_on_policy",
        "Reverse KL to a teacher on the student's own samples (GKD with lambda 1, "
        "arXiv 2306.13649, section 3)",
        "distillation",
        "prompts",
        defaults=_frozen({"beta": 1.0}),
    ),
    Method(
        "dpo",
        "Direct preference optimisation on pairs of completions; where the data has none, pairs "
        "of right and wrong samples of the base (arXiv 2305.18290)",
        "dpo",
        "pairs",
        _frozen({"loss_type": ["sigmoid"]}),
        _frozen({"beta": 0.1, "max_length": None}),
        "model",
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""By name. None has a KL term unless `beta` or a leash is given; DPO's beta is its temperature."""


def method_named(name: str) -> Method:
    """The method, or InputError that lists them."""
    if name not in METHODS:
        raise InputError(f"method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
