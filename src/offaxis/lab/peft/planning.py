"""The comparison of adapters: which runs it is made of, by one rule for every adapter.

All runs: 40 steps, 8 problems × 8 samples a step, an exam of 100 held-out problems × 8 samples of
its own; rank 8, scale s = alpha / r = 2 where there is one, no dropout, every linear layer but the
head (norm tuning: every norm).

1. *Selection.* DAPO, every adapter, seeds 100, 101 and 102, rates 3·10⁻⁴, 10⁻³, 3·10⁻³, 10⁻². An
   adapter's rate is the one with the highest mean accuracy over the three seeds at the end of the
   run, the lower of two equal ones. Where it is the lowest or the highest of those tried, half a
   decade beyond it is tried too, on all three seeds, until the best has a neighbour on both sides
   or the ladder from 10⁻⁶ to 1 ends. A rate at which a run failed has been tried and is not
   chosen.
2. *Test*, on seeds 0, 1 and 2, which choose nothing, in this order:
   every adapter at its own rate under DAPO; at the *shared* rate, LoRA's, where its own is another
   (what someone does who tunes LoRA and then swaps the adapter); LoRA, DoRA and MiSS at ranks 1, 16
   and 32, s as before, at the rate chosen for rank 8; every adapter at its own rate under GRPO and
   under Dr. GRPO; full fine-tuning and LoRA at their own rates with 4 and with 16 problems a step.

The rule was fixed before the first result was in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from offaxis.errors import InputError
from offaxis.lab.peft.naming import DORA, FULL, LORA, MISS, canonical, with_rank
from offaxis.lab.queue.grid import RunConfig, distinct

__all__ = [
    "ALGORITHMS",
    "BATCHES",
    "BATCH_ADAPTERS",
    "CURVE",
    "LADDER",
    "METHOD",
    "PROMPTS",
    "RANKED",
    "RANKS",
    "SELECTION_SEEDS",
    "STEPS",
    "TEST_SEEDS",
    "chosen_rates",
    "further_rates",
    "next_stage",
    "selection",
]

METHOD = "dapo"
"""The algorithm under which rates are chosen."""
ALGORITHMS = ("dapo", "grpo", "dr_grpo")
SELECTION_SEEDS = (100, 101, 102)
TEST_SEEDS = (0, 1, 2)
STEPS = 40
PROMPTS = 8
"""Problems a step, but for the study of batch sizes."""
CURVE = (5, 10, 20, 40)
"""Steps at which the test runs under DAPO are measured."""
RANKED = (LORA, DORA, MISS)
RANKS = (1, 16, 32)
"""Beside 8."""
BATCH_ADAPTERS = (FULL, LORA)
BATCHES = (4, 16)
"""Beside 8."""

LADDER = (*(float(f"{digit}e{power}") for power in range(-6, 0) for digit in (1, 3)), 1.0)
"""Rates half a decade apart."""

Scores = Mapping[str, Mapping[float, Mapping[int, float]]]
"""Adapter -> rate -> selection seed -> accuracy at the last step."""


def selection(rows: pl.DataFrame) -> Scores:
    """What the selection runs among a queue's rows scored; rows of other studies are passed over.

    Adapters are told by `naming.canonical`.
    """
    found: dict[str, dict[float, dict[int, float]]] = {}
    if "adapter" not in rows.columns:
        return found
    chosen = rows.filter(
        pl.col("seed").is_in(SELECTION_SEEDS),
        pl.col("method") == METHOD,
        pl.col("prompts_per_step") == PROMPTS,
        pl.col("steps") == STEPS,
        pl.col("adapter").fill_null("") != "",
    )
    last = pl.col("checkpoints").list.last().struct.field("avg")
    told = chosen.sort("learning_rate", "seed").select("adapter", "learning_rate", "seed", last)
    for adapter, rate, seed, accuracy in told.iter_rows():
        found.setdefault(canonical(adapter), {}).setdefault(rate, {})[seed] = accuracy
    return found


def _means(rates: Mapping[float, Mapping[int, float]]) -> dict[float, float]:
    """Rate -> mean accuracy, of the rates at which every selection seed has been run."""
    return {
        rate: sum(seeds[seed] for seed in SELECTION_SEEDS) / len(SELECTION_SEEDS)
        for rate, seeds in rates.items()
        if set(SELECTION_SEEDS) <= seeds.keys()
    }


def _best(means: Mapping[float, float]) -> float:
    return min(means, key=lambda rate: (-means[rate], rate))


def chosen_rates(rows: pl.DataFrame) -> dict[str, float]:
    """The rate of every adapter, by the rule, from the rates that all selection seeds have."""
    means = {adapter: _means(rates) for adapter, rates in selection(rows).items()}
    return {adapter: _best(own) for adapter, own in means.items() if own}


def further_rates(
    rows: pl.DataFrame, failed: Mapping[str, Collection[float]] | None = None
) -> dict[str, float]:
    """For each adapter whose best rate is at an end of those tried, the rate beyond.

    failed: adapter -> rates at which a run failed, tried although there may be no row of them.
    """
    found = {}
    best = chosen_rates(rows)
    for adapter, rates in selection(rows).items():
        if adapter not in best:
            continue
        tried = {*rates, *((failed or {}).get(adapter, ()))}
        below = [rate for rate in LADDER if rate < best[adapter]]
        above = [rate for rate in LADDER if rate > best[adapter]]
        if best[adapter] == min(tried) and below:
            found[adapter] = below[-1]
        elif best[adapter] == max(tried) and above:
            found[adapter] = above[0]
    return found


def next_stage(
    rows: pl.DataFrame, planned: Sequence[RunConfig], failed: Collection[RunConfig] = ()
) -> list[RunConfig]:
    """The runs that are to be added to the queue, whose rows, plan and failed runs are given.

    Further rates as long as the rule calls for any; then every test run, in the rule's order.
    InputError where a selection run has neither a row nor failed, or an adapter has no rate.
    """
    first = [run for run in planned if _selects(run)]
    if not first:
        raise InputError(
            f"the queue plans no {METHOD} run of an adapter on seeds {SELECTION_SEEDS}: fill it "
            "with offaxis lab queue peft --out DIR"
        )
    known = selection(rows)
    broken: dict[str, set[float]] = {}
    for run in failed:
        broken.setdefault(canonical(run.adapter), set()).add(run.learning_rate)
    absent = [run for run in first if not _has(known, run) and run not in set(failed)]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(first)} selection runs have no row yet, the first "
            f"{absent[0].adapter} at {absent[0].learning_rate:g} on seed {absent[0].seed}: wait "
            "for them, or see offaxis lab status"
        )
    template = {canonical(run.adapter): run for run in first}
    beyond = further_rates(rows, broken)
    if beyond:
        return [
            replace(template[adapter], learning_rate=rate, seed=seed)
            for seed in SELECTION_SEEDS
            for adapter, rate in beyond.items()
        ]
    rates = chosen_rates(rows)
    unknown = [adapter for adapter in template if adapter not in rates]
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: a run failed at every rate; see the failed folder of the "
            "queue, and offaxis lab queue --retry"
        )
    return distinct(_tests(template, rates))


def _selects(run: RunConfig) -> bool:
    return bool(run.adapter) and run.method == METHOD and run.seed in SELECTION_SEEDS


def _has(known: Scores, run: RunConfig) -> bool:
    rates = known.get(canonical(run.adapter), {})
    return run.seed in rates.get(run.learning_rate, {})


def _tests(template: Mapping[str, RunConfig], rates: Mapping[str, float]) -> Iterator[RunConfig]:
    """Every test run, in the rule's order, whole replications first within each part."""
    own = [replace(run, learning_rate=rates[name]) for name, run in template.items()]
    plain = {canonical(run.adapter): run for run in own}
    yield from _seeded([replace(run, save_at=CURVE) for run in own])
    if LORA in rates:
        shared = [replace(run, learning_rate=rates[LORA], save_at=CURVE) for run in own]
        yield from _seeded(shared)
    yield from _seeded(
        replace(plain[name], adapter=with_rank(plain[name].adapter, rank), save_at=(STEPS,))
        for name in RANKED
        if name in plain
        for rank in RANKS
    )
    for method in ALGORITHMS[1:]:
        yield from _seeded(replace(run, method=method, save_at=(STEPS,)) for run in own)
    yield from _seeded(
        replace(plain[name], prompts_per_step=prompts, save_at=(STEPS,))
        for name in BATCH_ADAPTERS
        if name in plain
        for prompts in BATCHES
    )


def _seeded(runs: Iterator[RunConfig] | Sequence[RunConfig]) -> Iterator[RunConfig]:
    each = list(runs)
    return (replace(run, seed=seed) for seed in TEST_SEEDS for run in each)
