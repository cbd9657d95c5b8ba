"""The lab's rewards as verifiers: an integer, or a countdown expression, behind a marker."""

from __future__ import annotations

import re

from offaxis.verifiers.countdown import countdown_reward
from offaxis.verifiers.integer import final_integer
from offaxis.verifiers.mark import Mark, Marking
from offaxis.verifiers.marked import marked_answer

__all__ = ["CountdownVerifier", "IntegerVerifier"]

_COUNTDOWN = re.compile(r"\s*([0-9]{1,9}(?:\s*,\s*[0-9]{1,9})*)\s*@\s*(-?[0-9]{1,9})\s*=?\s*")


class IntegerVerifier(Marking):
    """Whether the integer behind the one `marker` is the gold one."""

    def __init__(self, *, marker: str = "#") -> None:
        self.marker = marker

    def mark_one(self, response: str, gold: str) -> Mark:
        """The mark of one pair; gold is the integer alone, or behind the marker."""
        reference = final_integer(gold if self.marker in gold else self.marker + gold)
        found = final_integer(response, marker=self.marker)
        if reference is None:
            return Mark(False, "bad_gold", None if found is None else str(found))
        if found is None:
            return Mark(False, "no_answer", None)
        same = found == reference
        return Mark(same, "equal" if same else "different", str(found))


class CountdownVerifier(Marking):
    """Whether the expression behind the one `marker` reaches the target with the given numbers.

    Gold is written as the lab's prompts are: `9,9,5@36`.
    """

    def __init__(self, *, marker: str = "#") -> None:
        self.marker = marker

    def mark_one(self, response: str, gold: str) -> Mark:
        """The mark of one pair."""
        answer = marked_answer(response, marker=self.marker)
        given = _COUNTDOWN.fullmatch(gold)
        if given is None:
            return Mark(False, "bad_gold", answer)
        if answer is None:
            return Mark(False, "no_answer", None)
        numbers = [int(number) for number in given[1].split(",")]
        same = countdown_reward(response, numbers, int(given[2]), marker=self.marker) == 1.0
        return Mark(same, "equal" if same else "different", answer)
