"""MiLoRA, GeoRA and off-principal LoRA against constructions of their own, in numpy and float64."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from adapter_runs import base, layers, linear, logits, made, shake
from kl_runs import run
from offaxis.errors import InputError
from offaxis.linalg import principal_rank
from offaxis.train.adapters import AdapterSpec, adapt
from offaxis.train.adapters.configs import GeometricLoraConfig
from offaxis.train.adapters.layers import ProjectedLinear

RANK = 4
Arrays = dict[str, np.ndarray]


def stored(family: str) -> Arrays:
    """The base's weights as (out, in), float64."""
    model = base(family)
    found = {path: model.get_submodule(path).weight.detach() for path in linear(family)}
    return {p: (w.T if family == "gpt2" else w).double().numpy() for p, w in found.items()}


def change(layer: Any) -> np.ndarray:
    """s B A as the layer computes with it, (out, in), float64."""
    up, down = (getattr(layer, name)["default"] for name in ("lora_B", "lora_A"))
    found = [
        (one.projected() if isinstance(one, ProjectedLinear) else one.weight).detach().double()
        for one in (up, down)
    ]
    return (layer.scaling["default"] * found[0] @ found[1]).numpy()


def spans(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    left, _, right = np.linalg.svd(weight)
    return left[:, :rank], right[:rank].T


# What MiLoRA and GeoRA take over from the base


def last_triples(weight: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    return (left[:, -RANK:] * values[-RANK:]) @ right[-RANK:]


def small_entries(weight: np.ndarray, share: float = 0.2) -> np.ndarray:
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    best = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
    kept = np.zeros(weight.size, dtype=bool)
    for matrix in (best, weight):
        kept[np.argsort(np.abs(matrix).ravel(), kind="stable")[: round(share * weight.size)]] = True
    left, values, right = np.linalg.svd(weight * kept.reshape(weight.shape), full_matrices=False)
    return (left[:, :RANK] * values[:RANK]) @ right[:RANK]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("name", "taken"), [("milora", last_triples), ("geora", small_entries)])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_the_start_is_the_part_of_the_base_that_its_paper_names(
    name: str, taken: Any, family: str, alpha: float | None
) -> None:
    model = made(AdapterSpec(name, rank=RANK, alpha=alpha), family)
    originals = stored(family)
    for path, layer in layers(model).items():
        weight, moved = originals[path], change(layer)
        wanted = taken(weight)
        assert np.abs(moved - wanted).max() < 2e-6 * np.linalg.norm(wanted, 2) + 1e-7
        left = layer.get_base_layer().weight.detach().double().numpy()
        left = left.T if family == "gpt2" else left
        assert np.abs(left + moved - weight).max() <= 2**-24 * np.abs(weight).max(), "to rounding"
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        torch.testing.assert_close(up.norm(), down.norm(), rtol=1e-4, atol=0)


def test_milora_is_not_pissa() -> None:
    """PiSSA's part of the base is the first, and by far the larger one."""
    first = change(next(iter(layers(made("pissa?rank=4", "llama")).values())))
    last = change(next(iter(layers(made("milora?rank=4", "llama")).values())))
    assert np.linalg.norm(first) > 5 * np.linalg.norm(last)
    assert np.linalg.norm(first @ last.T) < 1e-5 * np.linalg.norm(first)


# Off-principal LoRA


def outside(update: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """The larger share of an update's norm that reaches into the left, or right, subspace."""
    inside = max(np.linalg.norm(left.T @ update), np.linalg.norm(update @ right))
    return float(inside / np.linalg.norm(update))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Twenty real GRPO steps, and where the adapter was saved."""
    out = tmp_path_factory.mktemp("off")
    model = made("off_principal_lora?rank=4")
    run("GRPO", model, out, rows=4, max_steps=20, learning_rate=3e-3)
    model.eval().save_pretrained(out / "adapter")
    return model, out / "adapter"


def test_after_training_the_update_keeps_out_of_the_principal_subspaces(trained: Any) -> None:
    for path, layer in layers(trained[0]).items():
        weight, update = stored("bundled")[path], change(layer)
        rank = principal_rank(*weight.shape)
        assert np.linalg.norm(update) > 1e-3, "nothing was trained"
        assert outside(update, *spans(weight, rank)) <= 1e-5
        values = np.linalg.svd(update, compute_uv=False)
        assert values[RANK] <= 1e-6 * values[0]
        free = layer.lora_B["default"].weight.detach().double().numpy()
        assert outside(free, spans(weight, rank)[0], np.zeros((RANK, 1))) > 1e-3, "vacuous"


def test_plain_lora_reaches_into_them(tmp_path: Path) -> None:
    model = made("lora?rank=4")
    run("GRPO", model, tmp_path, max_steps=2, learning_rate=3e-3)
    path, layer = next(iter(layers(model).items()))
    weight = stored("bundled")[path]
    assert outside(change(layer), *spans(weight, principal_rank(*weight.shape))) > 0.05


def test_stock_peft_reads_what_is_saved_as_plain_lora(trained: Any) -> None:
    model, saved = trained
    told = json.loads((saved / "adapter_config.json").read_text())
    assert (told["peft_type"], told["init_lora_weights"]) == ("LORA", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the keys that are ours
        plain = PeftModel.from_pretrained(base(), saved)
    kinds = {
        type(one).__name__ for layer in layers(plain).values() for one in layer.lora_A.values()
    }
    assert kinds == {"Linear"}
    assert torch.equal(logits(plain), logits(model))
    state = load_file(saved / "adapter_model.safetensors")
    assert all("lora_" in name and "basis" not in name for name in state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["off_principal_lora", "milora", "geora"])
def test_a_merge_computes_what_the_adapter_does(name: str, family: str) -> None:
    model = shake(made(AdapterSpec(name, rank=RANK), family))
    before = logits(model)
    assert not torch.allclose(before, logits(base(family)), atol=1e-2)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    whole = model.merge_and_unload()
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)


def hostile(kind: str, layer: Any, left: np.ndarray, right: np.ndarray) -> None:
    """Overwrite the free factors."""
    up, down = layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data
    noise = torch.Generator().manual_seed(0)
    for one, basis in ((up, left), (down.T, right)):
        values = torch.randn(one.shape, generator=noise)
        principal = torch.from_numpy(basis @ np.ones((basis.shape[1], RANK))).float()
        found = {
            "random": values,
            "huge": values * 1e15,
            "tiny": values * 1e-15,
            "nearly all principal": 1e4 * principal + values,
            "all principal but rounding": principal,
        }
        one.copy_(found[kind])


KINDS = ["random", "huge", "tiny", "nearly all principal", "all principal but rounding"]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_in_the_factors_the_update_keeps_out(kind: str) -> None:
    model = made("off_principal_lora?rank=4&avoid_rank=3", "llama")
    for path, layer in layers(model).items():
        left, right = spans(stored("llama")[path], 3)
        hostile(kind, layer, left, right)
        update = change(layer)
        assert outside(update, left, right) <= 1e-5
        delta = layer.get_delta_weight("default").detach().double().numpy()
        assert outside(delta, left, right) <= 1e-5


@pytest.mark.parametrize("avoid", ["minor", "random"])
def test_other_subspaces_can_be_kept_out_of(avoid: str) -> None:
    model = shake(made(f"off_principal_lora?rank=4&avoid_rank=3&avoid={avoid}", "llama"))
    found = layers(model)
    for path, layer in found.items():
        weight, update = stored("llama")[path], change(layer)
        left, right = (getattr(layer, n)["default"].basis.double().numpy() for n in
                       ("lora_B", "lora_A"))  # fmt: skip
        assert np.abs(left.T @ left - np.eye(3)).max() < 1e-6
        assert outside(update, left, right) <= 1e-5
        assert outside(update, *spans(weight, 3)) > 1e-3, "the principal ones are free"
        if avoid == "minor":
            whole, _, turned = np.linalg.svd(weight, full_matrices=False)
            for mine, numpys in ((left, whole[:, -3:]), (right, turned[-3:].T)):
                cosines = np.linalg.svd(mine.T @ numpys, compute_uv=False)
                assert cosines.min() > 1 - 1e-6
    q, k = (found[f"model.layers.{n}.self_attn.q_proj"].lora_A["default"].basis for n in (0, 1))
    assert not torch.allclose(q, k)


def test_random_directions_follow_their_seed() -> None:
    def basis(seed: int) -> torch.Tensor:
        text = f"off_principal_lora?rank=4&avoid_rank=3&avoid=random&avoid_seed={seed}"
        return next(iter(layers(made(text, "llama")).values())).lora_A["default"].basis

    assert torch.equal(basis(0), basis(0))
    assert not torch.allclose(basis(0), basis(1))


def test_without_directions_it_is_lora_bit_for_bit(tmp_path: Path) -> None:
    """A whole short run of TRL's, saved."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    found = []
    for kind in (LoraConfig, GeometricLoraConfig):
        torch.manual_seed(0)
        model = get_peft_model(base(), kind(**settings))
        run("GRPO", model, tmp_path / kind.__name__, max_steps=3, learning_rate=1e-3)
        model.save_pretrained(tmp_path / kind.__name__ / "adapter")
        found.append(load_file(tmp_path / kind.__name__ / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(one.any() for name, one in found[0].items() if "lora_B" in name)


@pytest.mark.parametrize("side", ["in", "out"])
def test_autocast_does_not_round_the_projection(side: str) -> None:
    """TRL trains under it by default, and products in bfloat16 leave 1e-3 of what is taken out."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 3)).Q
    layer = ProjectedLinear(torch.nn.Linear(32, 32, bias=False), basis, side)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.projected()
    assert torch.equal(found, layer.projected())


@pytest.mark.parametrize("side", ["in", "out"])
def test_the_gradient_is_that_of_the_projection_written_out(side: str) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(7, 5, bias=False, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(7 if side == "in" else 5, 2).double()).Q
    layer = ProjectedLinear(plain, basis, side)
    free = plain.weight.detach().clone().requires_grad_()
    away = torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T
    x = torch.randn(3, 7, dtype=torch.float64)
    explicit = x @ (free @ away if side == "in" else away @ free).T
    found = layer(x)
    torch.testing.assert_close(found, explicit)
    weights = torch.randn(3, 5, dtype=torch.float64)
    (found * weights).sum().backward()
    (explicit * weights).sum().backward()
    torch.testing.assert_close(layer.weight.grad, free.grad)


def test_the_basis_stays_orthonormal_in_half_precision() -> None:
    model = shake(made("off_principal_lora?rank=4&avoid_rank=3", "llama"))
    model.to(torch.bfloat16)
    layer = next(iter(layers(model).values()))
    assert layer.lora_A["default"].weight.dtype == torch.bfloat16
    assert layer.lora_A["default"].basis.dtype == torch.float32
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"avoid": "all"}, "choose one of principal, minor, random"),
        ({"avoid_rank": -1}, "avoid_rank -1"),
        ({"low_share": 0.0}, "low_share 0.0"),
        ({"init_lora_weights": "milora", "avoid_rank": 2}, "the start would not be kept"),
        ({"init_lora_weights": "pissa", "avoid_rank": 2}, "would change the start"),
        ({"init_lora_weights": "geora", "use_dora": True}, "use_dora and lora_bias"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        GeometricLoraConfig(**given)


def test_weights_that_are_not_there_or_are_codes_are_refused() -> None:
    plain = base("llama")
    with torch.device("meta"):
        empty = type(plain)(plain.config)
    with pytest.raises(InputError, match="meta device"):
        adapt(empty, "milora?rank=2")
    coded = base("llama")
    weight = coded.model.layers[0].self_attn.q_proj.weight
    coded.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(
        weight.data.to(torch.float8_e4m3fn), requires_grad=False
    )
    asked = ["layers.0.self_attn.q_proj"]
    config = GeometricLoraConfig(r=2, init_lora_weights="milora", target_modules=asked)
    with pytest.raises(InputError, match="float8_e4m3fn has codes, not weights"):
        get_peft_model(coded, config)


@pytest.mark.parametrize("name", ["milora?rank=4", "geora?rank=4"])
def test_a_start_that_is_zero_would_never_train(name: str) -> None:
    """B and A would both be 0, and so would their gradients."""
    model = base("llama")
    model.model.layers[0].self_attn.q_proj.weight.data.zero_()
    with pytest.raises(InputError, match=r"only 0 of the 4 directions .* would never train"):
        adapt(model, name)


def test_too_few_small_entries_have_too_few_directions() -> None:
    with pytest.raises(InputError, match=r"geora: only . of the 4 .* a larger low_share"):
        adapt(base("llama"), "geora?rank=4&low_share=0.001")


def test_a_frozen_factor_stays_frozen() -> None:
    model = made("lora_fa?rank=2", "llama")
    before = [one.requires_grad for one in model.parameters()]
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    assert [one.requires_grad for one in model.parameters()] == before
    layer = next(iter(layers(model).values()))
    assert type(layer).__name__ == "Linear"
    assert not layer.lora_A["default"].weight.requires_grad
    assert layer.lora_B["default"].weight.requires_grad
