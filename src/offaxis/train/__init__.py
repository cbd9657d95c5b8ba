"""Training with transformers, TRL and peft: methods, leashes, and what rides along with a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offaxis.train.adapters import ADAPTERS, AdapterSpec, adapt, wire
    from offaxis.train.arguments import Arguments, read_arguments
    from offaxis.train.checkpoints import DeltaCheckpointCallback, restore_checkpoint
    from offaxis.train.divergence import DivergenceCallback
    from offaxis.train.leash import LeashCallback, leash_named
    from offaxis.train.methods import METHODS, Method
    from offaxis.train.reference import prepare_peft_model
    from offaxis.train.rewards import reward_functions
    from offaxis.train.running import Outcome, run, train
    from offaxis.train.sparse import (
        SparseAdamW,
        fisher_scores,
        gradient_scores,
        restrict,
        score_checkpoint,
    )

_HOME = {
    "ADAPTERS": "adapters",
    "AdapterSpec": "adapters",
    "adapt": "adapters",
    "wire": "adapters",
    "METHODS": "methods",
    "Arguments": "arguments",
    "DeltaCheckpointCallback": "checkpoints",
    "DivergenceCallback": "divergence",
    "LeashCallback": "leash",
    "Method": "methods",
    "Outcome": "running",
    "SparseAdamW": "sparse",
    "fisher_scores": "sparse",
    "gradient_scores": "sparse",
    "leash_named": "leash",
    "prepare_peft_model": "reference",
    "read_arguments": "arguments",
    "restore_checkpoint": "checkpoints",
    "restrict": "sparse",
    "reward_functions": "rewards",
    "run": "running",
    "score_checkpoint": "sparse",
    "train": "running",
}

__all__ = [
    "ADAPTERS",
    "METHODS",
    "AdapterSpec",
    "Arguments",
    "DeltaCheckpointCallback",
    "DivergenceCallback",
    "LeashCallback",
    "Method",
    "Outcome",
    "SparseAdamW",
    "adapt",
    "fisher_scores",
    "gradient_scores",
    "leash_named",
    "prepare_peft_model",
    "read_arguments",
    "restore_checkpoint",
    "restrict",
    "reward_functions",
    "run",
    "score_checkpoint",
    "train",
    "wire",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'offaxis.train' has no attribute {name!r}")
    return getattr(import_module(f"offaxis.train.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
