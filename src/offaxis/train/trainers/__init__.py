"""TRL's trainers with what offaxis adds, each a small subclass."""

from offaxis.train.trainers.dapo import DAPOTrainer
from offaxis.train.trainers.policy import PolicyGRPOTrainer, PolicyRLOOTrainer
from offaxis.train.trainers.reinforce_pp import ReinforcePPTrainer

__all__ = ["DAPOTrainer", "PolicyGRPOTrainer", "PolicyRLOOTrainer", "ReinforcePPTrainer"]
