"""Methods as a reader knows them."""

from collections.abc import Mapping

__all__ = ["NAMES"]

NAMES: Mapping[str, str] = {
    "base": "the base",
    "grpo": "GRPO",
    "dapo": "DAPO",
    "dr_grpo": "Dr. GRPO",
    "gspo": "GSPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "sft": "SFT",
    "sft_foreign": "SFT, foreign style",
    "rejection_sft": "rejection-sampled SFT",
    "distill": "distillation",
    "distill_on_policy": "on-policy distillation",
    "dpo": "DPO",
}
"""By method, the untrained base among them."""
