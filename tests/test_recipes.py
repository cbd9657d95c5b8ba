"""Recipes: each is resolved by `--dry-run`, says what must be said, and the lab's ones train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from offaxis.cli import main
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.train import METHODS, read_arguments, train
from offaxis.train.data import load_data
from offaxis.train.setup import reward_setup
from policy_runs import cpu_threads, quiet_libraries

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
BENCHMARKS = ROOT / "../shared/data/benchmarks"
SERVES = {
    "lab/rl": ("grpo", "dapo", "dr_grpo", "gspo", "rloo", "reinforce_pp"),
    "lab/sft": ("sft",),
    "lab/sampled": ("rejection_sft", "dpo"),
    "lab/distill": ("distill",),
    "lab/distill_on_policy": ("distill_on_policy",),
    "lab/leash_adaptive": ("grpo",),
    "lab/adapter": ("dapo",),
    "lab/pissa": ("grpo",),
    "lab/pure_bf16": ("grpo",),
    "lab/sparse": ("grpo",),
    "gsm8k_1gpu": ("dapo", "grpo", "dr_grpo", "gspo", "reinforce_pp"),
    "math_1node": ("dapo", "grpo"),
    "peft_dapo_1gpu": ("dapo", "grpo", "dr_grpo"),
    "sft_gsm8k": ("sft",),
}
PAIRS = [(name, method) for name, methods in SERVES.items() for method in methods]
SHORT = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "kl_every": 1, "kl_prompts": 2,
         "disable_tqdm": True, "per_device_train_batch_size": 16}  # fmt: skip


def recipe(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return found


def test_every_recipe_and_every_method_is_here() -> None:
    present = {str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml")}
    assert present == set(SERVES)
    assert {method for name, method in PAIRS if name.startswith("lab/")} == set(METHODS)


@pytest.mark.parametrize("name", SERVES)
def test_a_recipe_is_short_and_says_what_it_is(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 100
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert "offaxis train" in head
    assert f"recipes/{name}.yaml" in head
    if not name.startswith("lab/"):
        assert "NOT RUN" in head
        assert "24.7" in head, "no arithmetic of memory"


def test_dry_run_shows_a_recipe_resolved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(RECIPES / "lab/rl.yaml")
    words = ["offaxis", "train", "dapo", "--config", path, "--dry-run", "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert told["given"] == recipe("lab/rl")
    assert told["arguments"]["dynamic_sampling"] is True
    assert told["arguments"]["epsilon_high"] == 0.28
    assert told["derived"]["rows_per_step"] == 128


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_key_of_a_recipe_is_one(name: str, method: str) -> None:
    """By the parser of the run itself, which refuses unknown keys and what TRL refuses."""
    found = read_arguments(method, RECIPES / f"{name}.yaml").resolved()
    for key, value in recipe(name).items():
        if key not in ("report_to", "model_name_or_path"):
            assert str(found[key]) == str(value), key
    assert found["lr_scheduler_type"] == "constant"
    if not name.startswith("lab/"):
        assert (found["adam_beta1"], found["adam_beta2"]) == (0.9, 0.999)


@pytest.mark.parametrize("name", ["gsm8k_1gpu", "math_1node"])
def test_a_large_recipe_is_dapo_as_published(name: str) -> None:
    found = read_arguments("dapo", RECIPES / f"{name}.yaml")
    config = found.config
    assert (config.epsilon, config.epsilon_high, config.beta) == (0.2, 0.28, 0.0)
    assert config.learning_rate == 1e-6
    assert found.extra.dynamic_sampling
    assert found.extra.overlong_cache is None, "a fifth of the length is the default"
    assert config.use_vllm
    assert config.vllm_enable_sleep_mode
    assert config.vllm_max_model_length > config.max_completion_length
    period = found.updates_per_generation
    assert config.save_steps % period == 0
    assert config.max_steps % period == 0
    assert found.extra.kl_every % period == 0


@pytest.mark.parametrize(("name", "file", "rows", "first"), [
    ("gsm8k_1gpu", "gsm8k/train.jsonl", 7473, "72"),
    ("math_1node", "deepscaler/train_math.json", 7474, "0"),
])  # fmt: skip
def test_a_large_recipe_reads_and_rewards_real_rows(
    name: str, file: str, rows: int, first: str
) -> None:
    path = BENCHMARKS / file
    if not path.is_file():
        pytest.skip(f"../shared/data/benchmarks/{file} is not here")
    arguments = read_arguments("grpo", recipe(name) | {"data": str(path)})
    data, _ = load_data(arguments)
    assert len(data) == rows
    row = data[0]
    assert row["prompt"][-1]["role"] == "user"
    assert row["prompt"][-1]["content"].endswith("within \\boxed{}.")
    assert row["answer"] == first
    (reward,), _ = reward_setup(arguments)
    said = [f"... so \\boxed{{{first}}}", "... so \\boxed{71}", "no box"]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    assert reward(prompts=[row["prompt"]] * 3, completions=completions, answer=[first] * 3,
                  completion_ids=[[1]] * 3) == [1.0, 0.0, 0.0]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(("name", "method"), [pair for pair in PAIRS if "lab/" in pair[0]])
def test_a_lab_recipe_trains(name: str, method: str, runs: Path) -> None:
    """Two steps on small batches, everything else as it stands."""
    given = recipe(name) | SHORT | {"output_dir": str(runs / f"{name[4:]}-{method}")}
    given["model_name_or_path"] = str(BASE)
    if "kl_every" not in recipe(name):
        given["kl_every"] = 0
    if "teacher" in given:
        given["teacher"] = str(BASE)
    with cpu_threads(1), quiet_libraries():
        done = train(method, given, sources={"lab": named_data}, tell=lambda text: None)
    assert done.steps == 2
    assert (done.output / "train.yaml").is_file()
    losses = [row["loss"] for row in done.log if "loss" in row]
    assert len(losses) == 2
    if name == "lab/leash_adaptive":
        assert any("leash/beta" in row for row in done.log)
    if name == "lab/pissa":
        first = next(row for row in done.log if "kl_tuned_base" in row)
        assert first["kl_tuned_base"] < 1e-4, "KL is not to the original base"
    if name == "lab/pure_bf16":
        assert any("rounded away on 99.4% of them, for good" in text for text in done.messages)
