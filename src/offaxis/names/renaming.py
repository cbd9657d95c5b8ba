"""Find how the tensor names of one checkpoint became those of another.

A renaming is a short list of prefix rules, each tried on the names that do not match as they are.
Candidates come from the names themselves: where a tuned name and a base name end alike, the two
beginnings make a rule. The list that matches the most parameters with equal shapes wins; among
equals the shortest, then the first in alphabetical order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from offaxis.names.place import Shape, place

__all__ = ["Renaming", "Rule", "rename"]

_MOST_RULES = 6
_MOST_CANDIDATES = 24
_MOST_ENDINGS = 8


@dataclass(frozen=True, order=True)
class Rule:
    """Replace the leading `old` of a tuned name by `new`. Either may be empty."""

    old: str
    new: str

    def __str__(self) -> str:
        if not self.new:
            return f"strip {self.old}"
        if not self.old:
            return f"add {self.new}"
        return f"{self.old} -> {self.new}"


@dataclass(frozen=True)
class Renaming:
    """Tuned name -> base name for every name that lands, and the rules that did it."""

    names: Mapping[str, str]
    rules: tuple[Rule, ...]
    matched: int
    """Parameters whose names land on a base tensor of equal shape."""


def rename(base: Mapping[str, Shape], tuned: Mapping[str, Shape]) -> Renaming:
    """The best renaming of `tuned` onto `base`, from names and shapes alone.

    Greedy: starting from no rule, the rule that gains the most matched parameters is added until
    none gains. A name that matches as it is stays; a base name is taken once.
    """
    best = _apply((), base, tuned)
    while len(best.rules) < _MOST_RULES and len(best.names) < len(tuned):
        taken = {rule.old for rule in best.rules}
        candidates = [rule for rule in _candidates(base, tuned, best) if rule.old not in taken]
        trials = [_apply((*best.rules, rule), base, tuned) for rule in candidates]
        trials = [trial for trial in trials if trial.matched > best.matched]
        if not trials:
            break
        best = min(trials, key=_preference)
    return best


def _preference(trial: Renaming) -> tuple[int, int, tuple[Rule, ...]]:
    length = sum(len(rule.old) + len(rule.new) for rule in trial.rules)
    return (-trial.matched, length, trial.rules)


def _apply(
    rules: tuple[Rule, ...], base: Mapping[str, Shape], tuned: Mapping[str, Shape]
) -> Renaming:
    """Names that are in the base stay; the others take the first rule that lands."""
    names = {name: name for name in tuned if name in base}
    taken = set(names)
    for name in tuned:
        if name in names:
            continue
        for rule in sorted(rules, key=lambda rule: -len(rule.old)):
            image = rule.new + name[len(rule.old) :]
            if name.startswith(rule.old) and image in base and image not in taken:
                names[name] = image
                taken.add(image)
                break
    matched = sum(prod(tuned[old]) for old, new in names.items() if tuned[old] == base[new])
    return Renaming(names, rules, matched)


def _candidates(
    base: Mapping[str, Shape], tuned: Mapping[str, Shape], so_far: Renaming
) -> list[Rule]:
    """Rules proposed by pairs of names with a long common ending, most parameters first."""
    endings: dict[str, list[str]] = defaultdict(list)
    used = set(so_far.names.values())
    for name in base:
        if name not in used:
            for ending in _endings(name):
                endings[ending].append(name)
    votes: Counter[Rule] = Counter()
    for name, shape in tuned.items():
        if name in so_far.names:
            continue
        for rule, target in _proposals(name, endings):
            if base[target] == shape:
                votes[rule] += max(1, prod(shape))
    ranked = sorted(votes, key=lambda rule: (-votes[rule], rule))
    return ranked[:_MOST_CANDIDATES]


def _endings(name: str) -> Iterator[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    position = 0
    while True:
        yield name[position:]
        dot = name.find(".", position)
        if dot < 0:
            return
        position = dot + 1


def _proposals(name: str, endings: Mapping[str, list[str]]) -> Iterator[tuple[Rule, str]]:
    """Rules that carry `name` to base names sharing its longest common ending."""
    for ending in _endings(name):
        targets = endings.get(ending)
        if targets is None:
            continue
        if len(targets) <= _MOST_ENDINGS:
            for target in targets:
                old, new = name.removesuffix(ending), target.removesuffix(ending)
                if _plausible(name, target, ending, old, new):
                    yield Rule(old, new), target
        return


def _plausible(name: str, target: str, ending: str, old: str, new: str) -> bool:
    """Same layer, expert and tower on both sides, and more in common than a bare `weight`.

    A tower may be saved by itself, without the prefix that tells it: then one beginning is empty.

    A beginning may hold a number only if the layer number is in the common ending, or the rule
    would rename one layer.
    """
    here, there = place(name, ()), place(target, ())
    if (here.layer, here.expert) != (there.layer, there.expert):
        return False
    if old and new and ("." not in ending or here.tower != there.tower):
        return False
    numbered = any(part.isdigit() for part in (old + new).split("."))
    return not numbered or place(ending, ()).layer == here.layer is not None
