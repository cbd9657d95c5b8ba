"""What adapters cost: trained parameters, the bytes that go with them, and CPU time of training.

Seconds are CPU seconds of the training alone (one thread; no loading, no scoring), at each
adapter's own rate under DAPO. They follow what an adapter's policy does far more than the adapter:
dynamic sampling draws more completions where a policy solves all of a group or nothing of it. So
adapters are compared at equal numbers of completions: least squares of seconds on the adapter, the
seed (whose runs were made at one time) and the completions sampled (one slope for all), and the
difference to LoRA with Student's t interval by the residuals, 95 %. The lab's model is small, a
step is mostly sampling, and nothing here tells the cost at 7B. `benchmarks/adapters.py` measures
the step itself, and memory, on a larger model; its figures can stand beside these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from offaxis.comparison.sampling import student_t
from offaxis.errors import InputError
from offaxis.lab.blocks import decimal, markdown_table
from offaxis.lab.peft.geometry.series import checkpoints
from offaxis.lab.peft.naming import FULL, LORA, label, method_of, ordered

__all__ = ["BYTES", "COSTS", "costs", "markdown", "measured_costs"]

BYTES = 12
"""A trained float32 parameter's gradient and AdamW's two moments."""

COSTS: dict[str, Any] = {
    "adapter": pl.String(),
    "trainable": pl.Int64(),
    "share": pl.Float64(),
    "state_bytes": pl.Int64(),
    "seeds": pl.Int64(),
    "cpu_seconds": pl.Float64(),
    "sampled": pl.Float64(),
    **{f"beyond_lora{end}": pl.Float64() for end in ("", "_low", "_high")},
    "peak_mib": pl.Float64(),
    "step_to_full": pl.Float64(),
    "step_to_lora": pl.Float64(),
}
"""Columns of `costs`. share: of full fine-tuning's parameters; state_bytes: `BYTES` a parameter
that is trained; sampled: completions a run; beyond_lora: seconds more than LoRA at as many. The
last three are `benchmarks/adapters.py`'s, of another model and rank: peak anonymous memory beyond
the loaded model, and a training step's time. Null where it was not run."""


def costs(rows: pl.DataFrame, *, benchmark: str | Path | None = None) -> pl.DataFrame:
    """One row an adapter, with the columns `COSTS`.

    benchmark: what `benchmarks/adapters.py --json FILE` wrote.
    """
    measured = measured_costs(benchmark) if benchmark is not None else {}
    runs = checkpoints(rows, "own")
    runs = runs.filter(pl.col("step") == pl.col("step").max().over("run"))
    apart = _beyond(runs)
    whole = _trained(runs, FULL)
    found = []
    for name in ordered(set(runs["adapter"])):
        own = runs.filter(adapter=name)
        told: dict[str, Any] = {"adapter": name, "seeds": own.height}
        trained = _trained(runs, name)
        if trained is not None:
            told |= {"trainable": trained, "state_bytes": BYTES * trained}
            told["share"] = trained / whole if whole else None
        told["cpu_seconds"] = own["train_cpu_seconds"].mean()
        told["sampled"] = own["sampled"].mean()
        if name in apart:
            ends = ("", "_low", "_high")
            told |= {f"beyond_lora{end}": one for end, one in zip(ends, apart[name], strict=True)}
        found.append(told | measured.get(method_of(name), {}))
    return pl.DataFrame(found, schema=COSTS)


def _trained(runs: pl.DataFrame, adapter: str) -> int | None:
    found: int | None = runs.filter(adapter=adapter).select(pl.col("trainable").max()).item()
    return found


def _beyond(runs: pl.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Adapter -> seconds beyond LoRA's at equal completions, with the interval's ends."""
    names = ordered(set(runs["adapter"]))
    table = runs.filter(pl.col("train_cpu_seconds") > 0, pl.col("sampled").is_not_null())
    if LORA not in names or set(table["adapter"]) != set(names):
        return {}
    index = [names.index(one) for one in table["adapter"]]
    seeds = np.unique(table["seed"].to_numpy(), return_inverse=True)[1]
    design = np.column_stack(
        [np.eye(len(names))[index], np.eye(seeds.max() + 1)[seeds][:, 1:], table["sampled"]]
    )
    free = table.height - design.shape[1]
    if free < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}  # too few runs, or completions that do not vary
    seconds = table["train_cpu_seconds"].to_numpy()
    fit, *_ = np.linalg.lstsq(design, seconds, rcond=None)
    variance = float(((seconds - design @ fit) ** 2).sum()) / free
    spread = variance * np.linalg.inv(design.T @ design)
    lora, wide = names.index(LORA), student_t(free)
    found = {}
    for place, name in enumerate(names):
        value = float(fit[place] - fit[lora])
        square = spread[place, place] + spread[lora, lora] - 2 * spread[place, lora]
        half = wide * float(np.sqrt(max(square, 0.0)))
        found[name] = (value, value - half, value + half)
    return found


def measured_costs(path: str | Path) -> dict[str, dict[str, float]]:
    """Method -> peak_mib, step_to_full, step_to_lora, from `benchmarks/adapters.py --json FILE`.

    InputError where the file is not one of those.
    """
    file = Path(path)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rows: Sequence[Mapping[str, Any]] = told["methods"]
        found = {
            str(row["method"]): {
                "peak_mib": float(row["beyond"]) / 2**20,
                "step_to_full": float(np.median(row["to_full"])),
                "step_to_lora": float(np.median(row["to_lora"])),
            }
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: no figures of adapters ({type(error).__name__}: {error}); make them with "
            "benchmarks/adapters.py --json FILE"
        ) from error
    return found


def markdown(table: pl.DataFrame) -> str:
    """The table of `costs`, captioned."""
    caption = (
        "**Costs at each adapter's own rate, DAPO** (CPU seconds of training; beyond LoRA's: at "
        "equal numbers of completions, 95 % interval; state: gradient and two moments, 12 bytes a "
        "trained parameter)"
    )
    rows = [
        [
            label(row["adapter"]),
            _whole(row["trainable"]),
            "—" if row["share"] is None else f"{row['share']:.2%}",
            "—" if row["state_bytes"] is None else f"{row['state_bytes'] / 1e6:.2f}",
            _whole(row["sampled"]),
            _plain(row["cpu_seconds"], 1),
            _interval(row, "beyond_lora"),
            _plain(row["peak_mib"], 0),
            _plain(row["step_to_full"], 2),
            _plain(row["step_to_lora"], 2),
        ]
        for row in table.iter_rows(named=True)
    ]
    head = [
        "adapter", "trained", "of full", "state, MB", "completions", "CPU s", "beyond LoRA's, s",
        "peak, MiB †", "step to full †", "step to LoRA †",
    ]  # fmt: skip
    if table["peak_mib"].null_count() == table.height:
        head, rows = head[:-3], [row[:-3] for row in rows]
    else:
        caption += ". † `benchmarks/adapters.py`: another model, rank 32, one step without sampling"
    return markdown_table(caption, head, rows)


def _whole(value: float | None) -> str:
    return "—" if value is None else f"{round(value):,}"


def _plain(value: float | None, digits: int) -> str:
    return "—" if value is None else decimal(value, digits)


def _interval(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "—"
    low, high = (decimal(row[f"{key}_{end}"], 1, "+") for end in ("low", "high"))
    return f"{decimal(row[key], 1, '+')} [{low}, {high}]" if row["adapter"] != LORA else "0"
