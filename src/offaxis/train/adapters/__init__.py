"""Adapters for RL: one table of methods, built alike, wired to the trainer, written as weights."""

from offaxis.train.adapters.building import Adapted, adapt, adapter_config, check_adapted
from offaxis.train.adapters.methods import ADAPTERS, AdapterMethod, AdapterSpec
from offaxis.train.adapters.optimizers import LoraFaAdamW
from offaxis.train.adapters.sampling import merged, sample_merged
from offaxis.train.adapters.wiring import wire

__all__ = [
    "ADAPTERS",
    "Adapted",
    "AdapterMethod",
    "AdapterSpec",
    "LoraFaAdamW",
    "adapt",
    "adapter_config",
    "check_adapted",
    "merged",
    "sample_merged",
    "wire",
]
