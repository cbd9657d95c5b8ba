"""Tests of a program, as data sets write them, and the program in a response."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["AssertTest", "StdinTest", "Test", "program_in", "read_tests"]


@dataclass(frozen=True, slots=True)
class StdinTest:
    """The program, run as a script on `stdin`, must print `stdout` and exit with 0.

    Compared line by line without blanks at the ends of lines and of the whole.
    """

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class AssertTest:
    """Code that must run through with the program's names at hand: `assert f(2) == 4`."""

    code: str


Test: TypeAlias = StdinTest | AssertTest

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9+]*)[^\n]*\n(.*?)^[ \t]*```", re.M | re.S)
_PYTHON = frozenset({"python", "python3", "py", ""})


def program_in(response: str) -> str | None:
    """The last fenced Python block behind the last `</think>`, else None; other languages do not
    count. A response without any fence is taken whole where it is Python that does something."""
    text = response.rpartition("</think>")[2]
    blocks = [(found[1].lower(), found[2]) for found in _FENCE.finditer(text)]
    programs = [code for language, code in blocks if language in _PYTHON and code.strip()]
    if programs:
        return programs[-1]
    if "```" in text or not text.strip():
        return None
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    does = any(not isinstance(one, ast.Expr) or isinstance(one.value, ast.Call) for one in body)
    return text if does else None


def _split(code: str) -> list[AssertTest]:
    """One test for each top-level assert, behind the statements before it that are none."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    if not any(isinstance(one, ast.Assert) for one in body):
        return [AssertTest(code)] if body else []
    shared: list[str] = []
    tests: list[AssertTest] = []
    for one in body:
        if isinstance(one, ast.Assert):
            tests.append(AssertTest("\n".join([*shared, ast.unparse(one)])))
        else:
            shared.append(ast.unparse(one))
    return tests


def _texts(value: Any) -> list[str] | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    joined = ["\n".join(one) if isinstance(one, list) else one for one in value]
    return joined if all(isinstance(one, str) for one in joined) else None


def read_tests(gold: str) -> tuple[Test, ...]:
    """The tests that a data set's text means; none where it means nothing.

    `{"inputs": [...], "outputs": [...]}` as in APPS and TACO (strings, or lists of lines); a JSON
    list of assert statements as in MBPP; or Python test code, whose top-level asserts are one test
    each, together with the statements before them.
    """
    try:
        data = json.loads(gold)
    except ValueError:
        return tuple(_split(gold))
    if isinstance(data, dict):
        inputs, outputs = _texts(data.get("inputs")), _texts(data.get("outputs"))
        if inputs is None or outputs is None or len(inputs) != len(outputs):
            return ()
        return tuple(StdinTest(*both) for both in zip(inputs, outputs, strict=True))
    return tuple(AssertTest(code) for code in _texts(data) or () if code.strip())
