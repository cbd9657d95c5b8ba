"""Reward functions as TRL calls them: names, options, columns, groups, and the user's own."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from offaxis.errors import InputError
from offaxis.train.rewards import (
    REWARDS,
    reward_functions,
    reward_named,
    reward_weights,
)

CODE = "```python\ndef f(x):\n    return x if x < 3 else 0\n```"


def call(reward: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    """As TRL's trainers call it: more keywords than any reward wants."""
    prompts = columns.pop("prompts", ["p"] * len(completions))
    ids = columns.pop("completion_ids", [[1]] * len(completions))
    state = {"trainer_state": None, "log_extra": print, "log_metric": print}
    return list(
        reward(prompts=prompts, completions=completions, completion_ids=ids, **columns, **state)
    )


def test_verifiers() -> None:
    reward = reward_named("math", timeout_s=20.0)
    gold = ["18", "18", None, float("nan"), " ", 18.0, "$x+1$"]
    said = ["A: 18", "A: 17", "A: 18", "A: 18", "A: 18", "\\boxed{18}", "\\boxed{1+x}"]
    assert call(reward, said, answer=gold) == [1.0, 0.0, None, None, None, 1.0, 1.0]
    signed = reward_named("numeric", right=1, wrong=-1, column="gold", relative=0.1, weight=0.5)
    assert call(signed, ["A: 18.5", "A: 20", "hm"], gold=["18"] * 3) == [1, -1, -1]
    assert reward_weights([reward, signed, print]) == [1.0, 0.5, 1.0]
    assert call(reward_named("exact"), ["The answer is Paris."], answer=["paris"]) == [1.0]
    assert call(reward_named("integer"), ["1+1=2#2", "#3", "2"], answer=[2] * 3) == [1.0, 0.0, 0.0]
    assert call(reward_named("numeric"), ["A: 5"], answer=["words alone"]) == [None]
    with pytest.raises(InputError, match=r"no column 'answer' \(it has: gold\)"):
        call(reward, ["A: 18"], gold=["18"])


def test_conversations() -> None:
    said = [
        [{"role": "assistant", "content": "A: 18"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "A: 18"}]}],
        [{"role": "assistant", "content": "A: 18"}, {"role": "user", "content": "A: 3"}],
        [{"role": "assistant", "content": "A: 3"}, {"role": "assistant", "content": "A: 18"}],
        [{"role": "tool", "content": "A: 18"}],
        [{"role": "assistant", "content": None}],
    ]
    found = call(reward_named("numeric"), said, answer=["18"] * 6)
    assert found == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_countdown_in_each_spelling() -> None:
    reward = reward_named("countdown")
    assert call(reward, ["#(9*5)-9", "#9+9"], answer=["9,9,5@36"] * 2) == [1.0, 0.0]
    assert call(reward, ["#(9*5)-9"], prompts=["9,9,5@36="], answer=["36"]) == [1.0]
    assert call(reward, ["#(9*5)-9"], numbers=[[9, 9, 5]], target=[36]) == [1.0]
    assert call(reward, ["#(9*5)-9"], numbers=[None], target=[36]) == [None]


def test_forms_and_lengths() -> None:
    tagged = "<think>a</think><answer>b</answer>"
    assert call(reward_named("format"), [tagged, "no"]) == [1.0, 0.0]
    assert call(reward_named("format", tags=["a"], wrong=-1), ["<a>x</a>", "no"]) == [1.0, -1]
    assert call(reward_named("boxed"), ["\\boxed{5}", "5"]) == [1.0, 0.0]
    reward = reward_named("overlong", max_length=10, cache=4)
    assert call(reward, ["x"] * 3, completion_ids=[[0] * n for n in (6, 8, 11)]) == [
        0.0,
        -0.5,
        -1.0,
    ]
    with pytest.raises(InputError, match="max_length"):
        reward_named("overlong", max_length=None, cache=4)
    with pytest.raises(InputError, match="completion_ids"):
        reward(["p"], ["c"])


def test_programs() -> None:
    gold = [json.dumps([f"assert f({x}) == {x}" for x in (1, 2, 3, 4)])] * 2 + ["", "not a test"]
    said = [CODE, "no program", CODE, CODE]
    assert call(reward_named("code", time_s=10.0), said, answer=gold) == [0.0, 0.0, None, None]
    partial = reward_named("code", partial=True, wrong=-1.0, time_s=10.0)
    assert call(partial, said, answer=gold) == [0.0, -1.0, None, None]


def test_majority() -> None:
    reward = reward_named("majority", num_generations=3, num_generations_eval=2, timeout_s=20.0)
    said = ["A: 0.5", "A: 1/2", "A: 3", "A: 7", "no answer", "A: 7"]
    prompts = ["p"] * 3 + ["q"] * 3
    assert call(reward, said, prompts=prompts) == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert call(reward, said[:4], prompts=["p", "p", "q", "q"]) == [1.0, 1.0, 1.0, 0.0]
    text = reward_named("majority", num_generations=3, equality="text", ties="none")
    assert call(text, said, prompts=prompts) == [0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    with pytest.raises(InputError, match="5 rows do not fall into groups of 3 or 2"):
        call(reward, said[:5], prompts=prompts[:5])
    with pytest.raises(InputError, match="6 rows do not fall into groups"):
        call(reward, said, prompts=["p", "p", "q", "q", "q", "p"])
    for size in (1, None, "8"):
        with pytest.raises(InputError, match="num_generations"):
            reward_named("majority", num_generations=size)


def test_names_and_options_are_checked() -> None:
    assert [one.__name__ for one in reward_functions(["math", {"name": "boxed", "weight": 2}])] == [
        "math", "boxed",
    ]  # fmt: skip
    assert set(REWARDS) == {
        "math", "numeric", "exact", "integer", "countdown", "format", "boxed", "overlong", "code",
        "majority", "self_certainty",
    }  # fmt: skip
    for spec, words in (
        ("maths", "choose one of math"),
        ({"weight": 1}, "has no name"),
        ({"name": "math", "tolerance": 1}, "no option tolerance"),
        ({"name": "boxed", "column": "x"}, "unexpected keyword"),
        ({"name": "boxed", "weight": float("nan")}, "finite"),
        ("no_such_module:reward", "No module named"),
        ("json:no_such_function", "no attribute"),
        ("json:__name__", "not callable"),
        ({"name": "json:dumps", "column": 1}, "takes no option but weight"),
    ):
        with pytest.raises(InputError, match=words):
            reward_functions([spec])  # type: ignore[list-item]


def test_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def short(prompts, completions, **_):\n"
        "    return [float(len(c) < 3) for c in completions]\n"
        "class Scaled:\n"
        "    def __init__(self, *, by=1.0):\n        self.by, self.__name__ = by, 'scaled'\n"
        "    def __call__(self, prompts, completions, **_):\n"
        "        return [self.by for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("my_rewards:short", "my_rewards.short"):
        assert call(reward_named(path), ["ab", "abc"]) == [1.0, 0.0]
    heavy = reward_named("my_rewards:short", weight=3.0)
    assert (heavy.__name__, reward_weights([heavy])) == ("short", [3.0])
    assert call(heavy, ["ab"]) == [1.0]
    assert reward_weights([reward_named("my_rewards:short")]) == [1.0], (
        "the function is not changed"
    )
    assert call(reward_named("my_rewards:Scaled", by=2.0), ["x"]) == [2.0]
    with pytest.raises(InputError, match="unexpected keyword"):
        reward_named("my_rewards:Scaled", to=2.0)
    del sys.modules["my_rewards"]


@pytest.mark.parametrize(
    "spec",
    [
        "math", "numeric", "exact", "integer", "countdown", "format", "boxed", "code",
        {"name": "overlong", "max_length": 8, "cache": 4},
        {"name": "majority", "num_generations": 2},
        "self_certainty",
    ],
    ids=str,
)  # fmt: skip
def test_rewards_travel_to_other_processes(spec: Any) -> None:
    (made,) = reward_functions([spec])
    copy = pickle.loads(pickle.dumps(made))
    assert copy.__name__ == made.__name__
    if made.__name__ == "math":
        assert call(copy, ["A: 5"], answer=["5"]) == [1.0]
