"""The tables of all `small` tensors of a file, in one string of bytes (docs/delta-format.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from offaxis.delta.small import Model
from offaxis.delta.tables import MOST_TABLES

__all__ = ["read_models", "write_models"]


def write_models(models: Iterable[Model]) -> bytes:
    """For each: u8 tables, u8 tokens, u16 first context of each table, codes.

    The codes of a table are written as differences (modulo 256) from those of the table before.
    """
    out = []
    for model in models:
        steps = np.diff(model.codes, axis=0, prepend=np.zeros((1, model.codes.shape[1]), np.uint8))
        out += [bytes(model.codes.shape), model.first.astype("<u2").tobytes(), steps.tobytes()]
    return b"".join(out)


def read_models(data: bytes) -> Iterator[Model]:
    """The models in order, without their shifts. Raises ValueError where the bytes end early."""
    at = 0
    while at < len(data):
        tables, tokens = (*data[at : at + 2], 0)[:2]
        stop = at + 2 + 2 * tables + tables * tokens
        if not 0 < tables <= MOST_TABLES or tokens == 0 or stop > len(data):
            raise ValueError("the probability tables end early or are not tables")
        first = np.frombuffer(data, "<u2", tables, at + 2).astype(np.int64)
        steps = np.frombuffer(data, np.uint8, tables * tokens, at + 2 + 2 * tables)
        yield Model(first, np.add.accumulate(steps.reshape(tables, tokens), axis=0, dtype=np.uint8))
        at = stop
