"""What adapters cost: trained parameters, the bytes that go with them, and CPU time of training.

Seconds are CPU seconds of the training alone (one thread; no loading, no scoring), at each
adapter's own rate under DAPO, held against full fine-tuning and LoRA by seed: the mean over seeds
of ln of the ratio, Student's t, 95 %. They hold what an adapter's policy makes longer or shorter:
dynamic sampling draws more completions where a policy solves all of a group or nothing of it, and
answers differ in length. So completions sampled stand beside them. The lab's model is small, a step
is mostly sampling, and nothing here tells the cost at 7B. `benchmarks/adapters.py` measures the
step itself, and memory, on a larger model; its figures can stand beside these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from offaxis.errors import InputError
from offaxis.lab.blocks import decimal, markdown_table
from offaxis.lab.methods.summary import over_seeds
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
    **{
        f"to_{name}{end}": pl.Float64()
        for name in ("full", "lora")
        for end in ("", "_low", "_high")
    },
    "sampled": pl.Float64(),
    "cpu_per_sample": pl.Float64(),
    "peak_mib": pl.Float64(),
    "step_to_full": pl.Float64(),
    "step_to_lora": pl.Float64(),
}
"""Columns of `costs`. share: of full fine-tuning's parameters; state_bytes: `BYTES` a parameter
that is trained; to_*: ratio of CPU seconds, seed by seed; sampled: completions a run. The last
three are `benchmarks/adapters.py`'s, of another model and rank: peak anonymous memory beyond the
loaded model, and a training step's time. Null where it was not run."""


def costs(rows: pl.DataFrame, *, benchmark: str | Path | None = None) -> pl.DataFrame:
    """One row an adapter, with the columns `COSTS`.

    benchmark: what `benchmarks/adapters.py --json FILE` wrote.
    """
    measured = measured_costs(benchmark) if benchmark is not None else {}
    runs = checkpoints(rows, "own")
    runs = runs.filter(pl.col("step") == pl.col("step").max().over("run"))
    seconds = {name: _by_seed(runs, name, "train_cpu_seconds") for name in set(runs["adapter"])}
    whole = _trained(runs, FULL)
    found = []
    for name in ordered(seconds):
        own = runs.filter(adapter=name)
        told: dict[str, Any] = {"adapter": name, "seeds": own.height}
        trained = _trained(runs, name)
        if trained is not None:
            told |= {"trainable": trained, "state_bytes": BYTES * trained}
            told["share"] = trained / whole if whole else None
        told["cpu_seconds"] = own["train_cpu_seconds"].mean()
        told["sampled"] = own["sampled"].mean()
        told["cpu_per_sample"] = (own["train_cpu_seconds"] / own["sampled"]).mean()
        for against, key in ((FULL, "to_full"), (LORA, "to_lora")):
            told |= _ratio(seconds[name], seconds.get(against, {}), key)
        found.append(told | measured.get(method_of(name), {}))
    return pl.DataFrame(found, schema=COSTS)


def _trained(runs: pl.DataFrame, adapter: str) -> int | None:
    found: int | None = runs.filter(adapter=adapter).select(pl.col("trainable").max()).item()
    return found


def _by_seed(runs: pl.DataFrame, adapter: str, column: str) -> dict[int, float]:
    own = runs.filter(pl.col("adapter") == adapter, pl.col(column) > 0)
    return dict(own.select("seed", column).iter_rows())


def _ratio(own: Mapping[int, float], other: Mapping[int, float], key: str) -> dict[str, Any]:
    """own over other by seed: geometric mean and interval."""
    logs = [math.log(own[seed] / other[seed]) for seed in sorted(own.keys() & other.keys())]
    if not logs:
        return {}
    bounds = [None if one is None else math.exp(one) for one in over_seeds(logs)]
    return dict(zip((key, f"{key}_low", f"{key}_high"), bounds, strict=True))


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
        "**Costs at each adapter's own rate, DAPO** (CPU seconds of training, by seed; ratios with "
        "95 % intervals; state: gradient and two moments, 12 bytes a trained parameter)"
    )
    rows = [
        [
            label(row["adapter"]),
            _whole(row["trainable"]),
            "—" if row["share"] is None else f"{row['share']:.2%}",
            "—" if row["state_bytes"] is None else f"{row['state_bytes'] / 1e6:.2f}",
            _plain(row["cpu_seconds"], 1),
            _interval(row, "to_full"),
            _interval(row, "to_lora"),
            _whole(row["sampled"]),
            _plain(row["peak_mib"], 0),
            _plain(row["step_to_full"], 2),
            _plain(row["step_to_lora"], 2),
        ]
        for row in table.iter_rows(named=True)
    ]
    head = [
        "adapter", "trained", "of full", "state, MB", "CPU s", "to full", "to LoRA", "samples",
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
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{row[key]:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else " (one seed)")
