"""The entropy coder alone: offaxis.delta.rans beside constriction's ANS, one thread each.

Both code the same tokens in the same contexts with the same frequencies: those that the codec
`small` chooses for each tensor. rans changes its table from symbol to symbol. constriction codes a
run of symbols with one model, so the tokens of a tensor are first sorted by context (a counting
sort, compiled) and widened to int32, which it takes, and after decoding put back; its figures stand
with and without that. Raw bits of large steps, which both would copy, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from delta_pairs import WORDS, Tensor
from offaxis.delta import rans, small
from offaxis.delta.tokens import tokenise

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """The symbols of one tensor."""

    contexts: Bytes
    tokens: Bytes
    coder: small.Coder


@dataclass
class Coded:
    """What one coder did: bytes, and seconds by phase."""

    name: str
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - since
        return now


def _contexts(tensor: Tensor, model: small.Model) -> Bytes:
    """The table of each entry, as docs/delta-format.md has it."""
    exponents = (tensor.base >> np.uint16(WORDS.shift)) & np.uint16(WORDS.exponents - 1)
    size = WORDS.exponents
    if model.shifts is not None:
        rows, columns = (side.astype(np.int16) for side in model.shifts)
        size *= 2
        wide = 2 * exponents.astype(np.int16).reshape(rows.size, columns.size)
        exponents = np.clip(wide - rows[:, None] - columns, 0, size - 1).reshape(-1)
    lengths = np.diff(np.append(model.first, size))
    table_of = np.repeat(np.arange(model.first.size, dtype=np.uint8), lengths)
    out: Bytes = table_of[exponents]
    return out


def jobs(tensors: Sequence[Tensor]) -> list[Job]:
    out = []
    for tensor in tensors:
        model, changed = small.analyse(tensor.base, tensor.tuned, WORDS, tensor.shape)
        if not changed:
            continue
        coder = small.Coder(model, WORDS)
        tokens = np.empty(tensor.base.size, dtype=np.uint8)
        extra = np.empty(2 + tensor.base.nbytes // 4, dtype=np.uint32)
        tokenise(tensor.base, tensor.tuned, tokens, extra)
        out.append(Job(_contexts(tensor, model), tokens, coder))
    return out


def run_rans(work: Sequence[Job]) -> Coded:
    out = Coded("offaxis.delta.rans")
    for job in work:
        frequency, start = job.coder.frequency, job.coder.start
        for at in range(0, job.tokens.size, small.CHUNK):
            span = slice(at, at + small.CHUNK)
            since = time.perf_counter()
            coded = rans.encode(job.contexts[span], job.tokens[span], frequency, start)
            since = out.add("encode", since)
            if at == 0:
                table = rans.lookup(frequency)
            tokens = rans.decode(coded, job.contexts[span], frequency, start, table)
            out.add("decode", since)
            if tokens is None or not np.array_equal(tokens, job.tokens[span]):
                raise SystemExit("rans gave other tokens back")
            out.bytes += coded[0].nbytes + coded[1].nbytes
    return out


@njit(nogil=True, cache=True)
def _ends(known: Any, number: int) -> Any:
    """Where each context's symbols begin in the sorted order; one more entry: their number."""
    ends = np.zeros(number + 1, dtype=np.int64)
    for context in known:
        ends[context + 1] += 1
    return np.cumsum(ends)


@njit(nogil=True, cache=True)
def _sort(known: Any, tokens: Any, ends: Any, out: Any) -> None:
    at = ends.copy()
    for i in range(known.size):
        out[at[known[i]]] = tokens[i]
        at[known[i]] += 1


@njit(nogil=True, cache=True)
def _put_back(known: Any, grouped: Any, ends: Any, out: Any) -> None:
    at = ends.copy()
    for i in range(known.size):
        out[i] = grouped[at[known[i]]]
        at[known[i]] += 1


def run_constriction(work: Sequence[Job]) -> Coded | None:
    """None where constriction is not installed."""
    try:
        import constriction
    except ImportError:
        return None
    categorical, ans = constriction.stream.model.Categorical, constriction.stream.stack.AnsCoder
    out = Coded("constriction ANS")
    for job in work:
        number = len(job.coder.frequency)
        models = [categorical(row / row.sum(), perfect=False)
                  for row in job.coder.frequency.astype(np.float32)]  # fmt: skip
        since = time.perf_counter()
        ends = _ends(job.contexts, number)
        grouped = np.empty(job.tokens.size, dtype=np.int32)
        _sort(job.contexts, job.tokens, ends, grouped)
        since = out.add("group", since)
        coder = ans()
        for index in reversed(range(number)):
            coder.encode_reverse(grouped[ends[index] : ends[index + 1]], models[index])
        words = coder.get_compressed()
        since = out.add("encode", since)
        reader = ans(words)
        for index in range(number):
            count = int(ends[index + 1] - ends[index])
            grouped[ends[index] : ends[index + 1]] = reader.decode(models[index], count)
        since = out.add("decode", since)
        tokens = np.empty_like(job.tokens)
        _put_back(job.contexts, grouped, _ends(job.contexts, number), tokens)
        out.add("put back", since)
        if not np.array_equal(tokens, job.tokens):
            raise SystemExit("constriction gave other tokens back")
        out.bytes += words.nbytes
    return out


@dataclass(frozen=True)
class CoderRow:
    """bytes, and seconds of coding and decoding all symbols of a pair by one thread."""

    name: str
    bytes: int
    encode: float
    decode: float


def coder_rows(tensors: Sequence[Tensor], repeats: int) -> list[CoderRow]:
    """The best of several runs, the two coders by turns."""
    work = jobs(tensors)
    if not work:
        return []
    best: dict[str, Coded] = {}
    for _ in range(repeats):
        for made in (run_rans(work), run_constriction(work)):
            if made is None:
                continue
            held = best.setdefault(made.name, made)
            for phase, seconds in made.seconds.items():
                held.seconds[phase] = min(seconds, held.seconds[phase])
    rows = []
    for made in best.values():
        spent = made.seconds
        if "group" in spent:
            rows.append(CoderRow(f"{made.name}, sorting counted", made.bytes,
                                 spent["group"] + spent["encode"],
                                 spent["decode"] + spent["put back"]))  # fmt: skip
            rows.append(CoderRow(f"{made.name}, sorting not counted", made.bytes,
                                 spent["encode"], spent["decode"]))  # fmt: skip
        else:
            rows.append(CoderRow(made.name, made.bytes, spent["encode"], spent["decode"]))
    return rows
