"""Rewards: pure functions of a completion and what is known of the problem, and verifiers.

`offaxis.verifiers.certainty` needs torch and is imported on its own.
"""

from offaxis.verifiers.answers import Answer, final_answer
from offaxis.verifiers.boxes import boxed, last_boxed
from offaxis.verifiers.countdown import Expression, countdown_reward, read_expression
from offaxis.verifiers.formats import has_box, has_tags
from offaxis.verifiers.integer import final_integer, integer_reward
from offaxis.verifiers.lab import CountdownVerifier, IntegerVerifier
from offaxis.verifiers.literal import ExactVerifier, NumericVerifier
from offaxis.verifiers.mark import Mark, Verifier
from offaxis.verifiers.marked import marked_answer
from offaxis.verifiers.match import Match
from offaxis.verifiers.mathematics import MathVerifier
from offaxis.verifiers.named import VERIFIERS, verifier_named
from offaxis.verifiers.numbers import Number, read_number
from offaxis.verifiers.programs import (
    AssertTest,
    CodeVerifier,
    Limits,
    ProgramResult,
    StdinTest,
    run_code,
)
from offaxis.verifiers.shaping import overlong
from offaxis.verifiers.vote import Majority, majority, majority_rewards

__all__ = [
    "VERIFIERS",
    "Answer",
    "AssertTest",
    "CodeVerifier",
    "CountdownVerifier",
    "ExactVerifier",
    "Expression",
    "IntegerVerifier",
    "Limits",
    "Majority",
    "Mark",
    "Match",
    "MathVerifier",
    "Number",
    "NumericVerifier",
    "ProgramResult",
    "StdinTest",
    "Verifier",
    "boxed",
    "countdown_reward",
    "final_answer",
    "final_integer",
    "has_box",
    "has_tags",
    "integer_reward",
    "last_boxed",
    "majority",
    "majority_rewards",
    "marked_answer",
    "overlong",
    "read_expression",
    "read_number",
    "run_code",
    "verifier_named",
]
