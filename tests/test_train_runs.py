"""Every method trains the bundled base through the same door, and leaves what repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from offaxis.errors import InputError, OutputError
from offaxis.lab import BASE
from offaxis.lab.data import named_data
from offaxis.lab.tasks import task_named
from offaxis.train import METHODS, Outcome, train
from offaxis.train.sampled import SAMPLES
from policy_runs import quiet_libraries

SHARED: dict[str, Any] = {
    "model_name_or_path": str(BASE),
    "data": "lab:arithmetic?count=64",
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "kl_every": 2,
    "kl_prompts": 4,
    "kl_max_new_tokens": 24,
    "sample_max_new_tokens": 30,
}
SAMPLING = {"num_generations": 4, "max_completion_length": 24, "rewards": ["integer"]}
KEYS: dict[str, dict[str, Any]] = {
    "sft": {},
    "rejection_sft": {"rewards": ["integer"]},
    "distill": {"teacher": str(BASE)},
    "distill_on_policy": {"teacher": str(BASE), "max_completion_length": 24},
    "dpo": {"rewards": ["integer"], "samples_per_prompt": 6},
}


def keys(method: str, out: Path, **more: Any) -> dict[str, Any]:
    return SHARED | KEYS.get(method, SAMPLING) | {"output_dir": str(out)} | more


def quietly(method: str, config: Any, **more: Any) -> Outcome:
    torch.set_num_threads(1)
    with quiet_libraries():
        return train(method, config, sources={"lab": named_data}, tell=lambda text: None, **more)


def model(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    return found


_OFTEN = ("grpo", "dapo", "reinforce_pp", "sft")  # one of each trainer; the others are slow


@pytest.mark.parametrize(
    "method",
    [one if one in _OFTEN else pytest.param(one, marks=pytest.mark.slow) for one in METHODS],
)
def test_a_method_trains_and_can_be_repeated(method: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    outcome = quietly(method, keys(method, first))
    assert outcome.steps == 2
    base = load_file(BASE / "model.safetensors")
    weights = model(first)
    moved = [name for name in base if not torch.equal(base[name].float(), weights[name])]
    if method == "distill_on_policy":  # its teacher is itself: nothing to learn but rounding
        assert all(torch.allclose(base[n].float(), weights[n], atol=1e-3) for n in base)
    else:
        assert len(moved) > len(base) / 2
    assert all(one.dtype == torch.float32 for one in weights.values())

    probes = [row for row in outcome.log if "kl_tuned_base" in row]
    assert [row["step"] for row in probes] == [0, 2]
    assert probes[0]["kl_tuned_base"] == pytest.approx(0, abs=1e-6)
    assert probes[0]["kl_base_tuned"] == pytest.approx(0, abs=1e-6)
    assert {"kl_tuned_base_token", "kl_base_tuned_token"} <= set(probes[1])

    record = json.loads((first / "offaxis.json").read_text())
    assert record["method"] == method
    assert record["data"]["rows"] > 0
    assert record["arguments"]["seed"] == 42
    assert len(json.loads((first / "log.json").read_text())) == len(outcome.log)
    quietly(
        method, yaml.safe_load((first / "train.yaml").read_text()) | {"output_dir": str(second)}
    )
    again = model(second)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / SAMPLES).read_text().splitlines()[1:]]


def test_rejection_sampling_teaches_right_and_finished_samples_alone(tmp_path: Path) -> None:
    from offaxis.train.arguments import read_arguments
    from offaxis.train.data import load_data
    from offaxis.train.sampled import sampled_data
    from offaxis.train.setup import reward_setup

    config = keys("rejection_sft", tmp_path, keep_per_prompt=2, max_steps=-1)
    arguments = read_arguments("rejection_sft", config | {"data": "lab:arithmetic?count=100"})
    rows, _ = load_data(arguments, sources={"lab": named_data})
    rewards, weights = reward_setup(arguments)

    def drawn() -> Any:
        with quiet_libraries():
            return sampled_data(
                arguments, rows, rewards=rewards, weights=weights, tell=lambda text: None
            )

    found = drawn()
    task, answer = task_named("arithmetic"), dict(zip(rows["prompt"], rows["answer"], strict=True))
    for row in found:
        assert task.reward(row["completion"], row["prompt"], answer[row["prompt"]]) == 1
    kept = [(row["prompt"], row["completion"]) for row in found]
    assert len(kept) == len(set(kept))
    assert max(found["prompt"].count(prompt) for prompt in found["prompt"]) == 2
    told = samples(tmp_path)
    assert len(told) == 100
    wrong = sum(score == 0 for row in told for score in row["rewards"])
    assert wrong > 50, "nothing was rejected"

    # Interrupted anywhere, sampling goes on to the same end.
    path = tmp_path / SAMPLES
    whole = path.read_text()
    path.write_text(whole[: int(len(whole) * 0.8)])
    again = drawn()
    assert path.read_text() == whole
    assert again.to_list() == found.to_list()
    arguments.config.seed = 7
    with pytest.raises(InputError, match="sampled with another seed"):
        drawn()


def test_pairs_are_right_over_wrong(tmp_path: Path) -> None:
    quietly("dpo", keys("dpo", tmp_path))
    told = samples(tmp_path)
    both = [row for row in told if {0.0, 1.0} <= set(row["rewards"])]
    assert both


def test_without_a_single_right_sample_sampling_says_so(tmp_path: Path) -> None:
    def never(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    config = keys("rejection_sft", tmp_path) | {"rewards": None}
    with pytest.raises(InputError, match="none gave a solution"):
        quietly("rejection_sft", config, reward_funcs=[never])


def test_a_bf16_base_gets_float32_masters_unless_the_user_insists(tmp_path: Path) -> None:
    told: list[str] = []

    def run(**more: Any) -> dict[str, torch.Tensor]:
        out = tmp_path / str(len(told))
        config = keys("sft", out, dtype="bfloat16", learning_rate=1e-7, kl_every=0, **more)
        with quiet_libraries():
            train("sft", config, sources={"lab": named_data}, tell=told.append)
        return model(out)

    base = load_file(BASE / "model.safetensors")
    masters, pure = run(), run(pure_bf16=True)
    assert all(one.dtype == torch.float32 for one in masters.values())
    assert all(one.dtype == torch.bfloat16 for one in pure.values())

    def moved(tuned: dict[str, torch.Tensor]) -> float:
        changed = sum(int((tuned[name].float() != base[name].float()).sum()) for name in base)
        return changed / sum(one.numel() for one in base.values())

    assert moved(masters) > 0.5
    assert moved(pure) < 0.01
    warnings = [text for text in told if text.startswith("WARNING")]
    assert len(warnings) == 2
    assert "trained as float32 masters" in warnings[0]
    assert "for good" in warnings[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model_name_or_path": None}, "no model"),
        ({"rewards": None}, "grpo needs a reward"),
        ({"data": "nowhere.jsonl"}, "no such file"),
        ({"data": None}, "no data"),
        ({"prompt_column": "question"}, "needs question"),
        ({"reward_weights": [1.0, 2.0]}, "2 numbers for 1 rewards"),
        ({"leash": "rope"}, "leash 'rope'"),
        ({"dynamic_sampling": True}, "that is dapo"),
        ({"adapter": {"peft_type": "NONE"}}, "adapter"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=said):
        quietly("grpo", keys("grpo", out) | more)
    assert not (out / "offaxis.json").exists()


def test_an_old_runs_directory_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(OutputError, match="not empty"):
        quietly("sft", keys("sft", tmp_path))
    quietly("sft", keys("sft", tmp_path, overwrite=True))
    assert (tmp_path / "precious").exists()
    assert (tmp_path / "model.safetensors").exists()


def test_files_templates_and_chat(tmp_path: Path) -> None:
    from offaxis.train.arguments import read_arguments
    from offaxis.train.data import load_data

    path = tmp_path / "data.jsonl"
    rows = [{"question": "1+1=", "gold": "2"}, {"question": "2+2=", "gold": "4"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prompts(**more: Any) -> Any:
        said = {"data": str(path), "prompt_column": "question", "answer_column": "gold"}
        config = keys("grpo", tmp_path / "out") | said | more
        return load_data(read_arguments("grpo", config))[0]

    assert prompts()[1] == {"prompt": "2+2=", "answer": "4"}
    assert prompts(prompt_template="Q: {prompt}\nA:")[0]["prompt"] == "Q: 1+1=\nA:"
    assert prompts(chat=True)[0]["prompt"] == [{"role": "user", "content": "1+1="}]
    spoken = prompts(system_prompt="Think.", prompt_template="{prompt}?")[0]["prompt"]
    assert [one["role"] for one in spoken] == ["system", "user"]
    assert spoken[1]["content"] == "1+1=?"
    path.write_text('{"question": "1+1="}\n{nonsense\n')
    with pytest.raises(InputError, match="line 2"):
        prompts()
