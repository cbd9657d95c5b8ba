"""The fuzzer of the delta reader: a worker that follows hostile files, and who watches over it.

The law: whatever a file holds, the reader refuses it with an OffaxisError or gives exactly the
bytes that the file's checksums promise. Anything else is a *break* of the law: another exception, a
crash, a hang, memory without bound, a file left where none should be.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh3_128_hexdigest

from delta_models import Tensor, Tensors, planted, resized, stepped, wild, write_folder
from delta_mutations import Parts, damaged, frames_chunk, joined, mutant, small_chunk, take_apart
from offaxis import delta
from offaxis.delta import coding, contexts, fast, planes, small
from offaxis.delta.words import Words, words_of
from offaxis.errors import OffaxisError

__all__ = ["CHECKSUM_OF_NOTHING", "LONGEST", "attempt", "deltas_of", "fuzz", "limited", "made_pair"]

CHECKSUM_OF_NOTHING = xxh3_128_hexdigest(b"")
SLACK = 1 << 30
"""Address space that a reader of these small files may take beyond what it had: 1 GiB."""
LONGEST = 20.0
"""Seconds after which a file has hung the reader."""
_WATCHED = 20
"""Attempts that have these seconds together: a new alarm for each would cost more than it."""
_SHARES = {"norm": ("F32", (96,), 0.5, 40), "f8": ("F8_E4M3", (24, 24), 0.3, 1),
           "ids": ("I64", (40,), 0.2, 2**40), "mask": ("BOOL", (16, 16), 0.2, 1),
           "half": ("F16", (8, 33), 0.3, 2), "long": ("U8", (2, 131_100), 0.0001, 1),
           "same": ("BF16", (16, 16), 0.0, 1),
           "empty": ("U8", (0,), 0.0, 1)}  # fmt: skip
"""dtype, shape, share of changed entries, reach of a change."""
_FILES = {"config.json": b'{"a": 1}'}


def made_pair(root: Path) -> tuple[Path, Path]:
    """Base and tuned of a few KB: every codec, shifts, casts, tensors that grow and appear."""
    base: Tensors = {}
    tuned: Tensors = {}
    base["q.weight"], tuned["q.weight"] = planted((64, 72))
    for name, (dtype, shape, share, reach) in _SHARES.items():
        base[name] = wild(dtype, shape, seed=1)
        tuned[name] = stepped(base[name], share=share, reach=reach, seed=2)
    base["grown"] = wild("BF16", (12, 16))
    tuned["grown"] = resized(stepped(base["grown"], share=0.2), (13, 16))
    base["cast"] = wild("BF16", (20, 12))
    wide = (base["cast"].words.astype("<u4") << 16).tobytes()
    tuned["cast"] = stepped(Tensor("F32", (20, 12), wide), share=0.2, reach=9)
    tuned["new.raw"], tuned["new.planes"] = wild("U8", (48,)), Tensor("F32", (40, 4), bytes(640))
    more = {"tokenizer.json": b'{"x": [1, 2]}' * 50, "noise.bin": random.Random(0).randbytes(64)}
    write_folder(root / "base", base, files=_FILES)
    write_folder(root / "tuned", tuned, files=_FILES | more)
    return root / "base", root / "tuned"


def deltas_of(base: Path, tuned: Path, place: Path) -> list[bytes]:
    """One delta of each codec, and one that makes a file with the one and a file with the other."""
    parts = []
    for codec in ("small", "fast"):
        delta.pack(base, tuned, out=place, codec=codec)
        parts.append(take_apart(place.read_bytes()))
    place.unlink()
    one, other = parts
    both = Parts(one.metadata, one.payload + other.payload, one.tables, take_apart(one.seal()).plan)
    (file,) = take_apart(other.seal()).plan["files"]
    for row in file["tensors"]:
        if "at" in row:
            row["at"] += len(one.payload)
    both.plan["files"].append(file | {"path": "fast/model.safetensors"})
    return [one.seal(), other.seal(), both.agree().seal()]


def _made_as_promised(plan: dict[str, Any], out: Path) -> None:
    """Every file of the plan and no other, each with the checksums that the plan gives."""
    rows = {row["path"]: row for row in plan["files"] + plan["others"]}
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(rows)
    for path, row in rows.items():
        data = (out / path).read_bytes()
        if "header" not in row:
            assert (len(data), xxh3_128_hexdigest(data)) == (row["size"], row["digest"])
            continue
        text = row["header"].encode()
        start = 8 + len(text)
        assert data[:start] == struct.pack("<Q", len(text)) + text
        document = json.loads(text)
        document.pop("__metadata__", None)
        spans = sorted(entry["data_offsets"] for entry in document.values())
        assert len(data) == start + (spans[-1][1] if spans else 0)
        for (begin, end), tensor in zip(spans, row["tensors"], strict=True):
            assert xxh3_128_hexdigest(data[start + begin : start + end]) == tensor["tuned"]


def attempt(data: bytes, how: str, root: Path) -> str:
    """Let the reader do `how` with a file. Returns "refused" or "followed"; raises on a break.

    root: a directory with `base` and nothing else.
    """
    file, out = root / "x.delta", root / "out"
    file.write_bytes(data)
    try:
        if how == "apply":
            delta.apply(root / "base", file, out=out)
        elif how == "verify":
            delta.verify(root / "base", file)
        else:
            json.dumps(delta.info(file), allow_nan=False)
    except OffaxisError as error:
        outcome, message = "refused", str(error)
        assert ";" in message, f"no remedy: {message}"
        assert "x.delta" in message or str(root / "base") in message, f"no file: {message}"
    else:
        outcome = "followed"
        if how == "apply":
            _made_as_promised(take_apart(data).plan, out)
            shutil.rmtree(out)
    file.unlink()
    assert os.listdir(root) == ["base"], f"left behind: {os.listdir(root)}"
    return outcome


class Sample(NamedTuple):
    """One chunk's worth of words, and what the codecs make of it."""

    words: Words
    shape: tuple[int, ...]
    base: Any
    tuned: Any
    model: small.Model
    chunks: dict[str, bytes]


def _samples() -> list[Sample]:
    shapes = {"BF16": (50,), "F32": (33, 3), "F8_E4M3": (70,), "F64": (21,), "F16": (64,),
              "I64": (30,), "BOOL": (1, 9), "F8_E5M2": (2, 4)}  # fmt: skip
    pairs = [planted((40, 48))]
    for dtype, shape in shapes.items():
        base = wild(dtype, shape)
        pairs += [(base, stepped(base, share=share, reach=300, seed=3)) for share in (0.2, 0.9)]
    return [_sample(base, tuned) for base, tuned in pairs]


def _sample(base: Tensor, tuned: Tensor) -> Sample:
    words = words_of(base.dtype)
    model, _ = small.analyse(base.words, tuned.words, words, base.shape)
    chunks = {
        "small": small.Coder(model, words).encode(base.words, tuned.words, 0),
        "fast": fast.encode(base.words, tuned.words)[0],
        "planes": planes.encode(tuned.words),
    }
    return Sample(words, base.shape, base.words, tuned.words, model, chunks)


def _forged_model(rng: random.Random, sample: Sample) -> small.Model:
    """Other tables, contexts and shifts, mostly sound, so that they reach the compiled loops."""
    first, codes, shifts = sample.model.first, sample.model.codes, sample.model.shifts
    if len(sample.shape) == 2 and rng.random() < 0.5:
        sides = [rng.choice((-12, -1, 0, 3, 12)) & 0xFF for _ in range(sum(sample.shape))]
        side = np.array(sides, dtype=np.uint8).view(np.int8)
        shifts = (side[: sample.shape[0]], side[sample.shape[0] :])
    if rng.random() < 0.5:
        size = sample.words.exponents * (2 if shifts else 1)
        tables = min(rng.choice((1, 2, 8, 64)), size)
        first = np.array([0, *sorted(rng.sample(range(1, size + 1), tables - 1))], dtype=np.int64)
        tokens = rng.choice((1, codes.shape[1], 12 + 2 * (sample.words.bits - 3)))
        noise = np.frombuffer(rng.randbytes(tables * tokens), np.uint8).reshape(tables, tokens)
        codes = noise & np.uint8(0x7F)
    return small.Model(first, codes, shifts)


def attempt_chunk(rng: random.Random, sample: Sample) -> str:
    """Decode a damaged chunk, its model forged or not; memory around the result is watched."""
    codec = rng.choice(("small", "small", "small", "fast", "fast", "planes"))
    chunk = sample.chunks[codec]
    if codec == "small" and rng.random() < 0.6:
        chunk = small_chunk(rng, chunk)
    elif codec == "fast" and rng.random() < 0.6:
        chunk = frames_chunk(rng, chunk)
    elif rng.random() < 0.8:
        chunk = damaged(rng, chunk)
    model = _forged_model(rng, sample) if rng.random() < 0.5 else sample.model
    at = rng.choice((0, 0, rng.randrange(sample.base.size)))
    base = sample.base[at:]
    guarded = np.full(base.size + 64, 0x5A, dtype=base.dtype)
    out = guarded[32:-32]
    try:
        if codec == "small":
            small.Coder(model, sample.words).decode(memoryview(chunk), base, at, out)
        else:
            stream = memoryview(joined([chunk]))
            decoder = coding.Decoder(
                codec, stream, size=out.size, words=sample.words, shape=(out.size,)
            )
            decoder.decode(0, base, out)
        outcome = "followed"
    except ValueError:
        outcome = "refused"
    assert (guarded[:32] == 0x5A).all(), "written before the result"
    assert (guarded[-32:] == 0x5A).all(), "written behind the result"
    sound = at == 0 and chunk == sample.chunks[codec] and model is sample.model
    if outcome == "followed" and sound:
        assert np.array_equal(out, sample.tuned), "a sound chunk came out wrong"
    return outcome


def limited(slack: int = SLACK) -> None:
    """No more address space from here on than there is, and `slack` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + slack
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _bounds_are_checked() -> None:
    """A compiled loop that is sent beyond its table must say so, or nothing is proved here."""
    words, table = Words(8, 0, 8), np.zeros(7, dtype=np.uint8)
    try:
        contexts.plain(np.full(1, 7, dtype=np.uint8), words, table)
    except IndexError:
        return
    raise AssertionError("numba does not check bounds")


class _Worker:
    """Attempts by number. The number at work lies in a file, for whoever finds the process dead."""

    def __init__(self, mode: str, root: Path) -> None:
        self.mode, self.root, self.place = mode, root, root / "place"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        base, tuned = made_pair(root)
        shutil.copytree(base, self.place / "base")
        self.deltas = deltas_of(base, tuned, root / "x.delta")
        self.samples = _samples()
        if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
            _bounds_are_checked()
        for data in self.deltas:  # compiled and warm, before memory is limited
            assert attempt(data, "apply", self.place) == "followed"
            assert attempt(data, "verify", self.place) == "followed"
        self.outcomes: Counter[str] = Counter()
        self.breaks: dict[str, dict[str, Any]] = {}
        self.worst = (0.0, -1, "")

    def one(self, seed: int) -> tuple[str, str]:
        rng = random.Random(seed)
        if self.mode == "broken":
            (sum, int, str, lambda number: os.kill(os.getpid(), signal.SIGSEGV))[seed](seed)
            return "nothing", "followed"
        if self.mode == "chunks":
            return "chunk", attempt_chunk(rng, rng.choice(self.samples))
        name, data = mutant(seed, self.deltas, raw=0.3 if self.mode == "files" else 0.0)
        how = ("verify", "apply", "verify", "info")[seed % 4]
        try:
            return name, how + " " + attempt(data, how, self.place)
        except BaseException as error:
            error.add_note(name)
            raise

    def follow(self, seed: int) -> None:
        start = time.perf_counter()
        name = "?"
        try:
            name, outcome = self.one(seed)
        except Exception as error:
            outcome = "broken"
            frame = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            self._broke(key, seed, f"{error} {getattr(error, '__notes__', '')}"[:300])
            self._clean()
        self.outcomes[outcome] += 1
        self.worst = max(self.worst, (time.perf_counter() - start, seed, name))

    def _broke(self, key: str, seed: int, words: str) -> None:
        row = self.breaks.setdefault(key, {"seed": seed, "words": words, "times": 0})
        row["times"] += 1
        if row["times"] == 1:
            print(json.dumps({"breaks": {key: row}}), flush=True)

    def _clean(self) -> None:
        for path in self.place.iterdir():
            if path.name != "base":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run(self, first: int, last: int) -> dict[str, Any]:
        with (self.root / "seed").open("r+b") as file:
            seen = mmap.mmap(file.fileno(), 8)
        limited()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(first, last):
            seen[:] = struct.pack("<q", seed)
            if (seed - first) % _WATCHED == 0:
                faulthandler.dump_traceback_later(LONGEST, exit=True)
            self.follow(seed)
        faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {"outcomes": self.outcomes, "breaks": self.breaks, "worst": [self.worst],
                "grown_mib": grown / 1024}  # fmt: skip


def fuzz(mode: str, count: int, root: Path, *, first: int = 0, env: Any = None) -> dict[str, Any]:
    """Run attempts `first` to `first + count` in workers; one that dies is a break, and replaced.

    mode: "files" (mutants of both kinds), "forged" (those alone whose digest fits), "chunks", or
    "broken" (to see that breaks are seen).
    Returns `outcomes` (counts), `breaks` (by place: seed, words, times), `worst` (seconds, seed,
    what) and `grown_mib`, the growth of the resident memory.
    """
    found: dict[str, Any] = {"outcomes": Counter(), "breaks": {}, "worst": [], "grown_mib": 0.0}
    at, last = first, first + count
    seed = root / "seed"
    while at < last and len(found["breaks"]) < 10:
        seed.write_bytes(struct.pack("<q", at - 1))
        command = [sys.executable, __file__, mode, str(at), str(last), str(root)]
        done = subprocess.run(command, env=os.environ | {"MALLOC_ARENA_MAX": "2"} | (env or {}),
                              capture_output=True, text=True, check=False)  # fmt: skip
        (at,) = struct.unpack("<q", seed.read_bytes())
        for said in map(json.loads, done.stdout.splitlines()):
            found["outcomes"].update(said.get("outcomes", {}))
            found["breaks"] |= said["breaks"]
            found["worst"] = max(found["worst"], *said.get("worst", [[]]))
            found["grown_mib"] = max(found["grown_mib"], said.get("grown_mib", 0.0))
        if done.returncode != 0:
            words = {"seed": at, "words": done.stderr[-2000:], "times": 1}
            found["breaks"][f"died with {done.returncode} at seed {at}"] = words
        at += 1
    return found


if __name__ == "__main__":
    worker = _Worker(sys.argv[1], Path(sys.argv[4]))
    print(json.dumps(worker.run(int(sys.argv[2]), int(sys.argv[3]))))
