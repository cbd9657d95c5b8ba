"""The parts of the delta's codecs: tokens, entropy coder, tables, contexts.

Each against a plain reference that follows the words of its docstring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offaxis.delta import contexts, rans, tables
from offaxis.delta.tokens import DIRECT, alphabet, count_tokens, tokenise, untokenise
from offaxis.delta.words import Words, words_of

BITS = (8, 16, 32, 64)
UNITS = 1 << rans.PRECISION
Array = np.ndarray


def kind(bits: int) -> np.dtype[Any]:
    return np.dtype(f"<u{bits // 8}")


@st.composite
def word_pairs(draw: st.DrawFn, most: int = 40) -> tuple[Array, Array]:
    """Base and tuned words of one width: anything at all, or a step of a few ULPs away."""
    dtype = kind(draw(st.sampled_from(BITS)))
    size = draw(st.integers(0, most))
    base, other = (draw(arrays(dtype, size)) for _ in "ab")
    steps = draw(arrays(np.int64, size, elements=st.integers(-9, 9)))
    near = draw(arrays(np.bool_, size))
    return base, np.where(near, base + steps.astype(dtype), other)


def reference_token(base: int, tuned: int, bits: int) -> tuple[int, list[int]]:
    """Token and raw bits, lowest first, in Python's integers."""
    d = (tuned - base) % (1 << bits)
    z = 2 * d if d < 1 << (bits - 1) else 2 * ((1 << bits) - d) - 1
    if z < 12:
        return z, []
    k = z.bit_length() - 1
    return 12 + 2 * (k - 3) + (z >> (k - 1) & 1), [z >> i & 1 for i in range(k - 1)]


def tokenised(base: Array, tuned: Array) -> tuple[Array, Array]:
    tokens = np.empty(base.size, dtype=np.uint8)
    extra = np.zeros(2 + base.nbytes // 4, dtype=np.uint32)
    return tokens, extra[: tokenise(base, tuned, tokens, extra)]


@settings(deadline=None)
@given(word_pairs())
def test_tokens_are_those_of_the_reference_and_give_the_words_back(
    pair: tuple[Array, Array],
) -> None:
    base, tuned = pair
    tokens, extra = tokenised(base, tuned)
    bits = 8 * base.itemsize
    found = [reference_token(int(b), int(t), bits) for b, t in zip(base, tuned, strict=True)]
    assert tokens.tolist() == [token for token, _ in found]
    stream = [bit for _, raw in found for bit in raw]
    assert extra.size == -(-len(stream) // 32)
    written = sum(bit << i for i, bit in enumerate(stream))
    assert int.from_bytes(extra.tobytes(), "little") == written
    assert (tokens < alphabet(bits)).all()
    back = np.empty_like(tuned)
    assert untokenise(base, tokens, extra, back) == extra.size
    assert np.array_equal(back, tuned)
    if extra.size:
        assert untokenise(base, tokens, extra[:-1], back) == -1


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_steps_use_the_last_tokens(bits: int) -> None:
    base = np.zeros(4, dtype=kind(bits))
    half = 1 << (bits - 1)
    tuned = np.array([half, half - 1, half // 2, DIRECT // 2], dtype=kind(bits))
    tokens, _ = tokenised(base, tuned)
    assert tokens[0] == tokens[1] == alphabet(bits) - 1
    assert tokens[3] == DIRECT + 1, "12 is 1100 in binary: the bit below the leading one is 1"


@pytest.mark.parametrize("size", [0, 1, 2, 1001])
def test_counts_are_a_histogram(size: int) -> None:
    rng = np.random.default_rng(size)
    where, tokens = (rng.integers(0, most, size).astype(np.uint8) for most in (5, 9))
    counts = np.full((5, 9), 7, dtype=np.int64)
    count_tokens(where, tokens, counts)
    expected = np.full((5, 9), 7)
    np.add.at(expected, (where, tokens), 1)
    assert np.array_equal(counts, expected)


def random_table(rng: np.random.Generator, rows: int, tokens: int) -> tuple[Array, Array]:
    """Frequencies of any skew that sum to 2**14, some of them 0, and their starts."""
    found = np.zeros((rows, tokens), dtype=np.uint32)
    for row in found:
        used = rng.permutation(tokens)[: rng.integers(1, tokens + 1)]
        cuts = np.sort(rng.choice(np.arange(1, UNITS), used.size - 1, replace=False))
        row[used] = np.diff(np.concatenate([[0], cuts, [UNITS]]))
    return found, (np.cumsum(found, axis=1) - found).astype(np.uint32)


def drawn(rng: np.random.Generator, frequency: Array, size: int) -> tuple[Array, Array]:
    """Contexts, and tokens that may occur in them."""
    where = rng.integers(0, len(frequency), size).astype(np.uint8)
    tokens = [rng.choice(np.flatnonzero(frequency[c])) for c in where]
    return where, np.array(tokens, dtype=np.uint8)


def reference_decode(
    coded: rans.Coded, where: Array, frequency: Array, start: Array
) -> tuple[list[int], list[int], int]:
    """Tokens, final states and words read, by the rules of `rans`, in Python's integers."""
    states, at, out = [int(x) for x in coded[0]], 0, []
    for i, c in enumerate(where):
        x = states[i % rans.STATES]
        slot = x % UNITS
        token = int(np.searchsorted(start[c], slot, side="right")) - 1
        while frequency[c, token] == 0:
            token -= 1
        x = int(frequency[c, token]) * (x // UNITS) + slot - int(start[c, token])
        if x < 1 << 16:
            x, at = (x << 16) + int(coded[1][at]), at + 1
        states[i % rans.STATES] = x
        out.append(token)
    return out, states, at


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 400])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 6), tokens=st.sampled_from([1, 2, 9, 134]))
def test_symbols_come_back_from_any_table(size: int, seed: int, rows: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    frequency, start = random_table(rng, rows, tokens)
    where, symbols = drawn(rng, frequency, size)
    coded = rans.encode(where, symbols, frequency, start)
    slots = rans.lookup(frequency)
    found = rans.decode(coded, where, frequency, start, slots)
    assert found is not None
    assert found.tolist() == symbols.tolist()
    expected, states, used = reference_decode(coded, where, frequency, start)
    assert expected == symbols.tolist()
    assert states == [1 << 16] * rans.STATES
    assert used == coded[1].size
    longer = (coded[0], np.append(coded[1], np.uint16(0)))
    assert rans.decode(longer, where, frequency, start, slots) is None
    if used:
        shorter = (coded[0], coded[1][:-1])
        assert rans.decode(shorter, where, frequency, start, slots) is None


@pytest.mark.parametrize("size", [1, 5, 70_000])
def test_a_certain_token_costs_nothing_and_an_unlikely_one_fourteen_bits(size: int) -> None:
    frequency = np.array([[0, UNITS, 0], [UNITS - 1, 0, 1]], dtype=np.uint32)
    start = (np.cumsum(frequency, axis=1) - frequency).astype(np.uint32)
    slots = rans.lookup(frequency)
    for context, token, bits in ((0, 1, 0.0), (1, 2, 14.0)):
        where = np.full(size, context, dtype=np.uint8)
        symbols = np.full(size, token, dtype=np.uint8)
        coded = rans.encode(where, symbols, frequency, start)
        assert abs(16 * coded[1].size - bits * size) <= 16 * rans.STATES
        found = rans.decode(coded, where, frequency, start, slots)
        assert found is not None
        assert np.array_equal(found, symbols)


def test_a_wrong_word_is_seen_by_the_states_at_the_end() -> None:
    rng = np.random.default_rng(3)
    frequency, start = random_table(rng, 4, 20)
    where, symbols = drawn(rng, frequency, 4000)
    states, words = rans.encode(where, symbols, frequency, start)
    slots, seen = rans.lookup(frequency), 0
    for at in range(0, words.size, 9):
        wrong = words.copy()
        wrong[at] ^= 1 << (at % 16)
        seen += rans.decode((states, wrong), where, frequency, start, slots) is None
    assert seen >= 0.99 * len(range(0, words.size, 9))


def conditional_bits(where: Array, tokens: Array) -> float:
    """n H(token | context) of what was drawn, in bits."""
    counts = np.zeros((int(where.max()) + 1, int(tokens.max()) + 1))
    np.add.at(counts, (where, tokens), 1)
    share = counts / counts.sum(axis=1, keepdims=True)
    return float(-(counts * np.log2(np.where(share > 0, share, 1))).sum())


def planted_symbols(size: int) -> tuple[Array, Array]:
    """Eight contexts in which 2 % to 95 % of the symbols are not 0, mostly 1 and 2."""
    rng = np.random.default_rng(0)
    where = rng.integers(0, 8, size).astype(np.uint8)
    moved = np.geomspace(0.02, 0.95, 8)[where]
    steps = np.minimum(rng.geometric(0.6, size), 14)
    return where, np.where(rng.random(size) < moved, steps, 0).astype(np.uint8)


def test_the_payload_is_within_one_percent_of_the_conditional_entropy() -> None:
    where, tokens = planted_symbols(1 << 18)
    counts = np.zeros((8, 20), dtype=np.int64)
    count_tokens(where, tokens, counts)
    first, codes, _ = tables.fit(counts)
    found = tables.frequencies(codes)
    assert found is not None
    table = np.repeat(np.arange(first.size), np.diff(np.append(first, 8))).astype(np.uint8)
    states, words = rans.encode(table[where], tokens, *found)
    entropy = conditional_bits(where, tokens) / 8
    assert entropy <= states.nbytes + words.nbytes <= 1.01 * entropy + 200


COUNTS = {
    "zeros": np.zeros((3, 22)),
    "one context": [[5, 0, 1]],
    "one token": [[9], [0], [1]],
    "even": np.full((2, 134), 10),
    "rare beside common": [[10**6, *[1] * 100]],
    "huge": [[1 << 40, 1 << 33, 1], [1 << 31, 0, 1 << 31]],
    "many contexts": [[1000 * (i % 7 + 1), 1000 * (i % 5), i] for i in range(512)],
}


@pytest.mark.parametrize("name", COUNTS)
def test_frequencies_sum_and_leave_no_token_out(name: str) -> None:
    counts = np.asarray(COUNTS[name], dtype=np.int64)
    found = tables.frequencies(tables.quantise(counts))
    assert found is not None
    frequency, start = found
    assert (frequency.sum(axis=1) == UNITS).all()
    assert (frequency[counts > 0] >= 1).all()
    assert (frequency[(counts == 0) & counts.any(axis=1, keepdims=True)] == 0).all()
    assert np.array_equal(start, np.cumsum(frequency, axis=1) - frequency)
    empty = ~counts.any(axis=1)
    assert (frequency[empty, 0] == UNITS).all()


@pytest.mark.parametrize("name", COUNTS)
def test_a_quantised_share_is_within_a_sixteenth_of_an_octave(name: str) -> None:
    """One code is an eighth of an octave; the smallest shares meet the last code."""
    counts = np.asarray(COUNTS[name], dtype=np.int64)
    codes = tables.quantise(counts).astype(float)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    seen = share > 2.0**-15
    error = (codes - 1) / 8 + np.log2(np.where(seen, share, 1))
    assert np.abs(error[seen]).max(initial=0) <= 1 / 16 + 1e-6


@settings(deadline=None, max_examples=60)
@given(arrays(np.int64, st.tuples(st.integers(1, 90), st.integers(1, 24)),
              elements=st.integers(0, 2**20), fill=st.just(0)))  # fmt: skip
@example(np.asarray(COUNTS["many contexts"], dtype=np.int64))
def test_fitted_tables_serve_every_context(counts: Array) -> None:
    first, codes, _ = tables.fit(counts)
    assert first[0] == 0
    assert (np.diff(first) > 0).all()
    assert first[-1] < len(counts)
    assert len(codes) == first.size <= tables.MOST_TABLES
    found = tables.frequencies(codes)
    assert found is not None
    frequency = np.zeros((first.size, counts.shape[1]))
    frequency[:, : codes.shape[1]] = found[0]
    served = np.repeat(frequency, np.diff(np.append(first, len(counts))), axis=0)
    assert (served[counts > 0] >= 1).all()


@pytest.mark.parametrize("name", COUNTS)
def test_entropy_is_that_of_floats(name: str) -> None:
    """In units of 2**-16 bit; each logarithm may lack one unit a symbol."""
    for row in np.asarray(COUNTS[name], dtype=np.int64):
        seen = row[row > 0].astype(float)
        exact = float((seen * np.log2(seen.sum() / seen)).sum()) * 2.0**16
        assert abs(tables.entropy(row) - exact) <= seen.sum() + 1e-9 * exact


def test_contexts_that_differ_keep_tables_of_their_own() -> None:
    counts = np.array([[9000, 1000], [9000, 1000], [100, 9900], [9000, 1000]], dtype=np.int64)
    assert tables.fit(counts)[0].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 3)), [[0, 0]], [[1, 128]], [[1], [0]], [[255]]], ids=str
)
def test_what_cannot_be_a_table_is_none(codes: Any) -> None:
    assert tables.frequencies(np.asarray(codes, dtype=np.uint8)) is None


FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")


def exponents(base: Array, words: Words) -> Array:
    return (base.astype(object) >> words.shift) % words.exponents


@pytest.mark.parametrize("dtype", [*FLOATS, "I8", "I64"])
def test_a_plain_context_is_the_exponent(dtype: str) -> None:
    words = words_of(dtype)
    base = np.frombuffer(np.random.default_rng(1).bytes(8 * 333), words.dtype)
    table = np.random.default_rng(2).integers(0, 60, words.exponents).astype(np.uint8)
    expected = table[exponents(base, words).astype(int)]
    assert np.array_equal(contexts.plain(base, words, table), expected)


@pytest.mark.parametrize(("start", "size"), [(0, 35), (3, 32), (6, 1), (7, 28), (34, 1), (9, 20)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_shifted_context_is_the_formula(dtype: str, start: int, size: int) -> None:
    """Five rows of seven; a chunk may begin and end in the middle of a row."""
    rng = np.random.default_rng(start)
    words, limit = words_of(dtype), contexts.SHIFT_LIMIT
    rows, columns = (rng.integers(-limit, limit + 1, n).astype(np.int8) for n in (5, 7))
    rows[:2], columns[:2] = (limit, -limit), (limit, -limit)
    table = rng.integers(0, 60, 2 * words.exponents).astype(np.uint8)
    base = np.frombuffer(rng.bytes(35 * words.bits // 8), words.dtype)
    k = 2 * exponents(base, words).astype(int).reshape(5, 7) - rows[:, None].astype(int) - columns
    expected = table[np.clip(k, 0, 2 * words.exponents - 1)].reshape(-1)[start : start + size]
    chosen = base[start : start + size]
    where = contexts.offsets((rows, columns), words)
    found = contexts.shifted(chosen, start, words, where, contexts.spread(table))
    assert np.array_equal(found, expected)


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 42)), min_size=1))
def test_shifts_are_twice_the_logarithm_of_the_ratio(sums: list[tuple[int, int]]) -> None:
    moved, expected = np.array(sums, dtype=np.int64).T
    ratio = (moved * 4096.0 + 8192) / (expected + 8192)
    exact = np.clip(2 * np.log2(ratio), -contexts.SHIFT_LIMIT, contexts.SHIFT_LIMIT)
    found = contexts.shifts_of(moved, expected)
    assert found.dtype == np.int8
    assert np.abs(found - exact).max() <= 0.5 + 0.01
