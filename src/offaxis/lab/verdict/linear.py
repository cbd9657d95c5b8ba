"""Fitted rules as plain numbers: a logistic score of standardised terms, and scores left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from offaxis.lab.verdict.rule import FEATURES, features, fitted

__all__ = ["OPTIMIZERS", "Rule", "left_out", "probability", "rule_on", "told", "with_settings"]

Floats = npt.NDArray[np.float64]

OPTIMIZERS = ("sgd", "rmsprop")
"""Optimizers with a term of their own in the rule on settings; AdamW has none."""


@dataclass(frozen=True)
class Rule:
    """P(on-policy RL) = 1 / (1 + exp(−b − Σ wᵢ (xᵢ − mᵢ) / sᵢ)).

    names: of the terms xᵢ, a feature (its logarithm where `FEATURES` says so), `learning_rate` and
    `steps` (logarithms), or `optimizer=NAME` (0 or 1). mean, scale: mᵢ, sᵢ.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    weight: Floats
    intercept: float

    def logit(self, points: pl.DataFrame) -> Floats:
        """b + Σ wᵢ (xᵢ − mᵢ) / sᵢ of each row."""
        told: Floats = (terms(points, self.names) - self.mean) / self.scale @ self.weight
        return told + self.intercept


def terms(points: pl.DataFrame, names: Sequence[str]) -> Floats:
    """(rows, terms): what a rule multiplies its weights with, before standardising."""
    plain = tuple(name for name in names if name in FEATURES)
    columns = [features(points, plain)] if plain else []
    for name in names[len(plain) :]:
        key, _, value = name.partition("=")
        told = points[key]
        one = (told == value) if value else told.cast(pl.Float64).log()
        columns.append(one.to_numpy().astype(np.float64)[:, None])
    return np.concatenate(columns, axis=1)


def probability(logit: Floats) -> Floats:
    """P(on-policy RL) of a logit."""
    found: Floats = 1 / (1 + np.exp(-logit))
    return found


def rule_on(points: pl.DataFrame, names: tuple[str, ...]) -> Rule:
    """`rule.fitted` as numbers."""
    return _rule(names, fitted(points, names))


def with_settings(points: pl.DataFrame, names: tuple[str, ...]) -> Rule:
    """The rule on features, ln rate, ln steps and the optimizer, fitted in the same way."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    whole = (*names, "learning_rate", "steps", *(f"optimizer={one}" for one in OPTIMIZERS))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return _rule(whole, model.fit(terms(points, whole), points["rl"].to_numpy()))


def _rule(names: tuple[str, ...], model: Any) -> Rule:
    scaler, logistic = model[0], model[-1]
    return Rule(
        names, scaler.mean_, scaler.scale_, logistic.coef_[0], float(logistic.intercept_[0])
    )


def left_out(
    points: pl.DataFrame,
    names: tuple[str, ...],
    *,
    settings: bool = False,
    groups: str = "fold",
) -> Floats:
    """The logit of every row by a rule fitted to the rows of all other groups."""
    make = with_settings if settings else rule_on
    group = points[groups].to_numpy()
    found = np.zeros(points.height)
    for one in dict.fromkeys(group.tolist()):
        out = group == one
        found[out] = make(points.filter(pl.Series(~out)), names).logit(
            points.filter(pl.Series(out))
        )
    return found


def told(rule: Rule) -> list[Mapping[str, Any]]:
    """The terms of a rule for a file."""
    return [
        {
            "name": name,
            "log": FEATURES.get(name, "=" not in name),
            "mean": float(mean),
            "scale": float(scale),
            "weight": float(weight),
        }
        for name, mean, scale, weight in zip(
            rule.names, rule.mean, rule.scale, rule.weight, strict=True
        )
    ]
