"""A stored model, written again with some of its tensors changed.

The files keep their names, the tensors their places; what is not changed is copied byte for byte,
and configuration and tokenizer files come along, so that the result is a model like the source.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from offaxis.checkpoint.dtypes import FLOATS, WIDTHS, code_of, torch_dtype
from offaxis.checkpoint.header import Header
from offaxis.checkpoint.locate import read_json
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.errors import CheckpointError, InputError, OutputError

__all__ = ["Rewriting", "check_target", "rounded"]

_BESIDE = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.py",
    "additional_chat_templates/*.jinja",
)
_STATE = re.compile(
    r"^(?:training_args|optimizer|scheduler|rng_state|scaler|random_states|trainer_state"
    r"|global_step|zero_pp_rank)"
)
_INDEX = ".safetensors.index.json"
_WEIGHTS = ("*.safetensors", f"*{_INDEX}", "*.bin", "*.bin.index.json", "adapter_config.json")
_BLOCK = 1 << 24

_Place = tuple[Path, str, int, int]
"""Of one tensor: file, dtype code, start and stop."""


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`, rounded once, to nearest even.

    torch goes from float64 to narrower types than float32 through float32, and so rounds twice.
    Here the float32 between is rounded to odd (towards zero, last bit set where it is inexact),
    which leaves no false tie to the second rounding.
    """
    if tensor.dtype != torch.float64 or dtype in (torch.float64, torch.float32):
        return tensor.to(dtype)
    single = tensor.float()
    back = single.double()
    bits = single.view(torch.int32) - (back.abs() > tensor.abs()).int()
    return torch.where(back != tensor, bits | 1, bits).view(torch.float32).to(dtype)


def check_target(base: StoredCheckpoint, out: Path) -> None:
    """Raise OutputError where `out` holds weights that those of `base` would not replace.

    Written beside them, the result would not be the model that is read: an old `model.safetensors`
    comes before a new index.
    """
    if not out.is_dir():
        return
    own = {header.path.relative_to(base.root).as_posix() for header in base.headers}
    own |= {path.name for path, _ in _indexes(base)}
    there = {one.name for kind in _WEIGHTS for one in out.glob(kind)}
    others = sorted(name for name in there - own if not _STATE.match(name))
    if others:
        raise OutputError(
            f"{out}: holds weights of another model ({', '.join(others[:3])}), which would stay "
            "beside the new ones; choose another directory, or remove them"
        )


class Rewriting:
    """The safetensors files of `base`, written again below the directory `out`.

    changed: the tensors that `put` will be given. new: shape and dtype code of tensors that `base`
    does not store; they go to the end of the last file. dtype: float16, bfloat16, float32 or
    float64 for every floating-point tensor; None: as each is stored. told: called with the name of
    each tensor once it is written.

    `begin`, `put` for each changed and new tensor in any order, `finish`. With dtype None a file
    without new tensors keeps its header byte for byte. Memory: one tensor. It writes into `out` at
    once: give it a staged directory. OSError where that cannot be written.
    """

    def __init__(
        self,
        base: StoredCheckpoint,
        out: Path,
        *,
        changed: Collection[str] = (),
        new: Mapping[str, tuple[tuple[int, ...], str]] | None = None,
        dtype: str | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._base, self._out, self._dtype, self._told = base, out, dtype, told
        self._new = dict(new or {})
        self._code = None if dtype is None else code_of(getattr(torch, dtype))
        self._waiting = {*changed, *self._new}
        self._places: dict[str, _Place] = {}
        for name in changed:
            if name not in base and name not in self._new:
                raise InputError(f"{base.source}: stores no tensor {name!r}; name it as new")
        for name in self._new:
            if name in base:
                raise InputError(f"{base.source}: stores {name!r} already; it is not new")

    def begin(self) -> None:
        """Write the headers, and every tensor that is not changed."""
        last = self._base.headers[-1]
        for header in self._base.headers:
            path = self._head(header, self._new if header is last else {})
            with header.path.open("rb") as read, path.open("r+b") as written:
                for entry in header.entries:
                    if entry.name not in self._waiting:
                        self._keep(entry.name, read, written)
                        self._told(entry.name)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write one changed or new tensor, rounded once to the dtype of its place.

        InputError where it was not announced, was put before, or has another shape.
        """
        if name not in self._waiting:
            raise InputError(f"{name}: not announced as changed, or put twice")
        shape = self._new[name][0] if name in self._new else self._base.specs[name].shape
        if tuple(value.shape) != tuple(shape):
            raise InputError(f"{name}: its shape is {tuple(shape)}, not {tuple(value.shape)}")
        path, code, start, _ = self._places[name]
        with path.open("r+b") as file:
            file.seek(start)
            file.write(_bytes(value, code))
        self._waiting.discard(name)
        self._told(name)

    def finish(self, *, untied: bool = False) -> None:
        """Copy what lies beside the weights; write the index, and a `config.json` that fits.

        untied: the head was tied to the embedding, and is another tensor now. InputError where a
        changed tensor was not put.
        """
        if self._waiting:
            names = ", ".join(sorted(self._waiting)[:3])
            raise InputError(f"{len(self._waiting)} tensors were announced and not put: {names}")
        self._copy_beside()
        if self._dtype is not None or untied:
            self._write_config(untied=untied)
        self._write_index()

    def _head(self, header: Header, new: Mapping[str, tuple[tuple[int, ...], str]]) -> Path:
        """Write one file's header and room for its tensors; note where each goes."""
        path = self._out / header.path.relative_to(self._base.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._code is None and not new:
            places = {one.name: (path, one.dtype, one.start, one.stop) for one in header.entries}
            with header.path.open("rb") as file:
                raw = file.read(header.data_start)
            size = header.size
        else:
            raw, places = self._laid_out(path, header, new)
            size = max((stop for _, _, _, stop in places.values()), default=len(raw))
        with path.open("wb") as file:
            file.write(raw)
            file.truncate(size)
        self._places |= places
        return path

    def _laid_out(
        self, path: Path, header: Header, new: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> tuple[bytes, dict[str, _Place]]:
        """A new header's bytes and places: the widest types first, so that all are aligned."""
        rows = [(one.name, one.shape, self._stored_as(one.dtype)) for one in header.entries]
        rows += [(name, shape, self._stored_as(code)) for name, (shape, code) in new.items()]
        rows.sort(key=lambda row: -WIDTHS[row[2]])
        document: dict[str, Any] = (
            {"__metadata__": dict(header.metadata)} if header.metadata else {}
        )
        at = 0
        for name, shape, code in rows:
            size = WIDTHS[code] * prod(shape) // 8
            document[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        places = {}
        for name, _, code in rows:
            start, stop = (8 + len(text) + one for one in document[name]["data_offsets"])
            places[name] = (path, code, start, stop)
        return len(text).to_bytes(8, "little") + text, places

    def _stored_as(self, code: str) -> str:
        return code if self._code is None or code not in FLOATS else self._code

    def _keep(self, name: str, read: BinaryIO, written: BinaryIO) -> None:
        """Copy one tensor, or cast it where the files get another dtype."""
        _, code, to, _ = self._places[name]
        written.seek(to)
        if code != self._base.specs[name].dtype:
            written.write(_bytes(self._base[name].double(), code))
            return
        _, start, stop = self._base.extent(name)
        read.seek(start)
        left = stop - start
        while left:
            block = read.read(min(left, _BLOCK))
            if not block:
                raise CheckpointError(f"{read.name}: has shrunk while it was read; open it again")
            written.write(block)
            left -= len(block)

    def _copy_beside(self) -> None:
        for pattern in _BESIDE:
            for path in sorted(self._base.root.glob(pattern)):
                name = path.name
                if path.is_file() and not name.endswith(".index.json") and not _STATE.match(name):
                    target = self._out / path.relative_to(self._base.root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)

    def _write_config(self, *, untied: bool) -> None:
        path = self._out / "config.json"
        if not path.is_file():
            return
        config = read_json(path)
        for holder in _holders(config):
            if untied and (holder is config or "tie_word_embeddings" in holder):
                holder["tie_word_embeddings"] = False
            for key in ("dtype", "torch_dtype"):
                named = key in holder or (holder is config and key == "dtype")
                if self._dtype is not None and named:
                    holder[key] = self._dtype
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _write_index(self) -> None:
        """The base's index with new tensors and sizes; one that names other files is left out."""
        for path, index in _indexes(self._base):
            if not self._new and self._code is None:
                shutil.copyfile(path, self._out / path.name)
                continue
            homes = {n: self._places[n][0].relative_to(self._out).as_posix() for n in self._new}
            index["weight_map"] |= homes
            told = index.get("metadata")
            if isinstance(told, dict) and "total_size" in told:
                told["total_size"] = sum(b - a for _, _, a, b in self._places.values())
            text = json.dumps(index, indent=2) + "\n"
            (self._out / path.name).write_text(text, encoding="utf-8")


def _indexes(base: StoredCheckpoint) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The indexes beside `base` that name its files, and no others."""
    files = {header.path.relative_to(base.root).as_posix() for header in base.headers}
    for path in sorted(base.root.glob(f"*{_INDEX}")):
        index: dict[str, Any] = read_json(path)
        weight_map = index.get("weight_map")
        if isinstance(weight_map, dict) and set(map(str, weight_map.values())) == files:
            yield path, index


def _bytes(value: torch.Tensor, code: str) -> memoryview:
    dtype = torch_dtype(code)
    if dtype is None:
        raise CheckpointError(f"{code}: torch cannot hold it; dequantise the checkpoint first")
    raw = rounded(value, dtype).contiguous().flatten().view(torch.uint8)
    return raw.numpy().data


def _holders(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration and those of its parts (text, vision)."""
    yield config
    for key, one in config.items():
        if key.endswith("_config") and isinstance(one, dict):
            yield one
