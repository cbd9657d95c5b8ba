"""Checking a completion whose final answer is an integer behind a marker (`...#33`)."""

import re

from offaxis.verifiers.marked import marked_answer

__all__ = ["final_integer", "integer_reward"]

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def final_integer(completion: str, *, marker: str = "#") -> int | None:
    """The integer that a completion gives as its answer, or None where it gives none.

    ASCII digits, at most 18, perhaps behind a minus sign; `marked_answer` says where they stand.
    Any string is accepted; nothing is raised.
    """
    text = marked_answer(completion, marker=marker)
    return int(text) if text is not None and _INTEGER.fullmatch(text) else None


def integer_reward(completion: str, answer: int, *, marker: str = "#") -> float:
    """1.0 where the completion's answer is `answer`, else 0.0. A pure function of its arguments.

    Only the answer counts: a right answer behind wrong working earns 1, as in RLVR.
    """
    return 1.0 if final_integer(completion, marker=marker) == answer else 0.0
