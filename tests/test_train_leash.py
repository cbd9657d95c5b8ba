"""Leashes: the controllers' laws, what they refuse, and that runs stop and resume exactly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kl_runs import BUNDLED, column, make, run, same, weights
from offaxis.errors import CheckpointError, InputError
from offaxis.train.divergence import DivergenceCallback
from offaxis.train.leash import LEASHES, LeashCallback, leash_named
from offaxis.train.leash.coefficient import AdaptiveLeash

PROMPTS = ["1+2*3=", "7-4+5="]


def trainer_stub() -> Any:
    return SimpleNamespace(beta=None, note=lambda *_: None)


def step(leash: Any, kl: float) -> float:
    leash.update(trainer_stub(), {"kl_sequence": kl}, None)
    return float(leash.beta)


# The adaptive controller (Ziegler et al. 2019, section 2.2)


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)]
)
def test_beta_follows_the_clipped_error(kl: float, error: float) -> None:
    leash = AdaptiveLeash(target=6.0, beta=0.5, gain=0.1)
    assert step(leash, kl) == pytest.approx(0.5 * (1 + 0.1 * error), rel=1e-12)


@given(
    st.lists(st.floats(-10, 1e6), min_size=1, max_size=30),
    st.floats(1e-3, 100),
    st.floats(1e-3, 4.99),
)
def test_beta_stays_positive_and_moves_towards_the_target(
    kls: list[float], target: float, gain: float
) -> None:
    leash = AdaptiveLeash(target=target, beta=0.1, gain=gain)
    for kl in kls:
        before = leash.beta
        after = step(leash, kl)
        assert after > 0
        assert (after > before) == (kl > target) or abs(kl / target - 1) < 1e-12
        assert (1 - 0.2 * gain) * (1 - 1e-12) <= after / before <= (1 + 0.2 * gain) * (1 + 1e-12)


def test_a_reading_of_something_else_leaves_beta() -> None:
    leash = AdaptiveLeash(target=1.0)
    leash.update(trainer_stub(), {"kl_tuned_base": 9.0}, None)
    assert leash.beta == 0.04


@pytest.mark.parametrize(
    ("family", "parts"), [("GRPO", 1), pytest.param("GRPO", 2, marks=pytest.mark.slow), ("RLOO", 2)]
)
def test_it_reads_the_batchs_own_kl_of_whole_completions(
    family: str, parts: int, tmp_path: Path
) -> None:
    """TRL's mean over tokens times tokens a completion, over all micro-batches of a step."""
    leash = leash_named("adaptive", target=0.05, beta=0.1, gain=1.0)
    made = run(
        family, BUNDLED, tmp_path, leash=leash, beta=0.1, max_steps=3, rows=8,
        per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts,
        steps_per_generation=parts,
        learning_rate=1e-3,
    )  # fmt: skip
    found = column(made, "leash/kl_sequence")
    tokens = column(made, "kl")
    lengths = column(made, "completions/mean_length")
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert abs(found[-1]) > 1e-3
    # of two micro-batches GRPO logs the mean of their means over tokens, which is not quite it
    close = 0.2 if (family, parts) == ("GRPO", 2) else 1e-6
    expected = [kl * length for kl, length in zip(tokens, lengths, strict=True)]
    assert found == pytest.approx(expected, rel=close, abs=1e-6)
    betas = column(made, "leash/beta")
    for before, after, kl in zip(betas, [*betas[1:], leash.beta], found, strict=True):  # type: ignore[attr-defined]
        error = min(max(kl / 0.05 - 1, -0.2), 0.2)
        assert after == pytest.approx(before * (1 + error), rel=1e-12)
    assert made.beta == leash.beta  # type: ignore[attr-defined]


# Runs


@pytest.mark.parametrize(
    ("name", "options", "beta"),
    [
        ("adaptive", {"target": 0.02, "beta": 0.1, "gain": 1.0}, 0.1),
        ("ewc", {"strength": 100.0, "limit": 8}, 0.0),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, options: dict[str, Any], beta: float, tmp_path: Path
) -> None:
    def settings() -> dict[str, Any]:
        return {"leash": leash_named(name, **options), "beta": beta, "max_steps": 4, "rows": 16}

    whole = run("GRPO", BUNDLED, tmp_path, **settings(), save_strategy="steps", save_steps=2)
    again = run("GRPO", BUNDLED, tmp_path, **settings(), resume=tmp_path / "checkpoint-2")
    assert same(weights(whole), weights(again))
    key = "leash/beta" if name == "adaptive" else "leash/penalty"
    assert column(whole, key)[-2:] == column(again, key)[-2:]
    assert len(set(column(whole, key))) == 4, "the leash did something in every step"
    told = json.loads((tmp_path / "checkpoint-2" / "leash.json").read_text())
    assert told["leash"] == name


def test_a_fixed_beta_is_trls_own(tmp_path: Path) -> None:
    bare = run("GRPO", BUNDLED, tmp_path / "a", bare=True, beta=0.3, max_steps=2)
    leash = leash_named("fixed", beta=0.3)
    ours = run("GRPO", BUNDLED, tmp_path / "b", leash=leash, beta=0.1, max_steps=2)
    assert same(weights(bare), weights(ours))
    assert leash.arguments == {"beta": 0.3}


def test_a_target_stops_the_run_and_saves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probe = DivergenceCallback(PROMPTS, every=1, max_new_tokens=8)
    leash = leash_named("target", target=1e-4)
    with caplog.at_level(logging.WARNING, "offaxis.train"):
        made = run("SFT", BUNDLED, tmp_path, probe, leash=leash, max_steps=9, learning_rate=1e-3)
    kls = column(made, "kl_tuned_base")
    assert len(kls) == made.state.global_step + 1 < 10
    assert kls[-1] > 1e-4 >= max(kls[:-1])
    assert column(made, "leash/stopped") == [1.0]
    assert leash.stopped_at == made.state.global_step  # type: ignore[attr-defined]
    assert (tmp_path / f"checkpoint-{made.state.global_step}" / "model.safetensors").is_file()
    assert "training stops here" in caplog.text


def test_below_the_target_a_run_goes_on(small_base: Path, tmp_path: Path) -> None:
    probe = DivergenceCallback(PROMPTS, every=1, max_new_tokens=4)
    leash = leash_named("target", target=100.0)
    made = run("SFT", small_base, tmp_path, probe, leash=leash, max_steps=2)
    assert made.state.global_step == 2
    assert not column(made, "leash/stopped")


# Refusals


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rope", {}, "choose one of none, clip, fixed, adaptive, target, ewc"),
        ("clip", {"beta": 1.0}, "it has no options"),
        ("fixed", {"bta": 1.0}, "its options are beta"),
        ("fixed", {"beta": 0.0}, "positive"),
        ("adaptive", {}, "give target"),
        ("adaptive", {"target": -1.0}, "positive"),
        ("adaptive", {"target": 1.0, "gain": 5.0}, "below 5"),
        ("target", {"target": float("nan")}, "positive"),
        ("ewc", {}, "give strength"),
        ("ewc", {"strength": 1.0, "scale": "max"}, "none or mean"),
        ("ewc", {"strength": 1.0, "limit": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be_used(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        leash_named(name, **options)


@pytest.mark.parametrize(
    ("family", "name", "options", "beta", "words"),
    [
        ("SFT", "fixed", {}, None, "no KL term to weigh; choose the leash ewc"),
        ("DPO", "adaptive", {"target": 1.0}, None, "no KL term"),
        ("Distillation", "fixed", {}, None, "no KL term"),
        ("GRPO", "fixed", {"beta": 0.2}, 0.0, "give beta 0.2 to its configuration"),
        ("GRPO", "clip", {}, 0.1, "set beta to 0"),
        ("SFT", "target", {"target": 1.0}, None, "add a DivergenceCallback"),
    ],
)
def test_trainers_that_cannot_be_leashed_so(
    family: str, name: str, options: dict[str, Any], beta: float | None, words: str,
    small_base: Path, tmp_path: Path,
) -> None:  # fmt: skip
    more = {} if beta is None else {"beta": beta}
    made = make(family, small_base, tmp_path, leash=leash_named(name, **options), **more)
    with pytest.raises(InputError, match=words):
        made.train()


@pytest.mark.parametrize("family", ["DPO", pytest.param("SFT", marks=pytest.mark.slow)])
def test_none_and_clip_change_nothing(family: str, small_base: Path, tmp_path: Path) -> None:
    bare = weights(run(family, small_base, tmp_path, bare=True))
    for name in ("none", "clip"):
        assert same(bare, weights(run(family, small_base, tmp_path, leash=leash_named(name))))


def test_a_bare_trainer_is_told_what_to_do(small_base: Path, tmp_path: Path) -> None:
    made = make("SFT", small_base, tmp_path, LeashCallback(), bare=True)
    with pytest.raises(InputError, match=r"observed\(TRAINER\)"):
        made.train()


def test_a_checkpoint_of_another_leash_is_refused(small_base: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run("SFT", small_base, tmp_path, leash=leash_named("none"), **saving)
    again = {"resume": tmp_path / "checkpoint-1", "max_steps": 2}
    with pytest.raises(CheckpointError, match="saved with the leash none"):
        run("SFT", small_base, tmp_path, leash=leash_named("ewc", strength=1.0), **again)
    (tmp_path / "checkpoint-1" / "leash.json").write_text("{")
    with pytest.raises(CheckpointError, match="state cannot be read"):
        run("SFT", small_base, tmp_path, leash=leash_named("none"), **again)


def test_every_leash_has_its_name() -> None:
    assert all(kind.name == name for name, kind in LEASHES.items())
