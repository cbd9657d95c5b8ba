"""What can go wrong with a delta: the wrong base, damage, files that are none, bad outputs.

Whatever fails must fail with an error of offaxis that says what is wrong, and leave nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_models import (
    Tensors,
    planted,
    reseal,
    stepped,
    tree,
    wild,
    write_file,
    write_folder,
)
from offaxis.checkpoint.digest import DIGEST_BYTES, checksum
from offaxis.delta import Delta, apply, info, pack, verify
from offaxis.errors import CheckpointError, DeltaError, InputError, OffaxisError, OutputError

CODECS = ("small", "fast")
NOISE = np.random.default_rng(1).bytes(900)


def base_tensors() -> Tensors:
    return {
        "w": planted((64, 80))[0],
        "x": wild("F32", (40, 41)),
        "same": wild("BF16", (7,)),
        "gone": wild("I8", (5,)),
    }


def base_at(place: Path, tensors: Tensors) -> Path:
    return write_folder(place, tensors, files={"config.json": b"{}", "merges.txt": NOISE})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `tuned` and their deltas `small` and `fast`, with streams of several codecs."""
    root = tmp_path_factory.mktemp("made")
    base = base_tensors()
    base_at(root / "base", base)
    tuned = {
        "w": planted((64, 80))[1],
        "x": stepped(base["x"], share=0.1),
        "same": base["same"],
        "new": wild("F16", (200,)),
    }
    files = {"config.json": b"{}", "notes.txt": b"words " * 99, "noise.dat": NOISE}
    write_folder(root / "tuned", tuned, shards=2, files=files)
    for codec in CODECS:
        said = pack(root / "base", root / "tuned", out=root / codec, codec=codec)
        assert set(said["codecs"]) >= {codec, "same"}
    return root


def refused(base: Path, delta: Path, place: Path, **options: Any) -> str:
    """The message with which both `apply` and `verify` refuse; nothing may be left in `place`."""
    place.mkdir(exist_ok=True)
    before = tree(place)
    with pytest.raises((DeltaError, CheckpointError)) as error:
        apply(base, delta, out=place / "out", **options)
    assert tree(place) == before
    assert not (place / "out").exists()
    if not options:
        with pytest.raises((DeltaError, CheckpointError)):
            verify(base, delta)
    return str(error.value)


@pytest.mark.parametrize("name", ["w", "x", "same"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_wrong_base_is_named_with_both_checksums(
    codec: str, name: str, made: Path, tmp_path: Path
) -> None:
    base = base_tensors()
    words = base[name].words.copy()
    words[-1] ^= 1
    other = base[name].with_words(words)
    wrong = base_at(tmp_path / "wrong", base | {name: other})
    message = refused(wrong, made / codec, tmp_path / "place")
    for part in (repr(name), str(wrong), checksum(base[name].data), checksum(other.data)):
        assert part in message


@pytest.mark.parametrize("codec", CODECS)
def test_a_base_that_lacks_a_tensor_or_has_it_in_another_dtype_is_refused(
    codec: str, made: Path, tmp_path: Path
) -> None:
    base = base_tensors()
    other = base_at(tmp_path / "other", base | {"w": wild("F16", (64, 80))})
    refused(other, made / codec, tmp_path / "place")
    base.pop("w")
    lacking = base_at(tmp_path / "lacking", base)
    message = refused(lacking, made / codec, tmp_path / "place")
    assert "'w'" in message
    assert str(lacking) in message


def test_a_base_that_lacks_or_changed_a_file_is_refused(made: Path, tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", base_tensors())
    (base / "config.json").write_bytes(b"[]")
    assert "config.json" in refused(base, made / "small", tmp_path / "place")
    (base / "config.json").unlink()
    assert "config.json" in refused(base, made / "small", tmp_path / "place")


def test_a_base_that_holds_what_is_needed_is_enough(made: Path, tmp_path: Path) -> None:
    """`verify` says that it is not the very base."""
    tensors = base_tensors()
    tensors.pop("gone")
    base = base_at(tmp_path / "base", tensors)
    (base / "merges.txt").unlink()
    apply(base, made / "small", out=tmp_path / "out")
    assert tree(tmp_path / "out") == tree(made / "tuned")
    assert verify(base, made / "small")["base_matches"] is False
    assert verify(made / "base", made / "small")["base_matches"] is True


def regions(delta: Path) -> dict[str, tuple[int, int]]:
    """Where header, payload, tables, plan and digest lie in the file."""
    raw = delta.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    rows = {n: [8 + length + at for at in row["data_offsets"]] for n, row in header.items()}
    return {"header": (0, 8 + length)} | {n: (start, stop) for n, (start, stop) in rows.items()}


def test_the_streams_cover_header_payload_tables_plan_and_digest(made: Path) -> None:
    found = regions(made / "small")
    assert list(found) == ["header", "payload", "tables", "plan", "digest"]
    assert found["digest"][1] == (made / "small").stat().st_size
    assert found["digest"][1] - found["digest"][0] == DIGEST_BYTES


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_cut_or_lengthened_anywhere_is_refused(
    codec: str, made: Path, tmp_path: Path
) -> None:
    raw = (made / codec).read_bytes()
    ends = {end for span in regions(made / codec).values() for end in span}
    lengths = {0, 1, 7, 8, 9, 100, len(raw) - 1} | {end + by for end in ends for by in (-1, 0, 1)}
    for length in sorted(length for length in lengths if 0 <= length < len(raw)):
        (tmp_path / "delta").write_bytes(raw[:length])
        refused(made / "base", tmp_path / "delta", tmp_path / "place")
    for more in (b"\0", raw[-1:], raw):
        (tmp_path / "delta").write_bytes(raw + more)
        refused(made / "base", tmp_path / "delta", tmp_path / "place")


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_bit_anywhere_is_refused(codec: str, made: Path, tmp_path: Path) -> None:
    raw = (made / codec).read_bytes()
    rng = np.random.default_rng(0)
    places = [span[0] for span in regions(made / codec).values()]
    for start, stop in regions(made / codec).values():
        places += rng.integers(start, stop, 40).tolist()
    for at in places:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "delta").write_bytes(damaged)
        refused(made / "base", tmp_path / "delta", tmp_path / "place")
        with pytest.raises((DeltaError, CheckpointError)):
            info(tmp_path / "delta")


@pytest.mark.parametrize("region", ["payload", "tables", "plan"])
@pytest.mark.parametrize("codec", CODECS)
def test_damage_under_a_digest_that_fits_gives_an_error_or_the_model(
    codec: str, region: str, made: Path, tmp_path: Path
) -> None:
    """As a forger may do it: tensors and files have checksums of their own. Never another error,
    never another tensor."""
    raw, (start, stop) = (made / codec).read_bytes(), regions(made / codec)[region]
    rng = np.random.default_rng(0)
    flips = [(start + i // 8, i % 8) for i in range(120)]
    flips += zip(rng.integers(start, stop, 100).tolist(), rng.integers(0, 8, 100), strict=True)
    for at, bit in flips:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << bit
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            apply(made / "base", reseal(tmp_path / "delta", damaged), out=tmp_path / "out")
        except (DeltaError, CheckpointError):
            assert sorted(path.name for path in tmp_path.iterdir()) == ["delta"]
        else:
            assert region == "plan" or tree(tmp_path / "out") == tree(made / "tuned")


def with_header(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert raw.count(old) == 1
    return raw.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b'"version":"1"', b'"version":"2"', "version '2'"),
        (b'"format":"offaxis-delta"', b'"format":"offaxis-alpha"', "no offaxis delta"),
        (b'"tables":', b'"cables":', "cables"),
        (b'"digest":{"dtype":"U8"', b'"digest":{"dtype":"I8"', "digest"),
    ],
)
def test_another_format_is_told(
    old: bytes, new: bytes, word: str, made: Path, tmp_path: Path
) -> None:
    raw = with_header((made / "small").read_bytes(), old, new)
    delta = reseal(tmp_path / "delta", raw)
    assert word in refused(made / "base", delta, tmp_path / "place")


def test_what_is_no_delta_is_told(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Where did the delta go?")
    (tmp_path / "place").mkdir()
    plain = write_file(tmp_path / "plain.safetensors", {"a": wild("U8", (3,))})
    for path in (plain, tmp_path / "text", tmp_path / "missing", tmp_path / "place"):
        message = refused(made / "base", path, tmp_path / "place")
        assert str(path) in message
        with pytest.raises(DeltaError):
            info(path)


@pytest.mark.parametrize("base", ["missing", "empty", "text", "org/name/too/deep"])
def test_a_base_that_is_none_is_told(base: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no model")
    path = tmp_path / base
    assert str(path) in refused(path, made / "small", tmp_path / "place")
    for pair in ((path, made / "tuned"), (made / "base", path)):
        with pytest.raises(CheckpointError):
            pack(*pair, out=tmp_path / "delta")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "place", "text"]


def test_a_damaged_model_is_not_packed(made: Path, tmp_path: Path) -> None:
    raw = (made / "base" / "model.safetensors").read_bytes()
    bad = tmp_path / "in" / "model.safetensors"
    bad.parent.mkdir()
    for data in (raw[:-1], raw + b"\0", b"", raw[8:]):
        bad.write_bytes(data)
        for pair in ((bad, made / "tuned"), (made / "base", bad.parent)):
            with pytest.raises(CheckpointError, match="model"):
                pack(*pair, out=tmp_path / "out" / "delta")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_more_than_the_limit_is_refused(made: Path, tmp_path: Path) -> None:
    size = sum(map(len, tree(made / "tuned").values()))
    message = refused(made / "base", made / "small", tmp_path / "place", limit=size - 1)
    assert str(size) in message
    assert str(size - 1) in message
    apply(made / "base", made / "small", out=tmp_path / "out", limit=size)
    assert tree(tmp_path / "out") == tree(made / "tuned")


def test_an_output_that_is_taken_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    before = tree(tmp_path)
    for out in ("full", "file", "file/out"):
        with pytest.raises(OutputError, match=out):
            apply(made / "base", made / "small", out=tmp_path / out)
    assert tree(tmp_path) == before
    apply(made / "base", made / "small", out=tmp_path / "full", overwrite=True)
    assert tree(tmp_path / "full") == tree(made / "tuned") | {"theirs.txt": b"keep"}


@pytest.mark.parametrize("out", ["directory", "file/delta", "/proc/delta"])
def test_a_delta_that_cannot_be_written_is_an_output_error(
    out: str, made: Path, tmp_path: Path
) -> None:
    if out.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no /proc, a directory that nobody can write to")
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("keep")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputError, match=out):
        pack(made / "base", made / "tuned", out=tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["with space", ".hidden", "ünïcode.safetensors", "new/parents/delta", "n" * 255]
)
def test_a_delta_has_exactly_the_name_that_was_given(name: str, made: Path, tmp_path: Path) -> None:
    said = pack(made / "base", made / "tuned", out=tmp_path / name)
    assert said["file"] == str(tmp_path / name)
    assert tree(tmp_path) == {name: (made / "small").read_bytes()}


def test_a_delta_replaces_an_older_one_only_when_it_is_whole(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "delta"
    out.write_text("older")

    def stop(step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(made / "base", made / "tuned", out=out, progress=stop)
    assert tree(tmp_path) == {"delta": b"older"}
    with pytest.raises(KeyboardInterrupt):
        apply(made / "base", made / "small", out=tmp_path / "out", progress=stop)
    assert tree(tmp_path) == {"delta": b"older"}
    pack(made / "base", made / "tuned", out=out)
    assert tree(tmp_path) == {"delta": (made / "small").read_bytes()}


@pytest.mark.parametrize("options", [{"codec": "planes"}, {"codec": ""}, {"export": "fp8"}])
def test_settings_that_are_unknown_are_told(
    options: dict[str, str], made: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=repr(next(iter(options.values())))):
        pack(made / "base", made / "tuned", out=tmp_path / "delta", **options)
    assert tree(tmp_path) == {}


def test_names_that_no_reader_would_write_are_not_packed(made: Path, tmp_path: Path) -> None:
    for name in ("new\nline.txt", "back\\slash", "colon:", "Model.safetensors"):
        tuned = write_folder(tmp_path / "tuned", {"a": wild("I8", (3,))}, files={name: b"x"})
        with pytest.raises(OffaxisError, match=r"rename|header"):
            pack(made / "base", tuned, out=tmp_path / "delta")
        shutil.rmtree(tuned)
    assert tree(tmp_path) == {}


def test_an_opened_delta_has_checked_all_but_the_base(made: Path) -> None:
    opened = Delta.open(made / "small")
    assert opened.path == made / "small"
    assert {entry.name for _, entry, _ in opened.entries} == {"w", "x", "new", "same"}
