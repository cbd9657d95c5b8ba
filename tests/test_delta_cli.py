"""`offaxis delta pack | apply | info | verify` as a user meets it: exit codes, streams, words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from delta_models import Tensors, changed_entries, stepped, tree, wild, write_folder
from offaxis.cli import main
from offaxis.delta import info

PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}
NAMES = [
    f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in ("mlp.up_proj", "input_norm")
]


class Done(NamedTuple):
    code: Any
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`offaxis delta` in this process, which saves the seconds that its imports take."""

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["offaxis", "delta", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        return Done(stop.value.code or 0, streams.out, streams.err)

    return call


def models() -> tuple[Tensors, Tensors]:
    base = {name: wild("BF16", (50, 40), seed=i) for i, name in enumerate(NAMES)}
    tuned = {
        name: stepped(tensor, share=0.1 * i, seed=i)
        for i, (name, tensor) in enumerate(base.items())
    }
    return base, tuned


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    base, tuned = models()
    files = {"config.json": b"{}"}
    return (
        write_folder(root / "base", base, files=files),
        write_folder(root / "tuned", tuned, files=files | {"optimizer.pt": bytes(500)}),
    )


def test_a_model_goes_through_all_four(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "new" / "parents" / "exactly this", tmp_path / "deep" / "er" / "out"
    packed = run("pack", *pair, "--out", file)
    assert packed.code == 0, packed.err
    size = file.stat().st_size
    assert f"{file}: {size:,} bytes, codec small" in packed.out
    assert "weights and configuration" in packed.out
    assert "all, with state" in packed.out
    assert [path.name for path in file.parent.iterdir()] == ["exactly this"]
    applied = run("apply", pair[0], file, "--out", out)
    assert applied.code == 0, applied.err
    assert str(out) in applied.out
    assert tree(out) == tree(pair[1])
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    verified = run("verify", pair[0], file)
    assert verified.code == 0, verified.err
    assert verified.out.startswith("sound: 3 files")
    told = run("info", file)
    assert told.code == 0, told.err
    assert told.out.startswith(packed.out.rstrip())


def test_json_alone_is_on_standard_output(
    pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "delta"
    keys = {
        "pack": {"bytes", "changed", "entries", "roles", "export", "resumable", "codec"},
        "info": {"bytes", "changed", "entries", "roles", "export", "resumable", "codec"},
        "apply": {"out", "files", "tensors", "bytes", "tuned"},
        "verify": {"files", "tensors", "bytes", "tuned", "base_matches"},
    }
    for verb, arguments in (
        ("pack", [*pair, "--out", file]),
        ("info", [file]),
        ("apply", [pair[0], file, "--out", tmp_path / "out"]),
        ("verify", [pair[0], file]),
    ):
        done = run(verb, *arguments, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out, parse_constant=pytest.fail)
        assert keys[verb] <= set(found)
        if verb == "info":
            assert found == info(file)
        if verb == "apply":
            assert (found["out"], found["files"]) == (str(tmp_path / "out"), 3)


def test_info_has_a_line_for_each_layer_and_role(
    pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "delta"
    run("pack", *pair, "--out", file)
    base, tuned = models()
    expected: Counter[tuple[str, str]] = Counter()
    for name in NAMES:
        role = "norm" if "norm" in name else name.split(".")[-2]
        expected[name.split(".")[2], role] += changed_entries(base[name], tuned[name])
    lines = [line.split() for line in run("info", file).out.splitlines()]
    rows = {(line[0], line[1]): line for line in lines if line and line[0] in {"0", "1"}}
    assert set(rows) == set(expected)
    for key, changed in expected.items():
        assert rows[key][2:5] == ["1", f"{changed / 2000:.2%}", "4,000"]


def test_small_is_the_default_and_fast_is_asked_for(
    pair: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    for name, options in (("a", []), ("b", ["--codec", "small"]), ("c", ["--codec", "fast"])):
        assert run("pack", *pair, "--out", tmp_path / name, *options).code == 0
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert [info(tmp_path / name)["codec"] for name in "abc"] == ["small", "small", "fast"]
    assert set(info(tmp_path / "c")["codecs"]) == {"same", "fast"}
    assert first != third


def test_exports_and_bare_weights_say_so(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    base, _ = models()
    wide = {name: wild("F32", tensor.shape) for name, tensor in base.items()}
    tuned = write_folder(tmp_path / "wide", wide, files={"optimizer.pt": bytes(500)})
    plain = run("pack", pair[0], tuned, "--out", tmp_path / "plain")
    assert "note: " in plain.out
    assert "--export bf16" in plain.out
    rounded = run("pack", pair[0], tuned, "--out", tmp_path / "rounded", "--export", "bf16")
    assert "rounded to bfloat16" in rounded.out
    assert "relative norm lost" in rounded.out
    assert "with state" not in rounded.out
    bare = run("pack", *pair, "--out", tmp_path / "bare", "--weights-only")
    assert bare.code == 0
    assert "with state" not in bare.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack"],
        ["pack", "base", "tuned"],
        ["pack", "base", "tuned", "--out"],
        ["pack", "base", "tuned", "--out", "x", "--sooner"],
        ["apply", "base", "x"],
        ["apply", "base", "x", "--out", "y", "--limit", "much"],
        ["info"],
        ["info", "x", "y"],
        ["verify", "base"],
        ["juggle"],
        ["--juggle"],
    ],
    ids=" ".join,
)
def test_bad_syntax_is_two(
    arguments: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert tree(tmp_path) == {}


def test_bad_content_is_one_and_names_it(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    base, file = pair[0], tmp_path / "delta"
    assert run("pack", *pair, "--out", file).code == 0
    (tmp_path / "broken").write_bytes(file.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    for word, arguments in (
        ("missing", ["pack", base, tmp_path / "missing", "--out", out]),
        ("missing", ["pack", tmp_path / "missing", base, "--out", out]),
        ("zip", ["pack", *pair, "--out", out, "--codec", "zip"]),
        ("fp8", ["pack", *pair, "--out", out, "--export", "fp8"]),
        ("directory", ["pack", *pair, "--out", tmp_path]),
        ("broken", ["apply", base, tmp_path / "broken", "--out", out]),
        ("missing", ["apply", base, tmp_path / "missing", "--out", out]),
        ("limit of 99", ["apply", base, file, "--out", out, "--limit", "99"]),
        ("--overwrite", ["apply", base, file, "--out", tmp_path]),
        ("broken", ["info", tmp_path / "broken"]),
        ("missing", ["info", tmp_path / "missing"]),
        ("config.json", ["info", base / "config.json"]),
        ("broken", ["verify", base, tmp_path / "broken"]),
    ):
        for options in ([], ["--json"]):
            done = run(*arguments, *options)
            assert (done.code, done.out) == (1, ""), arguments
            assert word in done.err.replace("\n", ""), arguments
            assert sorted(tmp_path.iterdir()) == before


def test_the_wrong_base_is_one(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "delta"
    run("pack", *pair, "--out", file)
    for verb, options in (("verify", []), ("apply", ["--out", tmp_path / "out"])):
        done = run(verb, pair[1], file, *options)
        assert (done.code, done.out) == (1, "")
        assert any(name in done.err for name in NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta"]


def test_a_base_that_holds_enough_is_told_apart(run: Run, tmp_path: Path) -> None:
    base, tuned = models()
    first = write_folder(tmp_path / "base", base | {"more": wild("I8", (3,))})
    second = write_folder(tmp_path / "tuned", tuned)
    lean = write_folder(tmp_path / "lean", base)
    run("pack", first, second, "--out", tmp_path / "delta")
    done = run("verify", lean, tmp_path / "delta")
    assert done.code == 0
    assert "not the one it was made from" in done.out
    assert (
        json.loads(run("verify", lean, tmp_path / "delta", "--json").out)["base_matches"] is False
    )


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offaxis", "delta", *map(str, arguments)]
    return subprocess.run(
        command, env=PLAIN, capture_output=True, text=True, timeout=120, check=False
    )


def test_as_a_process_it_says_only_what_it_must(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = process("pack", *pair, "--out", tmp_path / "delta", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == info(tmp_path / "delta")
    assert "Traceback" not in done.stderr
    wrong = process("verify", pair[1], tmp_path / "delta", "--debug")
    assert wrong.returncode == 1
    assert "Traceback" in wrong.stderr
    assert "DeltaError" in wrong.stderr
