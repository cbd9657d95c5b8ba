"""Rows of a table of problems, each with the place it came from: files, directories, the Hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from offaxis.errors import InputError

__all__ = ["FORMATS", "HUB_DATA", "Row", "read_hub", "read_rows"]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB_DATA = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""`org/name`, perhaps with `@revision`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, in words (`test.jsonl, line 3`)."""

    place: str
    values: dict[str, Any]


def read_rows(path: Path, *, limit: int | None = None) -> list[Row]:
    """At most `limit` rows of a .jsonl, .json (a list of objects), .csv, .tsv or .parquet file.

    CSV values stay strings, so `025` is not 25. Raises InputError, with the line, for what cannot
    be read.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"{path}: unknown ending {kind!r}; give one of {', '.join(FORMATS)}")
    try:
        if kind in (".jsonl", ".ndjson"):
            found = _json_lines(path)
        elif kind == ".json":
            found = _json_list(path)
        elif kind == ".parquet":
            found = _parquet(path)
        else:
            found = _separated(path, "\t" if kind == ".tsv" else ",")
        rows = list(islice(found, limit))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it, for example with iconv -t UTF-8"
        ) from error
    if not rows:
        raise InputError(f"{path}: holds no row; give a table of problems")
    return rows


def _object(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            f"{place}: holds {type(value).__name__}, and an object is needed, such as "
            '{"problem": "1+1=", "answer": "2"}'
        )
    return Row(place, value)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); mend or remove it") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                yield _object(_parsed(line, place), place)


def _json_list(path: Path) -> Iterator[Row]:
    table = _parsed(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(table, list):
        raise InputError(
            f"{path}: holds {type(table).__name__}, and a list of objects is needed; "
            "objects one a line go into a .jsonl file"
        )
    for number, value in enumerate(table, 1):
        yield _object(value, f"{path}, entry {number}")


def _separated(path: Path, delimiter: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for values in reader:
                place = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise InputError(
                        f"{place}: has not as many cells as the {len(reader.fieldnames or [])} "
                        "columns of the first line; quote cells that hold the separator"
                    )
                yield Row(place, dict(values))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}; mend the table") from error


def _parquet(path: Path) -> Iterator[Row]:
    import polars as pl

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); write it again") from error
    for number, values in enumerate(table.iter_rows(named=True), 1):
        yield Row(f"{path}, row {number}", values)


def read_hub(
    source: str, *, config: str | None, split: str | None, limit: int | None = None
) -> list[Row]:
    """The rows of one split of a Hub data set (`org/name[@revision]`) or of a directory.

    Through `datasets`, whose cache serves without a network what it holds. Without `split` the
    split `test` is taken, or the only one. Raises InputError where it cannot be had.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source}: reading it needs datasets: pip install 'offaxis[train]', or give a file"
        ) from error

    name, _, revision = source.partition("@")
    options = {"revision": revision} if revision else {}
    try:
        if split is None:
            names = datasets.get_dataset_split_names(name, config, **options)
            split = "test" if "test" in names else names[0]
            if len(names) > 1 and split != "test":
                raise InputError(
                    f"{source}: has the splits {', '.join(names)}; choose one with --split"
                )
        table = datasets.load_dataset(name, config, split=split, **options)
    except InputError:
        raise
    except Exception as error:  # datasets, the Hub and pyarrow raise many kinds
        raise InputError(
            f"{source} (config {config}, split {split}): cannot be loaded "
            f"({type(error).__name__}: {error}); without a network, load it once with one, or give "
            "a file with --data FILE --preset NAME"
        ) from error
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    return [Row(f"{source}, row {number}", dict(row)) for number, row in enumerate(table, 1)]
