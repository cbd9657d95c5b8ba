"""What `offaxis gates --policies` and `--stores` print: the small studies, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import polars as pl
import torch

from offaxis.gates.clipping import clipping_study
from offaxis.gates.oracle import circle, leash_study
from offaxis.gates.store import DRIFTS, STORES, drift, store_steps

__all__ = ["clipping_summary", "leash_summary", "policy_tables", "store_table"]


def policy_tables(*, draws: int = 12, seed: int = 0) -> dict[str, pl.DataFrame]:
    """leash: proposition 3.1 on random policies; circle: its exception; clipping: lemma E.9.

    draws: random policies of each family; a third of as many for clipping. About half a minute.
    """
    circles = [asdict(circle(radius)) for radius in (0.1, 0.01, 0.001)]
    return {
        "leash": leash_summary(leash_study(draws=draws, seed=seed)),
        "circle": pl.DataFrame(circles),
        "clipping": clipping_summary(clipping_study(draws=-(-draws // 3), seed=seed)),
    }


def leash_summary(study: pl.DataFrame) -> pl.DataFrame:
    """A row a family, reference and β of `leash_study`: median and largest ratio, κ, and so on.

    kappa: median. not_convex: share of policies where H_q̃ is not positive. limit: median R².
    from_limit: largest |ratio − R²|, to be read on policy at large β. cos_*: medians.
    """
    return (
        study.group_by("family", "reference", "beta", maintain_order=True)
        .agg(
            pl.len().alias("policies"),
            pl.col("kappa").median(),
            pl.col("ratio").median().alias("median_ratio"),
            pl.col("ratio").max().alias("largest_ratio"),
            (pl.col("convexity") <= 0).mean().alias("not_convex"),
            pl.col("limit").median(),
            (pl.col("ratio") - pl.col("limit")).abs().max().alias("from_limit"),
            *(pl.col(f"cos_{name}").median() for name in ("first", "plain", "natural")),
        )
        .sort("family", "reference", "beta")
    )


def clipping_summary(study: pl.DataFrame) -> pl.DataFrame:
    """A row a family, rate and number of updates of `clipping_study`: means over the draws.

    over_bound, over_within: in how many draws the KL exceeds the paper's bound, and the most that
    ratios inside the clip for every outcome would allow.
    """
    return (
        study.group_by("family", "rate", "updates", maintain_order=True)
        .agg(
            pl.len().alias("draws"),
            *(pl.col(name).mean() for name in ("outside", "kl", "unclipped_kl")),
            (pl.col("kl") > pl.col("bound")).sum().alias("over_bound"),
            (pl.col("kl") > pl.col("within")).sum().alias("over_within"),
        )
        .sort("family", "rate", "updates")
    )


def store_table(
    sizes: Sequence[float] = (1e-6, 1e-5),
    *,
    entries: int = 200_000,
    steps: int = 200,
    deviation: float = 0.02,
    seed: int = 0,
) -> pl.DataFrame:
    """Every store on every synthetic path: a row a path, step size and store.

    Gaussian weights of standard deviation `deviation`. Columns: drift, size, store, steps, changed,
    due, kept, error (`Stored`).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = deviation * torch.randn(entries, generator=generator)
    rows = []
    for kind in DRIFTS:
        for size in sizes:
            path = list(drift(kind, weights, steps=steps, size=size, seed=seed))
            for store in STORES:
                found = store_steps(weights, path, store=store, seed=seed)
                told = {"drift": kind, "size": size, "store": store, "steps": steps}
                for name in ("changed", "due", "kept", "error"):
                    told[name] = getattr(found, name)
                rows.append(told)
    return pl.DataFrame(rows)
