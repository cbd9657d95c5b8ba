"""AdamW's update of a parameter's trainable entries alone.

The state (moments, and float32 masters for bfloat16 parameters) holds the trainable entries in
row-major order. Their places are told by a bit an entry, or by a 16-bit offset a trainable entry
inside *blocks* of 65536. A chunk at a time is gathered into buffers that stay in the first-level
cache, updated there and scattered back: nothing else of the parameter is written, and nothing else
of the gradient decides anything.

The arithmetic is that of torch's vectorised CPU kernels, operation for operation: `lerp_` and
`addcmul_` end in a fused multiply-add, `addcdiv_` does not. Arrays are flat. p and g are float32,
or uint16 bfloat16 codes. `state` is (first moments, second moments, masters, cohorts): float32,
but cohorts int16; masters is empty where p is float32, cohorts where all entries have one age.
`rule` is what `adam_rule` returns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import overload

from offaxis.kernels.bits import codes_of, fill_values
from offaxis.kernels.lanes import LANES, ROW, WORD, fma, prefetch, put_row, set_bits, step_word

__all__ = ["BLOCK", "adam_bits", "adam_offsets", "adam_rule", "adam_whole"]

BLOCK = 1 << 16
"""Entries of a parameter that a 16-bit offset reaches."""

_CHUNK = 2048
_AHEAD = 512  # of weights and gradients: at 50 % a tenth faster than none, or than 2048, from DRAM

# Rows of `buffers`, float32 of shape (5, _CHUNK + WORD).
_VALUES, _GRADS, _RATES, _ROOTS, _REST = range(5)

# Places in `constants`.
_DECAY, _BLEND, _BETA2, _SCALE, _EPS, _NEAR = range(6)

Singles = npt.NDArray[np.float32]


def adam_rule(
    corrections: Sequence[tuple[float, float]],
    betas: tuple[float, float],
    *,
    decay: float,
    eps: float,
) -> tuple[Singles, Singles]:
    """What a step is made of: (rates, constants), rounded to float32 as torch rounds scalars.

    corrections: for each cohort (lr / (1 − β₁ᵗ), √(1 − β₂ᵗ)), t its age. decay: 1 − lr·λ.
    """
    rates = np.array([(-rate, root) for rate, root in corrections], np.float32)
    blend = 1 - betas[0]
    near = blend < 0.5  # torch's lerp starts from the nearer end
    constants = (decay, blend if near else blend - 1, betas[1], 1 - betas[1], eps, near)
    return rates, np.array(constants, np.float32)


def _positions() -> npt.NDArray[np.uint16]:
    """Row b: the places of byte b's set bits, lowest first; what follows them is idle."""
    table = np.zeros((256, ROW), np.uint16)
    for byte in range(256):
        found = [bit for bit in range(8) if byte >> bit & 1]
        table[byte, : len(found)] = found
    return table


_POSITIONS = _positions()


@njit(nogil=True, cache=True, error_model="numpy")
def _step_one(p: Any, g: Any, m: Any, v: Any, rates: Any, constants: Any) -> None:
    """One step of entries of one age."""
    decay, blend, beta2 = constants[_DECAY], constants[_BLEND], constants[_BETA2]
    scale, eps, near = constants[_SCALE], constants[_EPS], constants[_NEAR] != 0
    rate, root = rates[0, 0], rates[0, 1]
    for i in range(p.size):
        first = fma(blend, g[i] - m[i], m[i] if near else g[i])
        second = fma(scale * g[i], g[i], v[i] * beta2)
        m[i] = first
        v[i] = second
        p[i] = p[i] * decay + (rate * first) / (np.sqrt(second) / root + eps)


@njit(nogil=True, cache=True, error_model="numpy")
def _step_paced(p: Any, g: Any, m: Any, v: Any, rates: Any, roots: Any, constants: Any) -> None:
    """The same where each entry has its own rate and root."""
    decay, blend, beta2 = constants[_DECAY], constants[_BLEND], constants[_BETA2]
    scale, eps, near = constants[_SCALE], constants[_EPS], constants[_NEAR] != 0
    for i in range(p.size):
        first = fma(blend, g[i] - m[i], m[i] if near else g[i])
        second = fma(scale * g[i], g[i], v[i] * beta2)
        m[i] = first
        v[i] = second
        p[i] = p[i] * decay + (rates[i] * first) / (np.sqrt(second) / roots[i] + eps)


@njit(nogil=True, cache=True)
def _set_pace(cohort: Any, rates: Any, buffers: Any) -> None:
    """Each entry's own rate and root, by its cohort."""
    rate, root = buffers[_RATES], buffers[_ROOTS]
    for i in range(cohort.size):
        age = np.uint16(cohort[i])
        rate[i] = rates[age, 0]
        root[i] = rates[age, 1]


@njit(nogil=True, cache=True)
def _step(p: Any, g: Any, m: Any, v: Any, cohort: Any, rule: Any, buffers: Any) -> None:
    rates, constants = rule
    if cohort.size == 0:
        _step_one(p, g, m, v, rates, constants)
    else:
        _set_pace(cohort, rates, buffers)
        rate, root = buffers[_RATES, : p.size], buffers[_ROOTS, : p.size]
        _step_paced(p, g, m, v, rate, root, constants)


def step_all(p: Any, g: Any, state: Any, rule: Any, buffers: Any) -> None:
    """Step all entries of a chunk."""
    raise TypeError("for compiled code only")


@overload(step_all)
def _step_all(p: Any, g: Any, state: Any, rule: Any, buffers: Any) -> Any:
    def single(p: Any, g: Any, state: Any, rule: Any, buffers: Any) -> None:
        m, v, _, cohort = state
        _step(p, g, m, v, cohort, rule, buffers)

    def half(p: Any, g: Any, state: Any, rule: Any, buffers: Any) -> None:
        m, v, masters, cohort = state
        values, grads = buffers[_VALUES], buffers[_GRADS, : p.size]
        fill_values(g, values, grads)
        _step(masters, grads, m, v, cohort, rule, buffers)
        codes_of(masters, values, p)

    return half if p.dtype == types.uint16 else single


def step_some(p: Any, g: Any, entries: Any, state: Any, rule: Any, buffers: Any) -> None:
    """Step the `entries` of p, whose state is given."""
    raise TypeError("for compiled code only")


@overload(step_some)
def _step_some(p: Any, g: Any, entries: Any, state: Any, rule: Any, buffers: Any) -> Any:
    def single(p: Any, g: Any, entries: Any, state: Any, rule: Any, buffers: Any) -> None:
        m, v, _, cohort = state
        values, grads = buffers[_VALUES, : m.size], buffers[_GRADS, : m.size]
        for i in range(entries.size):
            values[i] = p[entries[i]]
        for i in range(entries.size):
            grads[i] = g[entries[i]]
        _step(values, grads, m, v, cohort, rule, buffers)
        for i in range(entries.size):
            p[entries[i]] = values[i]

    def half(p: Any, g: Any, entries: Any, state: Any, rule: Any, buffers: Any) -> None:
        m, v, masters, cohort = state
        values, grads = buffers[_VALUES], buffers[_GRADS, : m.size]
        codes = buffers[_REST].view(np.uint16)[: m.size]
        for i in range(entries.size):
            codes[i] = g[entries[i]]
        fill_values(codes, values, grads)
        _step(masters, grads, m, v, cohort, rule, buffers)
        codes_of(masters, values, codes)
        for i in range(entries.size):
            p[entries[i]] = codes[i]

    return half if p.dtype == types.uint16 else single


@njit(nogil=True, cache=True)
def _copy(source: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = source[i]


@njit(nogil=True, cache=True)
def _step_words(p: Any, g: Any, words: Any, state: Any, rule: Any, buffers: Any) -> None:
    """Step the entries whose bits are set in `words`, 16 entries of p a word.

    New state goes by way of buffers, since a load that overlaps the last word's store would wait.
    Where all have one age, the rows of rates and roots are filled already.
    """
    m, v, masters, cohort = state
    rates, c = rule
    _set_pace(cohort, rates, buffers)
    old = (m, v, masters, buffers[_RATES], buffers[_ROOTS])
    new = (buffers[_VALUES], buffers[_GRADS], buffers[_REST])
    constants = (c[0], c[1], c[2], c[3], c[4], c[5])
    k = 0
    for i in range(words.size):
        prefetch(p, WORD * i + _AHEAD)
        prefetch(g, WORD * i + _AHEAD)
        prefetch(m, k + _CHUNK)
        prefetch(v, k + _CHUNK)
        step_word(p, g, WORD * i, words[i], old, new, k, constants)
        k += set_bits(words[i])
    _copy(new[0], m)
    _copy(new[1], v)
    _copy(new[2], masters)


@njit(nogil=True, cache=True)
def adam_whole(p: Any, g: Any, state: Any, rule: Any) -> None:
    """One step of every entry of p."""
    m, v, masters, cohort = state
    chunk = _CHUNK if masters.size or cohort.size else max(p.size, 1)
    buffers = np.empty((5, _CHUNK + WORD), np.float32)
    for start in range(0, p.size, chunk):
        stop = min(start + chunk, p.size)
        part = (m[start:stop], v[start:stop], masters[start:stop], cohort[start:stop])
        step_all(p[start:stop], g[start:stop], part, rule, buffers)


@njit(nogil=True, cache=True)
def adam_offsets(p: Any, g: Any, offsets: Any, starts: Any, state: Any, rule: Any) -> None:
    """One step of the entries at `offsets` (uint16) in the blocks of p.

    starts: where in a parameter's state each block's entries begin, and where the last one's end,
    int64 of shape (blocks + 1,); offsets and state hold the entries from starts[0] on.
    """
    m, v, masters, cohort = state
    buffers = np.empty((5, _CHUNK + WORD), np.float32)
    for block in range(starts.size - 1):
        last = starts[block + 1] - starts[0]
        here, grads = p[block * BLOCK : (block + 1) * BLOCK], g[block * BLOCK : (block + 1) * BLOCK]
        for a in range(starts[block] - starts[0], last, _CHUNK):
            b = min(a + _CHUNK, last)
            part = (m[a:b], v[a:b], masters[a:b], cohort[a:b])
            step_some(here, grads, offsets[a:b], part, rule, buffers)


@njit(nogil=True, cache=True)
def _expand(bits: Any, positions: Any, out: Any) -> None:
    """Write the place of every set bit to `out`, which has 8 places to spare."""
    table = positions.reshape(positions.size)
    count = 0
    for i in range(bits.size):
        put_row(table, ROW * np.intp(bits[i]), np.uint16(8 * i), out, count)
        count += set_bits(bits[i])


@njit(nogil=True, cache=True)
def _count(bits: Any) -> int:
    total = 0
    for i in range(bits.size):
        total += set_bits(bits[i])
    return total


@njit(nogil=True, cache=True)
def _adam_bits(
    p: Any, g: Any, bits: Any, state: Any, rule: Any, positions: Any, fewest: int
) -> None:
    buffers = np.empty((5, _CHUNK + WORD), np.float32)
    buffers[_RATES], buffers[_ROOTS] = rule[0][0, 0], rule[0][0, 1]
    entries = np.empty(_CHUNK + ROW, np.uint16)
    m, v, masters, cohort = state
    a = 0
    for at in range(0, p.size, _CHUNK):
        here, grads = p[at : at + _CHUNK], g[at : at + _CHUNK]
        part = bits[at // 8 : (at + _CHUNK) // 8]
        count = _count(part)
        b = a + count
        mine = (m[a:b], v[a:b], masters[a:b], cohort[a:b])
        if count == here.size:
            step_all(here, grads, mine, rule, buffers)
        elif count >= fewest and here.size == _CHUNK:
            _step_words(here, grads, part.view(np.uint16), mine, rule, buffers)
        elif count > 0:
            _expand(part, positions, entries)
            step_some(here, grads, entries[:count], mine, rule, buffers)
        a = b


def adam_bits(p: Any, g: Any, bits: Any, state: Any, rule: Any, *, lanes: bool = LANES) -> None:
    """One step of the entries of p whose bit is set: bit i % 8, lowest first, of byte i // 8.

    No bit beyond the last entry may be set. lanes: step vectors of 16 under their bits, but where
    fewer than one in 32 is set; fast where `LANES` is true, and the same everywhere.
    """
    fewest = _CHUNK // 32 if lanes else _CHUNK + 1
    _adam_bits(p, g, bits, state, rule, _POSITIONS, fewest)
