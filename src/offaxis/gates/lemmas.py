"""Gate III, the lemmas on bfloat16, by enumeration of all its finite values.

A bfloat16 has 8 significant bits: |x| in [2^e, 2^(e+1)) is a multiple of ULP(x) = 2^(e−7), for
e = −126 to 127; below lie the subnormals, multiples of 2^−133. All 65,280 finite codes, and the
differences of neighbours, are exact in float64. Source: The Path Not Taken, appendix D and
corollary 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from offaxis.gates import byhand
from offaxis.kernels import bf16_codes

__all__ = ["Lemma", "Verdict", "bf16_lemmas", "largest_probe"]

Verdict = Literal["holds", "loose", "false"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_MANTISSAS = 128
_SMALLEST_NORMAL = 2.0**-126
_EXAMPLES = 3


@dataclass(frozen=True)
class Lemma:
    """One statement of the paper, tried on every case.

    verdict: `holds`; `loose`, true but not sharp, or only with the reservation that the finding
    tells; `false`. cases: how many were tried. counterexamples: in how many it fails. examples:
    some of these (of a loose one, where the sharp value is attained). finding: what is true.
    by_hand: where it fails, the smallest case that a reader can check (`gates.byhand`).
    """

    name: str
    source: str
    statement: str
    verdict: Verdict
    cases: int
    counterexamples: int
    examples: tuple[str, ...]
    finding: str
    by_hand: str = ""


def bf16_lemmas() -> list[Lemma]:
    """Every statement of appendix D and corollary 3.6, in the paper's order."""
    return [
        _absolute_large(),
        _absolute_small(),
        _gap_in_binade(),
        _gap_across(),
        _ulp_range(),
        _smallest_step(),
        _larger_needs_larger(),
        _probe_condition(),
        _probe_special(),
        _realised(),
    ]


def largest_probe() -> float:
    """The η from which on the probe |y − x| ≤ η·max(|x|, |y|) takes two values for equal: 2⁻⁸.

    The probe is bitwise inequality (±0 alike) on all finite bfloat16 values exactly for η below.
    The least relative gap of two distinct values is that of two neighbours: moving the smaller
    one away widens it.
    """
    low, high = _neighbours()
    return float(((high - low) / high).min())


def _values() -> Floats:
    """The 32,640 finite values from +0 up, ascending; the code is the index."""
    codes = np.arange(0x7F80, dtype=np.uint32)
    return (codes << np.uint32(16)).view(np.float32).astype(np.float64)


def _neighbours() -> tuple[Floats, Floats]:
    """Each finite value from +0 and the next one."""
    values = _values()
    return values[:-1], values[1:]


def _normal() -> Floats:
    return _values()[_MANTISSAS:]


def _ulp(values: Floats) -> Floats:
    """2^(e−7) for |x| in [2^e, 2^(e+1)), and 2^−133 for subnormals and zero."""
    _, exponent = np.frexp(np.maximum(np.abs(values), _SMALLEST_NORMAL))
    return np.asarray(np.ldexp(1.0, exponent - 8), np.float64)


def _stored(values: Floats) -> Floats:
    """Rounded once to bfloat16, to nearest even, as float64."""
    codes = bf16_codes(torch.from_numpy(np.ascontiguousarray(values))).astype(np.uint32)
    return (codes << np.uint32(16)).view(np.float32).astype(np.float64)


def _told(values: Floats, other: Floats, where: Bools) -> tuple[str, ...]:
    chosen = np.flatnonzero(where)[:_EXAMPLES]
    return tuple(f"{values[i]:.9g} and {other[i]:.9g}" for i in chosen)


def _absolute_large() -> Lemma:
    """D.1, first example: 1024.001 and 1024.002, and whether stored values can show it."""
    given = np.array([1024.001, 1024.002])
    pair, spacing = _stored(given), float(_ulp(given)[0])
    told = bool(abs(given[1] - given[0]) > 1e-5) and pair[0] == pair[1]
    return Lemma(
        "absolute tolerance, large weights",
        "Appendix D.1",
        "a fixed tolerance of 1e-5 calls 1024.001 and 1024.002 changed though both store as 1024",
        "loose" if told else "false",
        1,
        int(not told),
        (f"1024.001 and 1024.002 both store as {pair[0]:g}; spacing {spacing:g}",),
        "True of values compared before they are stored (float32 masters). Definition 2.1 reads "
        "stored values, and equal ones differ by 0: on bfloat16 checkpoints an absolute tolerance "
        "never reports a false change, it only misses true ones.",
    )


def _absolute_small() -> Lemma:
    """D.1, second example: 1e-6 and 2e-6."""
    one, two = _stored(np.array([1e-6, 2e-6]))
    ulp = float(_ulp(np.array([one]))[0])
    values = _values()
    steps = int(np.searchsorted(values, two) - np.searchsorted(values, one))
    low, high = _neighbours()
    equal = (high - low) <= 1e-5
    edge = float(high[equal].max())
    return Lemma(
        "absolute tolerance, small weights",
        "Appendix D.1",
        "1e-6 and 2e-6 pass a tolerance of 1e-5 though they are about 134 ULPs apart",
        "loose",
        low.size,
        0,
        (f"{one:.9g} and {two:.9g}: {(two - one) / ulp:g} ULP(1e-6), {steps} bfloat16 steps",),
        f"134 counts spacings of the smaller value; the spacing doubles at 2^-19 between them, so "
        f"{steps} steps lie between. The rule takes {int(equal.sum()):,} of {low.size:,} "
        f"neighbouring pairs for equal: all up to |w| = {edge:.6g}.",
    )


def _gap_in_binade() -> Lemma:
    """D.1: every pair of distinct values of one binade, all 254."""
    values = _normal().reshape(-1, _MANTISSAS)
    first, second = np.triu_indices(_MANTISSAS, 1)
    bad = cases = 0
    least = np.inf
    for binade in values:
        low, high = binade[first], binade[second]
        gap = high - low
        bad += int(((gap < _ulp(low)) | (gap / high <= 2.0**-8)).sum())
        least = min(least, float((gap / high).min()))
        cases += gap.size
    return Lemma(
        "D.1 within a binade",
        "Lemma D.1",
        "distinct x, y in [2^e, 2^(e+1)): |x − y| ≥ 2^(e−7) and |x − y| / max > 2^-8",
        "loose",
        cases,
        bad,
        (f"the least relative gap is {least:.9g} = 1/255, not 1/256",),
        "Holds, strictly. The sharp value within a binade is 1/255, between its two largest "
        "members.",
    )


def _gap_across() -> Lemma:
    """D.1's last sentence: neighbours on the two sides of a power of two."""
    normal = _normal()
    low, high = normal[:-1], normal[1:]
    across = np.frexp(low)[1] != np.frexp(high)[1]
    equal = across & ((high - low) / high == 2.0**-8)
    return Lemma(
        "D.1 across a boundary",
        "Lemma D.1",
        "the strict inequality |x − y| / max > 2^-8 also holds across the binade boundary",
        "false",
        int(across.sum()),
        int(equal.sum()),
        _told(low, high, equal),
        f"Equality at all {int(across.sum())} boundaries (of each sign): x = 2^e − 2^(e−8) and "
        f"y = 2^e differ by exactly 2^-8 of y. With ≥ in place of > it holds everywhere.",
        byhand.across_a_boundary(),
    )


def _ulp_range() -> Lemma:
    """D.2: ULP(x)/|x| in (2^-8, 2^-7], and its two ends."""
    values = _normal()
    ratio = _ulp(values) / values
    bad = (ratio <= 2.0**-8) | (ratio > 2.0**-7)
    subnormal = _values()[1:_MANTISSAS]
    outside = int((_ulp(subnormal) / subnormal > 2.0**-7).sum())
    closed = int((ratio == 2.0**-7).sum())
    return Lemma(
        "D.2 range of ULP(x)/|x|",
        "Lemma D.2",
        "for normalized x, ULP(x)/|x| lies in (2^-8, 2^-7]",
        "loose",
        values.size,
        int(bad.sum()),
        (f"least {ratio.min():.9g} = 1/255", f"most {ratio.max():.9g} = 2^-7 at {closed} powers"),
        f"Holds; the sharp range is [1/255, 1/128], so the lower end is never neared. Of the "
        f"{subnormal.size} subnormals {outside} lie above it (1/n for n·2^-133).",
    )


def _smallest_step() -> Lemma:
    """D.2: the least relative update that is realised, from either side of each value."""
    values = _normal()
    away, toward = _spacings(values)
    threshold = np.minimum(away, toward) / 2 / values
    outside = (threshold <= 2.0**-9) | (threshold >= 2.0**-8)
    low, high = float(threshold.min()), float(threshold.max())
    ends = int((threshold <= 2.0**-9).sum()), int((threshold >= 2.0**-8).sum())
    return Lemma(
        "D.2 smallest realised update",
        "Lemma D.2",
        "the least relative update that is realised is ≳ ½ULP(x)/|x|, in (0.195 %, 0.391 %)",
        "loose",
        values.size,
        int(outside.sum()),
        tuple(
            f"{x:.9g}: {t:.7%}" for x, t in zip(values[outside], threshold[outside], strict=True)
        )[:_EXAMPLES],
        f"Right up to a factor of 2, which ≳ may mean; read as ≥ it is false. At a power of two "
        f"the spacing toward zero is half an ULP and the threshold ¼ULP, so that 2^-9 of the value "
        f"is the threshold at {ends[0]} values, and 2^-8 at {ends[1]} (the least normal one, whose "
        f"spacings are equal): the thresholds span [{low:.7%}, {high:.6%}], and at both ends an "
        f"update is a tie that stays: what is realised is larger than 2^-9. "
        f"What is then stored moves by a whole spacing, at least 2^-8 of the larger.",
        byhand.step_below_half(),
    )


def _spacings(values: Floats) -> tuple[Floats, Floats]:
    """Distance of each normal value to its neighbours away from and toward zero.

    Above the largest finite value counts the next multiple of its ULP, at which infinity starts.
    """
    ulp = _ulp(values)
    power = (np.frexp(values)[0] == 0.5) & (values > _SMALLEST_NORMAL)
    return ulp, np.where(power, ulp / 2, ulp)


def _larger_needs_larger() -> Lemma:
    """D.2's last sentence."""
    values = _normal()
    half = _ulp(values) / 2
    flat = half[1:] <= half[:-1]
    return Lemma(
        "D.2 larger weights need larger steps",
        "Lemma D.2",
        "larger |x| requires a larger absolute step to register",
        "false",
        flat.size,
        int(flat.sum()),
        _told(values[:-1], values[1:], flat),
        "½ULP is constant within a binade and doubles at its end: the threshold never falls with "
        f"|x|, and rises at {int((~flat).sum())} of {flat.size:,} steps.",
        byhand.not_every_larger_weight(),
    )


def _probe_condition() -> Lemma:
    """D.3 and D.4 on all finite values: each value against its neighbour."""
    low, high = _neighbours()
    ratio = (high - low) / high
    edge = largest_probe()
    passes = (high - low) <= 1e-3 * high
    at_edge = (high - low) <= edge * high
    single, above = low.astype(np.float32), high.astype(np.float32)
    lost = int(((above - single) <= np.float32(1e-3) * above).sum())
    return Lemma(
        "D.3 the probe is bitwise equality",
        "Proposition D.3, Corollary D.4",
        "for η < 2^-9 (so for 1e-3) the probe passes exactly where two normalized values are equal",
        "loose",
        low.size,
        int(passes.sum()),
        _told(low, high, at_edge),
        f"Holds, for subnormals and zero too (+0 and −0 pass, as the corollary says), and also "
        f"evaluated in float32 ({lost} errors). The exact condition is η < 2^-8 = {edge:.8g}, "
        f"twice the paper's: at η = 2^-8 {int(at_edge.sum())} pairs of each sign pass. "
        f"½ min ULP(x)/|x| is 1/510, not 2^-9; and the proof's strict 2^-8 is an equality at the "
        f"boundaries. Least gap {float(ratio.min()):.8g}.",
    )


def _probe_special() -> Lemma:
    """D.4's probe on infinities and NaN, which the definition leaves out."""
    values = _values()
    finite = np.concatenate([values, -values])
    with np.errstate(invalid="ignore"):
        infinity = np.abs(np.inf - finite) <= 1e-3 * np.maximum(np.inf, np.abs(finite))
        same = abs(np.inf - np.inf) <= 1e-3 * np.inf
        opposite = abs(np.inf + np.inf) <= 1e-3 * np.inf
    nan = bool(abs(np.nan - np.nan) <= 1e-3 * np.nan)
    wrong = 2 * int(infinity.sum()) + int(opposite) + 2 * int(not same) + 254 * int(not nan)
    return Lemma(
        "D.4 infinities and NaN",
        "Corollary D.4",
        "the probe flags equality only when storage is unchanged",
        "loose",
        2 * finite.size + 1 + 2 + 254,
        wrong,
        ("inf and 1: |inf − 1| ≤ η·inf holds, unchanged", "inf and inf: NaN ≤ inf, changed"),
        f"True of finite values, of which definition 2.1 alone speaks. ±infinity passes against "
        f"each of the {finite.size:,} finite codes and the other infinity, so a weight that "
        f"overflowed counts as unchanged; an infinity or one of the 254 NaN codes against itself "
        f"counts as changed. offaxis compares codes instead.",
        byhand.overflow(),
    )


def _realised() -> Lemma:
    """Corollary 3.6 on every finite value, in both directions, at multiples of ⅛ULP."""
    shares, counts = [], [0, 0]
    for eighths in range(1, 9):
        wrong = realisation_errors(eighths / 8)
        counts[0] += wrong.size
        counts[1] += int(wrong.sum())
        shares.append(f"{eighths}/8 ULP {wrong.mean():.4%}")
    return Lemma(
        "3.6 realisation threshold",
        "Corollary 3.6",
        "a stored weight changes at a step iff |ΔW| ≳ ½ULP(W)",
        "loose",
        counts[0],
        counts[1],
        tuple(share for share in shares if not share.endswith(" 0.0000%")),
        "Tried as ≥; ≳ leaves open which. Exactly, with s the spacing in the direction of the "
        "step: it changes iff |ΔW| > ½s, or |ΔW| = ½s and the last mantissa bit is odd (ties go to "
        "even). s is ULP(W), except toward zero from a power of two above 2^-126: ½ULP(W). And it "
        "speaks of a store that rounds each step; beside float32 masters a step of any size may "
        "or may not cross a threshold.",
        byhand.tie_and_power_of_two(),
    )


def realisation_errors(fraction: float) -> Bools:
    """Where `|ΔW| ≥ ½ULP(W)` is wrong about a step of `fraction`·ULP(W) from W, both directions.

    Shape (2, 32640): away from zero and toward it, for each finite value from +0 up. (From zero
    both directions are alike.)
    """
    values = _values()
    step = fraction * _ulp(values)
    changed = np.stack([_stored(values + step) != values, _stored(values - step) != values])
    return np.asarray(changed != (fraction >= 0.5), np.bool_)
