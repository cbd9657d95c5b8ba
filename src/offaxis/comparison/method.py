"""RL-like, fine-tuning-like or neither to be told: the lab's rule, within what it was tested on.

The rule is `verdict.json` beside this module, which `offaxis lab verdict --write` makes from runs;
it also says whether there is a rule at all. It was fitted to and tested on one small model, so for
every other model the answer is `undetermined`, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from offaxis.comparison.run_info import RunInfo, reach

__all__ = ["LABELS", "Circumstances", "Told", "method_of", "probability", "shipped"]

LABELS: Mapping[str, str] = {
    "rl_like": "RL-like",
    "sft_like": "fine-tuning-like",
    "undetermined": "undetermined",
}

_WIDE = frozenset({"F32", "F64"})
_FEW = 4


@dataclass(frozen=True)
class Circumstances:
    """What a rule has to know beside a pair's numbers."""

    info: RunInfo = field(default_factory=RunInfo)
    dtypes: frozenset[str] = frozenset()
    """Of the tuned checkpoint's tensors, as safetensors names them."""
    adapter: bool = False
    """It is an adapter directory."""
    usual: bool = True
    """α and the ranks are the defaults that the rule's numbers were made with."""
    unprofiled: int = 0
    """Matrices without a spectrum or without profiles."""
    still: int = 0
    """Tensors of two or more dimensions in which no entry moved."""
    rms: float | None = None
    """Root mean square of the change over the entries of tensors that moved."""

    @property
    def rounded(self) -> bool:
        return not self.dtypes <= _WIDE


@dataclass(frozen=True)
class Told:
    """The entry `method` of a pair, and lines for its verdict."""

    method: dict[str, Any]
    evidence: tuple[str, ...] = ()
    confounds: tuple[str, ...] = ()


@cache
def shipped() -> Mapping[str, Any]:
    """The rule's file."""
    path = Path(__file__).with_name("verdict.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def method_of(
    pair: Mapping[str, Any],
    features: Mapping[str, float | None],
    about: Circumstances,
    *,
    known: Mapping[str, Any] | None = None,
) -> Told:
    """Judge one pair. known: the rule's file, by default the one that ships.

    `method`: label (one of `LABELS`), probability of RL (None where the rule does not apply), wrong
    (share of wrong labels among the test runs that got one, with its 95 % interval), rule.
    """
    extra = tuple(_contradictions(pair, about))
    if pair["verdict"]["label"] in ("identical", "implausible_base"):
        return Told(_undetermined(), extra)
    known = shipped() if known is None else known
    if not known["rules"]:
        return Told(_undetermined(), (_nothing(known), *extra))
    outside = [*_other_model(pair, about, known), *_other_run(about, known)]
    values = dict(features) | {name: getattr(about.info, name) for name in _SETTINGS}
    outside += _beyond(features, known["ranges"])
    if outside:
        more = f", and {len(outside) - _FEW} more" if len(outside) > _FEW else ""
        line = (
            "RL or fine-tuning: not judged, for the rule was fitted to one lab model of "
            f"{_millions(known)} parameters: {'; '.join(outside[:_FEW])}{more}"
        )
        return Told(_undetermined(), (line, *extra))
    rule = _rule(about.info, known)
    found = _by_rule(rule, values, about, known)
    return replace(found, evidence=(*found.evidence, *extra, *_against_data(found, about.info)))


_SETTINGS = ("learning_rate", "steps", "optimizer")
_CELL = ("optimizer", "dtype", "batch", "steps")


def _undetermined(rule: str | None = None, probability: float | None = None) -> dict[str, Any]:
    return {"label": "undetermined", "probability": probability, "wrong": None, "rule": rule}


def _millions(known: Mapping[str, Any]) -> str:
    return f"{known['model']['parameters'] / 1e6:.1f} million"


def _interval(ends: Sequence[float | None], *, percent: bool = False) -> str:
    scale, form = (100, ".0f") if percent else (1, ".2f")
    value, low, high = ("—" if one is None else format(scale * one, form) for one in ends)
    return f"{value} % [{low}, {high}]" if percent else f"{value} [{low}, {high}]"


def _nothing(known: Mapping[str, Any]) -> str:
    """Why there is no rule."""
    found = known["finding"]
    return (
        "RL or fine-tuning: not judged. No rule on weights alone survived the lab's test "
        f"({known['tested']['runs']} runs; the best had an AUC of {_interval(found['auc'])}, at "
        f"equal task and norm {_interval(found['matched'])}; not met: {', '.join(found['failed'])})"
    )


# ----------------------------------------------------------------- outside of what it was tested on


def _other_model(
    pair: Mapping[str, Any], about: Circumstances, known: Mapping[str, Any]
) -> Iterator[str]:
    """How the pair differs from the runs that the rule was tested on, read from the weights."""
    for name in ("parameters", "matrices"):
        if pair[name] != known["model"][name]:
            yield f"{pair[name]:,} {name} (it knows {known['model'][name]:,})"
    if about.adapter:
        yield "an adapter (it knows whole models)"
    if about.still:
        yield f"{about.still} tensors did not move (it knows runs that train all)"
    if about.unprofiled:
        yield f"{about.unprofiled} matrices without spectrum or profiles (it needs all)"
    if not about.usual:
        yield "alpha or a rank of its own (it needs the defaults)"
    if any(pair["nonfinite"].values()):
        yield "entries that are NaN or infinite (it knows none)"


def _other_run(about: Circumstances, known: Mapping[str, Any]) -> Iterator[str]:
    """How the run differs, read from the stored dtype and from what is told of it."""
    info, tested = about.info, known["settings"]
    if about.rounded and info.dtype != "bfloat16":
        yield (
            f"stored as {', '.join(sorted(about.dtypes))} (it knows float32 weights, and bfloat16 "
            "ones that were trained in bfloat16: if these were, say --run-info dtype=bfloat16)"
        )
    pair = ("optimizer", "dtype")
    same = [one for one in tested if all(getattr(info, key) in (None, one[key]) for key in pair)]
    if not same:
        names = "; ".join(f"{one['optimizer']} in {one['dtype']}" for one in tested)
        told = " in ".join(value for key in pair if (value := getattr(info, key)) is not None)
        yield f"{told} (it knows {names})"
    for name in ("learning_rate", "steps", "batch"):
        value = getattr(info, name)
        if value is not None and same:
            low, high = min(one[name][0] for one in same), max(one[name][1] for one in same)
            if not low <= value <= high:
                yield f"{name} {value:g} (it knows {low:g} to {high:g})"


def _beyond(
    features: Mapping[str, float | None], ranges: Mapping[str, Sequence[float]]
) -> list[str]:
    """Features that are undefined, or outside of all runs'."""
    found = []
    for name, (low, high) in ranges.items():
        value = features.get(name)
        if value is None:
            found.append(f"{name} is undefined")
        elif not low <= value <= high:
            found.append(f"{name} {value:.3g} (it knows {low:.3g} to {high:.3g})")
    return found


# ------------------------------------------------------------------------------------ the judgement


def _rule(info: RunInfo, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rule on settings too where it is there and they are known, else the one on weights."""
    told = all(getattr(info, name) is not None for name in _SETTINGS)
    wanted = [one for one in known["rules"] if (one["name"] == "settings") == told]
    found: Mapping[str, Any] = (wanted or known["rules"])[0]
    return found


def probability(rule: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """1 / (1 + exp(−b − Σ wᵢ (xᵢ − mᵢ) / sᵢ)) of a rule's terms; logarithms where they say so."""
    logit = rule["intercept"]
    for term in rule["terms"]:
        name, _, wanted = term["name"].partition("=")
        value = float(values[name] == wanted) if wanted else values[name]
        value = math.log(max(value, 1e-9)) if term["log"] else value
        logit += term["weight"] * (value - term["mean"]) / term["scale"]
    return 1 / (1 + math.exp(-logit))


def _by_rule(
    rule: Mapping[str, Any],
    values: Mapping[str, Any],
    about: Circumstances,
    known: Mapping[str, Any],
) -> Told:
    name = "settings" if rule["name"] == "settings" else "weights"
    if name == "settings" and any(values[one] is None for one in _SETTINGS):
        line = (
            "RL or fine-tuning: not judged, for only the rule that knows learning_rate, steps and "
            "optimizer survived the lab's test: say them by --run-info"
        )
        return Told(_undetermined(), (line,))
    wrong, labelled, rates = rule["wrong"], rule["labelled"], ""
    if not rule["everywhere"]:
        cell = _cell(rule, about.info)
        if cell is None:
            return Told(_undetermined(), (_only_in(rule),))
        wrong, labelled = cell["wrong"], cell["labels"]
        rates = " (rates {:g} to {:g})".format(*cell["learning_rate"])
    p = probability(rule, values)
    by = (
        f"by a rule fitted to {known['fitted']['runs']} runs of one lab model of "
        f"{_millions(known)} parameters"
    )
    if max(p, 1 - p) < rule["least"]:
        line = f"RL or fine-tuning: too close to call (probability of RL {p:.2f}, {by})"
        return Told(_undetermined(name, p), (line,))
    label = "rl_like" if p > 0.5 else "sft_like"
    line = (
        f"{LABELS[label]}: probability of RL {p:.2f}, {by}; of {labelled} test runs that it "
        f"labelled{rates} it called {_interval(wrong, percent=True)} wrongly"
    )
    method = {"label": label, "probability": p, "wrong": list(wrong), "rule": name}
    return Told(method, (line,), tuple(_confounds(known)))


def _cell(rule: Mapping[str, Any], info: RunInfo) -> Mapping[str, Any] | None:
    """The cell that survives alone and that the run is told to belong to, in all its settings.

    A rate that is told lies within those at which the cell's error was found.
    """
    for one in rule["cells"]:
        if one["survives"] and all(one[name] == getattr(info, name) for name in _CELL):
            low, high = one["learning_rate"]
            found: Mapping[str, Any] = one
            if info.learning_rate is None or low <= info.learning_rate <= high:
                return found
    return None


def _only_in(rule: Mapping[str, Any]) -> str:
    kept = [
        ",".join(f"{name}={one[name]}" for name in _CELL)
        + " (rates {:g} to {:g})".format(*one["learning_rate"])
        for one in rule["cells"] if one["survives"]
    ]  # fmt: skip
    return (
        "RL or fine-tuning: not judged, for in the lab's test the rule held for some settings "
        f"only: if these are the run's, say --run-info {' or '.join(dict.fromkeys(kept))}"
    )


def _confounds(known: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "RL-like and fine-tuning-like are told from runs of one small model; another model, "
        "recipe or length was not tested"
    )
    for one in known["neither"]:
        told = ", ".join(f"{one[label]} {words}" for label, words in LABELS.items() if one[label])
        yield (
            f"{one['method'].replace('_', ' ')} is neither: of {one['runs']} test runs the rule "
            f"called {told}"
        )


# ---------------------------------------------------------------------- what the run's settings say


def _contradictions(pair: Mapping[str, Any], about: Circumstances) -> Iterator[str]:
    """Where the weights cannot be what the settings say, or how far below their reach they are."""
    info = about.info
    most = reach(info, rounded=about.rounded)
    if most is not None and about.rms is not None:
        names = {"adamw": "AdamW without weight decay", "rmsprop": "RMSprop"}
        line = (
            f"{names[str(info.optimizer)]} at rate {info.learning_rate:g} can move an entry by "
            f"{most:.3g} in {info.steps} steps; the root mean square of the change is "
            f"{about.rms:.3g}"
        )
        yield f"run info is contradicted: {line}" if about.rms > most else line
    below = pair["unchanged_bf16"], pair["unchanged_stored"]
    if info.dtype == "bfloat16" and None not in below and below[1] < below[0]:
        yield (
            "run info is contradicted: weights trained in bfloat16 hold nothing finer, and "
            f"{100 * (below[0] - below[1]):.1f} % of the entries changed below it"
        )


def _against_data(found: Told, info: RunInfo) -> Iterator[str]:
    """Where the label and the data that were told do not go together."""
    expected = {"on_policy": "rl_like", "demonstrations": "sft_like",
                "rejection_sampled": "sft_like", "distilled": "sft_like"}  # fmt: skip
    wanted, label = expected.get(str(info.data)), found.method["label"]
    if wanted is not None and label not in (wanted, "undetermined"):
        yield f"run info says data={info.data}, and the rule says {LABELS[label]}: one is wrong"
