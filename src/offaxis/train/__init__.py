"""Training with transformers, TRL and peft: what rides along with a run."""

from offaxis.train.checkpoints import DeltaCheckpointCallback, restore_checkpoint

__all__ = ["DeltaCheckpointCallback", "restore_checkpoint"]
