"""Small deltas that ask for much: time, memory, disk, directories. None gets it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from delta_fuzzing import CHECKSUM_OF_NOTHING, LONGEST, attempt, deltas_of, limited, made_pair
from delta_models import Tensor, write_file
from delta_mutations import Parts, joined, raw_frame, sized, squeezed
from offaxis import delta
from offaxis.delta import coding, small
from offaxis.delta.words import words_of
from offaxis.errors import DeltaError, OffaxisError

ZERO = "0" * 32


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and a sound delta of it."""
    root = tmp_path_factory.mktemp("pair")
    base, tuned = made_pair(root)
    (root / "sound.delta").write_bytes(deltas_of(base, tuned, root / "x.delta")[0])
    return base, root / "sound.delta"


def header(**tensors: tuple[str, list[int], int]) -> str:
    document, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at := at + size]}
    return json.dumps(document)


def alone(files: Any = (), others: Any = (), *, payload: bytes = b"", tables: bytes = b"") -> Parts:
    """A sound delta of nothing but these files."""
    plan = {"base": ZERO, "tuned": ZERO, "export": None, "files": files, "others": others}
    metadata = {"format": "offaxis-delta", "version": "1", "codec": "small", "writer": "an enemy",
                "base": ZERO, "tuned": ZERO}  # fmt: skip
    return Parts(metadata, payload, tables, plan | {"removed": []})


def tensor_of(codec: str, shape: list[int], stream: bytes, **more: Any) -> Parts:
    """A delta that makes one tensor of bytes, from the base's that has none."""
    size = int(np.prod(shape, dtype=object))
    plan = {"codec": codec, "tuned": ZERO, "changed": 0, "at": 0, "length": len(stream)}
    plan |= {"base": CHECKSUM_OF_NOTHING, "origin": "empty"} if codec in {"small", "fast"} else {}
    files = {"path": "m.safetensors", "header": header(a=("U8", shape, size)), "tensors": [plan]}
    return alone([files], payload=stream, **more)


def with_plan(region: bytes) -> Parts:
    parts = alone()
    parts.regions["plan"] = region
    return parts


def empty_file(path: str) -> dict[str, Any]:
    digest = CHECKSUM_OF_NOTHING
    return {"path": path, "codec": "raw", "size": 0, "digest": digest, "at": 0, "length": 0}


def filled(start: str, unit: str, stop: str) -> Parts:
    """A plan of 32 MiB, all but full of one thing."""
    return with_plan(sized((start + unit * ((1 << 25) // len(unit.encode()) - 9) + stop).encode()))


def filled_within_limits() -> Parts:
    """What takes most memory of all that a plan may hold: many objects, then short strings."""
    objects = '{"":0},' * ((1 << 20) - 9)
    strings = '"中",' * (((1 << 25) - len(objects)) // 6 - 9)
    return with_plan(sized(f'{{"x":[{objects}{strings}"😀"]}}'.encode()))


def of_long_header() -> Parts:
    parts = alone()
    parts.rewrite = lambda _: b'{"x":[' + b'{"":0},' * 7_000_000 + b"0]}"
    return parts


def of_shifts(rows: int, columns: int) -> Parts:
    """A matrix with a shift for each row and column, and no change."""
    chunks = [struct.pack("<5I", 0, *[1 << 16] * 4)] * -(-rows * columns // (1 << 18))
    stream = joined([squeezed(bytes(rows + columns)), *chunks])
    return tensor_of("small", [rows, columns], stream, tables=b"\1\1\0\0\1")


def of_wide_window() -> Parts:
    """A file of 1 MiB of spaces whose frame asks for a window of 128 MiB."""
    frame = joined([b"\x28\xb5\x2f\xfd\0\x88" + raw_frame(0, 8)[13:]])
    digest = xxhash.xxh3_128_hexdigest(b" " * (1 << 20))
    made = {"path": "a", "codec": "zstd", "size": 1 << 20, "digest": digest, "at": 0}
    return alone(others=[made | {"length": len(frame)}], payload=frame)


RUNS = struct.pack("<Q", 9) + raw_frame(1 << 31, 1 << 14)
NOTHING = struct.pack("<BIIB", 0, 0, 0, 0)
EXTENTS = f'{{"a":{{"dtype":"F32","shape":[{"9" * 18 + "," + ("9" * 18 + ",") * 200_000}1]'
BOMBS: dict[str, tuple[str, int, Callable[[], Parts]]] = {
    "a plan announced as 2**60 bytes": (
        "info", 64, lambda: with_plan(RUNS[:8] + raw_frame(1 << 60))),
    "a plan of 2 GiB in 64 KiB": ("info", 64, lambda: with_plan(RUNS)),
    "planes of 2 GiB in 64 KiB": (
        "verify", 64, lambda: tensor_of("planes", [9], joined([RUNS[8:]]))),
    "a plan of many lists": ("info", 1024, lambda: filled('{"x":[[]', ",[]", "]}")),
    "a plan of many objects": ("info", 1024, lambda: filled('{"x":[[]', ',{"":{"":0}}', "]}")),
    "the worst plan within limits": ("info", 1024, filled_within_limits),
    "a container's header of 50 MB": ("info", 1024, of_long_header),
    "a shape of 200 000 extents": ("info", 64, lambda: alone([{
        "path": "m.safetensors", "header": EXTENTS + ',"data_offsets":[0,8]}}', "tensors": []}])),
    "a shape beyond all floats": ("info", 64, lambda: alone([{
        "path": "m.safetensors", "header": header(a=("F32", [1 << 62] * 20, 8)), "tensors": []}])),
    "20 000 paths of 500 directories": ("info", 256, lambda: alone(
        others=[empty_file(f"{i}/" + "a/" * 500 + "x") for i in range(20_000)])),
    "a tensor of 2**50 bytes": ("verify", 64, lambda: tensor_of("planes", [1 << 50], b"")),
    "a shift for each of 6e7 rows": ("apply", 512, lambda: of_shifts(60_000_000, 1)),
    "a shift for each of 6e7 columns": ("apply", 512, lambda: of_shifts(1, 60_000_000)),
    "200 GB unchanged": ("verify", 64, lambda: tensor_of(
        "fast", [200_000 << 20], joined([NOTHING] * 200_000))),
    "a window of 128 MiB": ("apply", 192, of_wide_window),
}  # fmt: skip
"""How it is read, MiB that it may take, and what makes it."""


def _endure(how: str, base: Path, file: Path, said: Path) -> None:
    """In a process of its own: what became of one file, how long it took, how much memory."""
    limited(4 << 30)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        if how == "apply":
            delta.apply(base, file, out=said.with_suffix(".out"))
        else:
            delta.verify(base, file) if how == "verify" else delta.info(file)
        outcome = "followed"
    except OffaxisError as error:
        outcome = f"refused: {str(error)[:2000]}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.perf_counter() - start
    said.write_text(json.dumps({"outcome": outcome, "seconds": seconds, "mib": grown / 1024}))


def _endure_all(jobs: dict[str, tuple[str, str, str]], root: Path) -> dict[str, Any]:
    """Each job (how, base, file) in a fork of this process, ended after `LONGEST` seconds."""
    delta.verify(root / "base", root / "sound.delta")  # compiled and warm
    found = {}
    for number, (name, (how, base, file)) in enumerate(jobs.items()):
        said = root / f"{number}.json"
        if not (child := os.fork()):
            _endure(how, Path(base), Path(file), said)
            os._exit(0)
        stop = time.monotonic() + LONGEST
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < stop:
            time.sleep(0.01)
        if not ended[0]:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
        words = f"no end after {LONGEST} s, or died: status {ended[1]}"
        lost = {"outcome": words, "seconds": LONGEST, "mib": 0.0}
        found[name] = json.loads(said.read_text()) if said.exists() else lost
    return found


def endured(jobs: dict[str, tuple[str, Path, Path]], root: Path) -> dict[str, Any]:
    """What becomes of files that cost more than they should: `outcome`, `seconds`, `mib` of each.

    jobs: name -> (how, base, file). root: a directory with `base` and its `sound.delta`.
    """
    plain = {name: (how, str(base), str(file)) for name, (how, base, file) in jobs.items()}
    (root / "jobs.json").write_text(json.dumps(plain))
    command = [sys.executable, __file__, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


@pytest.fixture(scope="module")
def bombs(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("bombs")
    (root / "base").symlink_to(pair[0])
    (root / "sound.delta").symlink_to(pair[1])
    jobs = {}
    for number, (name, (how, _, build)) in enumerate(BOMBS.items()):
        (root / f"{number}.delta").write_bytes(build().agree().seal())
        jobs[name] = (how, root / "base", root / f"{number}.delta")
    return endured(jobs, root)


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_bounded_time_and_memory(bombs, name):
    found = bombs[name]
    assert found["outcome"].split(":")[0] in {"refused", "followed"}, found
    assert found["seconds"] < 10, found
    assert found["mib"] < BOMBS[name][1], found
    assert len(found["outcome"]) < 2000, "a message without end"


def test_no_base_tensor_is_hashed_for_each_of_many_empty_ones(tmp_path, monkeypatch):
    """Tensors of no bytes cost no output, so that no limit on it stops them."""
    base = write_file(tmp_path / "b.safetensors", {"big": Tensor("U8", (1 << 20,), bytes(1 << 20))})
    plan = {"codec": "fast", "tuned": CHECKSUM_OF_NOTHING, "origin": "big", "changed": 0, "at": 0}
    plan |= {"length": 0, "base": xxhash.xxh3_128_hexdigest(bytes(1 << 20))}
    names = {f"t{i}": ("U8", [0], 0) for i in range(200)}
    files = {"path": "m.safetensors", "header": header(**names), "tensors": [plan] * 200}
    (tmp_path / "x.delta").write_bytes(alone([files]).agree().seal())
    seen, whole = [], xxhash.xxh3_128_hexdigest
    monkeypatch.setattr(xxhash, "xxh3_128_hexdigest", lambda d: (seen.append(len(d)), whole(d))[1])
    delta.apply(base, tmp_path / "x.delta", out=tmp_path / "out")
    assert sum(seen) < 20 << 20, f"{sum(seen) >> 20} MiB hashed of a base of 1 MiB"


def test_shifts_take_little_beside_a_chunk_or_are_refused():
    """2**26 rows of 32 bytes: shifts of 64 MiB, from a stream of 200 KB."""
    rows, parts = 1 << 26, [squeezed(bytes((1 << 26) + 32)), *[bytes(20)] * (1 << 13)]
    model = small.Model(np.zeros(1, np.int64), np.ones((1, 1), np.uint8))
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        coding.Decoder("small", memoryview(joined(parts)), size=32 * rows, words=words_of("U8"),
                       shape=(rows, 32), model=model)  # fmt: skip
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 256 << 20, f"{peak >> 20} MiB"


def test_directories_count_towards_what_may_be_written(pair, tmp_path):
    """30 000 directories take 120 MB on a disk, and files without bytes can ask for them."""
    parts = alone(others=[empty_file(f"{i}/" + "a/" * 11 + "x") for i in range(2500)])
    (tmp_path / "x.delta").write_bytes(parts.agree().seal())
    with pytest.raises(DeltaError):
        delta.apply(pair[0], tmp_path / "x.delta", out=tmp_path / "out")


LONG = ["x" * 256, "é" * 128, "a/" * 500 + "b", ("𝛼" * 62 + "/") * 16 + "b"]


@pytest.mark.parametrize("path", LONG, ids=len)
def test_a_path_that_no_system_takes_is_refused_or_followed(pair, tmp_path, path):
    (tmp_path / "base").symlink_to(pair[0])
    attempt(alone(others=[empty_file(path)]).agree().seal(), "apply", tmp_path)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_what_a_delta_says_of_itself_is_printed_safely(tmp_path, flags):
    parts = alone()
    parts.plan["removed"] = ["\ud800", "\x1b[31m"]
    parts.metadata |= {"codec": "\x1b[31m\ud800", "writer": "\ud800"}
    (tmp_path / "x.delta").write_bytes(parts.agree().seal())
    command = [sys.executable, "-m", "offaxis", "delta", "info", str(tmp_path / "x.delta"), *flags]
    done = subprocess.run(command, capture_output=True, check=False)
    assert b"Unicode" not in done.stderr
    assert b"\x1b[31m" not in done.stdout + done.stderr


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps(_endure_all(json.loads((place / "jobs.json").read_text()), place)))
