"""What the *small* codec could know about an entry before it is coded, and what each is worth.

    python benchmarks/contexts.py BASE TUNED [--before PREVIOUS]

For every matrix of two bfloat16 checkpoints, the bytes that an adaptive coder needs for the tokens
(`offaxis.delta.tokens`) under each context: the code length of a Krichevsky-Trofimov estimator
(prior 1/20 a token), which pays for learning the probabilities and does not depend on the order.
Side information is added where a reader would need it. PREVIOUS is the checkpoint before BASE, for
the context "how the entry moved last time".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

import offaxis
from offaxis.delta.tokens import tokens_alone

Ints = npt.NDArray[np.int64]
_TOKENS, _PRIOR = 38, 0.05


class Matrix:
    """One matrix on both sides, and before: bit patterns, tokens, exponents, signs."""

    def __init__(self, base: Ints, tuned: Ints, before: Ints | None) -> None:
        self.base, self.before = base, before
        self.moved = _signed(tuned - base)
        tokens = tokens_alone(base.astype(np.uint16).ravel(), tuned.astype(np.uint16).ravel())
        self.tokens: Ints = tokens.astype(np.int64)
        self.exponent = (base >> 7) & 255
        self.sign = base >> 15

    def values(self) -> npt.NDArray[np.float64]:
        """The displacement in real terms, (m, n), each entry's ULP taken from its base."""
        ulp = np.exp2(np.maximum(self.exponent, 1) - 127.0 - 7.0)
        return np.where(self.sign == 1, -self.moved, self.moved) * ulp


def _signed(difference: Ints) -> Ints:
    return ((difference + 32768) & 0xFFFF) - 32768


def _bits(context: Ints, tokens: Ints) -> float:
    """Bits of the tokens under an adaptive estimator in each context."""
    lgamma = torch.lgamma
    _, context = np.unique(context.ravel(), return_inverse=True)
    size = int(context.max()) + 1
    counts = np.bincount(context * _TOKENS + tokens, minlength=size * _TOKENS)
    table = torch.from_numpy(counts.reshape(size, _TOKENS)).double()
    whole = torch.tensor(_TOKENS * _PRIOR, dtype=torch.float64)
    prior = torch.tensor(_PRIOR, dtype=torch.float64)
    nats = (lgamma(table.sum(1) + whole) - lgamma(whole)).sum()
    nats = nats - (lgamma(table + prior) - lgamma(prior)).sum()
    return float(nats) / float(np.log(2))


def _entropy(values: Ints) -> float:
    share = np.unique(values, return_counts=True)[1] / values.size
    return float(-(share * np.log2(share)).sum() * values.size)


def _shifted(one: Matrix) -> tuple[Ints, float]:
    """The codec's: exponent less what its row and its column moved, in half octaves."""
    moved = np.minimum(np.abs(one.moved), 8)
    seen = np.bincount(one.exponent.ravel(), minlength=256)
    mean = np.bincount(one.exponent.ravel(), moved.ravel(), 256) / np.maximum(seen, 1)
    expected = mean[one.exponent]
    row, column = (
        np.round(2 * np.log2((moved.sum(axis) + 2) / (expected.sum(axis) + 2))).astype(np.int64)
        for axis in (1, 0)
    )
    return 2 * one.exponent - row[:, None] - column[None, :], _entropy(row) + _entropy(column)


def _low_rank(one: Matrix, rank: int = 1) -> tuple[Ints, float]:
    """The exponent, and what a rank-1 picture of the update (7 bits a number) predicts, in ULPs."""
    left, sigma, right = np.linalg.svd(one.values(), full_matrices=False)
    predicted = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    ulp = np.exp2(np.maximum(one.exponent, 1) - 127.0 - 7.0)
    steps = np.where(one.sign == 1, -predicted, predicted) / ulp
    level = np.sign(steps) * np.minimum(np.round(2 * np.log2(1 + 8 * np.abs(steps))), 6)
    side = 7.0 * rank * sum(one.base.shape)
    return one.exponent * 13 + level.astype(np.int64) + 6, side


def _neighbours(one: Matrix) -> tuple[Ints, float]:
    moved = np.minimum(np.abs(one.moved), 2)
    left, above = np.zeros_like(moved), np.zeros_like(moved)
    left[:, 1:], above[1:] = moved[:, :-1], moved[:-1]
    return one.exponent * 9 + left * 3 + above, 0.0


def _previous(one: Matrix) -> tuple[Ints, float]:
    assert one.before is not None
    last = np.clip(_signed(one.base - one.before), -2, 2)
    return one.exponent * 5 + last + 2, 0.0


CONTEXTS: dict[str, Callable[[Matrix], tuple[Ints, float]]] = {
    "nothing": lambda one: (np.zeros_like(one.exponent), 0.0),
    "exponent": lambda one: (one.exponent, 0.0),
    "exponent, sign": lambda one: (one.exponent * 2 + one.sign, 0.0),
    "exponent, upper mantissa bit": lambda one: (one.base >> 6 & 511, 0.0),
    "exponent, left and upper neighbour": _neighbours,
    "exponent, row and column shifts": _shifted,
    "exponent, rank-1 prediction": _low_rank,
    "exponent, previous step": _previous,
}


def _matrices(base: Path, tuned: Path, before: Path | None) -> Iterator[Matrix]:
    sides = [offaxis.open_checkpoint(path) for path in (base, tuned, before) if path]
    for name, spec in sides[0].specs.items():
        if len(spec.shape) == 2 and min(spec.shape) >= 32:
            codes = [side[name].bfloat16().view(torch.int16).long().numpy() & 0xFFFF
                     for side in sides]  # fmt: skip
            yield Matrix(codes[0], codes[1], codes[2] if before else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--before", type=Path)
    chosen = parser.parse_args()
    names = [name for name in CONTEXTS if chosen.before or name != "exponent, previous step"]
    total, changed, entries = dict.fromkeys(names, 0.0), 0, 0
    for one in _matrices(chosen.base, chosen.tuned, chosen.before):
        entries, changed = entries + one.moved.size, changed + int((one.moved != 0).sum())
        for name in names:
            context, side = CONTEXTS[name](one)
            total[name] += _bits(context, one.tokens) + side
    print(f"{entries} entries of matrices, {changed / entries:.2%} changed; bytes of tokens:")
    table = pl.DataFrame(
        {
            "context": names,
            "bytes": [round(total[name] / 8) for name in names],
            "against exponent": [total[name] / total["exponent"] - 1 for name in names],
        }
    )
    with pl.Config(tbl_rows=20, fmt_str_lengths=40, tbl_hide_dataframe_shape=True):
        print(table)


if __name__ == "__main__":
    main()
