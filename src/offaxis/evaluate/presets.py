"""Benchmarks that people use: where they lie, how their columns are called, what is odd in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from offaxis.errors import InputError
from offaxis.evaluate.golds import (
    Gold,
    after_hashes,
    boxed_formula,
    boxed_integer,
    contest_integer,
    listed,
    plain,
    solution_boxed,
)

__all__ = ["BOXED_TEMPLATE", "PRESETS", "Preset", "preset_named"]

BOXED_TEMPLATE = (
    "{problem}\n\nReason step by step, and put your final answer within \\boxed{answer}."
)

Read = Callable[[object], str]


@dataclass(frozen=True)
class Preset:
    """One benchmark."""

    name: str
    hub: str
    """Its id on the Hub."""
    config: str | None
    split: str
    rows: int
    """Problems in the usual release."""
    prompts: tuple[str, ...]
    """Names that its prompt column has in circulation, the first that is there being taken."""
    answers: tuple[tuple[str, Read], ...]
    """The same for the answer column, each with what takes the answer out of it."""
    ids: tuple[str, ...] = ("id", "unique_id", "ID", "problem_idx", "idx")
    """The same for the identity; without any of them problems are counted from 1."""
    tolerance: str | None = None
    """Column with the absolute tolerance of a numerical answer."""
    context: str | None = None
    """Column whose text stands before the prompt, where it is not empty."""
    verifier: str = "math"
    template: str = BOXED_TEMPLATE

    def gold(self, values: Mapping[str, Any], column: str) -> Gold:
        """The reference answer in `column` of a row.

        Raises ValueError, whose words go on from the column's name, where it holds none.
        """
        read = dict(self.answers).get(column, self.answers[0][1])
        if self.tolerance is not None:
            return listed(values.get(column), values.get(self.tolerance))
        return Gold(read(values.get(column)))


_PROBLEM = ("problem", "question", "Problem", "Question", "prompt")
_WHOLE = (
    ("answer", contest_integer),
    ("Answer", contest_integer),
    ("solution", boxed_integer),
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        one.name: one
        for one in (
            Preset(
                "gsm8k", "openai/gsm8k", "main", "test", 1319,
                ("question", "problem", "prompt"), (("answer", after_hashes),),
            ),
            Preset(
                "math500", "HuggingFaceH4/MATH-500", None, "test", 500,
                _PROBLEM, (("answer", plain), ("solution", solution_boxed)),
                ids=("unique_id", "id"),
            ),
            Preset("aime24", "HuggingFaceH4/aime_2024", None, "train", 30, _PROBLEM, _WHOLE),
            Preset("aime25", "MathArena/aime_2025", None, "train", 30, _PROBLEM, _WHOLE),
            Preset("amc23", "math-ai/amc23", None, "test", 40, _PROBLEM, _WHOLE),
            Preset(
                "hmmt_feb25", "MathArena/hmmt_feb_2025", None, "train", 30,
                _PROBLEM, (("answer", plain),),
            ),
            Preset(
                "minerva_math", "math-ai/minervamath", None, "test", 272,
                _PROBLEM, (("answer", plain), ("solution", boxed_formula)),
            ),
            Preset(
                "olympiadbench", "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", 674,
                ("question", "problem"), (("final_answer", plain), ("answer", plain)),
                tolerance="error", context="context",
            ),
        )
    }
)  # fmt: skip
"""Every preset, by name."""


def preset_named(name: str) -> Preset:
    """The preset of that name, or InputError."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
