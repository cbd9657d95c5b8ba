"""Rewards: pure functions of a completion and what is known of the problem."""

from offaxis.verifiers.countdown import Expression, countdown_reward, read_expression
from offaxis.verifiers.integer import final_integer, integer_reward
from offaxis.verifiers.marked import marked_answer

__all__ = [
    "Expression",
    "countdown_reward",
    "final_integer",
    "integer_reward",
    "marked_answer",
    "read_expression",
]
