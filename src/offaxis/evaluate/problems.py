"""Problems to solve: loaded from files, the Hub or a preset, with their reference answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offaxis.checkpoint.digest import checksum
from offaxis.errors import InputError
from offaxis.evaluate.golds import Gold, plain
from offaxis.evaluate.presets import PRESETS, Preset, preset_named
from offaxis.evaluate.reading import HUB_DATA, Row, read_hub, read_rows

__all__ = ["Columns", "Problem", "ProblemSet", "load_problems"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem."""

    id: str
    prompt: str
    """Its text, without instructions and chat template."""
    answer: str
    """What the verifier needs to know beyond the response."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row that it came from."""
    tolerance: float | None = None
    """How far from a numerical answer a number may lie and still be right."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None where a preset, or the usual names, decide."""

    prompt: str | None = None
    answer: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class ProblemSet:
    """Problems with different ids, and where they came from."""

    problems: tuple[Problem, ...]
    source: str
    preset: Preset | None = None

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, problem in enumerate(self.problems, 1):
            if problem.id in seen:
                raise InputError(
                    f"{self.source}: problems {seen[problem.id]} and {number} share the id "
                    f"{problem.id!r}; make ids unique, or name another column with --id-column"
                )
            seen[problem.id] = number
        if not self.problems:
            raise InputError(f"{self.source}: no problem is left; raise --limit")

    @property
    def digest(self) -> str:
        """XXH3-128 of ids, prompts, answers and tolerances, in their order."""
        rows = [[one.id, one.prompt, one.answer, one.tolerance] for one in self.problems]
        return checksum(json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass"))


_USUAL = Preset(
    name="",
    hub="",
    config=None,
    split="",
    rows=0,
    prompts=("problem", "question", "prompt", "input"),
    answers=(("answer", plain), ("gold", plain), ("target", plain), ("output", plain)),
    ids=("id", "unique_id"),
)


def load_problems(
    source: str | Path,
    *,
    preset: str | None = None,
    columns: Columns | None = None,
    config: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> ProblemSet:
    """The problems of a file, a directory or Hub id that `datasets` opens, or of a preset by name.

    preset: the benchmark whose quirks `source` has; `source` may itself be a preset's name, which
    is then loaded from the Hub. limit: only the first so many rows. Raises InputError, naming file,
    line and column, for what cannot be used.
    """
    text, columns = str(source), columns or Columns()
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: give at least 1")
    path = Path(text).expanduser()
    chosen = preset_named(preset) if preset is not None else None
    if path.is_file():
        rows = read_rows(path, limit=limit)
    elif path.is_dir():
        rows = read_hub(str(path), config=config, split=split, limit=limit)
    elif text in PRESETS and chosen is None:
        chosen = PRESETS[text]
        rows = read_hub(
            chosen.hub, config=config or chosen.config, split=split or chosen.split, limit=limit
        )
    elif path.suffix.lower() not in (".jsonl", ".json", ".csv", ".parquet") and HUB_DATA.fullmatch(
        text
    ):
        rows = read_hub(text, config=config, split=split, limit=limit)
    else:
        raise InputError(
            f"{text}: no such file, and neither a Hub id (org/name[@revision]) nor a preset "
            f"({', '.join(PRESETS)})"
        )
    found = tuple(_problems(rows, chosen or _USUAL, columns))
    return ProblemSet(found, text, chosen)


def _problems(rows: Sequence[Row], preset: Preset, columns: Columns) -> list[Problem]:
    first = rows[0]
    prompt = _column(first, columns.prompt, preset.prompts, "prompt")
    answer = _column(first, columns.answer, tuple(dict(preset.answers)), "answer")
    named = [columns.id] if columns.id is not None else list(preset.ids)
    identity = next((one for one in named if one in first.values), None)
    if columns.id is not None and identity is None:
        raise InputError(_absent(first, f"no column {columns.id!r}"))
    found = []
    for number, row in enumerate(rows, 1):
        try:
            text = _prompt(row.values, prompt, preset.context)
            gold = _gold(row.values, answer, preset)
            key = str(number) if identity is None else _key(row.values, identity)
        except ValueError as error:
            raise InputError(f"{row.place}: {error}; mend the row or remove it") from error
        found.append(Problem(key, text, gold.answer, row.values, gold.tolerance))
    return found


def _absent(row: Row, what: str) -> str:
    return f"{row.place}: {what}; the columns are {', '.join(row.values)}"


def _column(row: Row, named: str | None, usual: tuple[str, ...], what: str) -> str:
    """The column that was named, or the first of the usual ones that the first row has."""
    if named is not None:
        if named not in row.values:
            raise InputError(_absent(row, f"no column {named!r}"))
        return named
    for name in usual:
        if row.values.get(name) is not None:
            return name
    what_is_there = (
        f"no {what} column (looked for {', '.join(usual)}), name it with --{what}-column"
    )
    raise InputError(_absent(row, what_is_there))


def _prompt(values: Mapping[str, Any], column: str, context: str | None) -> str:
    text = values.get(column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column {column} holds {text!r}, and a text is needed")
    before = values.get(context) if context is not None else None
    return f"{before}\n\n{text}" if isinstance(before, str) and before.strip() else text


def _gold(values: Mapping[str, Any], column: str, preset: Preset) -> Gold:
    try:
        return preset.gold(values, column)
    except ValueError as error:
        raise ValueError(f"column {column} {error}") from error


def _key(values: Mapping[str, Any], column: str) -> str:
    try:
        return plain(values.get(column))
    except ValueError as error:
        raise ValueError(f"column {column} {error}") from error
