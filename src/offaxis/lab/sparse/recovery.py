"""Re-training alone the subnetwork that a finished run changed: what does it recover?

The full run trains all matrices; its subnetwork is the set of entries whose bf16 value it changed.
A second run of the same seed trains only those, from the base. Beside it stand random masks of the
same density, with and without matched magnitudes, and a full run of another seed. The full run
against itself would have cosine 1, share 1 and distance 0.

Entries outside the subnetwork are equal in both runs by construction: the full run left them at the
base's value. So the share of equal entries over all is at least 1 − density without any
training, and only the share among the changed entries (`twin_same_changed`) says something.

"Recovers" has three levels, each stated as claims: the accuracy (level with the full run's), the
direction (a cosine above those of both controls and of another seed), the values (the share of
equal values among the changed entries above all three, and at least `NEARLY`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from offaxis.lab.claims import Claim, Measured, Word, as_row, compared, verdict
from offaxis.lab.methods.summary import over_seeds
from offaxis.lab.sparse.naming import ALL, SUBNETWORK, matched_like, ordered, random_like
from offaxis.lab.sparse.questions import COMPARISONS
from offaxis.lab.sparse.summary import Runs, last_values

__all__ = [
    "AGREEMENT",
    "LEVELS",
    "MEASURES",
    "NEARLY",
    "agreeing",
    "agreements",
    "recovered",
    "recovery",
]

NEARLY = 0.9
"""A share of equal values from which two runs are nearly the same."""

MEASURES: Mapping[str, str] = {
    "twin_cosine": "cosine of the updates",
    "twin_same_changed": "equal bf16 values, of the entries that the full run changed",
    "twin_same": "equal bf16 values, of all entries",
    "twin_distance": "distance over the full run's update",
}

_RULES = (random_like(SUBNETWORK), matched_like(SUBNETWORK))
_CLAIMS = (
    Claim("its accuracy is level with the full run's", SUBNETWORK, 0, (ALL,)),
    Claim("its update points the full run's way more than its controls' do", SUBNETWORK, 1, _RULES,
          "twin_cosine"),
    Claim("and more than another seed's full run does", SUBNETWORK, 1, (ALL,), "twin_cosine"),
    Claim("more of its changed entries end equal than its controls' do", SUBNETWORK, 1, _RULES,
          "twin_same_changed"),
    Claim("and more than another seed's", SUBNETWORK, 1, (ALL,), "twin_same_changed"),
)  # fmt: skip
_NEARLY = f"at least {NEARLY:.0%} of the changed entries end equal".replace("%", " %")

LEVELS: Mapping[str, tuple[str, ...]] = {
    "accuracy": (_CLAIMS[0].text,),
    "direction": (_CLAIMS[1].text, _CLAIMS[2].text),
    "values": (_CLAIMS[3].text, _CLAIMS[4].text, _NEARLY),
}
"""Level -> the claims that make it. "Recovers" without more means all three."""

AGREEMENT: dict[str, Any] = {
    "method": pl.String(),
    "learning_rate": pl.Float64(),
    "mask": pl.String(),
    "density": pl.Float64(),
    "measure": pl.String(),
    "value": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "seeds": pl.Int64(),
}
"""Columns of `agreements`. mask `all`: a full run against the full run of another seed."""


def _at(runs: Runs, method: str, rate: float, measure: str) -> Measured:
    """Mask -> seed -> a measure of the runs that have a twin, at one rate."""
    own = runs.points.filter(
        pl.col("method") == method,
        pl.col("learning_rate") == rate,
        pl.col("stage") == "twin",
    )
    found = {mask: last_values(own.filter(mask=mask), measure) for mask in ordered(own["mask"])}
    return {mask: seeds for mask, seeds in found.items() if seeds}


def _cells(runs: Runs) -> list[tuple[str, float]]:
    """Methods and rates at which there are such runs."""
    own = runs.points.filter(stage="twin").select("method", "learning_rate").unique()
    return sorted(own.iter_rows(), key=lambda cell: (runs.methods.index(cell[0]), -cell[1]))


def agreements(runs: Runs) -> pl.DataFrame:
    """Means over seeds of every measure and of accuracy, Student's t interval; `AGREEMENT`."""
    found = []
    for method, rate in _cells(runs):
        densities = dict(
            runs.points.filter(stage="twin", method=method, learning_rate=rate)
            .group_by("mask")
            .agg(pl.col("mask_density").mean())
            .iter_rows()
        )
        for measure in ("accuracy", *MEASURES):
            for mask, seeds in _at(runs, method, rate, measure).items():
                values = [float(one.mean()) for one in seeds.values()]
                value, low, high = over_seeds(values)
                found.append(
                    {"method": method, "learning_rate": rate, "mask": mask, "measure": measure}
                    | {"density": densities[mask], "value": value, "low": low, "high": high}
                    | {"seeds": len(values)}
                )
    return pl.DataFrame(found, schema=AGREEMENT)


def agreeing(runs: Runs) -> dict[tuple[str, float, str], dict[str, list[float]]]:
    """(method, rate, mask) -> measure -> its value for every seed."""
    return {
        (method, rate, mask): {
            measure: [float(one.mean()) for one in _at(runs, method, rate, measure)[mask].values()]
            for measure in MEASURES
            if mask in _at(runs, method, rate, measure)
        }
        for method, rate in _cells(runs)
        for mask in _at(runs, method, rate, "accuracy")
    }


def recovery(runs: Runs) -> pl.DataFrame:
    """The comparisons behind "recovers", with the columns `COMPARISONS`; `rates` is the rate."""
    found = []
    for method, rate in _cells(runs):

        def measured(measure: str, method: str = method, rate: float = rate) -> Measured:
            return _at(runs, method, rate, measure)

        told = {"question": "recovery", "rates": f"{rate:g}", "method": method}
        found += [told | as_row(one, "mask") for one in compared(_CLAIMS, measured)]
        found.append(told | _nearly(measured("twin_same_changed")))
    return pl.DataFrame(found, schema=COMPARISONS)


def _nearly(table: Measured) -> dict[str, Any]:
    """Is the share of equal values at least `NEARLY`? Student's t over seeds."""
    values = [float(one.mean()) for one in table.get(SUBNETWORK, {}).values()]
    told: dict[str, Any] = {"claim": _NEARLY, "measure": "twin_same_changed"}
    told |= {"mask": SUBNETWORK} | {"against": f"{NEARLY:g}", "direction": 1, "seeds": len(values)}
    if not values:
        return told | {"word": "cannot tell"}
    value, low, high = over_seeds(values)
    word: Word = "cannot tell"
    if low is not None and high is not None:
        word = "holds" if low >= NEARLY else "does not" if high < NEARLY else word
        low, high = low - NEARLY, high - NEARLY
    return told | {"value": value - NEARLY, "low": low, "high": high, "word": word}


def recovered(comparisons: pl.DataFrame) -> pl.DataFrame:
    """The word for each level: method, learning_rate, level, word; level `all three` among them."""
    found = []
    groups = comparisons.partition_by("method", "rates", as_dict=True, maintain_order=True)
    for (method, rate), rows in groups.items():
        words = dict.fromkeys(LEVELS, "")
        for level, claims in LEVELS.items():
            words[level] = verdict(rows.filter(pl.col("claim").is_in(claims))["word"])
        words["all three"] = verdict(words.values())
        found += [(method, float(str(rate)), level, word) for level, word in words.items()]
    names = ["method", "learning_rate", "level", "word"]
    schema = {name: pl.Float64() if name == "learning_rate" else pl.String() for name in names}
    return pl.DataFrame(found, schema=schema, orient="row")
