"""The judgement of the method: given within what the rule was tested on, withheld outside of it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import offaxis
from offaxis.cli.app import build
from offaxis.comparison import RunInfo, method
from offaxis.comparison.method import LABELS, Circumstances, method_of, probability, shipped
from offaxis.comparison.run_info import reach, run_info
from offaxis.errors import InputError
from offaxis.lab import BASE

KNOWN: Mapping[str, Any] = {
    "fitted": {"runs": 192},
    "tested": {"runs": 156},
    "model": {"parameters": 1000, "matrices": 28},
    "finding": {"auc": [0.9, 0.8, 0.95], "matched": [0.52, 0.4, 0.6], "failed": ["at equal norm"]},
    "rules": [
        {
            "name": "rank",
            "terms": [{"name": "effective_rank", "log": True, "mean": math.log(15), "scale": 0.1,
                       "weight": 2.0}],
            "intercept": 0.0,
            "least": 0.7,
            "everywhere": True,
            "cells": [{"optimizer": "adamw", "dtype": "float32", "batch": 64, "steps": 40,
                       "learning_rate": [2e-6, 1e-5], "survives": True, "labels": 40,
                       "wrong": [0.05, 0.01, 0.16]}],
            "labelled": 120,
            "wrong": [0.08, 0.04, 0.14],
        }
    ],
    "ranges": {"effective_rank": [10.0, 25.0]},
    "settings": [
        {"optimizer": "adamw", "dtype": "float32", "learning_rate": [1e-6, 1e-4],
         "steps": [40, 80], "batch": [32, 128]},
        {"optimizer": "sgd", "dtype": "float32", "learning_rate": [1e-2, 1e-1],
         "steps": [40, 40], "batch": [64, 64]},
        {"optimizer": "adamw", "dtype": "bfloat16", "learning_rate": [1e-5, 1e-4],
         "steps": [40, 40], "batch": [64, 64]},
    ],
    "neither": [{"method": "dpo", "runs": 4, "rl_like": 3, "sft_like": 0, "undetermined": 1}],
}  # fmt: skip
PAIR: Mapping[str, Any] = {
    "parameters": 1000,
    "matrices": 28,
    "unchanged_bf16": 0.5,
    "unchanged_stored": 0.1,
    "nonfinite": {"base": 0, "tuned": 0},
    "verdict": {"label": "small_step"},
}
F32 = Circumstances(dtypes=frozenset({"F32"}))


def judged(rank: float | None, about: Circumstances = F32, **changed: Any) -> method.Told:
    known = copy.deepcopy(dict(KNOWN))
    known["rules"][0] |= changed.pop("rule", {})
    known |= changed.pop("known", {})
    return method_of(dict(PAIR) | changed, {"effective_rank": rank}, about, known=known)


def told(**info: Any) -> Circumstances:
    return Circumstances(dtypes=frozenset({"F32"}), info=RunInfo.of(info))


@pytest.mark.parametrize(("rank", "label"), [(20.0, "rl_like"), (11.0, "sft_like")])
def test_a_label_comes_with_its_error_and_where_it_is_from(rank: float, label: str) -> None:
    found = judged(rank)
    p = 1 / (1 + math.exp(-2 * math.log(rank / 15) / 0.1))
    assert found.method == {"label": label, "probability": pytest.approx(p),
                            "wrong": [0.08, 0.04, 0.14], "rule": "weights"}  # fmt: skip
    (line,) = found.evidence
    assert line.startswith(LABELS[label])
    assert "of 120 test runs that it labelled it called 8 % [4, 14] wrongly" in line
    assert "one lab model" in line
    assert any("another model" in one for one in found.confounds)
    assert any("dpo is neither: of 4 test runs" in one for one in found.confounds)


def test_what_is_too_close_is_not_called() -> None:
    found = judged(15.2)
    assert found.method["label"] == "undetermined"
    assert found.method["probability"] == pytest.approx(0.566, abs=1e-3)
    assert "too close to call" in found.evidence[0]


def test_a_rule_that_held_in_one_cell_needs_to_be_told_that_it_is_that_cell() -> None:
    alone = {"everywhere": False}
    found = judged(20.0, rule=alone)
    assert found.method["label"] == "undetermined"
    asked = "--run-info optimizer=adamw,dtype=float32,batch=64,steps=40 (rates 2e-06 to 1e-05)"
    assert asked in found.evidence[0]
    cell = {"optimizer": "adamw", "dtype": "float32", "batch": 64, "steps": 40}
    found = judged(20.0, told(**cell), rule=alone)
    assert (found.method["label"], found.method["wrong"]) == ("rl_like", [0.05, 0.01, 0.16])
    assert judged(20.0, told(**cell, learning_rate=1e-5), rule=alone).method == found.method
    for other in ({"steps": 80}, {"batch": 128}, {"steps": None}, {"optimizer": "sgd"},
                  {"learning_rate": 5e-5}):  # fmt: skip
        found = judged(20.0, told(**cell | other), rule=alone)
        assert found.method["label"] == "undetermined", other


def test_the_rule_on_settings_is_used_where_they_are_known() -> None:
    second = dict(KNOWN["rules"][0]) | {
        "name": "settings",
        "terms": [{"name": "learning_rate", "log": True, "mean": math.log(1e-5), "scale": 1.0,
                   "weight": 5.0},
                  {"name": "optimizer=sgd", "log": False, "mean": 0.0, "scale": 1.0,
                   "weight": -100.0}],
    }  # fmt: skip
    both = {"rules": [KNOWN["rules"][0], second]}
    plain = judged(20.0, told(learning_rate=1e-6, steps=40), known=both)
    assert plain.method["rule"] == "weights"
    found = judged(20.0, told(learning_rate=1e-6, steps=40, optimizer="adamw"), known=both)
    assert (found.method["rule"], found.method["label"]) == ("settings", "sft_like")
    found = judged(20.0, told(learning_rate=1e-2, steps=40, optimizer="sgd"), known=both)
    assert found.method["label"] == "sft_like"
    alone = judged(20.0, known={"rules": [second]})
    assert "say them by --run-info" in alone.evidence[0]


@pytest.mark.parametrize(
    ("about", "changed", "named"),
    [
        (F32, {"parameters": 2000}, "2,000 parameters (it knows 1,000)"),
        (F32, {"matrices": 2}, "2 matrices"),
        (F32, {"nonfinite": {"base": 0, "tuned": 1}}, "NaN"),
        (Circumstances(dtypes=frozenset({"BF16"})), {}, "stored as BF16"),
        (Circumstances(dtypes=frozenset({"F32"}), adapter=True), {}, "adapter"),
        (Circumstances(dtypes=frozenset({"F32"}), still=3), {}, "3 tensors did not move"),
        (Circumstances(dtypes=frozenset({"F32"}), unprofiled=2), {}, "2 matrices without"),
        (Circumstances(dtypes=frozenset({"F32"}), usual=False), {}, "alpha or a rank"),
        (told(optimizer="muon"), {}, "muon (it knows adamw in float32"),
        (told(optimizer="sgd", dtype="bfloat16"), {}, "sgd in bfloat16"),
        (told(optimizer="sgd", learning_rate=1e-5), {}, "learning_rate 1e-05 (it knows 0.01"),
        (told(steps=400), {}, "steps 400 (it knows 40 to 80)"),
        (told(batch=4096), {}, "batch 4096"),
    ],
)
def test_outside_of_what_was_tested_nothing_is_said(
    about: Circumstances, changed: dict[str, Any], named: str
) -> None:
    assert judged(20.0).method["label"] == "rl_like"
    found = judged(20.0, about, **changed)
    assert found.method == {"label": "undetermined", "probability": None, "wrong": None,
                            "rule": None}  # fmt: skip
    assert named in found.evidence[0]
    assert "one lab model" in found.evidence[0]


@pytest.mark.parametrize(
    ("rank", "named"), [(None, "effective_rank is undefined"), (26.0, "effective_rank 26"),
                        (9.9, "(it knows 10 to 25)")]
)  # fmt: skip
def test_features_beyond_all_runs_are_named(rank: float | None, named: str) -> None:
    assert named in judged(rank).evidence[0]


def test_a_bfloat16_store_is_judged_once_it_is_said_to_be_one() -> None:
    stored = Circumstances(dtypes=frozenset({"BF16"}), info=RunInfo(dtype="bfloat16"))
    assert judged(20.0, stored, unchanged_stored=0.5).method["label"] == "rl_like"


def test_without_a_rule_the_finding_is_told() -> None:
    found = judged(20.0, known={"rules": []})
    assert found.method["label"] == "undetermined"
    assert "0.52 [0.40, 0.60]" in found.evidence[0]
    assert "at equal norm" in found.evidence[0]


@pytest.mark.parametrize("label", ["identical", "implausible_base"])
def test_nothing_to_judge(label: str) -> None:
    found = judged(20.0, verdict={"label": label})
    assert (found.method["label"], found.evidence) == ("undetermined", ())


def test_run_info_from_text_from_a_file_and_from_a_mapping(tmp_path: Path) -> None:
    wanted = RunInfo(learning_rate=1e-5, steps=40, optimizer="adamw", data="on_policy")
    text = "learning_rate=1e-5,steps=40, optimizer=AdamW_torch,data=on_policy"
    assert RunInfo.parse(text) == run_info(text) == wanted
    path = tmp_path / "info.json"
    path.write_text(json.dumps({"learning_rate": 1e-5, "steps": 40.0, "optimizer": "adam",
                                "data": "on_policy", "dtype": None}))  # fmt: skip
    assert run_info(path) == wanted == run_info(wanted) == run_info(wanted.told())
    assert run_info(None) == RunInfo()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rate=1e-5", "'rate' is not known; choose among method, data, learning_rate"),
        ("steps=4.5", "steps = '4.5'; a whole number above 0"),
        ("steps=-1", "steps = '-1'"),
        ("learning_rate=fast", "learning_rate = 'fast'; a number above 0"),
        ("learning_rate=inf", "inf"),
        ("dtype=fp8", "choose among float32, bfloat16, float16"),
        ("data=web", "choose among on_policy"),
        ("steps=1,steps=2", "steps is given twice"),
        ("steps=1,batch", "write key=value"),
        ("steps=", "write key=value"),
        ("nowhere.json", "neither key=value,... nor a file"),
    ],
)
def test_run_info_that_cannot_be_is_refused(text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        RunInfo.parse(text)
    assert named in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds a list; write one object"):
        run_info(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        run_info(path)
    with pytest.raises(InputError, match="steps = True"):
        run_info({"steps": True})


def moved(optimizer: str, gradients: np.ndarray[Any, Any], rate: float) -> np.ndarray[Any, Any]:
    """How far torch's optimizer moves entries from 0 by gradients (steps, entries), in float64."""
    weight = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    kinds: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW([weight], lr=rate, weight_decay=0.0, eps=1e-30),
        "rmsprop": lambda: torch.optim.RMSprop([weight], lr=rate, eps=1e-30),
    }
    made = kinds[optimizer]()
    for one in torch.from_numpy(gradients):
        weight.grad = one.clone()
        made.step()
    return weight.detach().abs().numpy()


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_no_gradients_carry_torchs_optimizers_beyond_the_reach(optimizer: str, steps: int) -> None:
    rng = np.random.default_rng(steps)
    bound = reach(RunInfo(learning_rate=1e-3, steps=steps, optimizer=optimizer), rounded=False)
    assert bound is not None
    kinds = [rng.standard_normal((steps, 50)), np.ones((steps, 1)), np.eye(steps),
             np.exp(3 * np.arange(steps))[:, None] * np.ones((1, 1)),
             np.exp(rng.standard_normal((steps, 50)) * 5)]  # fmt: skip
    far = max(float(moved(optimizer, one, 1e-3).max()) for one in kinds)
    assert far <= bound * (1 + 1e-9)
    assert far > 0.1 * bound  # and it is no idle bound


def test_the_bound_on_one_step_is_reached() -> None:
    """By gradients in proportion to the ratio of the moments' weights, the last step is B_t."""
    steps, first, second = 30, 0.9, 0.999
    past = np.arange(steps)[::-1]
    gradients = ((first / second) ** past)[:, None]
    whole = moved("adamw", gradients, 1.0)
    before = moved("adamw", gradients[:-1], 1.0)
    info = {"learning_rate": 1.0, "optimizer": "adamw"}
    bounds = [reach(RunInfo.of(info | {"steps": n}), rounded=False) for n in (steps, steps - 1)]
    assert None not in bounds
    assert float((whole - before)[0]) == pytest.approx(bounds[0] - bounds[1], rel=1e-6)  # type: ignore[operator]
    once = reach(RunInfo.of(info | {"steps": 1}), rounded=False)
    assert once == pytest.approx(1)
    assert reach(RunInfo.of(info | {"steps": 1}), rounded=True) == pytest.approx(2)


@pytest.mark.parametrize(
    "info", [{}, {"steps": 4}, {"steps": 4, "learning_rate": 1, "optimizer": "sgd"}]
)
def test_what_is_not_known_bounds_nothing(info: dict[str, Any]) -> None:  # fmt: skip
    assert reach(RunInfo.of(info), rounded=False) is None


def test_a_change_beyond_the_reach_contradicts_what_was_told() -> None:
    about = told(learning_rate=1e-5, steps=40, optimizer="adamw")
    near = Circumstances(info=about.info, dtypes=about.dtypes, rms=1e-4)
    far = Circumstances(info=about.info, dtypes=about.dtypes, rms=1e-2)
    assert judged(20.0, near).evidence[1].startswith("AdamW without weight decay at rate 1e-05")
    assert judged(20.0, far).evidence[1].startswith("run info is contradicted: AdamW")


def test_data_that_do_not_go_with_the_label_are_told_of() -> None:
    assert any("one is wrong" in one for one in judged(20.0, told(data="demonstrations")).evidence)
    assert not any("one is wrong" in one for one in judged(20.0, told(data="on_policy")).evidence)


@pytest.fixture(scope="module")
def nudged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's base with a little noise on every entry, in float32."""
    out = tmp_path_factory.mktemp("nudged")
    torch.manual_seed(0)
    state = load_file(str(BASE / "model.safetensors"))
    save_file({name: w.float() + 3e-5 * torch.randn(w.shape) for name, w in state.items()},
              str(out / "model.safetensors"))  # fmt: skip
    return out


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A rule for the lab's base that calls a full-rank change RL."""
    known = copy.deepcopy(dict(KNOWN))
    known["model"] = {"parameters": 1_006_096, "matrices": 28}
    known["ranges"] = {"effective_rank": [10.0, 100.0], "row_stripes": [0.1, 10.0]}
    monkeypatch.setattr(method, "shipped", lambda: known)
    return known


def test_a_comparison_judges_within_the_range_and_says_what_it_was_told(
    nudged: Path, planted: dict[str, Any]
) -> None:
    plain = offaxis.compare(BASE, nudged).summary()
    (pair,) = plain["pairs"]
    assert pair["method"]["label"] == "rl_like"
    assert pair["verdict"]["label"] in ("small_step", "large_step", "undetermined")
    assert list(pair["verdict"]) == ["label", "evidence", "confounds"]
    assert "run_info" not in plain["run"]
    assert pair["run_info"] is None
    assert pair["method"]["probability"] == pytest.approx(probability(planted["rules"][0], pair))
    told = {"dtype": "bfloat16", "learning_rate": 1e-9, "steps": 40, "optimizer": "adamw"}
    found = offaxis.compare(BASE, nudged, run_info=told, rounding_null=False).summary()
    assert found["run"]["run_info"] == found["pairs"][0]["run_info"] == told
    (pair,) = found["pairs"]
    assert pair["method"]["label"] == "undetermined"
    said = [
        one for one in pair["verdict"]["evidence"] if one.startswith("run info is contradicted")
    ]
    assert len(said) == 2  # finer than bfloat16; further than AdamW can go


def test_numbers_that_were_made_otherwise_are_not_judged(
    nudged: Path, planted: dict[str, Any]
) -> None:
    for asked, named in (({"alpha": 0.4}, "alpha"), ({"spectra": "none"}, "28 matrices without")):
        (pair,) = offaxis.compare(BASE, nudged, rounding_null=False, **asked).summary()["pairs"]
        assert pair["method"]["label"] == "undetermined"
        assert any(named in one for one in pair["verdict"]["evidence"])


def test_a_tensor_that_stands_still_is_seen(
    nudged: Path, planted: dict[str, Any], tmp_path: Path
) -> None:
    state, base = (load_file(str(one / "model.safetensors")) for one in (nudged, BASE))
    name = "model.embed_tokens.weight"
    state[name] = base[name].float()
    save_file(state, str(tmp_path / "model.safetensors"))
    (pair,) = offaxis.compare(BASE, tmp_path, rounding_null=False).summary()["pairs"]
    assert any("1 tensors did not move" in one for one in pair["verdict"]["evidence"])


def test_what_ships_is_silent_about_another_model(pairs: Path) -> None:
    found = offaxis.compare(pairs / "base", [pairs / "rl-checkpoint-60", pairs / "sft-60"],
                            rounding_null=False).summary()  # fmt: skip
    for pair in found["pairs"]:
        assert pair["method"]["label"] == "undetermined"
        if shipped()["rules"]:
            assert any("796,032 parameters" in one for one in pair["verdict"]["evidence"])


def test_what_ships_is_whole() -> None:
    file = shipped()
    assert file["schema"] == 1
    assert file["model"]["parameters"] == 1_006_096
    for rule in file["rules"]:
        assert len(rule["wrong"]) == 3
        assert rule["least"] is not None
        assert all(term["scale"] > 0 for term in rule["terms"])


def test_the_command_line_refuses_unknown_settings(tmp_path: Path, nudged: Path) -> None:
    asked = [
        "compare",
        str(BASE),
        str(nudged),
        "--out",
        str(tmp_path / "out"),
        "--run-info",
        "lr=1",
    ]
    found = CliRunner().invoke(build(), asked)
    assert isinstance(found.exception, InputError)
    assert "'lr' is not known" in str(found.exception)
    assert not (tmp_path / "out").exists()
