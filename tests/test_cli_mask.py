"""`offaxis mask` as a user meets it: files, tables, exit codes, errors that leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models import ROLES, nudged, read, tiny, write
from offaxis.checkpoint import open_checkpoint
from offaxis.cli import main
from offaxis.comparison.base import BaseSide, Settings
from offaxis.kernels import bin_counts, popcount
from offaxis.lab import BASE
from offaxis.masks import Mask, build, info, inspect, load
from offaxis.masks.building import matrices
from offaxis.train.sparse import KINDS, score_checkpoint

PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
PLAIN |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1"}


class Done(NamedTuple):
    code: Any
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`offaxis mask` in this process, which saves the seconds that its imports take."""

    def call(*arguments: str | Path | float) -> Done:
        monkeypatch.setattr(sys, "argv", ["offaxis", "mask", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        return Done(stop.value.code or 0, streams.out, streams.err)

    return call


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cli") / "base", tiny())


def test_a_mask_is_written_shown_and_used(base: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "exactly this"
    done = run(base, "--rule", "safe", "--out", file)
    assert done.code == 0, done.err
    assert os.listdir(file.parent) == ["exactly this"]
    size = file.stat().st_size
    assert f"{file}: {size:,} bytes, safe(alpha=0.5)" in done.out
    assert load(file) == build(base, "safe")
    for role in ROLES:
        assert role in done.out

    drawn = tmp_path / "drawn.mask"
    done = run(base, "--rule", "magnitude_random", "--like", file, "--seed", 3, "--out", drawn)
    assert done.code == 0, done.err
    assert load(drawn) == build(base, "magnitude_random(like=safe, seed=3)")

    done = run(base, "--show", drawn, "--with", file)
    assert done.code == 0, done.err
    assert "a mask of this base, magnitude_random(like=safe(alpha=0.5), seed=3)" in done.out
    for words in ("with principal(alpha=0.5)", "with low_magnitude(alpha=0.5)",
                  "with safe(alpha=0.5)", "chance", "magnitude null", "Jaccard"):  # fmt: skip
        assert words in done.out


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--rule", "principal", "--alpha", 0.3, "--rank", 2], "principal(alpha=0.3, rank=2)"),
        (["--rule", "low_magnitude", "--threshold", "mean"], "low_magnitude(threshold='mean')"),
        (["--rule", "random", "--density", 0.2, "--seed", 4], "random(density=0.2, seed=4)"),
        (["--rule", "random", "--like", "principal"], "random(like=principal)"),
        (["--rule", "lift", "--budget-rank", 3, "--filter-rank", 5],
         "lift(budget_rank=3, filter_rank=5)"),
        (["--rule", "low_magnitude | ~principal(alpha=0.1)", "--alpha", 0.4],
         "low_magnitude(alpha=0.4) | ~principal(alpha=0.1)"),
    ],
)  # fmt: skip
def test_options_are_those_of_the_rule(
    options: list[Any], rule: str, base: Path, run: Run, tmp_path: Path
) -> None:
    assert run(base, *options, "--out", tmp_path / "m").code == 0
    assert load(tmp_path / "m") == build(base, rule)


def test_what_a_finished_run_changed(base: Path, run: Run, tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned", nudged(read(base), seed=1, dtype=torch.float32))
    assert run(base, "--rule", "subnetwork", "--tuned", tuned, "--out", tmp_path / "m").code == 0
    mask = load(tmp_path / "m")
    assert mask == build(base, "subnetwork", tuned=str(tuned))
    assert 0 < mask.density < 1


def test_json_is_the_result_alone(base: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "m"
    found = json.loads(run(base, "--rule", "principal", "--out", file, "--json").out)
    mask = load(file)
    assert found == {"file": str(file), "bytes": file.stat().st_size} | info(mask)
    assert list(found) == ["file", "bytes", "schema", "rule", "density", "selected", "entries",
                           "tensors", "base", "roles"]  # fmt: skip
    assert found["schema"] == 1
    assert found["base"] == mask.base_digest
    assert {row["role"] for row in found["roles"]} == set(ROLES)
    assert sum(row["selected"] for row in found["roles"]) == found["selected"]
    assert sum(row["entries"] for row in found["roles"]) == found["entries"]
    assert all(row["layers"] == [0, 2] and row["matrices"] == 3 for row in found["roles"])
    shown = json.loads(run(base, "--show", file, "--json").out)
    assert shown == {"file": str(file)} | inspect(file, base)
    by_layer = [row for row in shown["roles"] if row["role"] == "q_proj"]
    assert [row["layers"] for row in by_layer] == [[0, 0], [1, 1], [2, 2]]
    assert [row["selected"] for row in by_layer] == [
        mask.count(f"model.layers.{i}.self_attn.q_proj.weight") for i in range(3)
    ]


def test_any_safetensors_library_opens_the_file(base: Path, run: Run, tmp_path: Path) -> None:
    run(base, "--rule", "safe", "--out", tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert set(file.keys()) == set(build(base, "safe"))


def test_overlaps_stand_beside_what_compare_would_say(base: Path) -> None:
    """The numbers of `inspect`, once more from flags and the bins of `compare`."""
    mask, other = build(base, "random", density=0.3), build(base, "low_magnitude", alpha=0.2)
    rows = {row["rule"]: row for row in inspect(mask, base, other=other)["against"]}
    assert list(rows) == ["principal(alpha=0.5)", "low_magnitude(alpha=0.5)",
                          "low_magnitude(alpha=0.2)"]  # fmt: skip
    assert rows["low_magnitude(alpha=0.2)"] == inspect(mask, base, other=other.rule)["against"][2]
    ground, found = open_checkpoint(base), []
    for name, (pair,) in matrices(ground).items():
        side = BaseSide(pair.part, ground[name], Settings())
        fixed, flags = side.fixed["principal_overlap"], mask[name]
        princ = np.unpackbits(fixed.bits, bitorder="little")[: flags.numel()].astype(bool)
        ours = flags.numpy().reshape(-1)
        both, b = (ours & princ).sum(), side.bins.clip(1)
        mine = bin_counts(side.codes, mask.bits[name])
        expected = float((mine * fixed.bins / b).sum())
        found.append(
            {
                "share": both / ours.sum(),
                "share_chance": 0.5,
                "share_magnitude_null": expected / ours.sum(),
                "share_of_rule": both / princ.sum(),
                "share_of_rule_chance": popcount(mask.bits[name]) / ours.size,
                "share_of_rule_magnitude_null": expected / princ.sum(),
                "jaccard": both / (ours | princ).sum(),
                "jaccard_chance": 0.5 * (p := ours.mean()) / (0.5 + p - 0.5 * p),
                "jaccard_magnitude_null": expected / (ours.sum() + princ.sum() - expected),
            }
        )
    for key in found[0]:
        mean = np.mean([one[key] for one in found])
        assert rows["principal(alpha=0.5)"][key] == pytest.approx(mean, rel=1e-12), key


def test_an_empty_mask_has_no_share(base: Path) -> None:
    rows = inspect(build(base, "none"), base)["against"]
    assert all(row["share"] is None and row["share_magnitude_null"] is None for row in rows)
    assert all(row["share_of_rule"] == row["jaccard"] == 0 for row in rows)


def test_fused_and_stacked_tensors_count_as_their_parts(tmp_path: Path) -> None:
    import families

    for family, roles in (
        ("phi3", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}),
    ):
        families.build(family).save_pretrained(tmp_path / family)
        mask = build(tmp_path / family, "low_magnitude", alpha=0.25)
        rows = info(mask)["roles"]
        assert {row["role"] for row in rows} == roles
        assert all(row["density"] == 0.25 for row in rows)
        assert inspect(mask, tmp_path / family)["against"][1]["share"] == 1.0


def test_the_labs_own_base(run: Run, tmp_path: Path) -> None:
    """What docs/masks.md shows."""
    assert run(BASE, "--rule", "safe", "--out", tmp_path / "safe.mask").code == 0
    found = json.loads(run(BASE, "--show", tmp_path / "safe.mask", "--json").out)
    assert found["tensors"] == 28
    assert found["entries"] == 995_328
    principal, low = found["against"]
    assert low["share_of_rule"] == 1.0  # safe holds all of M_low
    assert principal["share"] < principal["share_magnitude_null"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --rule RULE and --out FILE, or --show FILE"),
        (["--rule", "all"], "give --rule RULE and --out FILE"),
        (["--out", "m"], "give --rule RULE and --out FILE"),
        (["--rule", "all", "--out", "m", "--with", "x"], "--with goes with --show"),
        (["--show", "m", "--rule", "all"], "--show goes without --rule"),
        (["--show", "m", "--budget-rank", "2"], "--show goes without --budget-rank"),
        (["--show", "m", "--like", "all", "--out", "x"], "--show goes without --out, --like"),
        (["--rule", "all", "--out", "m", "--alpha", "half"], "--alpha"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_syntax_exits_with_2(arguments: list[str], words: str, base: Path, run: Run) -> None:
    done = run(base, *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", "").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rule", "nothing"], "no rule 'nothing'; choose among principal"),
        (["--rule", "random"], "random needs density=SHARE or like=RULE"),
        (["--rule", "principal", "--alpha", "2"], "alpha=2.0: a share from 0 to 1"),
        (["--rule", "principal", "--density", "0.1"], "none of its rules has an option density"),
        (["--rule", "low_magnitude", "--threshold", "median"], "'mean' is needed"),
        (["--rule", "gradient", "--density", "0.1"], "gradient needs scores of every weight"),
        (["--rule", "fisher", "--density", "0.1"], "fisher needs scores of every weight"),
        (["--rule", "subnetwork"], "subnetwork needs tuned"),
        (["--rule", "subnetwork", "--tuned", "nowhere/at/all"], "nowhere/at/all"),
        (["--rule", "lift"], "lift needs budget_rank"),
        (["--rule", "random", "--like", "no.mask"], "'no.mask' is no file, and as a rule"),
        (["--rule", "file(path='no.mask')"], "no.mask: cannot be read"),
    ],
)
def test_bad_input_exits_with_1_and_writes_nothing(
    arguments: list[str], words: str, base: Path, run: Run, tmp_path: Path
) -> None:
    done = run(base, *arguments, "--out", tmp_path / "new" / "m")
    assert done.code == 1
    assert words in done.err
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_gradient_and_fisher_masks_come_from_data(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "(12+7)*8=", "completion": "12+7=19;19*8=152#152"},
            {"prompt": "(2+3)*4=", "completion": "2+3=5;5*4=20#20"}]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    rule = "gradient(density=0.05) & fisher(density=0.1)"
    done = run(BASE, "--rule", rule, "--data", data, "--out", tmp_path / "m", "--json")
    assert done.code == 0
    scores = {kind: score_checkpoint(BASE, kind, data) for kind in KINDS}
    assert load(tmp_path / "m") == build(BASE, rule, scores=scores)
    one_row = ["--data", data, "--rows", "1", "--density", "0.05"]
    assert run(BASE, "--rule", "gradient", *one_row, "--out", tmp_path / "n").code == 0
    assert load(tmp_path / "n") != build(BASE, "gradient", density=0.05, scores=scores)
    done = run(BASE, "--rule", "safe", "--data", data, "--out", tmp_path / "o")
    assert done.code == 1
    assert "the rule safe asks no data" in done.err


def test_a_bad_base_exits_with_1(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "none", "--rule", "all", "--out", tmp_path / "m").code == 1
    bad = tiny()
    bad["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    done = run(write(tmp_path / "bad", bad), "--rule", "safe", "--out", tmp_path / "m")
    assert done.code == 1
    assert "model.layers.1.mlp.up_proj.weight: 1 of 1536 entries are NaN" in done.err
    assert not (tmp_path / "m").exists()


def test_a_mask_of_another_base_is_refused(base: Path, run: Run, tmp_path: Path) -> None:
    other = write(tmp_path / "other", tiny(seed=1))
    file = tmp_path / "m"
    assert run(other, "--rule", "all", "--out", file).code == 0
    for arguments in (
        ["--show", file],
        ["--rule", "random", "--like", file, "--out", tmp_path / "x"],
        ["--rule", f"file(path={str(file)!r})", "--out", tmp_path / "x"],
    ):
        done = run(base, *arguments)
        assert done.code == 1
        assert "is not the base of this mask" in done.err
        assert "model.layers.0" in done.err
    assert not (tmp_path / "x").exists()
    damaged = bytearray(file.read_bytes())
    damaged[-9] ^= 1
    file.write_bytes(damaged)
    assert run(other, "--show", file).code == 1


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(
    base: Path, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "m"
    assert run(base, "--rule", "all", "--out", file).code == 0
    before = file.read_bytes()
    assert run(base, "--rule", "nothing", "--out", file).code == 1
    assert file.read_bytes() == before
    assert run(base, "--rule", "none", "--out", file).code == 0
    assert load(file).selected == 0
    done = run(base, "--rule", "all", "--out", tmp_path)
    assert done.code == 1
    assert "a directory is there" in done.err
    assert os.listdir(tmp_path) == ["m"]


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    base: Path, run: Run, tmp_path: Path
) -> None:
    mask = build(base, "all")
    Mask(mask.bits, mask.shapes, mask.origins, "\x1b[31m\nall").save(tmp_path / "m")
    done = run(base, "--show", tmp_path / "m")
    assert done.code == 0
    assert "\x1b" not in done.out


def test_ctrl_c_exits_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    """Pressed while the first matrices are worked on: from then on the weights are mapped."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc, which tells when the weights are read")
    base = write(tmp_path / "base", tiny(layers=5, scale=24))
    command = [sys.executable, "-m", "offaxis", "mask", str(base), "--rule", "principal", "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "out" / "m")], env=PLAIN, stderr=subprocess.PIPE, text=True
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and str(base) not in maps.read_text():
            time.sleep(0.02)
        assert process.poll() is None, "it was done before it could be interrupted"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        words = process.stderr.read()
    assert process.returncode == 130, words
    assert "nothing half-written is left" in words
    assert "Traceback" not in words
    assert os.listdir(tmp_path) == ["base"]
