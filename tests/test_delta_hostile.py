"""Deltas that lie: each is refused in words that help, or followed to the promised bytes."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delta_fuzzing import deltas_of, fuzz, made_pair
from delta_mutations import (
    DEEP,
    HOSTILE_PATHS,
    Parts,
    chunks_of,
    joined,
    opened,
    sized,
    squeezed,
    take_apart,
)
from offaxis import delta
from offaxis.errors import DeltaError

Edit = Callable[[Parts], Any]
SMALL, FAST = 0, 1
ZERO = "0" * 32
FRAMES = "the head of a chunk contradicts itself"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    root = tmp_path_factory.mktemp("pair")
    base, tuned = made_pair(root)
    return base, deltas_of(base, tuned, root / "x.delta")


def row(parts: Parts, name: str) -> dict[str, Any]:
    """The plan of a tensor, or of a file that is none."""
    for other in parts.plan["others"]:
        if other["path"] == name:
            return other
    (file,) = parts.plan["files"]
    header = json.loads(file["header"])
    order = sorted(header, key=lambda key: header[key]["data_offsets"])
    return file["tensors"][order.index(name)]


def put(name: str, **changes: Any) -> Edit:
    """Change values in a tensor's plan; `...` takes one away."""

    def edit(parts: Parts) -> None:
        found = row(parts, name)
        found |= changes
        for key in [key for key, value in changes.items() if value is ...]:
            del found[key]

    return edit


def top(**changes: Any) -> Edit:
    return lambda parts: parts.plan.update(changes)


def file(**changes: Any) -> Edit:
    return lambda parts: parts.plan["files"][0].update(changes)


def text(old: str, new: str) -> Edit:
    """Change the header of the tuned file."""

    def edit(parts: Parts) -> None:
        (found,) = parts.plan["files"]
        assert old in found["header"]
        found["header"] = found["header"].replace(old, new)

    return edit


def raw_plan(plan: bytes) -> Edit:
    return lambda parts: parts.regions.update(plan=sized(plan))


def tables(first: bytes) -> Edit:
    """Other bytes in the place of the first tensor's tables."""

    def edit(parts: Parts) -> None:
        number, tokens = parts.tables[:2]
        parts.tables = first + parts.tables[2 + 2 * number + number * tokens :]

    return edit


def chunk(name: str, change: Callable[[bytes], bytes]) -> Edit:
    """Change the only chunk of a tensor; the stream's lengths stay true."""

    def edit(parts: Parts) -> None:
        found = row(parts, name)
        *pieces, last = chunks_of(parts.stream(found))
        parts.put(found, joined([*pieces, change(last)]))

    return edit


def shifts(name: str, change: Callable[[bytes], bytes]) -> Edit:
    def edit(parts: Parts) -> None:
        found = row(parts, name)
        held, *rest = chunks_of(parts.stream(found))
        parts.put(found, joined([squeezed(change(opened(held) if held else b"")), *rest]))

    return edit


def word(at: int, value: int) -> Callable[[bytes], bytes]:
    """A 32-bit number of a chunk."""
    return lambda held: held[:at] + struct.pack("<I", value) + held[at + 4 :]


def fast_chunk(kind: int, count: int, gaps: bytes, *planes: bytes) -> Callable[[bytes], bytes]:
    contents = [squeezed(one) for one in ((gaps, *planes) if gaps else planes)]
    return lambda _: struct.pack("<BIIB", kind, count, len(gaps), len(planes)) + joined(contents)


def container(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def rewrite(document: dict[str, Any]) -> dict[str, Any]:
        change(document)
        return document

    return lambda parts: setattr(parts, "rewrite", rewrite)


PLANS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "no object": (raw_plan(b"[1]"), ("files",)),
    "no JSON": (raw_plan(b'{"files": '), ("its plan is not JSON",)),
    "no UTF-8": (raw_plan(b'{"\xff": 1}'), ("its plan is not JSON",)),
    "deep": (raw_plan(b'{"files":' + b"[" * 200_000), ("its plan is not JSON",)),
    "almost too deep": (put("norm", codec=DEEP), ()),
    "long number": (raw_plan(b'{"files":' + b"9" * 9000 + b"}"), ("its plan is not JSON",)),
    "no files": (top(files=None), ("files is 'None', not a list",)),
    "files by name": (top(files={"a": 1}), ("files",)),
    "file a number": (top(files=[7]), ("path",)),
    "header a number": (file(header=7), ("model.safetensors: header is '7', not a str",)),
    "header no JSON": (file(header="{"), ("model.safetensors", "not valid JSON")),
    "header no text": (file(header='{"\ud800": 1}'), ("model.safetensors",)),
    "header of another": (file(header="{}"), ("13 tensors are planned, its header has 0",)),
    "no tensors": (file(tensors=[]), ("0 tensors are planned, its header has 13",)),
    "codec unknown": (put("norm", codec="lzma"), ("'norm'", "'lzma' is unknown")),
    "codec a list": (put("norm", codec=["raw"]), ("'norm'", "not a str")),
    "checksum short": (put("norm", tuned="0" * 31), ("'norm'", "not 32 hexadecimal digits")),
    "checksum upper": (put("norm", tuned="A" * 32), ("'norm'", "not 32 hexadecimal digits")),
    "checksum a line": (put("norm", tuned=ZERO + "\n"), ("'norm'", "not 32 hexadecimal digits")),
    "checksum another": (put("norm", tuned=ZERO), ("'norm'", "decodes to bytes with", ZERO)),
    "base missing": (put("norm", base=...), ("'norm'", "base is 'None'")),
    "base another": (put("norm", base=ZERO), ("'norm'", "made from another", "give the base")),
    "origin a number": (put("norm", origin=1), ("'norm'", "origin is '1'")),
    "origin unheld": (put("norm", origin="\ud800"), ("'norm'", "does not hold")),
    "origin another": (put("norm", origin="f8"), ("'norm'", "made from another 'f8'")),
    "at negative": (put("norm", at=-1), ("'norm'", "at is -1")),
    "at a float": (put("norm", at=0.0), ("'norm'", "at is '0.0', not a int")),
    "at true": (put("norm", at=True), ("'norm'", "at is 'True'")),
    "at NaN": (put("norm", at=float("nan")), ("'norm'", "at is 'nan'")),
    "at infinite": (put("norm", at=float("inf")), ("'norm'", "at is 'inf'")),
    "at huge": (put("norm", at=1 << 62), ("'norm'", str(1 << 62))),
    "at beyond": (put("norm", at=(1 << 62) - 1), ("'norm'", "of a payload of")),
    "length huge": (put("norm", length=10**300), ("'norm'", "length is")),
    "changed negative": (put("norm", changed=-1), ("'norm'", "changed is -1")),
    "small as fast": (put("f8", codec="fast"), ("more probability tables than tensors",)),
    "small as planes": (put("norm", codec="planes"), ("more probability tables than tensors",)),
    "planes as small": (put("new.planes", codec="small", base=ZERO), ("'new.planes'", "tables")),
    "planes as fast": (put("new.planes", codec="fast", base=ZERO), ("'new.planes'", "not hold")),
    "planes as raw": (put("new.planes", codec="raw"), ("'new.planes'", "are stored for 640")),
    "raw as planes": (put("new.raw", codec="planes"), ("'new.raw'", "its chunks end at byte")),
    "same as raw": (put("same", codec="raw"), ("'same'", "at is 'None'")),
    "same as another": (put("same", origin="norm"), ("'same'", "made from another 'norm'")),
    "dtype another": (text('"F32","shape":[96]', '"I32","shape":[96]'), ("'norm'", "base of I32")),
    "shape another": (text('"I64","shape":[40]', '"I64","shape":[41]'), ("'ids'", "span 320")),
    "other unheld": (put("config.json", path="none.json"), ("takes none.json", "whole base")),
    "other changed": (put("config.json", digest=ZERO), ("config.json has 8 bytes", ZERO)),
    "other too long": (put("noise.bin", size=65), ("noise.bin", "64 bytes are stored for 65")),
    "other below": (put("noise.bin", size=-1), ("noise.bin", "size is -1")),
    "other too short": (put("tokenizer.json", size=649), ("tokenizer.json", "a compressed stream")),
    "path twice": (put("noise.bin", path="config.json"), ("two files have the",)),
    "path in capitals": (put("noise.bin", path="CONFIG.json"), ("two files have the",)),
    "path below a file": (put("noise.bin", path="config.json/a"), ("directory of another",)),
    "export unknown": (top(export="F16"), ("export 'F16' is unknown",)),
    "removed numbers": (top(removed=[1]), ("removed",)),
    "digest short": (top(tuned="00"), ("tuned is '00'",)),
    "digest of others": (top(tuned=ZERO), ("its tensors have the digest", ZERO)),
    "digest of another base": (top(base=ZERO), ("its header names the base", ZERO)),
    "digest of no base": (lambda p: p.metadata.pop("base"), ("its header names the base None",)),
    "tables none": (lambda parts: setattr(parts, "tables", b""), ("'q.weight'", "no probability")),
    "tables cut": (lambda p: setattr(p, "tables", p.tables[:-1]), ("end early",)),
    "tables more": (lambda p: setattr(p, "tables", p.tables + b"\1\1\0\0\1"), ("more probab",)),
    "tables of none": (tables(b"\0\1"), ("are not tables",)),
    "tables of 65": (tables(b"\x41\1" + bytes(65 * 3)), ("are not tables",)),
    "tables of no tokens": (tables(b"\1\0\0\0"), ("are not tables",)),
    "contexts from 1": (tables(b"\1\1\1\0\1"), ("'q.weight'", "not in order")),
    "contexts equal": (tables(b"\2\1\0\0\0\0\1\1"), ("'q.weight'", "not in order")),
    "context too high": (tables(b"\2\1\0\0\0\2\1\1"), ("'q.weight'", "not in order")),
    "tokens too many": (tables(b"\1\xff\0\0" + b"\1" * 255), ("'q.weight'", "255 tokens for 16")),
    "table of zeros": (tables(b"\1\1\0\0\0"), ("'q.weight'", "is not one")),
    "code too high": (tables(b"\1\1\0\0\x80"), ("'q.weight'", "is not one")),
    "state low": (chunk("norm", word(4, 0xFFFF)), ("'norm'", "does not decode")),
    "state zero": (chunk("norm", word(16, 0)), ("'norm'", "does not decode")),
    "words too many": (chunk("norm", word(0, 1 << 31)), ("'norm'", f"announces {1 << 31} words")),
    "words too few": (chunk("q.weight", word(0, 2)), ("'q.weight'", "does not decode")),
    "words odd": (chunk("norm", lambda held: held + b"\0"), ("'norm'", "announces")),
    "no head": (chunk("norm", lambda held: held[:19]), ("'norm'", "fewer than its head")),
    "bits missing": (chunk("norm", lambda held: held[:-4]), ("'norm'", "does not decode")),
    "bits left": (chunk("norm", lambda held: held + bytes(4)), ("'norm'", "does not decode")),
    "shift 13": (shifts("q.weight", lambda s: b"\x0d" + s[1:]), ("'q.weight'", "outside ±12")),
    "shift -128": (shifts("q.weight", lambda s: s[:-1] + b"\x80"), ("'q.weight'", "outside ±12")),
    "shift too few": (shifts("q.weight", lambda s: s[:-1]), ("'q.weight'", "135 bytes, not 136")),
    "shift too many": (shifts("q.weight", lambda s: s + b"\0"), ("'q.weight'", "damaged")),
    "shifts of a vector": (shifts("norm", lambda _: bytes(97)), ("'norm'", "shifts by row and")),
    "version 2": (lambda p: p.metadata.update(version="2"), ("format version '2'", "newer")),
    "another format": (lambda p: p.metadata.update(format="pt"), ("no offaxis delta",)),
    "metadata a number": (lambda p: p.metadata.update(codec=1), ("__metadata__",)),
    "signed bytes": (container(lambda d: d["plan"].update(dtype="I8")), ("holds the tensors",)),
    "another tensor": (container(lambda d: d.update(x=d.pop("plan"))), ("holds the tensors",)),
    "plan of 4 bytes": (lambda p: p.regions.update(plan=b"1234"), ("its plan has 4 bytes",)),
    "plan too large": (lambda p: p.regions.update(plan=sized(b"", (1 << 26) + 1)), ("above the",)),
    "plan shorter": (lambda p: p.regions.update(plan=sized(b"{}", 3)), ("its plan cannot be",)),
    "tables too large": (lambda p: p.regions.update(tables=sized(b"", 1 << 63)), ("above the",)),
}  # fmt: skip
CHUNKS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "gaps leave": (chunk("f8", fast_chunk(0, 3, b"\xff\xff\xff", b"abc")), ("do not fit",)),
    "gaps at the end": (chunk("f8", fast_chunk(0, 3, b"\xfe\xfe\xfe", b"abc")), ("do not fit",)),
    "fewer words": (chunk("f8", fast_chunk(0, 2, b"\1\1\1", b"ab")), ("do not fit",)),
    "fewer gaps": (chunk("f8", fast_chunk(0, 2, b"\1\xff", b"ab")), ("do not fit",)),
    "gaps too few": (chunk("f8", fast_chunk(0, 3, b"\1\1", b"abc")), (FRAMES,)),
    "gaps too many": (chunk("f8", fast_chunk(0, 0, b"\xff" * 3)), (FRAMES,)),
    "too many planes": (chunk("f8", fast_chunk(0, 1, b"\1", b"a", b"a")), (FRAMES,)),
    "no planes": (chunk("f8", fast_chunk(0, 2, b"\1\1")), ("do not fit",)),
    "planes uneven": (chunk("half", fast_chunk(0, 2, b"\1\1", b"ab", b"a")), ("1 bytes, not 2",)),
    "full, too short": (chunk("f8", fast_chunk(1, 575, b"", bytes(575))), (FRAMES,)),
    "full, with gaps": (chunk("f8", fast_chunk(1, 576, b"\1", bytes(576))), (FRAMES,)),
    "kind 2": (chunk("f8", fast_chunk(2, 576, b"", bytes(576))), (FRAMES,)),
    "too many words": (chunk("f8", word(1, 577)), (FRAMES,)),
    "words without end": (chunk("f8", word(1, (1 << 32) - 1)), (FRAMES,)),
    "no head": (chunk("f8", lambda held: held[:9]), ("fewer than its head",)),
    "a byte more": (chunk("f8", lambda held: held + b"\0"), ("announces",)),
}  # fmt: skip


def refusal(
    made: tuple[Path, list[bytes]], which: int, edit: Edit, place: Path, *, agree: bool = True
) -> str:
    """The words with which `apply` refuses the edited delta, its digests made to fit or not."""
    parts = take_apart(made[1][which])
    edit(parts)
    path = place / "x.delta"
    path.write_bytes((parts.agree() if agree else parts).seal())
    with pytest.raises(DeltaError) as refused:
        delta.apply(made[0], path, out=place / "out")
    assert os.listdir(place) == ["x.delta"]
    message = str(refused.value)
    assert str(path) in message or "config.json" in message
    assert ";" in message  # the remedy
    return message


@pytest.mark.parametrize("case", PLANS)
def test_a_lying_delta_is_refused(made, tmp_path, case):
    edit, words = PLANS[case]
    message = refusal(made, SMALL, edit, tmp_path, agree="digest" not in case)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("case", CHUNKS)
def test_a_lying_chunk_of_fast_is_refused(made, tmp_path, case):
    edit, words = CHUNKS[case]
    message = refusal(made, FAST, edit, tmp_path)
    assert [word for word in ("tensor '", *words) if word not in message] == [], message


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=ascii)
@pytest.mark.parametrize("name", ["noise.bin", "config.json", None])
def test_no_path_leaves_the_directory(made, tmp_path, path, name):
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    edit = file(path=path) if name is None else put(name, path=path)
    assert "the path" in refusal(made, SMALL, edit, place)
    assert os.listdir(tmp_path) == ["deep"]


def test_nesting_up_to_the_interpreters_limit_is_refused(made, tmp_path):
    for depth in range(600, 1000):
        parts = take_apart(made[1][SMALL])
        put("norm", codec=DEEP)(parts)
        plan = json.dumps(parts.plan).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
        parts.regions["plan"] = sized(plan.encode())
        (tmp_path / "x.delta").write_bytes(parts.seal())
        with pytest.raises(DeltaError):
            delta.info(tmp_path / "x.delta")


def test_the_fuzzer_sees_what_breaks_the_law(tmp_path):
    found = fuzz("broken", 4, tmp_path)["breaks"]
    assert [(row["seed"], row["times"]) for row in found.values()] == [(0, 1), (3, 1)]
    assert "TypeError" in str(found)
    assert f"died with {-signal.SIGSEGV}" in str(found)


def lawful(found: dict[str, Any], count: int) -> None:
    print(json.dumps(found, indent=1))
    assert found["breaks"] == {}
    assert sum(found["outcomes"].values()) == count
    assert found["worst"][0] < 10
    assert found["grown_mib"] < 256


def test_two_thousand_hostile_files_and_chunks(tmp_path):
    lawful(fuzz("files", 2000, tmp_path), 2000)
    lawful(fuzz("chunks", 5000, tmp_path), 5000)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_files(tmp_path):
    lawful(fuzz("files", 100_000, tmp_path, first=10_000_000), 100_000)


@pytest.mark.slow
def test_two_hundred_thousand_hostile_chunks(tmp_path):
    lawful(fuzz("chunks", 200_000, tmp_path, first=20_000_000), 200_000)


@pytest.mark.slow
def test_no_compiled_loop_leaves_its_arrays(tmp_path):
    """Every index checked, which numba does only when it is told to."""
    env = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    lawful(fuzz("forged", 4000, tmp_path, first=30_000_000, env=env), 4000)
    lawful(fuzz("chunks", 20_000, tmp_path, first=40_000_000, env=env), 20_000)
