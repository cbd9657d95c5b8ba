"""The table of adapters: each row trains what it says, on every kind of model, and starts still."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapter_runs import IDS, SOME, base, layers, linear, logits, made, norms, shake, trained
from offaxis.errors import InputError
from offaxis.train.adapters import ADAPTERS, AdapterSpec, adapt

RANK = 4
ROWS = tuple(name for name in ADAPTERS if name != "full")
SCALED = ("lora", "lora_plus", "lora_fa", "dora", "pissa", "milora", "lora_rank1", "adalora",
          "off_principal_lora", "geora")  # fmt: skip
SIZED = tuple(name for name in ROWS if name not in ("ia3", "ln_tuning"))


def expected(name: str, family: str) -> dict[str, int]:
    """Sizes of all that the row trains, from the shapes of the base alone."""
    model, found = base(family), {}
    for path in norms(family) if name == "ln_tuning" else linear(family):
        module = model.get_submodule(path)
        if name == "ln_tuning":
            for part, one in module.named_parameters():
                found[f"{path}.ln_tuning_layers.default.{part}"] = one.numel()
            continue
        rows, cols = module.weight.shape[::-1] if family == "gpt2" else module.weight.shape
        rank = 1 if name == "lora_rank1" else RANK
        first = math.ceil(1.5 * RANK)
        ends_mlp = path.endswith(("down_proj", "mlp.c_proj"))
        plain = {"lora_A.default.weight": rank * cols, "lora_B.default.weight": rows * rank}
        parts: dict[str, int] = {
            "adalora": {"lora_A.default": first * cols, "lora_B.default": rows * first,
                        "lora_E.default": first},
            "miss": {"miss_block.default": RANK * rows},
            "vera": {"vera_lambda_b.default": rows, "vera_lambda_d.default": RANK},
            "ia3": {"ia3_l.default": cols if ends_mlp else rows},
            "lora_fa": {"lora_B.default.weight": rows * RANK},
            "dora": {"lora_A.default.weight": RANK * cols, "lora_B.default.weight": rows * RANK,
                     "lora_magnitude_vector.default.weight": rows},
        }.get(name, plain)  # fmt: skip
        found |= {f"{path}.{part}": size for part, size in parts.items()}
    return found


def spec(name: str, **more: Any) -> AdapterSpec:
    return AdapterSpec(name, **({"rank": RANK} if name in SIZED else {}) | more)


def steps(model: Any, count: int = 2) -> None:
    """Real optimizer steps; two, as A has no gradient while B is 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(count):
        output = model(input_ids=IDS).logits[0, :-1]
        torch.nn.functional.cross_entropy(output, IDS[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_what_it_says_and_nothing_else(name: str, family: str) -> None:
    if name == "miss" and family == "gpt2":  # its layers are transposed
        with pytest.raises(InputError, match=r"miss: PEFT cannot put it on GPT2LMHeadModel \("):
            made(spec(name), family)
        return
    before = logits(base(family))
    model = made(spec(name), family)
    told = model.offaxis_adapted
    sizes = expected(name, family)
    assert {path: one.numel() for path, one in trained(model).items()} == sizes
    assert told.trainable == sum(sizes.values())
    assert told.total == sum(one.numel() for one in base(family).parameters())
    wanted = norms(family) if name == "ln_tuning" else linear(family)
    assert sorted(told.modules) == sorted(wanted)
    if ADAPTERS[name].overwrites:
        torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-6 * before.abs().max())
    else:
        assert torch.equal(logits(model), before), "the start is the base, bit for bit"
    was = {path: one.detach().clone() for path, one in model.named_parameters()}
    steps(model)
    moved = {
        path.removeprefix("base_model.model.")
        for path, one in model.named_parameters()
        if not torch.equal(one, was[path])
    }
    assert moved == set(sizes)


@pytest.mark.parametrize("name", ROWS)
def test_a_bfloat16_base_changes_nothing_of_what_is_trained(name: str) -> None:
    """PEFT casts AdaLoRA's rank counts with the factors, and so makes them trainable."""
    model = adapt(base().to(torch.bfloat16), spec(name), seed=0)
    assert {path: one.numel() for path, one in trained(model).items()} == expected(name, "bundled")
    assert {one.dtype for one in trained(model).values()} == {torch.float32}, "steps would be lost"
    steps(model, 1)


def test_full_trains_every_parameter() -> None:
    model = base().requires_grad_(False)
    assert adapt(model, "full") is model
    assert all(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("name", ROWS)
def test_what_an_adapter_has_and_does_not_train_is_counted(name: str) -> None:
    told = made(spec(name), "llama").offaxis_adapted
    if name == "lora_fa":
        assert (
            told.adapter == made(spec("lora"), "llama").offaxis_adapted.trainable > told.trainable
        )
    else:
        counts = len(told.modules) if name == "adalora" else 0  # of ranks, one a module
        assert told.adapter == told.trainable + counts


# What PeRL got wrong


def test_no_two_rows_are_the_same_adapter() -> None:
    """For months every method of the paper's code was LoRA."""
    seen: dict[Any, str] = {}
    for name in ROWS:
        model = made(spec(name), "llama")
        down = model.get_parameter(
            next(n for n, _ in model.named_parameters() if n.endswith("q_proj.base_layer.weight"))
        ) if name != "ln_tuning" else None  # fmt: skip
        layer = next(iter(layers(model).values()))
        what = (
            type(layer).__name__, tuple((n, tuple(p.shape)) for n, p in trained(model).items()),
            None if down is None else float(down.detach().double().abs().sum()),
            str(getattr(layer, "scaling", None)), ADAPTERS[name].optimizer,
            type(getattr(layer, "lora_A", {"default": None})["default"]).__name__,
        )  # fmt: skip
        assert what not in seen, f"{name} is {seen.get(what)}"
        seen[what] = name


def scale(model: Any, name: str) -> float:
    """s, measured: the update over the product of the factors that it is made of."""
    layer = layers(model)["model.layers.0.self_attn.q_proj"]
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    if name == "adalora":
        product = up @ (layer.lora_E["default"] * down)
    else:
        found = [getattr(one, "projected", lambda one=one: one.weight)() for one in (up, down)]
        product = found[0] @ found[1]
    change = layer.get_delta_weight("default")
    return float(((change * product).sum() / (product * product).sum()).detach())


@pytest.mark.parametrize("name", [*SCALED, "rslora"])
@pytest.mark.parametrize(("alpha", "s"), [(None, 2.0), (12.0, 3.0)])
def test_the_scale_is_one_for_all(name: str, alpha: float | None, s: float) -> None:
    """MiLoRA had half of it, and AdaLoRA divides by its first rank."""
    model = shake(made(spec(name, alpha=alpha), "llama"))
    wanted = s * math.sqrt(RANK) if name == "rslora" else s
    assert scale(model, name) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_target_modules_are_honoured_by_every_row(name: str) -> None:
    """VeRA, MiSS, (IA)³ and LayerNorm tuning ignored them, and MiLoRA had its own."""
    asked = ("input_layernorm",) if name == "ln_tuning" else ("q_proj", "down_proj")
    model = made(spec(name, target_modules=asked), "llama")
    found = [path.rpartition(".")[2] for path in layers(model)]
    assert found == list(asked) * 2


# Dropout


@pytest.mark.parametrize("name", [name for name in SIZED if name not in ("lora_plus", "rslora")])
def test_dropout_reaches_the_adapter(name: str) -> None:
    model = shake(made(spec(name, dropout=0.5), "llama"))
    still, alive = logits(model), model.train()
    with torch.no_grad():
        a, b = (alive(input_ids=IDS).logits for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(still, logits(model))
    none = shake(made(spec(name), "llama")).train()
    with torch.no_grad():
        assert torch.equal(none(input_ids=IDS).logits, none(input_ids=IDS).logits)


# What cannot be asked for


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("ia3", {"dropout": 0.1}, "ia3 has no dropout; it takes target_modules"),
        ("ia3", {"rank": 8}, "ia3 has no rank"),
        ("ia3", {"rank": 32}, "ia3 has no rank"),
        ("ln_tuning", {"alpha": 2.0}, "ln_tuning has no alpha"),
        ("ln_tuning", {"dropout": 0.0}, "ln_tuning has no dropout"),
        ("miss", {"alpha": 8.0}, "miss has no alpha; it takes rank, dropout, target_modules"),
        ("vera", {"alpha": 8.0}, "vera has no alpha"),
        ("full", {"target_modules": ["q_proj"]}, "full has no target_modules; it takes no sett"),
        ("lora", {"ratio": 4}, "lora has no ratio; it takes rank, alpha, dropout"),
        ("lora", {"options": {}}, "lora has no options"),
        ("lora", {"rank": 0}, "rank 0"),
        ("lora", {"rank": "8"}, "rank '8'"),
        ("lora", {"rank": True}, "rank True"),
        ("lora", {"alpha": "x"}, "alpha 'x'"),
        ("lora", {"alpha": math.nan}, "alpha nan"),
        ("lora", {"dropout": 1.0}, "a share below 1"),
        ("lora", {"dropout": "much"}, "dropout 'much'"),
        ("lora", {"target_modules": []}, r"target_modules \(\)"),
        ("lora", {"target_modules": 5}, "target_modules 5"),
        ("lora_plus", {"ratio": 0.5}, "ratio 0.5 of lora_plus: a number of at least 1"),
        ("pissa", {"niter": "abc"}, "niter 'abc' of pissa"),
        ("vera", {"d_initial": 0}, "d_initial 0 of vera: a number other than 0"),
        ("adalora", {"beta1": 1.0}, "beta1 1.0 of adalora"),
        ("adalora", {"every": 0}, "every 0"),
        ("off_principal_lora", {"avoid": "all"}, "one of principal, minor, random is needed"),
        ("off_principal_lora", {"avoid_rank": -1}, "avoid_rank -1"),
        ("geora", {"low_share": 0}, "low_share 0"),
        ("lora ", {}, "choose one of full, lora, rslora"),
        (["lora"], {}, "choose one of"),
    ],
)  # fmt: skip
def test_settings_that_a_row_does_not_have_are_refused(name: Any, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        AdapterSpec.of({"method": name, **given})


def test_defaults_are_no_settings() -> None:
    """Only what is asked for in so many words is refused."""
    assert [AdapterSpec(name).method for name in ADAPTERS] == list(ADAPTERS)
    with pytest.raises(InputError, match="ia3 has no rank"):
        AdapterSpec("ia3", rank=8)
    assert AdapterSpec("lora_rank1", rank=8).used_rank == 1


def test_a_line_of_text_says_the_same_as_a_mapping() -> None:
    text = "off_principal_lora?rank=8&alpha=4&avoid=random&avoid_rank=null&avoid_seed=3"
    told = {"method": "off_principal_lora", "rank": 8, "alpha": 4, "avoid": "random",
            "avoid_rank": None, "avoid_seed": 3}  # fmt: skip
    assert AdapterSpec.parse(text) == AdapterSpec.of(told)
    regex = "lora?target_modules=.*layers.[0-1]+.self_attn.(q|v)_proj"
    assert AdapterSpec.parse(regex).target_modules == regex.partition("=")[2], "a + is a +"
    assert AdapterSpec.parse('lora?target_modules=["q_proj"]').target_modules == ("q_proj",)
    assert AdapterSpec.parse("lora?target_modules=a%26b").target_modules == "a&b"
    assert AdapterSpec("lora", target_modules=["q_proj"]) == AdapterSpec.of(
        {"method": "lora", "target_modules": ["q_proj"]}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora?rank", "'rank' is no new key=value"),
        ("lora?rank=4&rank=8", "'rank=8' is no new key=value"),
        ("lora?method=dora", "'method=dora' is no new"),
        ("lora?rank=NaN", "rank nan"),
        ("nora", "adapter 'nora': choose one of full, lora, .*, geora"),
        ("", "adapter ''"),
    ],
)
def test_text_that_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        AdapterSpec.parse(text)


def test_an_adapter_is_not_put_on_an_adapter() -> None:
    with pytest.raises(InputError, match="has an adapter already"):
        adapt(made("lora?rank=4", "llama"), "dora")


def test_a_start_follows_its_seed_and_leaves_the_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (trained(made("lora?rank=4", "llama", seed=n)) for n in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
