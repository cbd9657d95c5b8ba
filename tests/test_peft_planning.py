"""Which runs the comparison of adapters is made of: the rate by the rule, then the test runs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from lab_base import untrained_model
from offaxis.cli.app import build
from offaxis.errors import InputError
from offaxis.lab.peft.naming import (
    DORA,
    FULL,
    IA3,
    LORA,
    MISS,
    OFF_RANDOM,
    PISSA,
    RANK1,
    VERA,
    canonical,
    label,
    method_of,
    ordered,
    rank_of,
    with_rank,
)
from offaxis.lab.peft.planning import (
    CURVE,
    LADDER,
    SELECTION_SEEDS,
    TEST_SEEDS,
    chosen_rates,
    further_rates,
    next_stage,
    selection,
)
from offaxis.lab.queue import RunConfig, Store, read_grid
from peft_rows import BEST, World, make_rows, rows_of

GRID = read_grid("peft")
FIRST = [one for one in GRID if one.method != "base"]
run = CliRunner().invoke


def scored(accuracy: dict[float, tuple[float, float, float]], adapter: str = LORA) -> pl.DataFrame:
    """Rows of one adapter's selection: rate -> accuracy on each seed."""
    template = next(one for one in FIRST if one.adapter == adapter)
    told = []
    for rate, scores in accuracy.items():
        for seed, score in zip(SELECTION_SEEDS, scores, strict=True):
            rows = rows_of(World(), [replace(template, learning_rate=rate, seed=seed)])
            row = rows.to_dicts()[0]
            row["checkpoints"][-1]["avg"] = score
            told.append(row)
    return pl.DataFrame(told, schema=rows_of(World(), []).schema)


# The rate


def test_the_grid_is_the_studys_first_stage() -> None:
    assert len(FIRST) == 17 * 4 * 3
    assert {one.seed for one in FIRST} == set(SELECTION_SEEDS)
    assert {one.learning_rate for one in FIRST} == {3e-4, 1e-3, 3e-3, 1e-2}
    assert all(one.own_exam and one.prompts_per_step == 8 for one in FIRST)
    names = {canonical(one.adapter) for one in FIRST}
    assert {FULL, LORA, DORA, MISS, PISSA, OFF_RANDOM, RANK1, VERA, IA3} <= names
    assert not any(label(name) == name for name in names - {FULL}), "each has a name"


def test_the_rate_is_the_best_mean_and_the_lower_of_equals() -> None:
    rows = scored({3e-4: (0.5, 0.5, 0.7), 1e-3: (0.6, 0.6, 0.6), 3e-3: (0.6, 0.6, 0.6),
                   1e-2: (0.9, 0.2, 0.2)})  # fmt: skip
    assert chosen_rates(rows) == {LORA: 1e-3}
    assert further_rates(rows) == {}


def test_a_rate_without_all_seeds_is_not_chosen() -> None:
    rows = scored({3e-4: (0.5, 0.5, 0.5), 1e-3: (0.6, 0.6, 0.6), 3e-3: (0.9, 0.9, 0.9)})
    part = rows.filter((pl.col("learning_rate") != 3e-3) | (pl.col("seed") != 102))
    assert chosen_rates(part) == {LORA: 1e-3}
    assert further_rates(part) == {}, "it has been tried"
    assert chosen_rates(rows.head(2)) == {}


@pytest.mark.parametrize(
    ("best", "beyond"), [(3e-4, 1e-4), (1e-2, 3e-2), (1e-6, None), (1.0, None), (1e-5, 3e-6)]
)
def test_a_best_rate_at_an_end_calls_for_the_next(best: float, beyond: float | None) -> None:
    middle = 1e-3
    told = {rate: (0.5, 0.5, 0.5) for rate in LADDER if min(best, middle) <= rate}
    told = {rate: one for rate, one in told.items() if rate <= max(best, middle)}
    rows = scored(told | {best: (0.7, 0.7, 0.7)})
    assert further_rates(rows) == ({} if beyond is None else {LORA: beyond})


def test_a_rate_at_which_a_run_failed_has_been_tried() -> None:
    rows = scored({1e-3: (0.5, 0.5, 0.5), 3e-3: (0.6, 0.6, 0.6), 1e-2: (0.7, 0.7, 0.7)})
    assert further_rates(rows) == {LORA: 3e-2}
    assert further_rates(rows, {LORA: {3e-2}}) == {}
    planned = [
        replace(next(one for one in FIRST if one.adapter == LORA), learning_rate=rate, seed=seed)
        for rate in (1e-3, 3e-3, 1e-2, 3e-2)
        for seed in SELECTION_SEEDS
    ]
    with pytest.raises(InputError, match=r"3 of 12 selection runs have no row yet.*at 0.03"):
        next_stage(rows, planned)
    added = next_stage(rows, planned, [one for one in planned if one.learning_rate == 3e-2])
    assert {one.seed for one in added} == set(TEST_SEEDS)
    assert {one.learning_rate for one in added} == {1e-2}
    with pytest.raises(InputError, match="failed at every rate"):
        next_stage(rows.clear(), planned, planned)


def test_rows_of_other_studies_choose_no_rate() -> None:
    rows = scored({1e-3: (0.5, 0.5, 0.5), 3e-3: (0.6, 0.6, 0.6), 1e-2: (0.5, 0.5, 0.5)})
    template = next(one for one in FIRST if one.adapter == LORA)
    others = [
        replace(template, adapter="", seed=100),
        replace(template, adapter="", mask="all", seed=100),
        replace(template, method="grpo", seed=100),
        replace(template, seed=7),
        replace(template, prompts_per_step=16),
        replace(template, steps=20),
    ]
    assert selection(rows_of(World(), others)) == {}
    assert selection(pl.concat([rows, rows_of(World(), others)])) == selection(rows)
    assert selection(rows.drop("adapter")) == {}, "rows of an older queue"


# The stages


@pytest.fixture(scope="module")
def tests() -> list[RunConfig]:
    world = World(best={FULL: 1e-3, VERA: 3e-2})
    rows = rows_of(world, GRID)
    more = next_stage(rows, GRID)
    assert {(one.adapter, one.learning_rate) for one in more} == {(VERA, 3e-2)}
    assert [one.seed for one in more] == list(SELECTION_SEEDS)
    planned = [*GRID, *more]
    rows = pl.concat([rows, rows_of(world, more)])
    more = next_stage(rows, planned)
    assert {(one.adapter, one.learning_rate) for one in more} == {(VERA, 1e-1)}
    planned += more
    return next_stage(pl.concat([rows, rows_of(world, more)]), planned)


def test_the_test_runs_are_those_of_the_rule(tests: list[RunConfig]) -> None:
    assert len(tests) == len(set(tests)) == 3 * (17 + 2 + 9 + 2 * 17 + 4)
    assert {one.seed for one in tests} == set(TEST_SEEDS)
    assert all(one.steps == 40 and one.own_exam and one.problems == 100 for one in tests)
    own = tests[: 3 * 17]
    assert {one.method for one in own} == {"dapo"}
    assert {one.save_at for one in own} == {CURVE}
    assert Counter(one.learning_rate for one in own) == {BEST: 45, 1e-3: 3, 3e-2: 3}
    shared = tests[51:57]
    assert {(one.adapter, one.learning_rate, one.save_at) for one in shared} == {
        (FULL, BEST, CURVE), (VERA, BEST, CURVE),
    }  # fmt: skip
    ranks = tests[57:84]
    assert {one.adapter for one in ranks} == {
        f"{name}?rank={rank}" for name in ("lora", "dora", "miss") for rank in (1, 16, 32)
    }
    assert {one.method for one in tests[84:135]} == {"grpo"}
    assert {one.method for one in tests[135:186]} == {"dr_grpo"}
    assert {(one.adapter, one.prompts_per_step, one.learning_rate) for one in tests[186:]} == {
        (FULL, 4, 1e-3), (FULL, 16, 1e-3), (LORA, 4, BEST), (LORA, 16, BEST),
    }  # fmt: skip
    assert all(one.save_at == (40,) for one in tests[57:])


def test_whole_replications_come_first(tests: list[RunConfig]) -> None:
    for part in (tests[:51], tests[51:57], tests[57:84], tests[84:135], tests[135:186]):
        assert [one.seed for one in part] == sorted(one.seed for one in part)


def test_a_plan_ends_where_nothing_is_missing() -> None:
    rows = make_rows(World(best={IA3: 1e-4, FULL: 1.0}, run=0.0))
    rates = chosen_rates(rows)
    assert (rates[IA3], rates[FULL], rates[LORA]) == (1e-4, 1.0, BEST)
    assert further_rates(rows) == {}


def test_a_queue_without_the_study_has_no_next_stage() -> None:
    rows = rows_of(World(), GRID)
    with pytest.raises(InputError, match="offaxis lab queue peft"):
        next_stage(rows, read_grid("methods"))


def test_the_command_plans_until_nothing_is_missing(tmp_path: Path) -> None:
    grid = [one for one in GRID if one.adapter in (LORA, FULL) or one.method == "base"]
    store = Store.create(tmp_path / "queue", grid, untrained_model(tmp_path / "base"))
    world = World(best={FULL: 1e-2})

    def planned() -> dict[str, Any]:
        found = run(build(), ["lab", "peft", str(store.directory), "--plan", "--json"])
        assert found.exit_code == 0, found.exception
        told: dict[str, Any] = json.loads(found.output)
        return told

    def work(*, failing: str = "") -> None:
        for config in Store.open(store.directory).pending():
            name = config.identity(store.base_digest)
            if failing and config.adapter == failing:
                store.record_failure(name, "it broke down")
                continue
            row = rows_of(world, [config]).with_columns(pl.lit(name).alias("run"))
            row.write_parquet(store.row(name))

    early = run(build(), ["lab", "peft", str(store.directory), "--plan"])
    assert isinstance(early.exception, InputError)
    work()
    assert planned()["added"] == 3, "the rate beyond the highest, on every selection seed"
    work(failing=FULL)
    assert planned()["added"] == 3 * (2 + 1 + 3 + 4 + 4), "it is tried, and not chosen"
    work()
    assert planned()["added"] == 0
    plain = run(build(), ["lab", "peft", str(store.directory), "--plan"])
    assert plain.output.startswith("0 runs added, ")


# Names


def test_one_adapter_has_one_text() -> None:
    assert canonical("off_principal_lora?rank=8&avoid=random") == OFF_RANDOM
    assert canonical("") == FULL
    assert (method_of(OFF_RANDOM), method_of(IA3)) == ("off_principal_lora", "ia3")
    assert [rank_of(one) for one in (LORA, RANK1, IA3, FULL, "lora?rank=32")] == [
        8, 1, None, None, 32,
    ]  # fmt: skip


def test_another_rank_keeps_the_scale() -> None:
    assert with_rank(LORA, 16) == "lora?rank=16"
    assert with_rank("lora?alpha=16&rank=8", 32) == "lora?alpha=64&rank=32"
    config = RunConfig(adapter=with_rank("dora?rank=8&alpha=4", 16)).adapter_spec
    assert config is not None
    assert config.used_alpha / config.used_rank == 0.5


def test_names() -> None:
    assert label(OFF_RANDOM) == "off-random LoRA"
    assert label("lora?rank=32") == "LoRA, r = 32"
    assert label("an adapter of tomorrow") == "an adapter of tomorrow"
    told = ordered([VERA, "lora?rank=16", LORA, "tomorrow", FULL, "lora?rank=1", LORA, DORA])
    assert told == [FULL, "lora?rank=1", LORA, "lora?rank=16", DORA, VERA, "tomorrow"]
