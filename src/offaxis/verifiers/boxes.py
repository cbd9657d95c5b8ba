"""Where LaTeX boxes its answer: `\\boxed{...}` with balanced braces, and lists of such boxes."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Box", "boxed", "last_boxed", "last_run"]

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
_LONE = re.compile(r"[0-9]+|[A-Za-z]\b")
_BRACES = re.compile(r"\\[{}\\]|[{}]")
_GLUE = 40  # characters between two boxes of one list
_SILENT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}|\\q?quad\b|\\[()\[\],;:! ]|[$\s*.]")
_JOINED = re.compile(r"(?:[,;&]|and|or)*")
_WORDS = re.compile(r"\b(?:and|or)\b")


@dataclass(frozen=True, slots=True)
class Box:
    """One box: its content and where the whole of it stands."""

    content: str
    start: int
    end: int


def _closing(text: str, start: int) -> int | None:
    """Where the brace closes that was opened just before `start`; escaped braces do not count."""
    depth = 1
    for found in _BRACES.finditer(text, start):
        if len(found.group()) == 2:
            continue
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.start()
    return None


def boxed(text: str) -> list[Box]:
    """All boxes from left to right; one inside another counts with the outer one.

    `\\boxed 7` without braces holds one number or letter. A box that never closes is none, and
    neither is what follows it.
    """
    found: list[Box] = []
    at = 0
    while opening := _OPENING.search(text, at):
        at = opening.end()
        if text.startswith("{", at):
            end = _closing(text, at + 1)
            if end is None:
                break
            found.append(Box(text[at + 1 : end], opening.start(), end + 1))
            at = end + 1
        elif lone := _LONE.match(text, at):
            found.append(Box(lone.group(), opening.start(), lone.end()))
    return found


def last_boxed(text: str) -> str | None:
    """The content of the last box, blanks kept, or None where there is none."""
    boxes = boxed(text)
    return boxes[-1].content if boxes else None


def _joins(glue: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(glue) > _GLUE or "\n\n" in glue:
        return False
    if _JOINED.fullmatch(_SILENT.sub("", glue)):
        return True
    return _WORDS.search(glue) is not None


def last_run(text: str) -> list[Box]:
    """The last box, and those before it that make one list with it: `\\boxed{1} and \\boxed{2}`.

    Joined are boxes with at most 40 characters between them, either only punctuation, blanks and
    \\text, or with the word "and" or "or".
    """
    boxes = boxed(text)
    first = len(boxes) - 1
    while first > 0 and _joins(text[boxes[first - 1].end : boxes[first].start]):
        first -= 1
    return boxes[max(first, 0) :]
