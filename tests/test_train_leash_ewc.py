"""The elastic leash: its Fisher information where that is known, its penalty, its files."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kl_runs import BUNDLED, column, make, prompts, run
from offaxis.errors import CheckpointError, InputError
from offaxis.evaluate import sequence_kl
from offaxis.lab.session import quiet_libraries
from offaxis.live import LiveModel
from offaxis.train.divergence import Ends, draw, prompt_tokens, undisturbed
from offaxis.train.leash import leash_named
from offaxis.train.leash.ewc import EwcLeash, spring
from offaxis.train.leash.fisher import diagonal_fisher, per_sample_loss


class Categorical(torch.nn.Module):
    """Every token is drawn from softmax(θ), whatever came before."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.theta.expand(*input_ids.shape, -1))


def test_the_fisher_of_a_categorical_is_known() -> None:
    """F_i = T p_i (1 − p_i) for T independent tokens: every outcome once, weighted by counting."""
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    model = Categorical(p.log().tolist())
    counts = (p * 8).int().tolist()
    tokens = [token for token, count in enumerate(counts) for _ in range(count)]
    for length in (1, 2):
        samples = [([0], list(drawn)) for drawn in product(tokens, repeat=length)]
        found = diagonal_fisher(model, samples, loss=per_sample_loss)["theta"]
        torch.testing.assert_close(found, length * p * (1 - p), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_single_samples(small_base: Path) -> None:
    """Against autograd on each sample alone; what `.grad` held before is still there."""
    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    samples = [([1, 5, 6], [7, 8]), ([1, 9], [5, 5, 2]), ([1], [4])]
    expected = {n: torch.zeros_like(q) for n, q in model.named_parameters()}
    for sample in samples:
        each = torch.autograd.grad(per_sample_loss(model, sample), list(model.parameters()))
        for name, gradient in zip(expected, each, strict=True):
            expected[name] += gradient.square() / 3
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    found = diagonal_fisher(model, samples, loss=per_sample_loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert bool((model.lm_head.weight.grad == 1).all())
    assert model.model.norm.weight.grad is None


def test_shares_of_several_processes_add_up(small_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    samples = [([1], [at, 2]) for at in range(5)]
    whole = diagonal_fisher(model, samples, loss=per_sample_loss)
    parts = [
        diagonal_fisher(model, samples, loss=per_sample_loss, share=lambda at, r=rank: at % 2 == r)
        for rank in (0, 1)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_the_spring_is_half_f_times_the_square() -> None:
    torch.manual_seed(0)
    theta, start, fisher = (torch.randn(3, 5) for _ in range(3))
    theta.requires_grad_()
    value = spring(theta, start, fisher)
    value.mul(4.0).backward()
    torch.testing.assert_close(value.detach(), (fisher * (theta - start) ** 2).sum().detach() / 2)
    torch.testing.assert_close(theta.grad, (4 * fisher * (theta - start)).detach())
    rounded = theta.detach().bfloat16().requires_grad_()
    spring(rounded, start, fisher).backward()
    assert rounded.grad is not None
    assert rounded.grad.dtype == torch.bfloat16


def test_in_random_directions_the_penalty_is_the_kl_to_the_base() -> None:
    """At strength 1, ½ Σ F Δ² ≈ KL(base ‖ tuned): F's diagonal is all that random signs see."""
    with quiet_libraries():
        base = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ids = prompt_tokens(tokenizer, prompts(48))
    with undisturbed(base):
        drawn = draw(base, ids, ends=Ends.of(tokenizer), max_new_tokens=24, seed=3)
    with undisturbed(base):
        fisher = diagonal_fisher(base, list(zip(ids, drawn, strict=True)), loss=per_sample_loss)
    leash = EwcLeash(strength=1.0)
    leash.take(base, fisher)
    start = {name: one.detach().clone() for name, one in base.named_parameters()}
    torch.manual_seed(1)
    ratios = []
    for _ in range(8):
        tuned = AutoModelForCausalLM.from_config(base.config).float()
        for name, one in tuned.named_parameters():
            sign = torch.randint(0, 2, one.shape).mul(2).sub(1)
            one.data.copy_(start[name] + 1e-4 * sign)
        p, q = (LiveModel(one.eval(), tokenizer, "model") for one in (base, tuned))
        kl = sequence_kl(p, q, ids, drawn).sequence.mean()
        penalty = leash.penalty(tuned)
        assert penalty is not None
        ratios.append(penalty.item() / kl)
    assert 0.75 < sum(ratios) / 8 < 1.33, ratios


def test_scaled_by_the_mean_strength_is_the_mean_stiffness(small_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    torch.manual_seed(0)
    fisher = {n: torch.rand_like(p) * 1e-6 for n, p in model.named_parameters()}
    leash = EwcLeash(strength=3.0, scale="mean")
    leash.take(model, fisher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    count = sum(p.numel() for p in model.parameters())
    penalty = leash.penalty(model)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * 3.0 * count * 1e-4, rel=1e-3)


def test_at_the_base_nothing_pulls_and_away_from_it_it_holds(tmp_path: Path) -> None:
    def moved(strength: float) -> float:
        made = run(
            "SFT", BUNDLED, tmp_path, max_steps=4, learning_rate=1e-3,
            leash=leash_named("ewc", strength=strength, scale="mean", limit=8),
        )  # fmt: skip
        assert column(made, "leash/penalty")[0] > 0
        assert made.leash.penalty(made.model) > 0
        weak = {n: p.detach() - made.leash._start[n] for n, p in made.model.named_parameters()}
        fisher = made.leash._fisher
        return float(sum((fisher[n] * d.square()).sum() for n, d in weak.items()))

    assert moved(10.0) < 0.9 * moved(1e-9)


def test_of_an_adapter_only_its_own_parameters_are_held(tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    leash = leash_named("ewc", strength=1.0, limit=4, max_new_tokens=8)
    made = run("SFT", BUNDLED, tmp_path, leash=leash, peft_config=adapter, save_strategy="steps",
               save_steps=1)  # fmt: skip
    trained = {name for name, one in made.model.named_parameters() if one.requires_grad}
    assert set(leash._fisher) == trained  # type: ignore[attr-defined]
    stored = load_file(tmp_path / "checkpoint-1" / "leash.safetensors")
    assert set(stored) == {f"{k}.{n}" for k in ("fisher", "start") for n in trained}


def test_damaged_tensors_are_told(small_base: Path, tmp_path: Path) -> None:
    def settings() -> dict[str, Any]:
        leash = leash_named("ewc", strength=1.0, limit=2, max_new_tokens=4)
        return {"leash": leash, "max_steps": 2}

    run("SFT", small_base, tmp_path, **settings(), save_strategy="steps", save_steps=1)
    path = tmp_path / "checkpoint-1" / "leash.safetensors"
    stored = load_file(path)
    stored.pop("fisher.model.norm.weight")
    save_file(stored, path)
    with pytest.raises(CheckpointError, match=r"nothing for model\.norm\.weight"):
        run("SFT", small_base, tmp_path, **settings(), resume=tmp_path / "checkpoint-1")
    path.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="resume from another checkpoint"):
        run("SFT", small_base, tmp_path, **settings(), resume=tmp_path / "checkpoint-1")


def test_a_model_of_which_nothing_is_trained(small_base: Path, tmp_path: Path) -> None:
    leash = EwcLeash(strength=1.0)
    made = make("SFT", small_base, tmp_path, leash=leash)
    made.model.requires_grad_(False)
    with pytest.raises(InputError, match="unfreeze some"):
        leash.prepare(made)
