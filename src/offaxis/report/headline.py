"""The judgement in plain words: what kind of step, what the nulls say, what would change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offaxis.report.text import clean, decimals, is_number, join, percent, plain, signed, small

__all__ = ["VERDICTS", "Headline", "digits", "excess", "headline", "state"]

Pair = Mapping[str, Any]

VERDICTS = {
    "identical": "identical to its base",
    "small_step": "small step",
    "large_step": "large step",
    "implausible_base": "not plausibly from this base",
    "undetermined": "undetermined",
}
_REMEDIES = {
    "identical": "One bfloat16 value that differs: so far there is no update to judge.",
    "implausible_base": "The base that this checkpoint was really tuned from.",
    "undetermined": "For an undetermined size, what its evidence names, below the tables.",
}
_OVERLAPS = {
    "principal_overlap": "principal weights",
    "low_magnitude_overlap": "low-magnitude weights",
}


@dataclass(frozen=True, slots=True)
class Headline:
    """Plain text, not yet escaped."""

    title: str
    lede: str
    step: tuple[tuple[str, str], ...]
    nulls: tuple[str, ...]
    change: tuple[str, ...]


def excess(pair: Pair, overlap: str) -> tuple[float | None, float | None, float | None]:
    """Observed overlap minus its magnitude null, and the ends of its interval."""
    value = pair.get(f"{overlap}_excess")
    bounds = (pair.get("intervals") or {}).get(f"{overlap}_excess")
    ends = list(bounds) if bounds is not None else []
    if len(ends) != 2 or not all(is_number(end) for end in ends):
        ends = [None, None]
    return (value if is_number(value) else None, ends[0], ends[1])


def state(pair: Pair, overlap: str) -> str:
    """`below`, `above`, `same` (the interval holds zero) or `unknown` (no interval)."""
    value, low, high = excess(pair, overlap)
    if value is None or low is None or high is None:
        return "unknown"
    if high < 0:
        return "below"
    return "above" if low > 0 else "same"


def digits(pairs: Sequence[Pair]) -> int:
    """Decimals at which the narrowest interval of all differences keeps its first digit."""
    found = [excess(pair, overlap) for pair in pairs for overlap in _OVERLAPS]
    widths = [high - low for _, low, high in found if low is not None and high is not None]
    return decimals(min((width for width in widths if width > 0), default=None))


def headline(summary: Mapping[str, Any], labels: Sequence[str]) -> Headline:
    """The headline of a comparison; `labels` name its pairs, in order."""
    pairs: list[Pair] = list(summary.get("pairs") or [])
    base = clean(summary.get("base", "the base")).rstrip("/").rsplit("/", 1)[-1]
    return Headline(
        title=_step_title(pairs, labels, base),
        lede=_lede(pairs),
        step=_step(pairs),
        nulls=tuple(_nulls(pairs, labels, name) for name in _OVERLAPS) + _rounding(pairs),
        change=tuple(_change(pairs, labels)),
    )


def _label(pair: Pair) -> str:
    return str((pair.get("verdict") or {}).get("label", "undetermined"))


def _step_title(pairs: Sequence[Pair], labels: Sequence[str], base: str) -> str:
    if not pairs:
        return f"No checkpoint was compared with {base}."
    tally = Counter(_label(pair) for pair in pairs)
    if len(pairs) == 1:
        return f"{labels[0]} {_predicate(_label(pairs[0]), base)}."
    if len(tally) == 1:
        whole = "Both checkpoints" if len(pairs) == 2 else f"All {len(pairs)} checkpoints"
        return f"{whole} {_predicate(next(iter(tally)), base, plural=True)}."
    words = [f"{number} {_noun(label, number)}" for label, number in tally.most_common()]
    return f"{join(words)}, measured from {base}."


def _predicate(label: str, base: str, *, plural: bool = False) -> str:
    verb = "are" if plural else "is"
    if label in ("small_step", "large_step"):
        size = label.removesuffix("_step")
        return f"{verb} {size} steps from {base}" if plural else f"{verb} a {size} step from {base}"
    if label == "identical":
        return f"{verb} identical to {base}"
    if label == "implausible_base":
        return f"cannot plausibly have been tuned from {base}"
    return f"{'move' if plural else 'moves'} from {base} by a step of undetermined size"


def _noun(label: str, number: int) -> str:
    if label in ("small_step", "large_step"):
        return f"{label.removesuffix('_step')} step{'' if number == 1 else 's'}"
    words = {
        "identical": "identical to the base",
        "implausible_base": "not plausibly from it",
    }
    return words.get(label, f"step{'' if number == 1 else 's'} of undetermined size")


def _lede(pairs: Sequence[Pair]) -> str:
    states = Counter(state(pair, "principal_overlap") for pair in pairs)
    known = sum(states.values()) - states["unknown"]
    if not known:
        return "Whether the update avoids the base's principal weights cannot be judged here."
    who = "The update overlaps" if len(pairs) == 1 else "Every update overlaps"
    if states["same"] == known:
        first = "The update's overlap" if len(pairs) == 1 else "No update's overlap"
        can = "cannot" if len(pairs) == 1 else "can"
        return (
            f"{first} with the base's principal weights {can} be told from what weight "
            f"magnitudes alone predict{_rest(states)}."
        )
    for name, word in (("below", "less"), ("above", "more")):
        if states[name] == known:
            return (
                f"{who} the base's principal weights {word} than weight magnitudes alone "
                f"predict{_rest(states)}."
            )
    parts = [
        f"{states[name]} of {len(pairs)} {words}"
        for name, words in (
            ("below", "overlap the principal weights less"),
            ("above", "overlap them more"),
            ("same", "cannot be told apart"),
        )
        if states[name]
    ]
    return f"Against what weight magnitudes alone predict, {join(parts)}{_rest(states)}."


def _rest(states: Mapping[str, int]) -> str:
    unknown = states.get("unknown", 0)
    return f" ({unknown} without an interval)" if unknown else ""


def _span(
    pairs: Sequence[Pair], key: str, show: Callable[[float | None], str], unit: str = ""
) -> str:
    """One value, or the lowest and highest over the checkpoints."""
    values = [pair[key] for pair in pairs if is_number(pair.get(key))]
    if not values:
        return ""
    low, high = show(min(values)), show(max(values))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _step(pairs: Sequence[Pair]) -> tuple[tuple[str, str], ...]:
    """Sizes of the step: what, and its value or its range over the checkpoints."""
    parts = (
        ("Unchanged in bfloat16", _span(pairs, "unchanged_bf16", percent)),
        ("Update norm / base norm", _span(pairs, "relative_update_norm", small)),
        ("Shift of singular values", _span(pairs, "nss", small)),
        ("Rotation, left", _span(pairs, "rotation_left_deg", small, "°")),
        ("Rotation, right", _span(pairs, "rotation_right_deg", small, "°")),
    )
    return tuple((words, value or "not defined") for words, value in parts)


def _nulls(pairs: Sequence[Pair], labels: Sequence[str], overlap: str) -> str:
    """For each outcome, the checkpoints that show it and by how much."""
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for label, pair in zip(labels, pairs, strict=True):
        value = excess(pair, overlap)[0]
        key = "undefined" if value is None else state(pair, overlap)
        groups.setdefault(key, []).append((label, value))
    words = {
        "below": "less than the magnitude null",
        "above": "more than the magnitude null",
        "same": "not told apart from the magnitude null",
        "unknown": "without an interval",
        "undefined": "not defined",
    }
    if len(pairs) == 1:
        key, ((_, value),) = next(iter(groups.items()))
        alone = "" if value is None else f" ({signed(value, digits(pairs))})"
        return f"{_OVERLAPS[overlap].capitalize()}: {words[key]}{alone}."
    parts = [f"{words[key]} in {_members(groups[key], pairs)}" for key in words if key in groups]
    return f"{_OVERLAPS[overlap].capitalize()}: {'; '.join(parts)}."


def _members(found: Sequence[tuple[str, float | None]], pairs: Sequence[Pair]) -> str:
    """Up to four checkpoints by name with their differences, more as a count and a range."""
    places = digits(pairs)
    if len(found) <= 4:
        shown = [(name, "" if v is None else f" ({signed(v, places)})") for name, v in found]
        return join([name + value for name, value in shown])
    values = [value for _, value in found if value is not None]
    ends = [signed(value, places) for value in (min(values), max(values))] if values else []
    return f"{len(found)} of {len(pairs)}{f' ({ends[0]} to {ends[1]})' if ends else ''}"


def _rounding(pairs: Sequence[Pair]) -> tuple[str, ...]:
    both = [
        pair["principal_overlap"] - pair["principal_overlap_rounding_null"]
        for pair in pairs
        if is_number(pair.get("principal_overlap"))
        and is_number(pair.get("principal_overlap_rounding_null"))
    ]
    if not both:
        return ("No rounding null: it needs tuned weights stored wider than bfloat16.",)
    span = signed(min(both)) if len(both) == 1 else f"{signed(min(both))} to {signed(max(both))}"
    return (
        f"Rounding null, for {len(both)} of {len(pairs)}: the principal overlap differs from that "
        f"of the same update shuffled inside each matrix by {span}.",
    )


def _change(pairs: Sequence[Pair], labels: Sequence[str]) -> list[str]:
    """What would change the judgement: the intervals' reach, then the verdicts' confounds."""
    labels_seen = {_label(pair) for pair in pairs}
    lines = [words for label, words in _REMEDIES.items() if label in labels_seen]
    same = [pair for pair in pairs if state(pair, "principal_overlap") == "same"]
    moved = [pair for pair in pairs if state(pair, "principal_overlap") in ("below", "above")]
    if same:
        ends = [abs(end or 0) for pair in same for end in excess(pair, "principal_overlap")[1:]]
        lines.append(
            "An interval that leaves out zero. Those that hold it reach at most "
            f"{plain(max(ends), digits(pairs))} away: a true difference of that size would have "
            "gone unseen."
        )
    if moved:
        lines.append(
            "The opposite sign, or none, in a run with another seed. The intervals here are over "
            "the matrices of one run, and say nothing about other runs."
        )
    confounds: dict[str, list[str]] = {}
    for label, pair in zip(labels, pairs, strict=True):
        for text in (pair.get("verdict") or {}).get("confounds") or []:
            confounds.setdefault(clean(text, 500), []).append(label)
    for text, who in confounds.items():
        sentence = text[:1].upper() + text[1:].rstrip(".")
        more = [f"{len(who) - 3} more"] if len(who) > 4 else []
        names = join([*who[: 3 if more else 4], *more])
        lines.append(f"{sentence}." if len(who) == len(pairs) else f"{sentence} ({names}).")
    return lines
