"""What is claimed of the adapters' geometry, and the rule by which rows answer.

A claim about one adapter (an excess over its null, a rise from the first saved step to the last) is
judged by Student's t interval over seeds: `does not` where it lies within ± the measure's margin
(nothing to speak of) or on the other side of zero, `holds` where it lies on the claimed side,
`cannot tell` otherwise and below two seeds. A claim against another adapter at equal norm takes its
word from `equal.matched`. "Nothing in principal directions" holds where no seed at no step has more
than `NOTHING` there. All were written before any test run was made, but for the premise: it was
added when the first twenty test runs were in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.peft.geometry.equal import matched
from offaxis.lab.peft.geometry.series import EITHER, ENERGIES, MARGINS, VALUE, Rates, checkpoints
from offaxis.lab.peft.naming import FULL, LORA, MILORA, OFF_PRINCIPAL, OFF_RANDOM, PISSA, label

__all__ = ["CLAIMS", "NOTHING", "QUESTIONS", "claims"]

NOTHING = 1e-6
"""A share of ‖ΔW‖² that is none: checkpoints are in float32."""

QUESTIONS = {
    "premise": "Does RL itself keep out of principal directions?",
    "pissa": "Does PiSSA write into principal directions?",
    "milora": "Does MiLoRA start off them and drift towards them?",
    "off": "Does off-principal LoRA keep out of them, and where does it go?",
    "spectrum": "Which adapters move the singular values less than full fine-tuning?",
}

CLAIMS: dict[str, Any] = {
    "question": pl.String(),
    "claim": pl.String(),
    "rates": pl.String(),
    "adapter": pl.String(),
    "measure": pl.String(),
    **VALUE,
    "word": pl.String(),
    "why": pl.String(),
}
"""Columns of `claims`. value: the excess, rise or difference that the claim is about; of a spectral
shift ln of the ratio; of "nothing" the largest share. why: where there is no value, the reason."""

Row = dict[str, Any]
_MISSING: Row = {"why": "not run yet"}
_PRINCIPAL = "principal_overlap_top5"


def claims(
    rows: pl.DataFrame, *, known: Mapping[Rates, pl.DataFrame] | None = None
) -> pl.DataFrame:
    """Every claim at both kinds of rate, with the columns `CLAIMS`; null where runs are missing.

    known: what `equal.matched` has found of these rows, where that was asked before.
    """
    found: list[Row] = []
    kinds: tuple[Rates, ...] = ("own", "shared")
    for rates in kinds:
        points = checkpoints(rows, rates)
        equal = matched(rows, rates) if known is None else known[rates]
        told = [
            *_premise(points),
            *_pissa(points, equal),
            *_milora(points, equal),
            *_off(points, equal),
        ]
        told += _spectrum(equal)
        found += [{"rates": rates} | one for one in told]
    return pl.DataFrame(found, schema=CLAIMS)


def _premise(points: pl.DataFrame) -> Iterator[Row]:
    """The papers' "off-principal regime", of updates that nothing holds to a direction."""
    for adapter, name in ((FULL, "full fine-tuning"), (LORA, "LoRA")):
        own = {"question": "premise", "adapter": adapter}
        claim = f"{name}: less of ‖ΔW‖² than an update without direction has"
        yield own | _judged(claim, EITHER, -1, _excess(points, adapter, EITHER, -1))
        claim = f"{name}: of the 5 % that moved most, fewer are principal than of others of their"
        changed = _excess(points, adapter, _PRINCIPAL, -1)
        yield own | _judged(f"{claim} size", _PRINCIPAL, -1, changed)


def _pissa(points: pl.DataFrame, equal: pl.DataFrame) -> Iterator[Row]:
    own = {"question": "pissa", "adapter": PISSA}
    last = _excess(points, PISSA, EITHER, -1)
    yield own | _judged("more of ‖ΔW‖² than an update without direction has", EITHER, 1, last)
    yield own | _at_norm("more than LoRA's at equal norm", equal, EITHER, (PISSA, LORA), 1)
    yield own | _at_norm("more than full fine-tuning's at equal norm", equal, EITHER,
                         (PISSA, FULL), 1)  # fmt: skip
    changed = _excess(points, PISSA, _PRINCIPAL, -1)
    claim = "of the 5 % that moved most, more are principal than of others of their size"
    yield own | _judged(claim, _PRINCIPAL, 1, changed)


def _milora(points: pl.DataFrame, equal: pl.DataFrame) -> Iterator[Row]:
    own = {"question": "milora", "adapter": MILORA}
    first, last = (_excess(points, MILORA, EITHER, place) for place in (0, -1))
    yield own | _judged("at the first saved step less than without direction", EITHER, -1, first)
    rise = {seed: last[seed] - first[seed] for seed in last if seed in first}
    yield own | _judged("from there to the last step it rises", EITHER, 1, rise)
    yield own | _judged("at the last step more than without direction", EITHER, 1, last)
    yield own | _at_norm("more than LoRA's at equal norm", equal, EITHER, (MILORA, LORA), 1)


def _off(points: pl.DataFrame, equal: pl.DataFrame) -> Iterator[Row]:
    own = {"question": "off", "adapter": OFF_PRINCIPAL}
    shares = points.filter(adapter=OFF_PRINCIPAL).select("seed", *ENERGIES[:2]).drop_nulls()
    told: Row = {"claim": "nothing of ‖ΔW‖² in principal directions", "measure": EITHER}
    told |= {"seeds": shares["seed"].n_unique(), "word": "cannot tell"}
    told |= _MISSING if shares.is_empty() else {}
    if shares.height:
        most = max(shares[ENERGIES[0]].max(), shares[ENERGIES[1]].max())  # type: ignore[type-var]
        told |= {"value": most, "word": "holds" if most <= NOTHING else "does not"}  # type: ignore[operator]
    yield own | told
    changed = _excess(points, OFF_PRINCIPAL, _PRINCIPAL, -1)
    claim = "of the 5 % that moved most, fewer are principal than of others of their size"
    yield own | _judged(claim, _PRINCIPAL, -1, changed)
    for other in (LORA, OFF_RANDOM):
        pair = (OFF_PRINCIPAL, other)
        yield own | _at_norm(f"and fewer than under {label(other)} at equal norm", equal,
                             _PRINCIPAL, pair, -1)  # fmt: skip
        yield own | _at_norm(f"it moves the singular values less than {label(other)} at equal norm",
                             equal, "nss", pair, -1)  # fmt: skip
        yield own | _at_norm(f"its rank is higher than that of {label(other)} at equal norm",
                             equal, "effective_rank", pair, 1)  # fmt: skip


def _spectrum(equal: pl.DataFrame) -> Iterator[Row]:
    for adapter in equal.filter(measure="nss", against=FULL)["adapter"]:
        told = _at_norm(f"{label(adapter)} does", equal, "nss", (adapter, FULL), -1)
        yield {"question": "spectrum", "adapter": adapter} | told


def _excess(points: pl.DataFrame, adapter: str, measure: str, place: int) -> dict[int, float]:
    """Seed -> measure minus null at the first or last saved step that all seeds have."""
    own = points.filter(adapter=adapter)
    if own.is_empty():
        return {}
    step = own["step"].unique().sort()[place]
    excess = pl.col(measure) - pl.col(f"{measure}_null")
    return dict(own.filter(step=step).select("seed", y=excess).drop_nulls().iter_rows())


def _judged(claim: str, measure: str, direction: int, seeds: dict[int, float]) -> Row:
    told: Row = {"claim": claim, "measure": measure, "seeds": len(seeds), "word": "cannot tell"}
    if not seeds:
        return told | _MISSING
    value, low, high = over_seeds(list(seeds.values()))
    told |= {"value": value, "low": low, "high": high}
    if low is not None and high is not None:
        told["word"] = _one_sided(sorted((direction * low, direction * high)), MARGINS[measure])
    return told


def _one_sided(interval: Sequence[float], margin: float) -> str:
    """The word for an interval of what should be above zero."""
    low, high = interval
    if high < 0 or (-margin <= low and high <= margin):
        return "does not"
    return "holds" if low > 0 else "cannot tell"


def _at_norm(
    claim: str, equal: pl.DataFrame, measure: str, pair: tuple[str, str], direction: int
) -> Row:
    found = equal.filter(measure=measure, adapter=pair[0], against=pair[1])
    told: Row = {"claim": claim, "measure": measure, "seeds": 0, "word": "cannot tell"}
    if found.is_empty():
        return told | _MISSING
    row = found.row(0, named=True)
    if row["value"] is None:
        return told | {"why": "never equally far"}
    told |= {name: row[name] for name in VALUE}
    claimed = "above" if direction > 0 else "below"
    if row["word"] != "cannot tell":
        told["word"] = "holds" if row["word"] == claimed else "does not"
    return told
