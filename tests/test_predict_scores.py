"""Scores from whatever holds them, each with its checkpoint or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offaxis.cli.predict_scores import read_scores
from offaxis.errors import InputError

BASE = "model/base"
CHECKPOINTS = ["run/checkpoint-20", "run/checkpoint-40", "run/checkpoint-60"]
STEPS = [20.0, 40.0, 60.0]


def scores(*files: Path, metric: str | None = None, **options):
    given = {"base": BASE, "checkpoints": CHECKPOINTS, "steps": STEPS} | options
    found = read_scores(files, metric=metric, **given)
    return found.values, found.base


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


ALL = ((0.6, 0.7, 0.8), 0.5)
OBJECTS = [
    {"step": step, "score": value} for step, value in ((0, 0.5), (20, 0.6), (40, 0.7), (60, 0.8))
]
TABLES = {
    "by step": "step,score\n0,0.5\n20,0.6\n40,0.7\n60,0.8\n",
    "any order, any case": "Accuracy,Global_Step\n0.8,60\n0.5,0\n0.7,40\n0.6,20.0\n",
    "by name": "model,avg\nbase,.5\ncheckpoint-20,.6\nrun/checkpoint-40,.7\nx/checkpoint-60,.8",
    "tabs": "step\tscore\n0\t0.5\n20\t0.6\n40\t0.7\n60\t0.8\n",
    "a mark of byte order": "\ufeffstep,acc\n0,.5\n20,.6\n40,.7\n60,.8\n",
    "avg@n": "step,avg@16,kl\n0,0.5,1\n20,0.6,1\n40,0.7,1\n60,0.8,1\n",
    "objects": json.dumps(OBJECTS),
    "lines": "\n".join(map(json.dumps, OBJECTS)),
    "one object by step": json.dumps({"0": 0.5, "20": 0.6, "40": 0.7, "60": 0.8}),
    "one object by name": json.dumps(
        {"model/base": 0.5, "checkpoint-20": 0.6, "x/checkpoint-40": 0.7, "run/checkpoint-60/": 0.8}
    ),
    "under a key": json.dumps({"scores": {"0": 0.5, "20": 0.6, "40": 0.7, "60": 0.8}}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    assert scores(table(tmp_path / "scores", TABLES[name])) == ALL


def test_a_metric_is_a_column(tmp_path):
    path = table(tmp_path / "s.csv", "step,score,reward\n20,0.6,0.1\n40,0.7,0.2\n")
    assert scores(path, metric="reward") == ((0.1, 0.2, None), None)
    with pytest.raises(InputError, match=r"columns step, score, reward"):
        scores(path, metric="kl")


def test_what_is_not_measured_is_none(tmp_path):
    path = table(tmp_path / "s.csv", "step,score\n20,\n40,nan\n60,0.8\n")
    assert scores(path) == ((None, None, 0.8), None)
    assert scores(table(tmp_path / "s.json", '{"20": null, "60": 0.8}')) == (
        (None, None, 0.8),
        None,
    )
    assert scores() == ((None, None, None), None)


def test_one_file_a_checkpoint(tmp_path):
    files = [table(tmp_path / f"{step}.csv", f"step,score\n{step},0.{step}\n") for step in (60, 20)]
    assert scores(*files) == ((0.2, None, 0.6), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,score\n20,61.3\n", r"step 20: score 61.3 is outside .*in percent, give 0.613"),
        ("step,score\n20,-1\n", "-1 is outside"),
        ("step,score\n20,0.5\n20,0.6\n", "two scores for step 20"),
        ("step,score\n20,0.5\n80,0.6\n100,0.7\n", "given: step 80, step 100.*20, 40, 60"),
        ("checkpoint,score\nother,0.6\n", "no checkpoint given: other"),
        ("step,score\n20,good\n", "'good' is no number"),
        ("step,score\n,0.5\n", "has no step"),
        ("step,score\n", "holds no row"),
        ("", "holds no row"),
        ("when,score\n20,0.5\n", "columns when, score"),
        ("step,what\n20,0.5\n", "columns step, what"),
        ("[1, 2]", "a list must be of objects"),
        ("{", "is no JSON"),
        ('{"20": [1]}', r"20: \[1\] is no score"),
        ('{"20": true}', "20: True is no score"),
        ('[{"step": 20, "score": {"a": 1}}]', "is no score"),
    ],
)  # fmt: skip
def test_what_is_refused(text, words, tmp_path):
    path = table(tmp_path / "scores.txt", text)
    with pytest.raises(InputError, match=words) as caught:
        scores(path)
    assert str(path) in str(caught.value)


def test_two_files_for_one_checkpoint(tmp_path):
    files = [table(tmp_path / f"{name}.csv", "step,score\n20,0.5\n") for name in "ab"]
    with pytest.raises(InputError, match=r"two scores for step 20 \(.*a.csv and .*b.csv\)"):
        scores(*files)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none.csv: cannot be read \(No such file"):
        scores(tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="bytes: cannot be read"):
        scores(tmp_path / "bytes")


def test_a_name_in_two_places_is_told_apart_by_its_step(tmp_path):
    """verl: every checkpoint ends in the same segments."""
    names = [f"run/global_step_{step}/actor/hf" for step in (20, 40)]
    path = table(tmp_path / "s.csv", "checkpoint,score\n/gpu/global_step_40/actor/hf,0.7\n")
    assert scores(path, checkpoints=names, steps=[20.0, 40.0]) == ((None, 0.7), None)


def evaluated(root: Path, model: str, **values: float) -> Path:
    """A directory as `offaxis eval` leaves it, as far as scores go."""
    root.mkdir(parents=True)
    rows = [{"metric": name.replace("_at_", "@"), "k": 1, "value": v} for name, v in values.items()]
    told = {"schema": 1, "model": {"source": model, "digest": None}, "scores": rows}
    (root / "results.json").write_text(json.dumps(told))
    return root


def test_directories_of_eval(tmp_path):
    places = [
        evaluated(tmp_path / "a", "run/checkpoint-40", avg_at_8=0.7, pass_at_1=0.6, pass_at_4=0.9),
        evaluated(tmp_path / "b", BASE, avg_at_8=0.5, pass_at_4=0.6),
    ]
    assert scores(*places) == ((None, 0.7, None), 0.5)
    assert scores(places[0] / "results.json") == ((None, 0.7, None), None)
    assert scores(*places, metric="pass@4") == ((None, 0.9, None), 0.6)
    with pytest.raises(InputError, match=r"has no score maj@4; it has avg@8"):
        scores(*places, metric="maj@4")


def test_a_merged_models_eval_is_known_by_its_directory(tmp_path):
    place = evaluated(tmp_path / "evals" / "checkpoint-60", "/tmp/merged", avg_at_8=0.8)
    assert scores(place) == ((None, None, 0.8), None)


def lighteval(root: Path, model: str, results: dict) -> Path:
    path = root / "results" / f"results_2025-06-01T10-20-3{len(model) % 10}.123456.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"config_general": {"model_name": model}, "results": results}))
    return path


def test_results_of_lighteval(tmp_path):
    one = {"lighteval|aime24|0": {"avg@n:n=8": 0.6, "avg@n:n=8_stderr": 0.1}}
    two = {
        "lighteval|aime24|0": {"avg@n:n=8": 0.6},
        "lighteval|math|0": {"avg@n:n=8": 0.8},
        "all": {"avg@n:n=8": 0.7},
    }
    first = lighteval(tmp_path / "a", "run/checkpoint-20", one)
    second = lighteval(tmp_path / "b", "/gpu/checkpoint-40", two)
    assert scores(first, second) == ((0.6, pytest.approx(0.7), None), None)
    assert scores(tmp_path / "a") == ((0.6, None, None), None)


def test_lighteval_with_several_metrics(tmp_path):
    values = {"t|a|0": {"extractive_match": 0.6, "other": 0.2}}
    path = lighteval(tmp_path / "a", "run/checkpoint-20", values)
    with pytest.raises(InputError, match="has the scores extractive_match, other; pass --metric"):
        scores(path)
    assert scores(path, metric="other") == ((0.2, None, None), None)
    mixed = {"t|a|0": {"avg@n:n=4": 0.6}, "t|b|0": {"other": 0.2}}
    with pytest.raises(InputError, match="1 of 2 tasks"):
        scores(lighteval(tmp_path / "b", "run/checkpoint-20", mixed))
