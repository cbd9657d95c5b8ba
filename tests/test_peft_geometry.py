"""Where adapters write: values, nulls, equal norms and words, on rows with planted geometry."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from offaxis import measures
from offaxis.checkpoint import open_checkpoint
from offaxis.errors import InputError
from offaxis.lab import BASE
from offaxis.lab.peft.costs import costs, measured_costs
from offaxis.lab.peft.costs import markdown as costs_markdown
from offaxis.lab.peft.geometry import blocks, claims, geometry, isotropic, markdown, matched
from offaxis.lab.peft.geometry.series import EITHER, ENERGIES
from offaxis.lab.peft.naming import (
    FULL,
    LORA,
    MILORA,
    NORMS,
    OFF_PRINCIPAL,
    OFF_RANDOM,
    PISSA,
)
from offaxis.lab.peft.planning import SELECTION_SEEDS, TEST_SEEDS
from offaxis.lab.queue import RunConfig
from offaxis.lab.queue.store import digest
from offaxis.linalg import principal_rank, spectrum_and_basis
from peft_rows import BEST, World, rows_of

ADAPTERS = (FULL, LORA, PISSA, MILORA, OFF_PRINCIPAL, OFF_RANDOM, NORMS)
STEPS = (5, 10, 20, 40)
SPEED = {FULL: 2.0, LORA: 1.0, PISSA: 1.5, MILORA: 0.7, OFF_PRINCIPAL: 0.9, OFF_RANDOM: 0.95}
"""‖ΔW‖ relative to LoRA's at the same step."""
SHIFT = {FULL: 0.1, LORA: 0.08, PISSA: 0.2, MILORA: 0.08, OFF_PRINCIPAL: 0.05, OFF_RANDOM: 0.08}
"""NSS as a share of ‖ΔW‖/‖W₀‖."""
SIDES = {FULL: (0.1, 0.15), LORA: (0.12, 0.1), PISSA: (0.5, 0.6), MILORA: (0.0, 0.02),
         OFF_PRINCIPAL: (1e-13, 1e-13), OFF_RANDOM: (0.12, 0.1)}  # fmt: skip
"""Shares of ‖ΔW‖² on the left and on the right, at step 40."""
TOP5 = {PISSA: 0.05, OFF_PRINCIPAL: -0.05}
"""Overlap of the top 5 % with principal entries, minus its null."""
Planted = Callable[[str, int, int], dict[str, Any]]


def planted(adapter: str, seed: int, step: int) -> dict[str, Any]:
    """A checkpoint's geometry: laws in ‖ΔW‖, one part in a thousand of noise."""
    if adapter == NORMS:
        return {"matrix_update_norm": 0.0, "relative_update_norm": 0.001, "nss": 0.0}
    rng = np.random.default_rng([seed, step, ADAPTERS.index(adapter)])
    norm = 0.01 * SPEED[adapter] * step / 10
    left, right = SIDES[adapter]
    part = step / 40 if adapter == MILORA else 1.0
    noise = 1 + 1e-3 * rng.normal()
    return {
        "matrix_update_norm": norm,
        "relative_update_norm": 0.9 * norm,
        "nss": SHIFT[adapter] * norm * noise,
        "effective_rank": 5.0 * noise,
        "rank1_norm_share": 0.6 * noise,
        "rotation_left_deg": 100 * norm * noise,
        "rotation_right_deg": 100 * norm * noise,
        "update_energy_left": left * part * noise,
        "update_energy_right": right * part * noise,
        "update_energy_two_sided": left * right * part * noise,
        "principal_overlap": 0.5 * noise,
        "principal_overlap_magnitude_null": 0.5,
        "principal_overlap_top5": 0.55 + TOP5.get(adapter, 0.0) + 1e-4 * rng.normal(),
        "principal_overlap_top5_magnitude_null": 0.55,
    }


def configs(**more: Any) -> list[RunConfig]:
    first = RunConfig(method="dapo", steps=40, prompts_per_step=8, own_exam=True, save_at=STEPS)
    chosen = [
        replace(first, adapter=one, seed=seed, learning_rate=rate)
        for one in ADAPTERS
        for seed in SELECTION_SEEDS
        for rate in (BEST / 3, BEST, BEST * 3)
    ]
    tests = [
        replace(first, adapter=one, seed=seed, learning_rate=BEST)
        for one in ADAPTERS
        for seed in TEST_SEEDS
    ]
    return [*chosen, *(replace(one, **more) for one in tests)]


def rows(own: list[RunConfig] | None = None, plant: Planted = planted) -> pl.DataFrame:
    """Rows of these runs from the bundled base, their checkpoints with planted geometry."""
    table = rows_of(World(), own or configs())
    found = []
    for row in table.iter_rows(named=True):
        for one in row["checkpoints"]:
            one.update(plant(row["adapter"], row["seed"], one["step"]))
        found.append(row | {"base": digest(BASE), "sampled": 3000 + row["seed"]})
    return pl.DataFrame(found, schema=table.schema)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return rows()


def test_the_isotropic_null_is_what_random_updates_have() -> None:
    """Gaussian updates of the bundled base, measured by the measure itself."""
    base = open_checkpoint(str(BASE))
    generator = torch.Generator().manual_seed(0)
    found: list[Any] = []
    for name in base:
        if not name.endswith("_proj.weight"):
            continue
        matrix = base[name].double()
        top = spectrum_and_basis(matrix, rank=principal_rank(*matrix.shape))[1]
        update = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
        shares = measures.energy_in_subspaces(update, top.left, top.right, angle_error=0.0)
        found.append([one.value for one in shares])
    means = np.mean(found, axis=0)
    nulls = isotropic()
    for share, name in zip(means, ENERGIES, strict=False):
        assert share == pytest.approx(nulls[name], rel=0.05), name
    left, right, both, either = (nulls[name] for name in ENERGIES)
    assert either == pytest.approx(left + right - both)


def test_values_intervals_nulls_and_excesses(table: pl.DataFrame) -> None:
    found = geometry(table).filter(rates="own", adapter=PISSA, step=40)
    assert found["seeds"].unique().to_list() == [3]
    one = found.row(by_predicate=pl.col("measure") == EITHER, named=True)
    sides = [planted(PISSA, seed, 40) for seed in TEST_SEEDS]
    values = [
        side["update_energy_left"] + side["update_energy_right"] - side["update_energy_two_sided"]
        for side in sides
    ]
    half = 4.303 * np.std(values, ddof=1) / math.sqrt(3)
    assert one["value"] == pytest.approx(np.mean(values))
    assert one["high"] - one["value"] == pytest.approx(half, rel=1e-3)
    assert one["null"] == pytest.approx(isotropic()[EITHER])
    assert one["excess_high"] - one["excess"] == pytest.approx(half, rel=1e-3)
    overlap = found.row(by_predicate=pl.col("measure") == "principal_overlap_top5", named=True)
    assert overlap["excess"] == pytest.approx(0.05, abs=1e-3)
    nss = found.row(by_predicate=pl.col("measure") == "nss", named=True)
    assert nss["null"] is None
    assert geometry(table)["step"].unique().sort().to_list() == list(STEPS)


def test_other_runs_change_nothing(table: pl.DataFrame) -> None:
    """Other algorithms, batches, lengths, seeds, masks and bases that are not the bundled one."""

    def wild(adapter: str, seed: int, step: int) -> dict[str, Any]:
        return dict.fromkeys(planted(LORA, 0, 5), 9.0)

    others = [
        rows(configs(**more)[len(configs()) - len(ADAPTERS) * 3 :], wild)
        for more in ({"method": "grpo"}, {"prompts_per_step": 16}, {"steps": 60}, {"seed": 7})
    ]
    found = pl.concat([table, *others])
    assert geometry(found).equals(geometry(table))
    strange = table.with_columns(base=pl.lit("0" * 16))
    nulls = geometry(strange).filter(pl.col("measure").is_in(ENERGIES))["null"]
    assert nulls.null_count() == nulls.len() > 0


def test_at_equal_norm_only_the_law_is_left(table: pl.DataFrame) -> None:
    """nss is a share of the norm: at equal norm the ratio is that of the shares, at any speed."""
    found = matched(table)
    for adapter in (FULL, PISSA, MILORA, OFF_PRINCIPAL, OFF_RANDOM):
        row = found.filter(measure="nss", adapter=adapter, against=LORA).row(0, named=True)
        assert row["value"] == pytest.approx(math.log(SHIFT[adapter] / SHIFT[LORA]), abs=5e-3)
        fastest, slowest = sorted((SPEED[adapter], 1.0), reverse=True)
        middle = 0.01 * math.sqrt(fastest * 0.5 * slowest * 4)
        assert row["norm"] == pytest.approx(middle, rel=1e-6)
        assert row["seeds"] == 3
        word = {FULL: "above", PISSA: "above", OFF_PRINCIPAL: "below"}.get(adapter, "level")
        assert row["word"] == word, adapter
    raw = geometry(table).filter(measure="nss", rates="own", step=40)
    apart = dict(raw.select("adapter", "value").iter_rows())
    assert math.log(apart[MILORA] / apart[LORA]) < -0.3, "at equal steps it only looks apart"
    assert set(found.filter(against=OFF_RANDOM)["adapter"]) == {OFF_PRINCIPAL}
    assert found.filter(measure="matrix_update_norm").is_empty()


@pytest.mark.parametrize("seeds", [TEST_SEEDS, (1,)])
def test_runs_that_never_go_equally_far_are_not_compared(seeds: tuple[int, ...]) -> None:
    """All runs beyond LoRA's, or one seed beyond them and the others short of them."""

    def far(adapter: str, seed: int, step: int) -> dict[str, Any]:
        found = planted(adapter, seed, step)
        times = 1.0 if adapter != FULL else 100.0 if seed in seeds else 0.01
        return found | {"matrix_update_norm": found["matrix_update_norm"] * times}

    found = matched(rows(plant=far)).filter(adapter=FULL, against=LORA)
    assert found["norm"].null_count() == found.height > 0
    assert set(found["word"]) == {"cannot tell"}


_LESS = "less of ‖ΔW‖² than an update without direction has"
_FEWER = "of the 5 % that moved most, fewer are principal than of others of their size"
WORDS = {
    ("premise", f"full fine-tuning: {_LESS}"): "does not",
    ("premise", f"LoRA: {_LESS}"): "does not",
    ("premise", f"LoRA: {_FEWER}"): "does not",
    ("pissa", "more of ‖ΔW‖² than an update without direction has"): "holds",
    ("pissa", "more than LoRA's at equal norm"): "holds",
    ("pissa", "more than full fine-tuning's at equal norm"): "holds",
    ("pissa", "of the 5 % that moved most, more are principal than of others of their size"):
        "holds",
    ("milora", "at the first saved step less than without direction"): "holds",
    ("milora", "from there to the last step it rises"): "holds",
    ("milora", "at the last step more than without direction"): "does not",
    ("milora", "more than LoRA's at equal norm"): "does not",
    ("off", "nothing of ‖ΔW‖² in principal directions"): "holds",
    ("off", _FEWER): "holds",
    ("off", "it moves the singular values less than LoRA at equal norm"): "holds",
    ("off", "its rank is higher than that of LoRA at equal norm"): "does not",
    ("spectrum", "LoRA does"): "holds",
    ("spectrum", "PiSSA does"): "does not",
}  # fmt: skip


def words(found: pl.DataFrame, rates: str = "own") -> Mapping[tuple[str, str], str]:
    own = found.filter(rates=rates)
    return {(q, claim): word for q, claim, word in own.select("question", "claim", "word").rows()}


def test_claims_say_what_was_planted(table: pl.DataFrame) -> None:
    told = words(claims(table))
    assert {key: told[key] for key in WORDS} == WORDS


def test_the_opposite_world_gets_the_opposite_words() -> None:
    """PiSSA as LoRA is, MiLoRA principal from the first step on, off-principal LoRA leaking."""

    def other(adapter: str, seed: int, step: int) -> dict[str, Any]:
        twins = {PISSA: LORA, MILORA: PISSA, OFF_PRINCIPAL: LORA, FULL: OFF_PRINCIPAL}
        return planted(twins.get(adapter, adapter), seed, step)

    told = words(claims(rows(plant=other)))
    assert told["premise", f"full fine-tuning: {_LESS}"] == "holds"
    assert told["premise", f"LoRA: {_LESS}"] == "does not"
    assert told["pissa", "more than LoRA's at equal norm"] == "does not"
    assert told["milora", "at the first saved step less than without direction"] == "does not"
    assert told["milora", "from there to the last step it rises"] == "does not"
    assert told["off", "nothing of ‖ΔW‖² in principal directions"] == "does not"


def test_noise_is_not_told_as_a_finding() -> None:
    """Adapters that differ by nothing but noise that a margin cannot hold."""

    def noisy(adapter: str, seed: int, step: int) -> dict[str, Any]:
        found = planted(LORA, seed, step)
        rng = np.random.default_rng([seed, step, len(adapter)])
        return found | {"nss": found["nss"] * math.exp(0.5 * rng.normal())}

    found = matched(rows(plant=noisy)).filter(measure="nss")
    assert set(found["word"]) == {"cannot tell"}


@pytest.mark.parametrize("left", ["selection", "one seed", "one adapter", "nothing"])
def test_partial_rows_say_what_is_missing(table: pl.DataFrame, left: str) -> None:
    test = pl.col("seed").is_in(TEST_SEEDS)
    partial = {
        "selection": table.filter(~test),
        "one seed": table.filter(~test | (pl.col("seed") == 1)),
        "one adapter": table.filter(pl.col("adapter") == PISSA),
        "nothing": table.clear(),
    }[left]
    text = markdown(partial)
    assert "nan" not in text.lower()
    if left == "one seed":
        assert "(one seed)" in text
        assert set(claims(partial)["word"]) <= {"cannot tell", "holds"}
    else:
        assert "not run yet" in text
    assert costs_markdown(costs(partial))


def test_the_text_has_every_block_and_no_other_numbers(table: pl.DataFrame) -> None:
    found = blocks(table)
    assert markdown(table) == "\n\n".join(found.values()) + "\n"
    assert "| PiSSA | 0.003 |" in found["geometry-own"]
    assert f"either {isotropic()[EITHER]:.3f}" in found["geometry-own"]
    assert "| norm tuning | 0.003 | 0 |" in found["geometry-own"]
    assert "at most 1e-13: **holds**" in found["geometry-claims"]
    assert "never equal" not in found["geometry-norm-lora-own"]


# Costs


def test_seconds_are_compared_at_equal_completions(table: pl.DataFrame, tmp_path: Path) -> None:
    """PiSSA's policy draws more of them; what it takes itself is 5 s, and seeds have a pace."""
    noise = np.random.default_rng(0)
    drawn = pl.when(pl.col("adapter") == PISSA).then(5000).otherwise(3000)
    slow = table.with_columns(
        sampled=drawn + pl.Series(noise.integers(0, 900, table.height))
    ).with_columns(
        train_cpu_seconds=pl.when(pl.col("adapter") == PISSA).then(15.0).otherwise(10.0)
        + 0.004 * pl.col("sampled") + 3.0 * pl.col("seed")
        + pl.Series(noise.normal(0, 0.2, table.height))
    )  # fmt: skip
    found = {row["adapter"]: row for row in costs(slow).iter_rows(named=True)}
    apart = found[PISSA]["cpu_seconds"] - found[LORA]["cpu_seconds"]
    assert apart > 10
    assert found[PISSA]["beyond_lora"] == pytest.approx(5.0, abs=0.5)
    assert found[PISSA]["beyond_lora_low"] < 5.0 < found[PISSA]["beyond_lora_high"]
    assert found[LORA]["beyond_lora"] == 0.0
    assert found[LORA]["state_bytes"] == 12 * found[LORA]["trainable"]
    assert found[LORA]["share"] == pytest.approx(0.07)
    figures = {"methods": [{"method": "pissa", "beyond": 2**20, "to_full": [0.5, 0.7, 0.6],
                            "to_lora": [1.0]}]}  # fmt: skip
    file = tmp_path / "benchmark.json"
    file.write_text(json.dumps(figures))
    with_memory = costs(slow, benchmark=file)
    row = with_memory.row(by_predicate=pl.col("adapter") == PISSA, named=True)
    assert (row["peak_mib"], row["step_to_full"], row["step_to_lora"]) == (1.0, 0.6, 1.0)
    assert "†" in costs_markdown(with_memory)
    assert "†" not in costs_markdown(costs(slow))
    file.write_text("{}")
    with pytest.raises(InputError, match=r"benchmarks/adapters\.py --json"):
        measured_costs(file)
