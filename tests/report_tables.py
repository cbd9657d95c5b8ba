"""Synthetic tables of the shapes that the report has to render."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from offaxis.table import Curve, Measurement, curves_frame, measurements_frame

ROLES = {
    "q_proj": (1, 1),
    "k_proj": (0.25, 1),
    "v_proj": (0.25, 1),
    "o_proj": (1, 1),
    "gate_proj": (3.5, 1),
    "up_proj": (3.5, 1),
    "down_proj": (1, 3.5),
}
OVERLAPS = ("principal_overlap", "low_magnitude_overlap", "principal_not_low_overlap")
OVERLAPS += ("principal_overlap_top5", "low_magnitude_overlap_top5")
PAIR_MEASURES = (
    "unchanged_bf16",
    "unchanged_stored",
    "relative_update_norm",
    "nss",
    "rotation_left_deg",
    "rotation_right_deg",
    "rank1_energy",
    "rank1_norm_share",
    "effective_rank",
)


PROFILE_MEASURES = ("stripes", "profile_correlation", "profile_correlation_magnitude_null")


@dataclass
class Made:
    """What `render` takes, and the generator that fills it."""

    rng: np.random.Generator
    rows: list[Measurement] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    @property
    def measurements(self) -> pl.DataFrame:
        return measurements_frame(self.rows)

    @property
    def curve_table(self) -> pl.DataFrame:
        return curves_frame(self.curves)


def matrix_measures(rng: np.random.Generator, size: float, role: str) -> dict[str, float | None]:
    """Plausible numbers of one matrix: `size` is the relative step, nulls close to observed."""
    changed = float(
        np.clip(size * 300 * (1.4 if role == "v_proj" else 1) * rng.uniform(0.7, 1.3), 0, 0.99)
    )
    out: dict[str, float | None] = {
        "unchanged_bf16": 1 - changed,
        "relative_update_norm": size * rng.uniform(0.7, 1.4),
        "nss": size * rng.uniform(0.3, 0.6),
        "rotation_left_deg": 400 * size * rng.uniform(0.7, 1.4),
        "rotation_right_deg": 420 * size * rng.uniform(0.7, 1.4),
        "update_energy_left": rng.uniform(0.1, 0.3),
        "update_energy_right": rng.uniform(0.1, 0.3),
        "update_energy_two_sided": rng.uniform(0.02, 0.1),
        "nss_bound": size,
        "weyl_ratio": rng.uniform(0.2, 0.6),
        "rank1_energy": rng.uniform(0.2, 0.4),
        "rank1_norm_share": rng.uniform(0.45, 0.65),
        "effective_rank": rng.uniform(5, 40),
    }
    for name in OVERLAPS:
        middle = 0.6 if name.startswith("low") else 0.47
        null = middle + rng.normal(0, 0.03)
        out[name] = null + rng.normal(0.0003, 0.0015)
        out[f"{name}_magnitude_null"] = null
        out[f"{name}_rounding_null"] = null - 0.012 + rng.normal(0, 0.002)
    return out


def stretches(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """At most 256 means, as null profiles are stored."""
    return np.array([part.mean() for part in np.array_split(values, min(256, values.size))])


def consensus_curves(rng: np.random.Generator, tensor: str, shape: tuple[int, int]) -> list[Curve]:
    """Consensus of the runs on one matrix, with stripes that its null lacks."""
    rows, cols = (min(96, extent) for extent in shape)
    stripes = 0.4 + 0.2 * (np.arange(rows)[:, None] % 3 == 0) + rng.uniform(0, 0.1, (rows, cols))
    null = np.full((rows, cols), stripes.mean())
    found = {"consensus_picture": stripes, "consensus_picture_magnitude_null": null}
    for ending, picture in (("", stripes), ("_magnitude_null", null)):
        found[f"consensus_rows{ending}"] = picture.mean(1)
        found[f"consensus_columns{ending}"] = picture.mean(0)
    return [Curve("", tensor, name, v.shape, v.ravel()) for name, v in found.items()]


def matrix_curves(
    rng: np.random.Generator, tuned: str, tensor: str, shape: tuple[int, int], size: float
) -> list[Curve]:
    """Full-length curves of one matrix, as `curves.parquet` holds them."""
    rows, cols = shape
    rank = min(shape)
    base = 30.0 * np.arange(1, rank + 1) ** -0.6
    angles = np.sort(np.abs(rng.normal(0, 400 * size, max(1, rank // 8))))
    side = (min(96, rows), min(96, cols))
    share = min(0.9, size * 300)
    rows_seen, cols_seen = (
        np.clip(share * (1 + wide * rng.normal(0, 1, n)), 0, 1)
        for wide, n in ((0.1, rows), (0.3, cols))
    )
    found: dict[str, np.ndarray[Any, Any]] = {
        "row_changed_magnitude_null": stretches(share + 0.3 * (rows_seen - share)),
        "column_changed_magnitude_null": stretches(share + 0.3 * (cols_seen - share)),
        "singular_values_base": base,
        "singular_values_tuned": base * (1 + size * rng.normal(0, 1, rank)),
        "singular_values_update": 30 * size * np.exp(-np.arange(rank) / (rank / 6)),
        "angles_left_deg": angles,
        "angles_right_deg": angles * 1.1,
        "row_changed": rows_seen,
        "column_changed": cols_seen,
        "ulp_histogram": np.round(
            rows * cols * np.array([1 - share, *(share * 0.5 ** np.arange(1, 13))])
        ),
        "mask_picture": np.clip(
            share * (1 + 0.5 * rng.normal(0, 1, (side[0], 1)) + 0.2 * rng.normal(0, 1, side)), 0, 1
        ),
    }
    return [Curve(tuned, tensor, name, v.shape, v.ravel()) for name, v in found.items()]


def make_pair(
    tuned: str, values: list[dict[str, float | None]], label: str, shift: float, n: int
) -> dict[str, Any]:
    """A pair of `summary.json` from the numbers of its matrices."""
    pair: dict[str, Any] = {
        "tuned": tuned,
        "parameters": 1_048_576,
        "tensors": n + 9,
        "matrices": n,
    }
    pair |= dict.fromkeys(PAIR_MEASURES)
    bounds: dict[str, list[float]] = {}
    for name in values[0]:
        column = np.array([one[name] for one in values if one.get(name) is not None], dtype=float)
        if column.size:
            pair[name] = float(column.mean())
            half = 1.96 * float(column.std()) / column.size**0.5
            bounds[name] = [pair[name] - half, pair[name] + half]
    pair["unchanged_stored"] = pair["unchanged_bf16"]
    for name in OVERLAPS[:2]:
        gap = np.array([one[name] - one[f"{name}_magnitude_null"] for one in values]) + shift
        pair[name] = pair[f"{name}_magnitude_null"] + float(gap.mean())
        pair[f"{name}_excess"] = float(gap.mean())
        half = 1.96 * float(gap.std()) / gap.size**0.5
        bounds[f"{name}_excess"] = [float(gap.mean()) - half, float(gap.mean()) + half]
    pair["verdict"] = {
        "label": label,
        "evidence": [f"the update is {pair['relative_update_norm']:.2g} of the base's norm"],
        "confounds": [
            "learning rate and number of steps are unknown: the step size may explain it"
        ],
    }
    pair["intervals"] = bounds
    return pair


def make_across(
    rng: np.random.Generator, tuned: list[str], pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Jaccard matrices, shares by number of runs, and a series with two runs."""
    n = len(tuned)
    null = rng.uniform(0.3, 0.4, (n, n))
    null = (null + null.T) / 2
    seen = null + 0.12
    np.fill_diagonal(null, 1)
    np.fill_diagonal(seen, 1)
    counts = rng.uniform(0.1, 1, n + 1)
    series = [
        {"tuned": name, "run": name.rsplit("-", 1)[0], "step": int(name.rsplit("-", 1)[1])}
        | {key: pair[key] for key in ("unchanged_bf16", "relative_update_norm", "nss")}
        | {"principal_overlap": pair["principal_overlap"]}
        | {"row_profile_correlation": 0.8, "row_profile_correlation_magnitude_null": 0.6}
        | {"column_profile_correlation": 0.5, "column_profile_correlation_magnitude_null": 0.45}
        | {"intervals": {"row_profile_correlation": [0.75, 0.85]}}
        for name, pair in zip(tuned, pairs, strict=True)
    ]
    return {
        "jaccard_mean": 0.47,
        "jaccard_chance": 0.19,
        "jaccard_magnitude_null": 0.35,
        "changed_in_r_runs": (counts / counts.sum()).tolist(),
        "jaccard": seen.tolist(),
        "jaccard_null": null.tolist(),
        "consensus_of": list({row["run"]: row["tuned"] for row in series}.values()),
        "series": series,
    }


SIZES = {"runs/rl-20": 2e-4, "runs/rl-40": 4e-4, "runs/rl-60": 6e-4, "runs/sft-60": 2.4e-3}


def add_checkpoint(made: Made, tuned: str, size: float, layers: int, width: int) -> dict[str, Any]:
    """Rows and curves of one checkpoint; returns its pair of the summary."""
    rng, values = made.rng, []
    for layer in range(layers):
        for role, (high, wide) in ROLES.items():
            shape = (round(high * width), round(wide * width))
            block = "mlp" if role in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            tensor = f"model.layers.{layer}.{block}.{role}.weight"
            found = matrix_measures(rng, size, role)
            values.append(found)
            place = (tuned, tensor, layer, role, None, *shape)
            made.rows += [Measurement(*place, name, value) for name, value in found.items()]
            made.rows += [
                Measurement(*place, f"{side}_{name}", float(value))
                for side in ("row", "column")
                for name, value in zip(PROFILE_MEASURES, made.rng.uniform(0.5, 0.9, 3), strict=True)
            ]
            made.curves += matrix_curves(rng, tuned, tensor, shape, size)
        name = f"model.layers.{layer}.input_layernorm.weight"
        norm = (tuned, name, layer, "norm", None, width, 1)
        made.rows.append(Measurement(*norm, "unchanged_bf16", 1 - min(1, size * 100)))
    embed = (tuned, "model.embed_tokens.weight", None, "embed", None, 8 * width, width)
    made.rows.append(Measurement(*embed, "unchanged_bf16", 1 - min(1, size * 200)))
    tied = (tuned, "lm_head.weight", None, "lm_head", None, 8 * width, width)
    made.rows.append(Measurement(*tied, "status", None, status="tied"))
    large = size > 1e-3
    label, shift = ("large_step", -0.004) if large else ("small_step", 0.0)
    return make_pair(tuned, values, label, shift, len(values))


def make(
    sizes: dict[str, float] | None = None, *, layers: int = 4, width: int = 128, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Measurements, curves and summary of a model with `layers` × 7 matrices."""
    sizes = SIZES if sizes is None else sizes
    made = Made(np.random.default_rng(seed))
    pairs = [add_checkpoint(made, name, size, layers, width) for name, size in sizes.items()]
    for layer in range(layers):
        for role in ("q_proj", "o_proj"):
            tensor = f"model.layers.{layer}.self_attn.{role}.weight"
            made.curves += consensus_curves(made.rng, tensor, (width, width))
    summary = {
        "schema": 1,
        "base": "models/qwen3-tiny-base",
        "pairs": pairs,
        "across": make_across(made.rng, list(sizes), pairs) if len(sizes) > 1 else None,
        "run": {
            "offaxis": "0.1.0",
            "command": "offaxis compare base runs/* --out report",
            "seed": 0,
            "settings": {"alpha": 0.5, "angle_rank": None},
            "heads": {"query": 4, "key_value": 1, "dim": width // 4},
            "renamings": {"_orig_mod.model.norm.weight": "model.norm.weight"},
        },
    }
    return made.measurements, made.curve_table, summary


def make_scores() -> pl.DataFrame:
    """Two metrics for the base and each checkpoint; one value is null."""
    names = ["models/qwen3-tiny-base", *SIZES]
    rows = []
    for i, name in enumerate(names):
        for metric, value in (("avg@4", 0.566 + 0.08 * i), ("pass@4", 0.967 if i else None)):
            ends = (None, None) if value is None else (value - 0.02, min(1.0, value + 0.02))
            rows.append((name, 20 * i, metric, value, *ends, 512))
    columns = ["tuned", "step", "metric", "value", "low", "high", "n"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def make_contrasts() -> pl.DataFrame:
    """Three measures at equal steps, update norm and accuracy."""
    rows = []
    sizes = (("principal_overlap_excess", 0.004), ("nss", 0.0006), ("effective_rank", 4.0))
    for measure, gap in sizes:
        for matched, at, part in (
            ("step", 60.0, 1.0),
            ("norm", 6e-4, 0.2),
            ("accuracy", 0.82, 0.1),
        ):
            low, high = gap * part - 0.3 * gap, gap * part + 0.3 * gap
            values = (3 * gap + gap * part, 3 * gap)
            verdict = "differ" if low > 0 else "cannot tell"
            rows.append(
                (
                    measure,
                    matched,
                    at,
                    "runs/rl-60",
                    "runs/sft-60",
                    *values,
                    gap * part,
                    low,
                    high,
                    28,
                    verdict,
                )
            )
    columns = [
        "measure",
        "matched_by",
        "at",
        "a",
        "b",
        "a_value",
        "b_value",
        "difference",
        "low",
        "high",
        "n",
        "verdict",
    ]
    return pl.DataFrame(rows, schema=columns, orient="row")


HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>&lt;b&gt;\"'"
)


def make_hostile() -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Tables whose every name is an attack: markup, quotes, templates, controls, bidi overrides."""
    measurements, curves, summary = make({f"{HOSTILE}/%{{x}}$y\u202e\n-20": 3e-4}, layers=2)
    name = pl.concat_str(
        pl.lit(HOSTILE + "<a href='javascript:window.hacked=3'>"), pl.col("tensor")
    )
    role = pl.concat_str(pl.lit("<b>"), pl.col("role"))
    summary["base"] = HOSTILE
    summary["run"] = {HOSTILE: HOSTILE, "settings": {HOSTILE: [HOSTILE]}}
    summary["pairs"][0]["verdict"]["confounds"] = [HOSTILE]
    summary["pairs"][0]["verdict"]["evidence"] = [HOSTILE]
    measurements = measurements.with_columns(name.alias("tensor"), role.alias("role"))
    return measurements, curves.with_columns(name.alias("tensor")), summary


def make_empty() -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """One pair of which nothing is defined, each absence with its reason."""
    measurements, _, summary = make({"runs/same": 1e-9}, layers=1)
    pair = summary["pairs"][0]
    keep = ("tuned", "parameters", "tensors", "matrices")
    summary["pairs"] = [{key: pair[key] if key in keep else None for key in pair}]
    summary["pairs"][0]["verdict"] = {"label": "identical", "evidence": [], "confounds": []}
    nothing = measurements.with_columns(
        pl.lit(None, dtype=pl.Float64).alias("value"),
        pl.when(pl.col("status") == "ok")
        .then(pl.lit("no entry changed"))
        .otherwise("status")
        .alias("status"),
    )
    return nothing, curves_frame([]), summary
