"""The causal test as Markdown: named blocks, each a caption and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from offaxis.lab.blocks import SIGNS, decimal, markdown_table, places
from offaxis.lab.causal.levels import ONE_SEED
from offaxis.lab.causal.pairs import KINDS
from offaxis.lab.causal.readings import QUESTIONS
from offaxis.lab.naming import NAMES
from offaxis.lab.queue.grid import BASE_METHOD

if TYPE_CHECKING:
    from offaxis.lab.causal import CausalStudy

__all__ = ["arm_name", "blocks", "edit_name"]

_PLACE = ("method", "optimizer", "learning_rate", "edit", "step")
_HEAD = ["run", "edit", "step"]
_OPTIMIZERS = {"adamw_torch": "Adam", "sgd": "SGD", "rmsprop": "RMSprop", "adafactor": "Adafactor"}

Row = Mapping[str, Any]


def blocks(study: CausalStudy) -> dict[str, str]:
    """Name -> caption and table."""
    return {
        "state": _state(study.rows),
        "bases": _bases(study.rows),
        "runs": _runs(study.rows),
        "masks": _masks(study.levels),
        "readings": _readings(study.readings),
        "edited": _falls(study.falls, ("mask", "mask, pulled back")),
        "directions": _falls(study.falls, ("update, pulled back", "subspaces")),
        "untouched": _falls(study.falls, ("mask, alike", "mask, rest")),
        "subspaces": _subspaces(study.levels),
        "one-seed": _one_seed(study.one_seed),
        "principal": _principal(study.avoidance),
        "places": _places(study.by_place),
    }


def arm_name(row: Row) -> str:
    """`GRPO, Adam 3e-05`."""
    optimizer = _OPTIMIZERS.get(row["optimizer"] or "adamw_torch", row["optimizer"])
    return f"{NAMES[row['method']]}, {optimizer} {row['learning_rate']:g}"


def edit_name(edit: str | None) -> str:
    """`rotate 1,2, seed 0`; `none`."""
    if not edit:
        return "none"
    verb, _, query = edit.partition("?")
    told = dict(part.split("=", 1) for part in query.split("&"))
    layers = told.pop("layers")
    return f"{verb} {layers}" + "".join(f", {key} {value}" for key, value in told.items())


def _cells(row: Row) -> list[str]:
    return [arm_name(row), edit_name(row["edit"]), str(row["step"])]


def _number(row: Row, name: str, *, sign: str = "") -> str:
    """`+0.021 [−0.010, +0.052]`; the value alone where there is no interval."""
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "—"
    if low is None or high is None:
        return decimal(value, 3, sign)
    digits = max(3, min(5, places((high - low) / 2, digits=2)))
    ends = f"[{decimal(low, digits, sign)}, {decimal(high, digits, sign)}]"
    return f"{decimal(value, digits, sign)} {ends}"


def _edits(rows: pl.DataFrame) -> pl.DataFrame:
    return rows if "edit" in rows.columns else rows.with_columns(edit=pl.lit(None, pl.String))


def _state(rows: pl.DataFrame) -> str:
    own = _edits(rows).filter(pl.col("method") != BASE_METHOD)
    plain = own["edit"].null_count()
    seeds = ", ".join(map(str, own["seed"].unique().sort()))
    return f"{plain} runs from the base, {own.height - plain} from edited bases; seeds {seeds}."


def _bases(rows: pl.DataFrame) -> str:
    caption = (
        "**What the edits cost by themselves**: the base's accuracy (avg) and its loss on the "
        "held-out mixture, nats a token, before any training (95 %, over problems and sequences)"
    )
    found = []
    own = _edits(rows).filter(method=BASE_METHOD).sort("edit", nulls_last=False)
    for row in own.iter_rows(named=True):
        last = row["checkpoints"][-1]
        found.append([edit_name(row["edit"]), _number(last, "avg"), _number(last, "mixture_loss")])
    return markdown_table(caption, ["edit", "accuracy", "loss"], found)


def _runs(rows: pl.DataFrame) -> str:
    caption = "**The runs** at their last step, means over seeds (± standard deviation)"
    measures = ("avg", "unchanged_bf16", "relative_update_norm", "kl_tuned_base")
    found = []
    own = _edits(rows).filter(pl.col("method") != BASE_METHOD)
    keys = ["method", "optimizer", "learning_rate", "edit"]
    for key, runs in own.sort(*keys, nulls_last=False).group_by(keys, maintain_order=True):
        place = dict(zip(keys, key, strict=True))
        last = [row["checkpoints"][-1] for row in runs.iter_rows(named=True)]
        cells = [_spread([one[name] for one in last]) for name in measures]
        found.append([arm_name(place), edit_name(place["edit"]), str(runs.height), *cells])
    head = ["run", "edit", "seeds", "accuracy", "unchanged", "‖ΔW‖/‖W₀‖", "KL(tuned ‖ base)"]
    return markdown_table(caption, head, found)


def _spread(values: Sequence[float | None]) -> str:
    known = pl.Series([one for one in values if one is not None], dtype=pl.Float64)
    mean, deviation = known.mean(), known.std()
    if not isinstance(mean, float):
        return "—"
    digits = places(abs(mean), digits=3)
    spread = f" ± {decimal(deviation, digits)}" if isinstance(deviation, float) else ""
    return f"{decimal(mean, digits)}{spread}"


def _wide(levels: pl.DataFrame, scope: str) -> Iterator[tuple[Row, dict[tuple[str, str], Row]]]:
    """Each arm, edit and step with (measure, kind) -> its level."""
    own = levels.filter(scope=scope)
    for key, rows in own.group_by(_PLACE, maintain_order=True):
        found: dict[tuple[str, str], Row] = {
            (row["measure"], row["kind"]): row for row in rows.iter_rows(named=True)
        }
        yield dict(zip(_PLACE, key, strict=True)), found


def _plain(found: Mapping[tuple[str, str], Row], measure: str, kind: str) -> str:
    row = found.get((measure, kind))
    return "—" if row is None or row["value"] is None else decimal(row["value"], 3)


def _masks(levels: pl.DataFrame) -> str:
    caption = (
        "**Jaccard overlap of update masks in the edited tensors** (magnitude null), mean over "
        "tensors and pairs; each mask in its own run's coordinates, and pulled back: the excess "
        "over the null"
    )
    kinds = (*KINDS[:2], ONE_SEED, KINDS[2])
    rows = []
    for place, found in _wide(levels, "edited"):
        row = _cells(place)
        for kind in kinds:
            both = [_plain(found, name, kind) for name in ("jaccard", "null")]
            row.append("—" if both[0] == "—" else f"{both[0]} ({both[1]})")
        row += [_plain(found, "back_excess", kind) for kind in (KINDS[0], KINDS[1], ONE_SEED)]
        rows.append(row)
    head = [*_HEAD, *kinds, *(f"pulled back: {kind}" for kind in (KINDS[0], KINDS[1], ONE_SEED))]
    return markdown_table(caption, head, rows)


def _readings(readings: pl.DataFrame) -> str:
    caption = (
        "**Falls, and the reading that they make** by the rule stated before the runs (“holds”: it "
        "falls; “does not”: it does not, beyond a tenth of its level between runs from the base)"
    )
    rows = [
        [*_cells(row), *(SIGNS[row[name]] for name in QUESTIONS), row["reading"]]
        for row in readings.iter_rows(named=True)
    ]
    return markdown_table(caption, [*_HEAD, *QUESTIONS, "reading"], rows)


_CAPTIONS = {
    "mask": "**Edited tensors: excess overlap of update masks**, raw and pulled back",
    "update, pulled back": "**Edited tensors: pulled-back updates**, their cosine and their top-8 "
    "singular subspaces (left and right, above chance)",
    "mask, alike": "**Tensors that were not edited: excess overlap of update masks**, of the same "
    "roles in other layers, and all else",
}


def _falls(falls: pl.DataFrame, questions: Sequence[str]) -> str:
    note = (
        "between runs from the base (reference), and how much less between a run from the base and "
        "one from the edited base; other seeds, 95 % by a jackknife over seeds"
    )
    rows = []
    for key, own in falls.group_by(_PLACE, maintain_order=True):
        found = {row["question"]: row for row in own.iter_rows(named=True)}
        cells = _cells(dict(zip(_PLACE, key, strict=True)))
        for name in questions:
            row = found.get(name)
            told = ["—", "—"]
            if row is not None and row["reference"] is not None:
                fall = _number(row | {"value_low": row["low"], "value_high": row["high"]}, "value",
                               sign="+")  # fmt: skip
                told = [decimal(row["reference"], 3), f"{fall}: {SIGNS[row['word']]}"]
            cells += told
        rows.append(cells)
    head = [*_HEAD, *(text for name in questions for text in (f"{name}: reference", "difference"))]
    return markdown_table(f"{_CAPTIONS[questions[0]]}: {note}", head, rows)


def _subspaces(levels: pl.DataFrame) -> str:
    caption = (
        "**Edited tensors: singular subspaces of the pulled-back updates**, ‖UᵀU′‖²/k − k/m, left "
        "and right: runs from the base → a run from the base and one from the edited base"
    )
    names = [f"{side}_{rank}" for rank in (1, 4, 8) for side in ("left", "right")]
    rows = []
    for place, found in _wide(levels, "edited"):
        row = _cells(place)
        for name in names:
            row.append(" → ".join(_plain(found, name, kind) for kind in KINDS[:2]))
        rows.append(row)
    head = [*_HEAD, *(name.replace("_", ", k = ") for name in names)]
    return markdown_table(caption, head, rows)


def _one_seed(table: pl.DataFrame) -> str:
    caption = (
        "**The same seed, other coordinates: cosine of the two updates.** In the edited tensors "
        "pulled back, and as they are; in tensors of the same roles that were not edited; the "
        "difference of the first and the last (95 %, Student's t over seeds)"
    )
    rows = [
        [*_cells(row), _number(row, "edited"), _number(row, "raw"), _number(row, "alike"),
         _number(row, "difference", sign="+"), _number(row, "other_seed")]
        for row in table.iter_rows(named=True)
    ]  # fmt: skip
    head = [*_HEAD, "pulled back", "as they are", "not edited", "difference", "another seed's"]
    return markdown_table(caption, head, rows)


def _principal(table: pl.DataFrame) -> str:
    caption = (
        "**Edited tensors: overlap with principal entries − magnitude null** (95 % over seeds). "
        "Runs from the base; runs from the edited base, against its own M_princ, against the "
        "original's entry by entry, and against the original's with the update pulled back"
    )
    rows = [
        [*_cells(row), "—" if row["overlap"] is None else decimal(row["overlap"], 3),
         *(_number(row, name, sign="+") for name in ("unedited", "own", "original", "back"))]
        for row in table.iter_rows(named=True)
    ]  # fmt: skip
    head = [*_HEAD, "overlap, base", "base", "edited: own", "the original's", "pulled back"]
    return markdown_table(caption, head, rows)


def _places(table: pl.DataFrame) -> str:
    caption = (
        "**Layer by layer: excess Jaccard overlap of update masks**, two runs from the base → a "
        "run from the base and one from the edited base (other seeds, last step); edited tensors "
        "in bold"
    )
    last = table.filter(pl.col("step") == pl.col("step").max())
    layers = last["layer"].unique().sort().to_list()
    rows = []
    keys = [*_PLACE, "role"]
    for key, own in last.group_by(keys, maintain_order=True):
        place = dict(zip(keys, key, strict=True))
        texts = {}
        for row in own.iter_rows(named=True):
            told = ("—" if row[kind] is None else decimal(row[kind], 3) for kind in KINDS[:2])
            text = " → ".join(told)
            texts[row["layer"]] = f"**{text}**" if row["edited"] else text
        cells = [texts.get(layer, "—") for layer in layers]
        rows.append([arm_name(place), edit_name(place["edit"]), place["role"], *cells])
    return markdown_table(caption, ["run", "edit", "role", *(f"layer {n}" for n in layers)], rows)
