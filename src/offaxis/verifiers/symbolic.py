"""Comparing mathematics with math-verify, inside a worker that bounds its time and memory."""

from __future__ import annotations

import importlib
import logging
import re
from functools import lru_cache
from typing import Any

__all__ = ["compare", "prepare"]

_LIST = 6  # pieces of mathematics that math-verify joins to one set
_POWER = re.compile(r"(?:\^|\*\*)\s*(?:\(([^()]*)\)|(-?[0-9.]+))")
_LETTER = re.compile(r"\\math(?:rm|bf|it)\s*\{\s*([A-Za-z])\s*\}")
_ROOT = re.compile(r"(?<!\\)\bsqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*([0-9]+)")
_NAMES = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|sec|csc|cot|log|ln|exp|pi|infty)(?![A-Za-z])")


def _library() -> Any:
    """math-verify, whose own time limits are off: they are signals, and take whole seconds."""
    return importlib.import_module("math_verify")


def prepare() -> None:
    """Import math-verify and warm it up, before the first time limit runs."""
    logging.disable(logging.CRITICAL)
    compare({"gold": [r"\frac{1}{x}+(1,2]"], "answer": [r"x^{2}=\{3,4\}"], "latex": [True, True]})


def _as_latex(text: str) -> str:
    """LaTeX of mathematics typed plainly: `sqrt(2)`, `x**10`, `3*x`, `pi`."""
    text = _POWER.sub(lambda found: f"^{{{found[1] or found[2]}}}", text)
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3]}}}", text)
    text = _NAMES.sub(r"\\\1 ", text)
    return text.replace("*", r" \cdot ").replace("π", r"\pi ").replace("∞", r"\infty ")


@lru_cache(maxsize=256)
def _parsed(parts: tuple[str, ...], latex: bool) -> tuple[Any, ...]:
    """What math-verify makes of an answer's parts; its fallback strings included."""
    made = tuple(one if latex and "\\" in one else _as_latex(one) for one in parts)
    if len(made) > _LIST:
        made = (", ".join(made),)
    made = tuple(_LETTER.sub(r" \1 ", part.replace("$", " ")) for part in made)
    text = " and ".join(f"${part}$" if "\n" not in part else f"\\[{part}\\]" for part in made)
    library = _library()
    settings = [library.LatexExtractionConfig(), library.ExprExtractionConfig()]
    found = library.parse(text, settings, parsing_timeout=None)
    whole = all(_balanced(one) for one in found if isinstance(one, str))
    return tuple(found) if whole else (re.sub(r"\s+", "", " and ".join(made)),)


def _balanced(text: str) -> bool:
    """Whether braces close: math-verify's clean-up can cut a unit out with half a fraction."""
    return text.count("{") == text.count("}")


def compare(job: dict[str, Any]) -> str:
    """`equal`, `different`, `no_answer` or `bad_gold` for `{"gold", "answer", "latex", ...}`.

    `gold` and `answer` are lists of parts, `latex` says of each whether it is LaTeX; `precision`,
    `strict` and `relation_as_set` are `Match`'s.
    """
    gold = _parsed(tuple(job["gold"]), job["latex"][0])
    answer = _parsed(tuple(job["answer"]), job["latex"][1])
    if not gold:
        return "bad_gold"
    if not answer:
        return "no_answer"
    precision = job.get("precision", 6)
    same = _library().verify(
        list(gold),
        list(answer),
        float_rounding=30 if precision is None else precision,
        strict=job.get("strict", True),
        allow_set_relation_comp=job.get("relation_as_set", False),
        timeout_seconds=None,
    )
    return "equal" if same or _same_expression(gold[0], answer[0]) else "different"


def _same_expression(gold: Any, answer: Any) -> bool:
    """Whether two expressions in the same variables differ by 0.

    math-verify compares a lone variable, `x`, by name only and so not with `x/2 + x/2`.
    """
    sympy = importlib.import_module("sympy")
    both = isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)
    if not both or not gold.free_symbols or gold.free_symbols != answer.free_symbols:
        return False
    return bool(sympy.simplify(gold - answer) == 0)
