"""A manifest: a small table of (base, tuned) pairs with the user's own columns.

CSV, TSV, JSON lines or JSON, told apart by the ending. The columns `base` and `tuned` are required,
`name` is optional, all others are carried along as they are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.checkpoint.hub import HUB_ID
from offaxis.comparison.plan import distinct
from offaxis.errors import CheckpointError, InputError, OffaxisError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["OWN", "Manifest", "Row", "read_manifest"]

OWN = ("name", "base", "tuned")
"""Columns with a meaning; every other is the user's."""

Cells = dict[str, Any]

_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Row:
    """One pair: where it stands in the file, its name, and its cells as they were written."""

    line: int
    name: str
    cells: Mapping[str, Any]
    """Every column of the manifest, in its order; an empty or absent cell is None."""

    @property
    def base(self) -> str:
        return str(self.cells["base"])

    @property
    def tuned(self) -> str:
        return str(self.cells["tuned"])

    @property
    def extra(self) -> Cells:
        """The user's own columns."""
        return {column: cell for column, cell in self.cells.items() if column not in OWN}


@dataclass(frozen=True)
class Manifest:
    """The pairs of one manifest, in its order, each with a name of its own."""

    path: str
    """The argument that named it, verbatim."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @contextmanager
    def at(self, row: Row) -> Iterator[None]:
        """Errors inside the block name the line of `row`."""
        try:
            yield
        except OffaxisError as error:
            raise type(error)(f"{self.path}, line {row.line}: {error}") from error
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self.path}, line {row.line}: {error}; correct the path there"
            ) from error

    def locate(self, text: str) -> tuple[str, bool]:
        """What a cell names, and whether it lies on the Hub.

        A path is taken from the manifest's directory, and wins over a Hub id, which stays as it
        is. Raises CheckpointError where it is neither.
        """
        home = Path(self.path).expanduser().parent
        path = home / Path(text).expanduser()
        if path.exists():
            return str(path), False
        if HUB_ID.fullmatch(text) is None:
            raise CheckpointError(
                f"{text}: no such file or directory (looked for {path}); give a path from the "
                "manifest's directory, an absolute one, or a Hub id (org/name[@revision])"
            )
        if Path(text).exists():
            raise CheckpointError(
                f"{text}: is in the working directory, but not in the manifest's ({home}); give "
                "its path from there, or an absolute one"
            )
        return text, True

    def frame(self) -> pl.DataFrame:
        """The manifest as a table, led by `name` where the manifest has no such column."""
        import polars as pl

        own = [] if "name" in self.columns else [pl.Series("name", [r.name for r in self.rows])]
        return pl.DataFrame(
            own + [_series(c, self._cells(c)) for c in self.columns],
        )

    def _cells(self, column: str) -> list[Any]:
        if column == "name":
            return [row.name for row in self.rows]
        return [row.cells[column] for row in self.rows]


def _series(name: str, cells: Sequence[Any]) -> pl.Series:
    """One kind of value in a whole column keeps its type; else each value is its JSON text."""
    import polars as pl

    kinds = {type(cell) for cell in cells if cell is not None}
    fits = all(abs(cell) < 2**63 for cell in cells if type(cell) is int)
    types: list[tuple[set[type], Any]] = [
        ({str}, pl.String),
        ({bool}, pl.Boolean),
        ({int}, pl.Int64),
        ({int, float}, pl.Float64),
    ]
    for allowed, kind in types:
        if kinds <= allowed and (fits or int not in allowed):
            return pl.Series(name, cells, dtype=kind, strict=False)
    text = [c if c is None or isinstance(c, str) else _json_text(c) for c in cells]
    return pl.Series(name, text, dtype=pl.String)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """The manifest in the file `path`: `.csv`, `.tsv`, `.jsonl` (`.ndjson`) or `.json`.

    CSV and TSV have a header, and cells that are text; spaces after a comma are skipped. JSON
    lines has one object a line, JSON one array of objects. Empty lines are skipped. A pair without
    a name is called by its `tuned`, numbered where that repeats.

    Raises InputError, with the line, where the file is not such a table, a pair lacks its base or
    tuned, or two pairs have one name.
    """
    text = fspath(path)
    ending = Path(text).suffix.lower()
    read = _READERS.get(ending)
    if read is None:
        raise InputError(
            f"{text}: a manifest is {', '.join(_READERS)}, told by its ending; rename or convert it"
        )
    found = [
        (line, cells)
        for line, cells in read(text, _content(text))
        if any(cell is not None for cell in cells.values())
    ]
    if not found:
        raise InputError(f"{text}: holds no pair; give each a line with its base and tuned")
    columns = tuple(dict.fromkeys(column for _, cells in found for column in cells))
    _check_columns(text, columns)
    rows = [(line, {c: cells.get(c) for c in columns}) for line, cells in found]
    for line, cells in rows:
        _check_row(f"{text}, line {line}", cells)
    names = _names(text, rows)
    return Manifest(
        text,
        columns,
        tuple(Row(line, name, cells) for (line, cells), name in zip(rows, names, strict=True)),
    )


def _content(path: str) -> str:
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error


def _check_columns(path: str, columns: Sequence[str]) -> None:
    for column in ("base", "tuned"):
        if column not in columns:
            seen = ", ".join(map(repr, columns))
            raise InputError(
                f"{path}: has no column {column!r}, only {seen}; each pair needs its base and tuned"
            )


def _check_row(where: str, cells: Cells) -> None:
    for column in ("base", "tuned"):
        cell = cells[column]
        if not isinstance(cell, str) or not cell.strip():
            raise InputError(
                f"{where}: no {column}; write a directory, a file or a Hub id as text there"
            )
        cells[column] = cell.strip()
    name = cells.get("name")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise InputError(f"{where}: the name {name!r} is no text; write one, or leave it empty")
    try:
        _json_text(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: holds half of a surrogate pair, which is no character; correct it"
        ) from error


def _names(path: str, rows: Sequence[tuple[int, Cells]]) -> list[str]:
    """Given names as they are; others by `tuned`, a repeated one numbered."""
    wanted = [cells.get("name") or cells["tuned"] for _, cells in rows]
    given = {cells["name"] for _, cells in rows if cells.get("name")}
    first: dict[str, int] = {}
    for (line, _), name in zip(rows, wanted, strict=True):
        if name in first and name in given:
            raise InputError(
                f"{path}, line {line}: the name {name!r} is that of line {first[name]} too; give "
                "each pair its own"
            )
        first.setdefault(name, line)
    return distinct(wanted)


# ------------------------------------------------------------------------------------ the formats


def _csv(delimiter: str) -> Callable[[str, str], Iterator[tuple[int, Cells]]]:
    def read(path: str, text: str) -> Iterator[tuple[int, Cells]]:
        header: list[str] | None = None
        for line, cells in _records(path, text, delimiter):
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(path, line, header)
            elif len(cells) != len(header):
                raise InputError(
                    f"{path}, line {line}: {len(cells)} cells where the header has {len(header)}; "
                    "put cells that hold the separator in double quotes"
                )
            else:
                yield line, {c: cell or None for c, cell in zip(header, cells, strict=True)}

    return read


def _records(path: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which each begins; those without any text are left out."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}; correct the quotes there") from error


def _check_header(path: str, line: int, header: Sequence[str]) -> None:
    for place, column in enumerate(header):
        if not column:
            raise InputError(
                f"{path}, line {line}: column {place + 1} has no name; name or drop it"
            )
        if column in header[:place]:
            raise InputError(f"{path}, line {line}: two columns {column!r}; rename one")


def _json_lines(path: str, text: str) -> Iterator[tuple[int, Cells]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if part.strip():
            yield line, _object(f"{path}, line {line}", _parse(path, part, line))


def _json_array(path: str, text: str) -> Iterator[tuple[int, Cells]]:
    whole = _parse(path, text, 1)
    if not isinstance(whole, list):
        raise InputError(f"{path}: is no JSON array; write one with an object for each pair")
    decoder = json.JSONDecoder()
    place = text.index("[") + 1
    for value in whole:
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
        line = text.count("\n", 0, place) + 1
        _, place = decoder.raw_decode(text, place)
        yield line, _object(f"{path}, line {line}", value)


def _parse(path: str, text: str, line: int) -> Any:
    """JSON without NaN, infinities and repeated names. `line` is where `text` begins."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        at = line + error.lineno - 1 if isinstance(error, json.JSONDecodeError) else line
        what = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{path}, line {at}: is no JSON ({what}); correct it") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(text)
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> Cells:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return cells


def _object(where: str, value: Any) -> Cells:
    if not isinstance(value, dict):
        raise InputError(f'{where}: is no JSON object; write {{"base": ..., "tuned": ...}}')
    if "" in value:
        raise InputError(f"{where}: a column has no name; name or drop it")
    return {column: None if cell == "" else cell for column, cell in value.items()}


_READERS: dict[str, Callable[[str, str], Iterator[tuple[int, Cells]]]] = {
    ".csv": _csv(","),
    ".tsv": _csv("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_array,
}
