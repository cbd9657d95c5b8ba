"""Rewards: pure functions of a completion and the known answer."""

from offaxis.verifiers.integer import final_integer, integer_reward

__all__ = ["final_integer", "integer_reward"]
