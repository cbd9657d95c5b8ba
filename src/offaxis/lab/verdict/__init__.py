"""Do weights alone tell on-policy RL from fine-tuning? The rule, fixed before it is tested."""

from offaxis.lab.verdict.rule import FEATURES, LABELS, SETS, features, fitted

__all__ = ["FEATURES", "LABELS", "SETS", "features", "fitted"]
