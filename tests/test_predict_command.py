"""What `offaxis predict` writes, says and refuses; exit codes; nothing half-written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import read, write
from offaxis.checkpoint.rewriting import Rewriting
from offaxis.errors import InputError, OutputError
from offaxis.predict import METHODS, Linear, Relex, open_series, predict, predict_series
from offaxis.predict.fitting import Combination
from predict_runs import distance, planted, read_all


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """The command line inside this process, which has loaded everything already."""
    from offaxis.cli import main

    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["offaxis", "predict", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert "Traceback" not in err.getvalue()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.mark.parametrize("method", ["relex", "linear", "scale"])
def test_every_method_writes_a_model_and_a_record(method, tmp_path):
    made = planted(tmp_path, dtype=torch.float32)
    out = tmp_path / "deep" / "out"
    done = run(method, made.base, *made.checkpoints, "--at", 80, "--out", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    record = json.loads((out / "predict.json").read_text())
    tensors = record.pop("tensors")
    del record["backtest"]["rows"], record["curve"]["drawn"]
    assert told == {"out": str(out), **record}
    assert sorted(one.name for one in out.iterdir()) == [
        "config.json", "model.safetensors", "predict.json", "report.html",
    ]  # fmt: skip
    assert [one.name for one in out.parent.iterdir()] == ["out"], "nothing hidden beside it"
    assert record["schema"] == 1
    assert record["method"]["name"] == method
    assert record["at"] == 80
    assert record["base"] == str(made.base)
    assert [one["name"] for one in record["checkpoints"]] == list(map(str, made.checkpoints))
    assert [one["step"] for one in record["checkpoints"]] == [10, 20, 40]
    assert set(record["versions"]) >= {"offaxis", "torch", "numpy"}
    assert set(tensors) == set(made.start)
    assert distance(read_all(out), made.truth(80)) < 1e-6


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--against", "step", "--at", "80"], "alpharl"),
        (["--at", "80"], "alpharl"),
        (["--target", "0.9", "--others", "last"], "alpharl"),
        (["--target", "oracle:0.9", "--variant", "code"], "alpharl-code"),
    ],
)
def test_alpharl_moves_the_matrices(options, name, tmp_path):
    made = planted(tmp_path, dtype=torch.float32)
    (tmp_path / "s.csv").write_text("step,score\n0,0.4\n10,0.5\n20,0.6\n40,0.7\n")
    scores = [] if "step" in options else ["--scores", tmp_path / "s.csv"]
    done = run(
        "alpharl", made.base, *made.checkpoints, *options, *scores, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["method"]["name"] == name
    assert len(record["tensors"]) == len(made.start)
    still = {
        n
        for n, one in read_all(tmp_path / "out").items()
        if torch.equal(one, made.start[n].float())
    }
    others = {n for n in made.start if not n.endswith("_proj.weight")}
    kept = "last" not in options and name == "alpharl"
    assert still == (others if kept else set())
    assert record["facts"]["stayed"] == len(still)


def test_words_for_a_terminal(tmp_path):
    made = planted(tmp_path, dtype=torch.float32)
    done = run("relex", made.base, *made.checkpoints, "--at", 80, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "step 80 by relex from 3 checkpoints (steps 10, 20, 40)" in done.out
    assert "2 times the last checkpoint's distance from BASE" in done.out
    assert "100.0% of the movement" in done.out


def test_options_reach_the_method(tmp_path):
    curves = (lambda step: step, lambda step: 20 - 0.2 * step)
    made = planted(tmp_path, steps=(7, 20, 50), curves=curves)
    places = [
        one.rename(tmp_path / name) for one, name in zip(made.checkpoints, "abc", strict=True)
    ]
    done = run(
        "relex", made.base, *places, "--steps", "7,20,50", "--at", 80, "--rank", 2,
        "--out", tmp_path / "two",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert distance(read_all(tmp_path / "two"), made.truth(80)) < 1e-11
    done = run(
        "linear", made.base, *places, "--steps", "7,20,50", "--at", 80, "--through-base",
        "--out", tmp_path / "through",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert distance(read_all(tmp_path / "through"), made.truth(80)) > 1e-3
    done = run("scale", made.base, places[2], "--factor", 1.6, "--out", tmp_path / "scale")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "scale" / "predict.json").read_text())
    assert record["method"]["options"] == {"factor": 1.6}


def test_scores_are_kept(tmp_path):
    made = planted(tmp_path)
    (tmp_path / "s.csv").write_text("step,score\n0,0.5\n10,0.6\n40,0.7\n")
    done = run(
        "relex", made.base, *made.checkpoints, "--at", 80, "--scores", tmp_path / "s.csv",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["base_score"] == 0.5
    assert [one["score"] for one in record["checkpoints"]] == [0.6, None, 0.7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relex", "BASE", "--at", "9", "--out", "OUT"], "CKPT"),
        (["relex", "BASE", "A", "B", "--out", "OUT"], "--at"),
        (["relex", "BASE", "A", "B", "--at", "soon", "--out", "OUT"], "valid number"),
        (["relex", "BASE", "A", "B", "--at", "9", "--steps", "1,x", "--out", "OUT"], "1,x"),
        (["relex", "BASE", "A", "B", "--at", "9"], "--out"),
        (["scale", "BASE", "A", "--out", "OUT"], "--factor, --at and --data"),
        (["scale", "BASE", "A", "--at", "9", "--factor", "2", "--out", "OUT"], "one of --factor"),
        (["scale", "BASE", "A", "--at", "9", "--factors", "2", "--out", "OUT"], "needs --data"),
        (["nonsense", "BASE", "A", "--out", "OUT"], "nonsense"),
    ],
)
def test_bad_syntax_is_exit_status_two(arguments, words, tmp_path):
    made = planted(tmp_path, steps=(10, 20))
    places = {"BASE": made.base, "A": made.checkpoints[0], "B": made.checkpoints[1]}
    done = run(*(places.get(one, tmp_path / one if one == "OUT" else one) for one in arguments))
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relex", "BASE", "A", "--at", "9"], "at least 2 are needed"),
        (["relex", "BASE", "B", "A", "--at", "9"], "give them in step order"),
        (["relex", "BASE", "A", "NONE", "--at", "9"], "no such file or directory"),
        (["relex", "BASE", "A", "B", "--at", "-9"], "greater than 0"),
        (["relex", "BASE", "A", "B", "--at", "9", "--steps", "1,2,3"], "3 numbers for 2"),
        (["relex", "BASE", "A", "B", "--at", "9", "--rank", "0"], "rank 0"),
        (["relex", "BASE", "A", "B", "--at", "9", "--rank", "3"], "at least 3 are needed"),
        (["relex", "BASE", "A", "B", "--at", "9", "--dtype", "int8"], "choose one of float16"),
        (["relex", "BASE", "A", "B", "--at", "9", "--scores", "NONE"], "cannot be read"),
        (["relex", "A", "BASE", "B", "--at", "9"], "tells its step"),
        (["scale", "BASE", "A", "--factor", "nan"], "finite"),
        (["alpharl", "BASE", "A", "B", "--at", "9"], "--against step"),
        (["alpharl", "BASE", "A", "B", "--against", "step"], "--at"),
        (["alpharl", "BASE", "A", "B", "--target", "2"], "(0, 1]"),
        (["alpharl", "BASE", "A", "B", "--target", "soon"], "oracle:SCORE"),
        (["alpharl", "BASE", "A", "B", "--variant", "x"], "paper or code"),
        (["relex", "BASE", "A", "B", "--at", "9", "--out", "FULL"], "not empty"),
    ],
)
def test_bad_input_is_exit_status_one(arguments, words, tmp_path):
    made = planted(tmp_path, steps=(10, 20))
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine").write_text("mine")
    places = {"BASE": made.base, "A": made.checkpoints[0], "B": made.checkpoints[1]}
    places |= {"NONE": tmp_path / "NONE", "FULL": tmp_path / "FULL"}
    given = [places.get(one, one) for one in arguments]
    done = run(*given, *([] if "--out" in given else ["--out", tmp_path / "OUT"]))
    assert done.code == 1
    assert words in done.err
    assert done.out == ""
    assert not (tmp_path / "OUT").exists()
    assert [one.name for one in (tmp_path / "FULL").iterdir()] == ["mine"]
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_overwrite_replaces_and_keeps_the_rest(tmp_path):
    made = planted(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    done = run("relex", made.base, *made.checkpoints, "--at", 80, "--out", out, "--overwrite")
    assert done.code == 0, done.err
    assert (out / "mine").is_file()
    again = run("relex", made.base, *made.checkpoints, "--at", 60, "--out", out, "--overwrite")
    assert again.code == 0
    assert distance(read_all(out), made.truth(60)) < 1e-11
    (out / "pytorch_model.bin").write_text("")
    (out / "other.safetensors").write_text("")
    done = run("relex", made.base, *made.checkpoints, "--at", 80, "--out", out, "--overwrite")
    assert done.code == 1
    assert "weights of another model" in done.err


@pytest.mark.parametrize("fail", ["put", "update", "finish"])
def test_a_failure_leaves_nothing(fail, tmp_path, monkeypatch):
    made = planted(tmp_path)
    calls = []

    def broken(*_: object, **__: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    home = Combination if fail == "update" else Rewriting
    monkeypatch.setattr(home, fail, broken)
    with pytest.raises((OutputError, OSError)):
        predict(made.base, made.checkpoints, method="relex", at=80, out=tmp_path / "a" / "out")
    assert calls
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "rl"]


def test_a_tensor_that_is_not_predicted_is_noticed(tmp_path, monkeypatch):
    made = planted(tmp_path)
    monkeypatch.setattr(Rewriting, "put", lambda *_: None)
    with pytest.raises(InputError, match="announced and not put"):
        predict(made.base, made.checkpoints, method="relex", at=80, out=tmp_path / "out")


def test_a_method_that_is_not_there():
    with pytest.raises(InputError, match=f"choose one of {', '.join(METHODS)}"):
        predict("base", ["a"], method="oracle", out="out")


CODES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


@pytest.mark.parametrize("stored", CODES, ids=str)
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32], ids=str)
def test_the_checkpoints_dtype_is_written(stored, base, tmp_path):
    made = planted(tmp_path, dtype=stored, base_dtype=base)
    config = json.loads((made.base / "config.json").read_text()) | {"dtype": CODES[base]}
    (made.base / "config.json").write_text(json.dumps(config))
    predict(made.base, made.checkpoints, method="relex", at=80, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert {one.dtype for one in found.values()} == {stored}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == CODES[stored]


def test_a_dtype_of_ones_own(tmp_path):
    made = planted(tmp_path, dtype=torch.bfloat16)
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        told = predict(
            made.base, made.checkpoints, method="relex", at=80, out=out, dtype=dtype
        ).told()
        found[dtype] = read_all(out)
        assert told["dtypes"] == {"F32" if dtype == "float32" else "BF16": 9056}
    assert {one.dtype for one in found["float32"].values()} == {torch.float32}
    narrow = {name: one.bfloat16() for name, one in found["float32"].items()}
    assert distance(narrow, found["bfloat16"]) < 1e-3 * distance(narrow, made.start)


def test_dtypes_of_single_tensors_are_kept(tmp_path):
    """Checkpoints with norms in float32 and the rest in bfloat16, of a base all in bfloat16."""
    made = planted(tmp_path, dtype=torch.float32, base_dtype=torch.bfloat16, shards=2)
    for place in made.checkpoints:
        state = read_all(place)
        for file in place.glob("*.safetensors*"):
            file.unlink()
        mixed = {n: one if "norm" in n else one.bfloat16() for n, one in state.items()}
        save_file(mixed, place / "model.safetensors")
    predict(made.base, made.checkpoints, method="relex", at=80, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert {n: one.dtype for n, one in found.items()} == {
        n: torch.float32 if "norm" in n else torch.bfloat16 for n in found
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)


def test_rounding_is_once_and_told(tmp_path):
    """bfloat16 in and out: the exact prediction to nearest even, and how much that lost."""
    made = planted(tmp_path, dtype=torch.bfloat16, noise=1e-5)
    told = predict(made.base, made.checkpoints, method=Linear(), at=80, out=tmp_path / "out").facts
    start, states = read_all(made.base), [read_all(one) for one in made.checkpoints]
    lost = moved = 0.0
    for name, one in read_all(tmp_path / "out").items():
        rows = np.stack([(s[name].double() - start[name].double()).numpy() for s in states])
        fit = np.polyfit([10, 20, 40], rows.reshape(3, -1), 1)
        update = (fit[0] * 80 + fit[1]).reshape(rows.shape[1:])
        exact = start[name].double() + torch.from_numpy(update)
        gap = (one.double() - exact).abs()
        ulp = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
        assert (gap <= 0.5001 * ulp + 1e-15).all()
        lost += float(gap.square().sum())
        moved += float(np.square(update).sum())
    assert told["rounding"] == pytest.approx((lost / moved) ** 0.5, rel=1e-6)


def test_the_files_beside_the_base_come_along(tmp_path):
    made = planted(tmp_path)
    for name in ("tokenizer.json", "generation_config.json"):
        (made.base / name).write_text("{}")
    predict(made.base, made.checkpoints, method="relex", at=80, out=tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_progress_reaches_its_end(tmp_path):
    made = planted(tmp_path)
    heard = []
    predict(
        made.base,
        made.checkpoints,
        method="relex",
        at=80,
        out=tmp_path / "out",
        progress=heard.append,
    )
    assert [one.done for one in heard] == sorted(one.done for one in heard)
    assert heard[-1].done == heard[-1].total == 2 * sum(one.numel() for one in made.start.values())


def test_facts_are_means_over_the_tensors(tmp_path):
    made = planted(tmp_path, noise=1e-5)
    told = predict(made.base, made.checkpoints, method=Relex(), at=80, out=tmp_path / "out").told()
    shares = [one["explained"] for one in told["tensors"].values()]
    assert told["facts"]["explained_mean"] == pytest.approx(np.mean(shares))
    assert told["facts"]["over_last"] == pytest.approx(
        distance(read_all(tmp_path / "out"), made.start)
        / distance(read_all(made.checkpoints[-1]), made.start)
    )
    json.dumps(told, allow_nan=False)


def test_files_beside_the_record_appear_with_it(tmp_path):
    made = planted(tmp_path)
    series = open_series(made.base, made.checkpoints)

    def page(where, told):
        assert not (tmp_path / "out").exists()
        (where / "page").write_text(told["mine"])

    predict_series(
        series, method="relex", at=80, out=tmp_path / "out", extra={"mine": "hello"}, beside=page
    )
    assert (tmp_path / "out" / "page").read_text() == "hello"
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["mine"] == "hello"


def test_a_factor_is_chosen_on_problems(small_base, tmp_path):
    """A lab model and a checkpoint of it; every candidate is evaluated as `eval` does."""
    from offaxis.lab.tasks import TASKS

    with (tmp_path / "validation.jsonl").open("w") as file:
        for one in TASKS["programs"].problems(6, seed=1, split="held_out", difficulty=1):
            file.write(json.dumps({"problem": one.prompt, "answer": one.answer}) + "\n")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (one.float() + 1e-3 * torch.randn(one.shape, generator=generator)).bfloat16()
        for name, one in read(small_base).items()
    }
    place = write(tmp_path / "checkpoint-10", state)
    (place / "config.json").write_bytes((small_base / "config.json").read_bytes())
    done = run(
        "scale", small_base, place, "--data", tmp_path / "validation.jsonl", "--k", 2,
        "--factors", "1,2,30", "--max-new-tokens", 4, "--verifier", "exact", "--device", "cpu",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    chosen = json.loads(done.out)["chosen"]
    tried = {one["factor"]: one["score"] for one in chosen["tried"]}
    assert set(tried) | set(chosen["untried"]) == {1, 2, 30}
    assert chosen["score"] == max(tried.values()) == tried[chosen["factor"]]
    assert chosen["metric"] == "avg@2"
    assert chosen["problems"] == 6
    assert "times the update" in done.err
    factor = json.loads((tmp_path / "out" / "predict.json").read_text())["method"]["options"]
    assert factor == {"factor": chosen["factor"]}
    from adapter_states import load

    assert load(tmp_path / "out").num_parameters() > 0


def test_the_command_in_a_process_of_its_own(tmp_path):
    """Standard output is the result alone, and help loads nothing heavy."""
    made = planted(tmp_path)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    command = [sys.executable, "-m", "offaxis", "predict", "relex", made.base, *made.checkpoints]
    done = subprocess.run(
        [*map(str, command), "--at", "80", "--out", str(tmp_path / "out"), "--json"],
        env=plain | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["at"] == 80
    code = "import sys; sys.argv = ['offaxis', 'predict', 'relex', '--help']\n"
    code += "from offaxis.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, check=True)
