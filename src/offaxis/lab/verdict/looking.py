"""Beside the test: what carries it, how early, what neither kind looks like, confounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.verdict.linear import probability, rule_on
from offaxis.lab.verdict.material import SETTINGS_SET, Material
from offaxis.lab.verdict.measuring import ends_of
from offaxis.lab.verdict.rule import FEATURES, SETS, features
from offaxis.lab.verdict.scoring import Contest, Interval

__all__ = ["by_method", "by_step", "carried", "confounds", "settings_gain"]

Floats = npt.NDArray[np.float64]


def carried(material: Material) -> pl.DataFrame:
    """Each feature alone, and all but it: AUC of the test runs, all pairs and matched ones.

    Rules fitted to the first study. `lost`: what leaving it out takes from the matched AUC.
    """
    training, test = material.runs["training"], material.runs["test"]
    whole, matched = material.contest("test"), material.contest("test", matched=True)
    full = material.score("test", "all")
    rows = []
    for name in FEATURES:
        rest = tuple(one for one in FEATURES if one != name)
        alone = rule_on(training, (name,)).logit(test)
        without = rule_on(training, rest).logit(test)
        rows.append(
            {"feature": name, "alone": whole.auc(alone).value}
            | ends_of(matched.auc(alone), "alone_matched")
            | {"without": whole.auc(without).value}
            | ends_of(matched.auc(without), "without_matched")
            | ends_of(matched.gain(full, without), "lost")
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def by_step(material: Material) -> pl.DataFrame:
    """How early it can be told: AUC by step, by the rule fitted to last steps.

    set, source, steps (of the whole run), step, rl, tuned (runs), AUC. First-study runs are scored
    by rules that were fitted without their task and rate.
    """
    rows = []
    for name in SETS:
        for source, points in (("training", material.training), ("test", material.test)):
            own = points.filter(pl.col("rl").is_not_null())
            scored = own.with_columns(pl.Series("score", _scores(material, source, name, own)))
            for (steps, step), some in scored.group_by("steps", "step", maintain_order=True):
                if some["rl"].n_unique() == 2:
                    contest = Contest(some, draws=material.draws)
                    count = int(some["rl"].sum())
                    rows.append(
                        {"set": name, "source": source, "steps": steps, "step": step,
                         "rl": count, "tuned": some.height - count}
                        | ends_of(contest.auc(some["score"].to_numpy()))
                    )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None).sort("set", "source", "steps", "step")


def _scores(material: Material, source: str, name: str, points: pl.DataFrame) -> Floats:
    """Logits of checkpoints: of test runs by the rule, of the first study's by left-out rules."""
    if source == "test":
        return material.rules[name].logit(points)
    last, found = material.runs["training"], np.zeros(points.height)
    for fold in points["fold"].unique():
        out = (points["fold"] == fold).to_numpy()
        rule = rule_on(last.filter(pl.col("fold") != fold), SETS[name])
        found[out] = rule.logit(points.filter(pl.Series(out)))
    return found


def by_method(material: Material, least: float | None, name: str = "all") -> pl.DataFrame:
    """Every method of the test runs, labelled or not: runs, mean probability of RL, labels.

    above: runs with p > ½. rl_like, sft_like, undetermined: labels, the band being `least`.
    """
    last = material.test.filter("last")
    p = probability(material.rules[name].logit(last))
    sure = np.maximum(p, 1 - p) >= (2.0 if least is None else least)
    told = last.select("method", "rl").with_columns(
        p=pl.Series(p), sure=pl.Series(sure), high=pl.Series(p > 0.5)
    )
    return (
        told.group_by("method", "rl")
        .agg(
            runs=pl.len(),
            p=pl.col("p").mean(),
            above=pl.col("high").sum(),
            rl_like=(pl.col("sure") & pl.col("high")).sum(),
            sft_like=(pl.col("sure") & ~pl.col("high")).sum(),
            undetermined=(~pl.col("sure")).sum(),
        )
        .sort("p", descending=True)
    )


def confounds(material: Material) -> pl.DataFrame:
    """Do the same features tell the optimizer, the store, the rate? what, runs, value, chance.

    Logistic (rate: linear, in ln) regression on all standardised features, each method left out in
    turn. Optimizer, store: balanced accuracy (chance 1 / classes), store among AdamW runs. Rate: R²
    of ln rate in the first study (chance 0).
    """
    test = material.runs["test"]
    adamw = test.filter(pl.col("optimizer") == "adamw_torch")
    rows = []
    for what, column, own in (
        ("optimizer, among test runs", "optimizer", test),
        ("store, among AdamW's", "dtype", adamw),
    ):
        classes = own[column].n_unique()
        value = _told(own, column) if classes > 1 else None
        chance = 1 / classes
        rows.append({"what": what, "runs": own.height, "value": value, "chance": chance})
    first = material.runs["training"]
    rows.append(
        {"what": "ln rate, in the first study (R²)", "runs": first.height, "value": _rate(first),
         "chance": 0.0}
    )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def _told(own: pl.DataFrame, column: str) -> float:
    """Balanced accuracy of a column, each method left out in turn."""
    from sklearn.linear_model import LogisticRegression

    truth = own[column].to_numpy()
    guess = _crossed(own, truth, LogisticRegression(max_iter=5000))
    return float(np.mean([(guess[truth == one] == one).mean() for one in set(truth.tolist())]))


def _rate(own: pl.DataFrame) -> float:
    from sklearn.linear_model import LinearRegression

    truth = own["learning_rate"].log().to_numpy()
    guess = _crossed(own, truth, LinearRegression())
    return float(1 - ((guess - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def _crossed(own: pl.DataFrame, truth: Any, estimator: Any) -> Any:
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), estimator)
    names: Sequence[str] = SETS["all"]
    groups = own["method"].to_numpy()
    return cross_val_predict(
        model, features(own, tuple(names)), truth, groups=groups, cv=LeaveOneGroupOut()
    )


def settings_gain(material: Material) -> pl.DataFrame:
    """What knowing rate, steps and optimizer adds to all features: AUC with minus AUC without.

    Both by rules fitted to all runs of other (task, rate, optimizer, dtype). over: which pairs.
    """
    with_them, without = (material.score("both", name) for name in (SETTINGS_SET, "all"))
    rows: list[dict[str, Any]] = []

    def add(over: str, contest: Contest, places: Any = slice(None)) -> None:
        gain: Interval = contest.gain(with_them[places], without[places])
        plain, told = contest.auc(without[places]), contest.auc(with_them[places])
        rows.append({"over": over, "pairs": gain.size, "without": plain.value, "with": told.value}
                    | ends_of(gain, "gain"))  # fmt: skip

    add("all pairs", material.contest("both"))
    add("equal task and norm", material.contest("both", matched=True))
    runs = material.runs["both"].with_row_index("place")
    for (optimizer, dtype), own in runs.group_by("optimizer", "dtype", maintain_order=True):
        if own["rl"].n_unique() == 2:
            contest = Contest(own, draws=material.draws)
            add(f"{optimizer}, {dtype}", contest, own["place"].to_numpy())
    return pl.DataFrame(rows, infer_schema_length=None)
