"""From the rows of one tuned checkpoint to its summary, and to a verdict in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from offaxis.comparison.method import Circumstances, method_of
from offaxis.comparison.sampling import Mean, mean_over
from offaxis.kernels import Scan
from offaxis.measures import MEASURES, correlation, relative_update_norm
from offaxis.table import Measurement

__all__ = ["PairTotals", "summarise_pair", "verdict"]

_AVERAGED = tuple(m.name for m in MEASURES if m.over == "matrices")
_PROFILES = ("row_stripes", "column_stripes")
_EXCESS = ("principal_overlap", "low_magnitude_overlap")

SMALL_STEP = 0.36
LARGE_STEP = 0.188
"""Bounds on the unchanged share within tensors that moved. The Path Not Taken, table 1, has 36.3 %
to 91.7 % for its RLVR checkpoints and 0.6 % to 18.8 % for its SFT checkpoints. They name the size
of a step, not its method."""

IMPLAUSIBLE_NORM = 1.0
IMPLAUSIBLE_CORRELATION = 0.5
"""Judged on matrices, since norm weights near 1 are alike in all models: the matrices of
unrelated models have ‖ΔW‖/‖W₀‖ near √2 and correlation near 0."""


@dataclass
class SquareTotals:
    """Running sums of ΔW², W₀² and W₀·W₊ (`measures.change.Squares`)."""

    update_square: float = 0.0
    base_square: float = 0.0
    cross: float = 0.0

    def add(self, scan: Scan) -> None:
        self.update_square += scan.update_square
        self.base_square += scan.base_square
        self.cross += scan.cross


@dataclass
class PairTotals:
    """Running totals over all compared entries of one tuned checkpoint."""

    entries: int = 0
    changed: int = 0
    changed_stored: int = 0
    everything: SquareTotals = field(default_factory=SquareTotals)
    matrices_only: SquareTotals = field(default_factory=SquareTotals)
    nonfinite_base: int = 0
    nonfinite_tuned: int = 0
    moved_entries: int = 0
    """Entries of the tensors that moved at all: an adapter leaves the others alone."""
    still: int = 0
    """Tensors of two or more dimensions in which no entry moved."""
    tensors: set[str] = field(default_factory=set)
    matrices: int = 0

    def add(self, scan: Scan, *, stored_name: str, is_matrix: bool, dimensions: int = 2) -> None:
        self.entries += scan.entries
        self.changed += scan.changed
        self.changed_stored += scan.changed_stored
        self.everything.add(scan)
        if is_matrix:
            self.matrices_only.add(scan)
        self.nonfinite_base += scan.nonfinite_base
        self.nonfinite_tuned += scan.nonfinite_tuned
        self.moved_entries += scan.entries if scan.changed_stored else 0
        self.still += dimensions > 1 and not scan.changed_stored
        self.tensors.add(stored_name)
        self.matrices += is_matrix


def summarise_pair(
    tuned: str,
    rows: Sequence[Measurement],
    totals: PairTotals,
    *,
    sizes: Mapping[str, int] | None,
    about: Circumstances | None = None,
) -> dict[str, Any]:
    """One entry of `summary.json`'s `pairs`.

    sizes: matrices of each role in the model, where only a sample of them has spectra. about: what
    the judgement of the method has to know beside the numbers.
    """
    by_measure = _by_measure(rows)
    means = {name: _mean(by_measure.get(name, {}), sizes) for name in _AVERAGED}
    for name in _EXCESS:
        means[f"{name}_excess"] = _mean(_difference(by_measure, name), sizes)
    judged = totals.matrices_only if totals.matrices else totals.everything
    pair: dict[str, Any] = {
        "tuned": tuned,
        "parameters": totals.entries,
        "tensors": len(totals.tensors),
        "matrices": totals.matrices,
        "unchanged_bf16": _rest(totals.changed, totals.entries),
        "unchanged_stored": _rest(totals.changed_stored, totals.entries),
        "unchanged_bf16_in_moved_tensors": _rest(totals.changed, totals.moved_entries),
        "relative_update_norm": relative_update_norm(totals.everything).value,
        "correlation": correlation(totals.everything).value,
        "matrix_update_norm": relative_update_norm(judged).value,
        "matrix_correlation": correlation(judged).value,
    }
    pair |= {name: mean.value for name, mean in means.items()}
    pair["intervals"] = {
        name: [mean.low, mean.high] for name, mean in means.items() if mean.low is not None
    }
    pair["measured"] = {name: mean.count for name, mean in means.items()}
    pair["nonfinite"] = {"base": totals.nonfinite_base, "tuned": totals.nonfinite_tuned}
    pair["verdict"] = verdict(pair, means)
    pair["method"] = _method(pair, by_measure, totals, about or Circumstances())
    pair["run_info"] = (about.info.told() if about else None) or None
    return pair


def _method(
    pair: dict[str, Any],
    by_measure: Mapping[str, Values],
    totals: PairTotals,
    about: Circumstances,
) -> dict[str, Any]:
    """RL-like, fine-tuning-like or undetermined; its lines are added to the verdict's."""
    moved = totals.everything.update_square / totals.moved_entries if totals.moved_entries else None
    about = replace(about, still=totals.still, rms=None if moved is None else sqrt(moved))
    stripes = {name: _mean(by_measure.get(name, {}), None).value for name in _PROFILES}
    told = method_of(pair, pair | stripes, about)
    pair["verdict"]["evidence"] += told.evidence
    pair["verdict"]["confounds"] += told.confounds
    return told.method


def _rest(part: int, whole: int) -> float | None:
    return 1 - part / whole if whole else None


Values = dict[str, tuple[float, str]]


def _by_measure(rows: Sequence[Measurement]) -> dict[str, Values]:
    """measure → tensor → (value, role), undefined numbers left out."""
    found: dict[str, Values] = {}
    for row in rows:
        if row.value is not None:
            found.setdefault(row.measure, {})[row.tensor] = (row.value, row.role)
    return found


def _mean(values: Values, sizes: Mapping[str, int] | None) -> Mean:
    numbers = [value for value, _ in values.values()]
    return mean_over(numbers, [role for _, role in values.values()], sizes)


def _difference(by_measure: Mapping[str, Values], name: str) -> Values:
    """Observed minus magnitude null, matrix by matrix."""
    null = by_measure.get(f"{name}_magnitude_null", {})
    seen = by_measure.get(name, {})
    return {t: (v - null[t][0], role) for t, (v, role) in seen.items() if t in null}


def verdict(pair: Mapping[str, Any], means: Mapping[str, Mean]) -> dict[str, Any]:
    """What kind of step this is, the evidence, and what else could explain it.

    label: `identical`, `implausible_base`, `small_step`, `large_step` or `undetermined`. It never
    names a training method: step size alone separates most RL from most SFT checkpoints, and that
    is a setting (learning rate × steps), not a method.
    """
    label = _label(pair)
    evidence = [
        f"{_percent(pair['unchanged_bf16'])} of {pair['parameters']:,} entries are unchanged in "
        f"bfloat16; relative update norm {_number(pair['relative_update_norm'])}",
    ]
    inside = pair["unchanged_bf16_in_moved_tensors"]
    if inside is not None and pair["unchanged_bf16"] - inside > 0.01:
        evidence.append(
            f"some tensors did not move at all; within those that did, {_percent(inside)} of the "
            "entries are unchanged"
        )
    if label == "implausible_base":
        evidence.append(
            f"the update is as large as the model (correlation with the base "
            f"{_number(pair['matrix_correlation'])} over matrices): this base "
            "is probably not the one it was tuned from"
        )
    evidence += [_against_null(name, pair, means) for name in _EXCESS if pair.get(name) is not None]
    if pair.get("nss") is not None:
        evidence.append(
            f"spectral shift (nss) {_number(pair['nss'])}; mean rotation "
            f"{_number(pair['rotation_left_deg'])}° left, "
            f"{_number(pair['rotation_right_deg'])}° right"
        )
    bad = pair["nonfinite"]
    if bad["base"] or bad["tuned"]:
        evidence.append(
            f"{bad['base']} entries of the base and {bad['tuned']} of the tuned side are NaN or "
            "infinite; tensors that hold one have no spectra and those entries are in no norm"
        )
    return {"label": label, "evidence": evidence, "confounds": _confounds(label, pair)}


def _label(pair: Mapping[str, Any]) -> str:
    norm, cosine = pair["matrix_update_norm"], pair["matrix_correlation"]
    unchanged = pair["unchanged_bf16_in_moved_tensors"]
    if unchanged is None:
        return "identical" if pair["parameters"] else "undetermined"
    too_far = norm is not None and norm >= IMPLAUSIBLE_NORM
    unrelated = cosine is not None and cosine < IMPLAUSIBLE_CORRELATION
    if too_far or unrelated:
        return "implausible_base"
    if unchanged >= SMALL_STEP:
        return "small_step"
    return "large_step" if unchanged <= LARGE_STEP else "undetermined"


def _against_null(name: str, pair: Mapping[str, Any], means: Mapping[str, Mean]) -> str:
    """One sentence: the overlap, its null, and whether their difference is beyond its interval."""
    words = name.replace("_", " ")
    excess = means[f"{name}_excess"]
    null = pair[f"{name}_magnitude_null"]
    head = f"{words} {pair[name]:.4f} against a magnitude null of {null:.4f}"
    if excess.value is None or excess.low is None or excess.high is None:
        return f"{head} ({excess.count} matrix: no interval)"
    interval = f"{excess.value:+.4f} [{excess.low:+.4f}, {excess.high:+.4f}]"
    if excess.low <= 0 <= excess.high:
        return f"{head}: difference {interval}, no more than entry size explains"
    side = "below" if excess.high < 0 else "above"
    return f"{head}: difference {interval}, {side} what entry size explains"


def _confounds(label: str, pair: Mapping[str, Any]) -> list[str]:
    if label == "identical":
        return ["the same file under two names, or a checkpoint saved before its first step"]
    found = [
        "learning rate and number of steps set the size of the step, whatever the method",
        "small weights change more easily than large ones in bfloat16, so an overlap counts only "
        "against its magnitude and rounding nulls",
        "the distribution of the training data (on-policy or not) is not visible in the weights",
    ]
    if pair.get("principal_overlap_rounding_null") is None:
        found.append(
            "no rounding null: the tuned side is stored in bfloat16 or narrower, so its update is "
            "already rounded; a float32 checkpoint would allow it"
        )
    return found


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"
