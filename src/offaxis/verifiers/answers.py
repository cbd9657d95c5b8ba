"""The final answer that a response states: one, found by fixed rules, never a choice of several."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from offaxis.verifiers.boxes import last_run
from offaxis.verifiers.numbers import IN_TEXT, read_number

__all__ = ["LONGEST_ANSWER", "TAIL", "Answer", "Place", "final_answer"]

TAIL = 20_000
"""Characters at a response's end that are looked at; an answer further up is not seen."""
LONGEST_ANSWER = 2_000
"""Characters of an answer; a longer one is none."""

Place: TypeAlias = Literal["boxed", "tag", "hashes", "phrase", "whole", "latex", "number"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's parts (more than one where it is a list), and where it stood."""

    parts: tuple[str, ...]
    place: Place
    latex: bool

    @property
    def text(self) -> str:
        return ", ".join(self.parts)

    @property
    def explicit(self) -> bool:
        """Whether the response says that this is its answer."""
        return self.place not in ("latex", "number")


_STOPS = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text)\|>|</s>")
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.S | re.I)
_HASHES = re.compile(r"####[ \t]*:?[ \t]*([^\n]*)")
_PHRASE = re.compile(
    r"\banswer\b(?:\s*\*\*)?[^\n.:=]{0,80}?(?:\bis\b|\bbe\b|\bequals\b|:|=)(?:\s*\*\*)?[ \t]*:?"
    r"|^[ \t]*(?:\*\*)?A(?:\*\*)?:(?:\*\*)?",
    re.I | re.M,
)
_FINAL = re.compile(
    r"\bfinal\s+answer\s*(?:is|:)(?:\s*\*\*)?[ \t]*:?(?![^\n]{0,20}\banswer\b)", re.I
)
_MARKUP = re.compile(r"\\(?:boxed|fbox)|</answer>|<answer>|####", re.I)
_LINE = 500  # characters behind "the answer is" that are read
_MATHS = re.compile(
    r"\$\$(?P<a>(?:(?!\$\$).)+?)\$\$|\\\[(?P<b>(?:(?!\\[\[\]]).)+)\\\]"
    r"|\\\((?P<c>(?:(?!\\[()])[^\n])+)\\\)"
    r"|(?<![\\$0-9])\$(?P<d>(?:[^$\n\\]|\\.)+?)\$(?![0-9$])"
    r"|(?P<e>-?\\[dtc]?frac\s*\{[^{}]{1,60}\}\s*\{[^{}]{1,60}\})",
    re.S,
)
_BEHIND = re.compile(r"\s*(?:\\?%|(?i:per\s?cent(?:age)?|pct)\b)")
_JOIN = re.compile(r"\s*(?:,?\s*\b(?:and|or)\b|[,;])\s*")
_LINKS = re.compile(r"\bis\b|\bare\b|[=≈]|\bequals\b")
_EXPRESSION = re.compile(r"[\s0-9A-Za-zπ√∞∪∈≤≥≠±·×÷+\-*/^=<>!|()\[\]{},.:;_%°\\&']+")
_SHORT_WORDS = re.compile(
    r"(?<![\\{])\b(?:is|it|of|in|to|as|at|by|we|so|on|no|be|an|he|if|my|do)\b", re.I
)
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]+?)(?<=\S)\*\*(?![\w(*])")
_SENTENCE = re.compile(r"(?<=[\w$)}%*])[.!?]\s+(?=[A-Z])")
_COMMANDS = re.compile(
    r"\\(?:text|mbox|textbf|textrm|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(r"[A-Za-z]{3,}")
_KNOWN = frozenset(
    ("sqrt", "sin", "cos", "tan", "sec", "csc", "cot", "log", "exp", "arcsin", "arccos", "arctan",
     "abs", "max", "min", "inf", "infty", "mod", "gcd", "lcm")
)  # fmt: skip
_CORRECT = re.compile(
    r"\b(?:correct|right|wrong|incorrect|valid|unique|clear|given|not|the)\b", re.I
)
_NEGATED = re.compile(r"[\s*]*(?:not|never|neither|unlikely|n't)\b", re.I)
_WORDS = 4  # of an answer in words
_SHORT = 200  # characters of words between answer tags
_PHRASES = 20  # the last so many "the answer is" are tried


def _spoken(response: str) -> str:
    """The end of the response that speaks to the reader: after its thoughts, before a next turn."""
    text = response[-TAIL:]
    text = text.rpartition("</think>")[2]
    text = text.partition("<think>")[0]
    text = next((piece for piece in _STOPS.split(text) if piece.strip()), "")
    return _BOLD.sub(r"\1", text)


def _inner(text: str) -> tuple[str, bool]:
    """`text` without the dollars, brackets of mathematics, stars and full stop around it."""
    bare = text.strip().strip("*").strip()
    bare = bare[:-1].rstrip() if bare.endswith(".") and not bare.endswith("..") else bare
    found = _MATHS.fullmatch(bare)
    if found and found.lastgroup != "e":
        content = str(found[found.lastgroup or 0])
        if "$" not in content.replace("\\$", ""):
            return content.strip(), True
    return bare, "\\" in bare


def _whole(text: str, place: Place) -> Answer | None:
    """`text` as an answer if all of it is one: a number, mathematics, or a list of these."""
    bare, latex = _inner(text)
    if not bare or len(bare) > LONGEST_ANSWER:
        return None
    number = read_number(bare)
    if number or (latex and not _prose(bare)):
        return Answer((bare,), place, latex)
    pieces = [piece.strip() for piece in _JOIN.split(bare)]
    if len(pieces) > 1 and all(read_number(piece, decimal_comma=False) for piece in pieces):
        return Answer(tuple(pieces), place, False)
    if _EXPRESSION.fullmatch(bare) and not _prose(bare):
        return Answer((bare,), place, False)
    return None


def _prose(text: str) -> bool:
    """Whether there are words outside \\text, other than the names of functions."""
    words = _WORD.findall(_COMMANDS.sub(" ", text))
    short = _SHORT_WORDS.search(text) is not None
    return short or any(w.lower() not in _KNOWN for w in words) or _MATHS.search(text) is not None


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    start: int
    end: int
    latex: bool


def _items(text: str, *, plain: bool) -> list[_Item]:
    """Mathematics and numbers in prose, from left to right."""

    def found() -> Iterator[_Item]:
        at = 0
        for maths in _MATHS.finditer(text):
            if plain:
                yield from numbers(at, maths.start())
            behind = _BEHIND.match(text, maths.end())
            at = behind.end() if behind else maths.end()
            content = str(maths[maths.lastgroup or 0]).strip()
            yield _Item(content + ("\\%" if behind else ""), maths.start(), at, True)
        if plain:
            yield from numbers(at, len(text))

    def numbers(start: int, end: int) -> Iterator[_Item]:
        for number in IN_TEXT.finditer(text, start, end):
            yield _Item(number.group().strip(), number.start(), number.end(), False)

    return list(found())


def _joined(text: str, items: list[_Item], at: int, step: Literal[-1, 1]) -> list[_Item]:
    """The run of items joined by commas, "and" or "or" that holds `items[at]`, towards `step`."""
    run = [items[at]]
    while 0 <= at + step < len(items):
        before, after = sorted((items[at], items[at + step]), key=lambda item: item.start)
        if not _JOIN.fullmatch(text[before.end : after.start]):
            break
        at += step
        run.append(items[at])
    return run[::step]


def _answer(run: list[_Item], place: Place) -> Answer | None:
    parts = tuple(item.text for item in run)
    if sum(map(len, parts)) > LONGEST_ANSWER:
        return None
    return Answer(parts, place, any(item.latex for item in run))


def _stated(text: str, *, plain: bool) -> Answer | None:
    """The answer in what follows "the answer is": the whole, or the first item behind an "is"."""
    line = next((one for one in text.split("\n") if one.strip(" *\t")), "")
    line = _SENTENCE.split(line.split(" I hope")[0], maxsplit=1)[0]
    line = line.strip().strip('"').strip()
    if plain and (whole := _whole(line, "phrase")):
        return whole
    items = _items(line, plain=plain)
    links = [
        link.end()
        for link in _LINKS.finditer(line)
        if not any(item.start < link.end() <= item.end for item in items)
    ]
    for link in (*links[::-1], 0):
        behind = [index for index, item in enumerate(items) if item.start >= link]
        if behind:
            return _answer(_joined(line, items, behind[0], 1), "phrase")
    words = line.rstrip(".!").split()
    if plain and 0 < len(words) <= _WORDS and not _CORRECT.search(line):
        return Answer((" ".join(words),), "phrase", False)
    return None


def _marked(text: str) -> Answer | None:
    """The last of boxes, answer tags and hashes."""
    run = last_run(text)
    tag = next(iter([*_TAGS.finditer(text)][-1:]), None)
    hashes = next(iter([*_HASHES.finditer(text)][-1:]), None)
    places = (run[-1].end if run else -1, tag.end() if tag else -1, hashes.end() if hashes else -1)
    if max(places) < 0:
        return None
    if hashes and places[2] == max(places):
        return _whole(hashes[1], "hashes") or _stated(hashes[1], plain=True)
    if tag and places[1] == max(places):
        return _tagged(tag[1].strip())
    contents = tuple(dict.fromkeys(box.content.strip() for box in run))
    if not all(contents) or sum(map(len, contents)) > LONGEST_ANSWER:
        return None
    return Answer(contents, "boxed", True)


def _tagged(text: str) -> Answer | None:
    """What stands between answer tags: what it states, or a few words as they are."""
    if found := final_answer(text):
        return Answer(found.parts, "tag", found.latex)
    few = 0 < len(text) <= _SHORT and not _MARKUP.search(text)
    return Answer((text,), "tag", "\\" in text) if few else None


def _last_words(text: str, *, plain: bool) -> Answer | None:
    """What a "final answer is" behind the last markup says, or None where there is none."""
    last = [found.end() for found in _MARKUP.finditer(text)][-1]
    final = list(_FINAL.finditer(text, last))
    return _stated(text[final[-1].end() :][:_LINE], plain=plain) if final else None


def _worded(text: str, *, plain: bool) -> tuple[Answer | None, bool]:
    """What the last "answer is" says that is readable, and whether one behind it is a denial."""
    denied = False
    for phrase in [*_PHRASE.finditer(text)][: -_PHRASES - 1 : -1]:
        if _NEGATED.match(text, phrase.end()):
            denied = True
        elif stated := _stated(text[phrase.end() :][:_LINE], plain=plain):
            return stated, denied
    return None, denied


def final_answer(response: str, *, explicit: bool = False, plain: bool = True) -> Answer | None:
    r"""The one answer that `response` states, or None.

    Looked for in its last 20 000 characters, behind the last `</think>` and before a chat
    template's stop token. The first of these rules that finds its sign decides, even where what
    stands there is no answer (an empty box is none):

    1. markup: the last of `\boxed{}`, `<answer></answer>` and `#### x` (boxes joined by commas,
       "and" or "or" are one list), unless "final answer is x" stands behind it;
    2. words: the last "answer is", "answer:", "A:" at a line's start that something follows, and
       that does not go on with "not";
    3. the whole response, where it is one number or one piece of mathematics;
    4. the last mathematics or number in the text, with what is joined to it by commas, "and", "or".

    `explicit` leaves out rule 4; without `plain`, numbers outside LaTeX do not count. A list is
    one answer: whoever names several numbers has not named one of them.
    """
    text = _spoken(response)
    if not text:
        return None
    if _MARKUP.search(text):
        behind = _last_words(text, plain=plain)
        return behind if behind else _marked(text)
    stated, denied = _worded(text, plain=plain)
    if stated or denied:
        return stated
    if plain and (whole := _whole(text, "whole")):
        return whole
    items = [] if explicit else _items(text, plain=plain)
    if not items:
        return None
    run = _joined(text, items, len(items) - 1, -1)
    return _answer(run, "latex" if run[-1].latex else "number")
