"""What a comparison found, as a file to send: round trip, agreement, and nothing that must stay."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import models
import offaxis
from offaxis.comparison.contribution import contribute, read_contribution, write_contribution
from offaxis.comparison.contribution.making import _FILES
from offaxis.comparison.contribution.numbers import matrices_of
from offaxis.comparison.contribution.reading import sealed
from offaxis.comparison.contribution.schema import KEYWORDS, faults, schema
from offaxis.delta.folder import open_folder
from offaxis.errors import InputError

IDS = {"base_ids": ["lab/base"], "tuned_ids": ["lab/run@10", "lab/run@20", "lab/other"]}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One base, two checkpoints of a run and another run, compared."""
    root = tmp_path_factory.mktemp("compared")
    base = models.tiny(layers=3)
    models.write(root / "base", base)
    half = models.nudged(base, seed=1, size=3e-5, dtype=torch.float32)
    more = models.nudged(half, seed=2, size=6e-5, dtype=torch.float32)
    other = models.nudged(base, seed=3, dtype=torch.bfloat16)
    tuned = [
        models.write(root / "run" / "checkpoint-10", half),
        models.write(root / "run" / "checkpoint-20", more),
        models.write(root / "other", other, shards=2),
    ]
    offaxis.compare(root / "base", tuned).save(root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def told(compared: Path) -> dict[str, Any]:
    return contribute(compared, **IDS)


def test_a_round_trip_keeps_everything(told: dict[str, Any], tmp_path: Path) -> None:
    path = write_contribution(told, tmp_path / "sent.json")
    assert read_contribution(path) == told
    assert list(tmp_path.iterdir()) == [path]
    assert list(faults(told, schema())) == []


def test_means_are_those_of_the_comparison(told: dict[str, Any], compared: Path) -> None:
    pairs = json.loads((compared / "summary.json").read_text())["pairs"]
    for sent, pair in zip(told["pairs"], pairs, strict=True):
        assert sent["numbers"]["unchanged_bf16"] == pair["unchanged_bf16"]
        assert sent["counts"]["matrices"] == pair["matrices"] == 21
        shared = [name for name in sent["means"] if name in pair["measured"]]
        assert len(shared) > 20
        for name in shared:
            low, high = pair["intervals"].get(name, (None, None))
            assert sent["means"][name] == [pair[name], low, high, pair["measured"][name]]


def test_a_sample_of_spectra_is_weighed_as_compare_does(compared: Path, tmp_path: Path) -> None:
    root = compared.parent
    found = offaxis.compare(root / "base", root / "other", spectra="sample:10")
    found.save(tmp_path / "out")
    (sent,) = contribute(tmp_path / "out", base_ids=["b"], tuned_ids=["t"])["pairs"]
    (pair,) = found.summary()["pairs"]
    assert sent["means"]["nss"][3] == 10
    assert sent["means"]["nss"][:3] == [pair["nss"], *pair["intervals"]["nss"]]


def test_roles_and_layers_add_up(told: dict[str, Any]) -> None:
    for pair in told["pairs"]:
        assert [one["role"] for one in pair["roles"]] == sorted(models.ROLES)
        assert [one["layer"] for one in pair["layers"]] == [0, 1, 2]
        for group in ("roles", "layers"):
            assert sum(one["matrices"] for one in pair[group]) == pair["counts"]["matrices"]
            whole = sum(one["matrices"] * one["means"]["nss"][0] for one in pair[group])
            assert whole / pair["counts"]["matrices"] == pytest.approx(pair["means"]["nss"][0])


def test_what_is_derived(told: dict[str, Any], compared: Path) -> None:
    rows = pl.read_parquet(compared / "measurements.parquet")
    energies = rows.filter(
        pl.col("measure") == "rank1_energy", pl.col("tuned").str.ends_with("other")
    )
    means = told["pairs"][2]["means"]
    assert means["stable_rank"][0] == pytest.approx(np.mean(1 / energies["value"].to_numpy()))
    assert means["update_rank"][0] > 0.95, "noise has full rank"
    for side, extent in (("left", "rows"), ("right", "cols")):
        one = rows.filter(
            pl.col("measure") == f"update_energy_{side}", pl.col("tuned").str.ends_with("other")
        )
        ranks = np.maximum(1, np.minimum(one["rows"], one["cols"]).to_numpy() // 16)
        expected = np.mean(one["value"].to_numpy() - ranks / one[extent].to_numpy())
        assert means[f"update_energy_{side}_excess"][0] == pytest.approx(expected)
        low, high = means[f"update_energy_{side}_excess"][1:3]
        assert low < 0 < high, "noise has no direction"


def _changed(compared: Path, name: str) -> Mapping[str, np.ndarray]:
    """The update mask of every matrix, by torch's own rounding."""
    root = compared.parent
    base, tuned = models.read(root / "base"), models.read(root / name)
    return {
        tensor: (base[tensor].bfloat16() != tuned[tensor].bfloat16()).numpy()
        for tensor in models.roles_of(base)
    }


def test_emergence_is_what_the_masks_say(told: dict[str, Any], compared: Path) -> None:
    early, late = (_changed(compared, f"run/checkpoint-{step}") for step in (10, 20))
    one = next(o for o in told["overlaps"] if (o["first"], o["second"]) == (0, 1))
    both = {name: int((early[name] & late[name]).sum()) for name in early}
    for name, whole in (("first_in_second", early), ("second_in_first", late)):
        expected = np.mean([both[t] / whole[t].sum() for t in both])
        assert one[name][0] == pytest.approx(expected, abs=1e-12)
    assert one["second_in_first_excess"][0] == pytest.approx(
        one["second_in_first"][0] - one["second_in_first_magnitude_null"][0]
    )
    assert [told["pairs"][i]["step"] for i in (0, 1, 2)] == [10, 20, None]
    assert [told["pairs"][i]["run"] for i in (0, 1, 2)] == [0, 0, 1]


def test_independent_noise_shares_what_the_null_says(told: dict[str, Any]) -> None:
    one = next(o for o in told["overlaps"] if (o["first"], o["second"]) == (0, 2))
    for name in ("jaccard", "first_in_second", "second_in_first"):
        mean, low, high, matrices = one[f"{name}_excess"]
        assert matrices == 21
        assert low - 0.01 < 0 < high + 0.01, (name, mean)


def test_the_digest_is_deltas_and_knows_no_shards(told: dict[str, Any], compared: Path) -> None:
    root = compared.parent
    for pair, name in zip(told["pairs"], ("run/checkpoint-10", "run/checkpoint-20", "other"),
                          strict=True):  # fmt: skip
        assert pair["base"]["digest"] == open_folder(str(root / "base")).digest()
        assert pair["tuned"]["digest"] == open_folder(str(root / name)).digest()
    assert told["pairs"][0]["tuned"]["dtypes"].keys() == {"F32"}
    assert told["pairs"][2]["tuned"]["dtypes"].keys() == {"BF16"}


def test_nothing_is_in_it_that_must_stay(told: dict[str, Any], compared: Path) -> None:
    text = json.dumps(told)
    private = [str(Path.home()), str(compared), str(compared.parent), "self_attn", "checkpoint-"]
    private += [str(Path.cwd()), "model.layers"]
    if len(getpass.getuser()) > 4:
        private.append(getpass.getuser())
    assert [word for word in private if word in text] == []
    strings = [one for one in _strings(told) if "/" in one or "\\" in one]
    assert set(strings) == {"lab/base", "lab/run@10", "lab/run@20", "lab/other"}
    assert len(text) < 400_000


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (name, *_strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def test_a_path_needs_a_name(compared: Path) -> None:
    with pytest.raises(InputError, match=r"--base ID"):
        contribute(compared)
    with pytest.raises(InputError, match=r"--tuned ID"):
        contribute(compared, base_ids=["lab/base"])
    with pytest.raises(InputError, match="2 times --tuned for 3 checkpoints"):
        contribute(compared, base_ids=["lab/base"], tuned_ids=["a", "b"])
    for path in (str(compared.parent), "~/model", "./model", "a/b/c", "C:\\model", "", "a b"):
        with pytest.raises(InputError, match="never a path"):
            contribute(compared, base_ids=[path], tuned_ids=["a", "b", "c"])


def test_what_is_known_of_the_runs(compared: Path, tmp_path: Path) -> None:
    one = contribute(compared, **IDS, run_infos=["method=grpo,learning_rate=1e-6"])
    told = {"method": "grpo", "learning_rate": 1e-6}
    assert [pair["told"] for pair in one["pairs"]] == [told] * 3
    each = contribute(compared, **IDS, run_infos=["method=a", None, {"steps": 3}])
    assert [pair["told"] for pair in each["pairs"]] == [{"method": "a"}, None, {"steps": 3}]
    with pytest.raises(InputError, match="2 times --run-info for 3 checkpoints"):
        contribute(compared, **IDS, run_infos=["method=a", "method=b"])
    private = contribute(compared, **IDS, run_infos=["method=/home/someone/grpo"])
    with pytest.raises(InputError, match="names of letters"):
        write_contribution(private, tmp_path / "sent.json")
    assert not list(tmp_path.iterdir())


def test_without_the_weights(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in _FILES:
        (moved / name).write_bytes((compared / name).read_bytes())
    summary = json.loads((moved / "summary.json").read_text())
    summary["base"] = "nobody/is-here"
    (moved / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="a path from elsewhere, or no longer in the Hub's cache"):
        contribute(moved, tuned_ids=IDS["tuned_ids"], read_weights=False)  # a path, for all we know
    (tmp_path / "cache" / "models--nobody--is-here").mkdir(parents=True)
    sent = contribute(moved, tuned_ids=IDS["tuned_ids"], read_weights=False)
    assert sent["pairs"][0]["base"] == {"id": "nobody/is-here", "digest": None, "dtypes": None}
    (moved / "curves.parquet").unlink()
    with pytest.raises(InputError, match=r"curves\.parquet.*offaxis compare"):
        contribute(moved)


def _broken(told: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Contributions with one thing wrong, their checksum made to fit."""

    def copy() -> dict[str, Any]:
        return json.loads(json.dumps(told))

    one = copy()
    one["pairs"][0]["tuned"]["id"] = "/home/someone/model"
    yield "not written like", one
    one = copy()
    one["pairs"][0]["tensors"] = ["model.layers.0"]
    yield "not of this format", one
    one = copy()
    del one["pairs"][0]["roles"]
    yield "lacks 'roles'", one
    one = copy()
    one["pairs"][0]["means"]["nss"][1] = one["pairs"][0]["means"]["nss"][0] + 1
    yield "outside", one
    one = copy()
    one["pairs"][0]["means"]["nss"] = [None, None, None, 3]
    yield "over 3 matrices", one
    one = copy()
    one["overlaps"][0]["second"] = 7
    yield r"of pairs 0 and 7 of 3", one
    one = copy()
    one["pairs"][0]["counts"]["matrices"] = True
    yield "not of type integer", one
    one = copy()
    one["schema"] = 2
    yield "is 2, not 1", one
    one = copy()
    one["pairs"][0]["told"] = {"method": "see /home/someone"}
    yield "not written like", one
    one = copy()
    one["pairs"][0]["told"] = {"notes": "mine"}
    yield "not of this format", one
    one = copy()
    one["pairs"] = []
    yield "0 entries", one


def test_what_is_wrong_is_refused_and_named(told: dict[str, Any], tmp_path: Path) -> None:
    for count, (message, one) in enumerate(_broken(told)):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps(sealed(one)))
        with pytest.raises(InputError, match=message) as caught:
            read_contribution(path)
        assert str(caught.value).startswith(str(path))
        with pytest.raises(InputError, match=message):
            write_contribution(one, tmp_path / "written.json")
        assert not (tmp_path / "written.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1, 2]", "no contribution of offaxis"),
        ('{"schema": 1, "pairs": []}', "no contribution of offaxis"),
        ('{"format": "offaxis contribution", "schema": NaN}', "NaN is no number"),
        ('{"format": "offaxis contribution", "schema": 1}', "lacks 'versions'"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_contribution(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_contribution(tmp_path / "missing.json")


def test_every_cut_and_every_edit_is_seen(told: dict[str, Any], tmp_path: Path) -> None:
    path = write_contribution(told, tmp_path / "sent.json")
    text = path.read_text()
    for cut in (1, len(text) // 3, len(text) - 3):
        path.write_text(text[:cut])
        with pytest.raises(InputError, match="cannot be read as JSON"):
            read_contribution(path)
    value = told["pairs"][0]["means"]["principal_overlap"][0]
    assert text.count(repr(value)) >= 1
    path.write_text(text.replace(repr(value), repr(value + 1e-9)))
    with pytest.raises(InputError, match=r"damaged or edited|outside"):
        read_contribution(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("pairs", 0, "run"), 2**63, "run is out of range"),
        (("pairs", 0, "step"), 10**30, "step is out of range"),
        (("pairs", 0, "numbers", "unchanged_bf16"), 10**400, "unchanged_bf16 is out of range"),
        (("pairs", 0, "means", "nss"), [0.1, None, None, 2**70], r"nss\[3\] is out of range"),
        (("pairs", 0, "means", "jaccard"), [1e300, None, None, 3], "which no share has"),
        (("schema",), True, "schema is True, not 1"),
        (("schema",), 1.0, r"schema is 1\.0, not 1"),
    ],
)
def test_numbers_that_break_a_table_are_refused(
    told: dict[str, Any], tmp_path: Path, place: tuple[str | int, ...], value: Any, message: str
) -> None:
    one = inner = json.loads(json.dumps(told))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "file.json"
    path.write_text(json.dumps(sealed(one)))
    with pytest.raises(InputError, match=message):
        read_contribution(path)


@pytest.mark.parametrize(
    "text",
    ['{"schema": 1, "pairs": [1]}', '{"schema": 1, "pairs": [{}], "run": {}}', "[" * 100_000],
)
def test_a_comparison_that_is_not_whole_is_refused(
    compared: Path, tmp_path: Path, text: str
) -> None:
    for name in _FILES:
        (tmp_path / name).write_bytes((compared / name).read_bytes())
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match="compare again"):
        contribute(tmp_path, **IDS)


def _keywords(rule: object) -> Iterator[str]:
    """Every keyword of the schema, names of properties left out."""
    if isinstance(rule, dict):
        for name, inner in rule.items():
            yield name
            named = name in ("properties", "$defs")
            for one in inner.values() if named else [inner]:
                yield from _keywords(one)
    elif isinstance(rule, list):
        for one in rule:
            yield from _keywords(one)


def test_no_keyword_of_the_schema_is_left_unread(told: dict[str, Any]) -> None:
    assert set(_keywords(schema())) <= KEYWORDS
    jsonschema = pytest.importorskip("jsonschema", reason="compares with jsonschema, if installed")
    validator = jsonschema.Draft202012Validator(schema())
    assert list(validator.iter_errors(told)) == []
    for message, one in _broken(told):
        ours = bool(list(faults(sealed(one), schema())))
        assert ours == bool(list(validator.iter_errors(sealed(one)))), message


def test_matrices_alone_are_averaged(compared: Path) -> None:
    rows = pl.read_parquet(compared / "measurements.parquet")
    curves = pl.read_parquet(compared / "curves.parquet")
    label = rows["tuned"].unique().sort()[0]
    found = matrices_of(rows, curves, label, {"principal_rank": None, "spectra": "all"})
    assert len(found.matrices) == 21
    assert all(one.role in models.ROLES for one in found.matrices.values())
