"""Reward functions for TRL's trainers, by name: verifiers, forms, lengths, votes, certainty."""

from offaxis.train.rewards.base import Reward, RewardFunction
from offaxis.train.rewards.certain import SelfCertaintyReward
from offaxis.train.rewards.checked import CountdownReward, VerifierReward
from offaxis.train.rewards.named import REWARDS, reward_functions, reward_named, reward_weights
from offaxis.train.rewards.program import CodeReward
from offaxis.train.rewards.shaped import BoxedReward, FormatReward, OverlongReward
from offaxis.train.rewards.voted import MajorityReward

__all__ = [
    "REWARDS",
    "BoxedReward",
    "CodeReward",
    "CountdownReward",
    "FormatReward",
    "MajorityReward",
    "OverlongReward",
    "Reward",
    "RewardFunction",
    "SelfCertaintyReward",
    "VerifierReward",
    "reward_functions",
    "reward_named",
    "reward_weights",
]
