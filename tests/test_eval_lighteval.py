"""lighteval's result files, written here in the forms that its versions document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from offaxis.errors import InputError
from offaxis.evaluate import Problem, ProblemSet, Sampling, evaluate, pass_at_k, read_lighteval
from offaxis.evaluate.against import Other
from offaxis.lab import BASE
from offaxis.lab.tasks import TASKS

TIME = "2025-06-01T10-20-30.123456"
TASK = "lighteval|arithmetic|0"
PROBLEMS = [
    Problem(str(at), one.prompt, one.answer)
    for at, one in enumerate(TASKS["arithmetic"].problems(6, seed=1, split="held_out"))
]
RIGHT = np.random.default_rng(0).random((6, 8)) < 0.5
METRICS = ("pass@k:k=1&n=8", "pass@k:k=4&n=8", "pass@k:k=8&n=8", "avg@n:n=8")


def rates(at: int) -> dict[str, float]:
    """lighteval's numbers of one problem."""
    row = RIGHT[at : at + 1]
    passes = {k: pass_at_k(row, k).value for k in (1, 4, 8)}
    return {**{f"pass@k:k={k}&n=8": passes[k] for k in passes}, "avg@n:n=8": passes[1]}


def results(root: Path, *, time: str = TIME, model: str = "org/name") -> Path:
    """`results/{model}/results_{time}.json`."""
    means = {name: float(np.mean([rates(at)[name] for at in range(6)])) for name in METRICS}
    scores = {key: value for name in METRICS for key, value in
              ((name, means[name]), (f"{name}_stderr", 0.1))}  # fmt: skip
    table = {
        "config_general": {"lighteval_sha": "0", "model_name": model, "model_sha": "0"},
        "results": {TASK: scores, "all": scores},
        "versions": {TASK: 0},
        "config_tasks": {},
        "summary_tasks": {},
        "summary_general": {},
    }
    path = root / "results" / model / f"results_{time}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def old_row(at: int) -> dict[str, Any]:
    text = f"Solve it.\n{PROBLEMS[at].prompt}\nAnswer:"
    return {"example": text, "full_prompt": text, "gold": [PROBLEMS[at].answer],
            "predictions": ["#1"], "metrics": rates(at)}  # fmt: skip


def new_row(at: int, *, mark: str = "") -> dict[str, Any]:
    doc = {"query": f"Solve it.\n{PROBLEMS[at].prompt}\nAnswer:", "choices": [PROBLEMS[at].answer],
           "gold_index": 0, "id": str(at), "task_name": TASK}  # fmt: skip
    answer = {"text": ["#1"], "input_tokens": [1]}
    return {f"{mark}doc{mark}": doc, f"{mark}model_response{mark}": answer,
            f"{mark}metric{mark}": rates(at)}  # fmt: skip


def text_row(at: int) -> dict[str, Any]:
    """What is written where a struct does not fit: every cell as text."""
    return {name: str(value) for name, value in old_row(at).items()}


FORMS = {
    "old": old_row,
    "new": new_row,
    "underscores": lambda at: new_row(at, mark="__"),
    "text": text_row,
}


def details(root: Path, form: str = "new", *, order: tuple[int, ...] = (3, 0, 5, 1, 4, 2)) -> Path:
    """`details/{model}/{time}/details_{task}_{time}.parquet`."""
    path = root / "details" / "org" / "name" / TIME / f"details_{TASK}_{TIME}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame([FORMS[form](at) for at in order]).write_parquet(path)
    return path


def test_means_become_rows_with_intervals_from_their_errors(tmp_path: Path) -> None:
    file = results(tmp_path)
    for place in (file, tmp_path):
        found = read_lighteval(place)
        assert found.model == "org/name"
        assert [(row.metric, row.k, row.data) for row in found.rows] == [
            ("pass@1", 1, TASK), ("pass@4", 4, TASK), ("pass@8", 8, TASK), ("avg@8", 8, TASK),
        ]  # fmt: skip
        row = found.rows[0]
        assert row.value == pytest.approx(RIGHT.mean())
        assert (row.low, row.high) == pytest.approx(
            (row.value - 0.196, row.value + 0.196), abs=1e-4
        )
        assert found.per_problem == {}
        assert found.score["model"].to_list() == ["org/name"] * 4


@pytest.mark.parametrize("form", list(FORMS))
def test_details_give_every_problem(tmp_path: Path, form: str) -> None:
    results(tmp_path)
    file = details(tmp_path, form)
    for place in (tmp_path, file):
        found = read_lighteval(place)
        values = found.per_problem[TASK, "pass@4"]
        assert values[0] == pytest.approx(rates(3)["pass@k:k=4&n=8"])
        assert PROBLEMS[3].prompt in found.queries[TASK][0]
        (row,) = (row for row in found.rows if row.metric == "pass@4")
        assert row.value == pytest.approx(pass_at_k(RIGHT, 4).value)
        assert row.n == 6
        assert row.low is not None
        assert row.low <= row.value


def test_metric_names_of_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "results_1.json"
    scores = {"qem": 0.5, "qem_stderr": 0.1, "maj@8": 0.25, "math_pass@1:16_samples": 0.3,
              "maj@n:n=8": 0.4, "bleu": 31.0, "bleu_stderr": 2.0, "pass@k:k=1": 0.7}  # fmt: skip
    path.write_text(json.dumps({"results": {"t|x|0": scores}}))
    found = {row.metric: row for row in read_lighteval(path).rows}
    assert set(found) == {"qem", "maj@8", "pass@1", "bleu"}
    assert (found["pass@1"].value, found["maj@8"].low) == (0.7, None)
    assert found["bleu"].high == pytest.approx(34.92, abs=0.01)
    assert found["qem"].k is None


def test_the_newest_results_are_taken(tmp_path: Path) -> None:
    results(tmp_path, time="2024-01-01T00-00-00.0")
    details(tmp_path)
    results(tmp_path)
    assert read_lighteval(tmp_path).per_problem
    results(tmp_path, time="2026-01-01T00-00-00.0")
    assert not read_lighteval(tmp_path).per_problem
    results(tmp_path, time="2026-01-01T00-00-00.0", model="org/other")
    with pytest.raises(InputError, match=r"results of 2 models .* give one"):
        read_lighteval(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results_1.json", "{", "cannot be read as JSON"),
        ("results_1.json", "{}", "no `results`"),
        ("results_1.json", '{"results": {"t": {}}}', "holds no score"),
        ("details_t_1.parquet", "x", "cannot be read as Parquet"),
        ("other.txt", "x", "neither results"),
    ],
)
def test_what_is_not_lightevals_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_lighteval(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_lighteval(tmp_path / "absent")


def test_details_without_metrics_are_told(tmp_path: Path) -> None:
    path = tmp_path / "details_t_1.parquet"
    pl.DataFrame({"example": ["x"]}).write_parquet(path)
    with pytest.raises(InputError, match="no column `metrics`"):
        read_lighteval(path)


def test_a_run_is_compared_with_lightevals(tmp_path: Path) -> None:
    results(tmp_path)
    details(tmp_path)
    settings: dict = {"sampling": Sampling(k=8, max_new_tokens=30), "verifier": "integer",
                      "device": "cpu"}  # fmt: skip
    found = evaluate(str(BASE), PROBLEMS, against=tmp_path, **settings)
    assert found.versus is not None
    assert found.versus.second == "org/name"
    one = {each.metric: each for each in found.versus.differences}
    assert set(one) == {"avg", "pass@1", "pass@4", "pass@8"}
    assert one["pass@4"].value == pytest.approx(
        pass_at_k(found.answers.correct, 4).value - pass_at_k(RIGHT, 4).value
    )


def test_each_problem_is_paired_with_itself(tmp_path: Path) -> None:
    results(tmp_path)
    details(tmp_path)
    other = Other.opened(tmp_path, ProblemSet(tuple(PROBLEMS), "here"))
    assert other.ids == tuple(one.id for one in PROBLEMS)
    assert isinstance(other.run, dict)
    assert other.run["avg", 1] == pytest.approx(RIGHT.mean(axis=1))
    expected = [rates(at)["pass@k:k=4&n=8"] for at in range(6)]
    assert other.run["pass", 4] == pytest.approx(expected)


def test_lightevals_run_on_other_problems_is_refused(tmp_path: Path) -> None:
    results(tmp_path)
    with pytest.raises(InputError, match="--save-details"):
        evaluate(str(BASE), PROBLEMS, against=tmp_path, verifier="integer")
    details(tmp_path)
    with pytest.raises(InputError, match="--save-details on the same data"):
        evaluate(str(BASE), PROBLEMS[:5], against=tmp_path, verifier="integer")
