"""Whether a response has the form that was asked for. Pure functions of its text."""

from __future__ import annotations

import re

from offaxis.verifiers.boxes import boxed

__all__ = ["has_box", "has_tags"]


def has_tags(
    response: str, tags: tuple[str, ...] = ("think", "answer"), *, opened: bool = False
) -> bool:
    """Whether the response is `<think>…</think><answer>…</answer>` and nothing else but blanks.

    Each tag opens and closes exactly once, in this order, and the last holds more than blanks
    (DeepSeek-R1, arXiv 2501.12948, section 2.2.2). `opened`: the chat template has already opened
    the first tag, so the response must begin inside it.
    """
    text = f"<{tags[0]}>{response}" if opened else response
    at = 0
    for number, tag in enumerate(tags):
        start, end = f"<{tag}>", f"</{tag}>"
        if text.count(start) != 1 or text.count(end) != 1:
            return False
        first, last = text.find(start), text.find(end)
        if first < at or last < first or text[at:first].strip():
            return False
        if number == len(tags) - 1 and not text[first + len(start) : last].strip():
            return False
        at = last + len(end)
    return not text[at:].strip()


def has_box(response: str, *, once: bool = False) -> bool:
    r"""Whether a `\boxed{}` that holds something stands behind the last `</think>`.

    `once`: exactly one. A box whose braces do not close is none.
    """
    contents = [
        re.sub(r"[\s$]", "", one.content) for one in boxed(response.rpartition("</think>")[2])
    ]
    return len(contents) == 1 and contents[0] != "" if once else any(contents)
