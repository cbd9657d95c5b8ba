"""Adapters for RL: one table of methods, built alike, wired to the trainer, written as weights."""

from offaxis.train.adapters.building import Adapted, adapt, adapter_config, check_adapted
from offaxis.train.adapters.configs import GeometricLoraConfig
from offaxis.train.adapters.effective import effective_tensors
from offaxis.train.adapters.export import export_lora
from offaxis.train.adapters.loading import load_adapted
from offaxis.train.adapters.materialize import materialize
from offaxis.train.adapters.merging import exact_merges
from offaxis.train.adapters.methods import ADAPTERS, AdapterMethod, AdapterSpec
from offaxis.train.adapters.optimizers import LoraFaAdamW
from offaxis.train.adapters.sampling import merged, sample_merged
from offaxis.train.adapters.wiring import wire

__all__ = [
    "ADAPTERS",
    "Adapted",
    "AdapterMethod",
    "AdapterSpec",
    "GeometricLoraConfig",
    "LoraFaAdamW",
    "adapt",
    "adapter_config",
    "check_adapted",
    "effective_tensors",
    "exact_merges",
    "export_lora",
    "load_adapted",
    "materialize",
    "merged",
    "sample_merged",
    "wire",
]
