"""The weights that an adapter makes of its base, written as a model like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from offaxis.checkpoint import Checkpoint, open_checkpoint
from offaxis.checkpoint.dtypes import FLOATS, WIDTHS, code_of, torch_dtype
from offaxis.checkpoint.header import Header
from offaxis.checkpoint.locate import read_json
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.checkpoint.tied import find_head
from offaxis.delta.folder import is_state
from offaxis.errors import CheckpointError, InputError
from offaxis.names import pieces, place, rename, unwrap
from offaxis.output import check_output, explained, staged_directory
from offaxis.train.adapters.effective import check_config, effective_tensors, rounded, sites
from offaxis.train.adapters.loading import hollow, open_adapter
from offaxis.train.adapters.loading import place as put_on

__all__ = ["materialize"]

_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_OTHER_BASE = "give the base that the adapter was trained on (base=)"


def materialize(
    source: Any,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model that an adapter makes of its base into the directory `out`; return it.

    source: an adapter's directory, a Trainer's checkpoint of one, or a PEFT model in memory. base:
    the original base (directory, file or Hub id); by default what the adapter names. dtype:
    float16, bfloat16, float32 or float64 for every floating-point tensor; None: as each is stored
    in the base.

    The files are the base's: the same names, tensors in the same places, configuration and
    tokenizer copied. The weights that the adapter changes are computed in float64 (for PiSSA and
    kin W₀ + s (BA − B₀A₀), which needs `ref`) and rounded once; with dtype None every other
    tensor is the base's byte for byte. A head that was tied to the embedding, and is another now,
    is written as a tensor of its own. `out` appears whole or not at all. Memory: the adapter and
    a few copies of one module in float64; the base is mapped, and no model is loaded: PEFT's
    modules are built around one zero for each matrix.

    Raises InputError or CheckpointError where the base is not the adapter's, or the adapter is no
    fixed change of the base's tensors; OutputError where `out` cannot be written.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(_DTYPES)}, or leave it out")
    target = Path(out)
    check_output(target, overwrite=overwrite)
    model, adapter, found = _opened(source, base)
    plan = _plan(model, adapter, found)
    code = None if dtype is None else code_of(getattr(torch, dtype))
    with staged_directory(target, overwrite=overwrite) as staged:
        files = _Files(found, staged, code, plan.new)
        with explained(target):
            files.begin(without=plan.changed)
        for name, value in effective_tensors(model, plan.read, adapter=adapter):
            with explained(target):
                files.put(plan.names.get(name), value)
        with explained(target):
            if plan.copied_head is not None:
                files.put(plan.copied_head, plan.read(plan.copied_head).double())
            _copy_beside(found, staged, dtype, untied=plan.untied)
            _write_indexes(found, files, staged)
    return target


def _opened(source: Any, base: str | Path | None) -> tuple[Any, str, StoredCheckpoint]:
    """(a PEFT model, its adapter's name, the original base)."""
    if hasattr(source, "peft_config"):
        adapter = _active(source)
        return source, adapter, _base(base or _named(source, adapter))
    stored = open_adapter(source)
    check_config(stored.config)
    found = _base(base or stored.config.base_model_name_or_path)
    return put_on(hollow(_config(found)), stored, empty=True), "default", found


def _active(model: Any) -> str:
    active = model.active_adapter
    if isinstance(active, str):
        return active
    if len(active) == 1:
        return str(active[0])
    raise InputError(f"{len(active)} adapters are active; set one (set_adapter)")


def _named(model: Any, adapter: str) -> str | None:
    named = model.peft_config[adapter].base_model_name_or_path
    return named or getattr(model.get_base_model().config, "name_or_path", None)


def _base(source: str | Path | None) -> StoredCheckpoint:
    if not source:
        raise InputError("the adapter does not name its base; give base=, a directory or a Hub id")
    found = open_checkpoint(source)
    if not isinstance(found, StoredCheckpoint):
        raise CheckpointError(f"{source}: an adapter, not a base; give the base's weights (base=)")
    return found


def _config(base: StoredCheckpoint) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(base.root), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{base.source}: transformers makes no model of its config.json ({error}); give a base "
            "with one, or the PEFT model in memory"
        ) from error


@dataclass(frozen=True)
class _Plan:
    """Where the effective tensors go, made from names and shapes alone."""

    base: Checkpoint
    names: Mapping[str, str]
    """In the model's memory → in the files that are written."""
    new: Mapping[str, tuple[tuple[int, ...], str]]
    """Shape and dtype code of tensors that the base does not store."""
    homes: Mapping[str, str]
    """In the model's memory → in the base's files."""
    untied: bool
    copied_head: str | None = None
    """A head that stays what the embedding was."""

    @property
    def changed(self) -> frozenset[str]:
        """What `begin` leaves to `put`."""
        return frozenset((*self.names.values(), *self.new))

    def read(self, name: str) -> torch.Tensor:
        return self.base[self.homes[name]]


def _plan(model: Any, adapter: str, base: StoredCheckpoint) -> _Plan:
    shapes = {name: spec.shape for name, spec in base.specs.items()}
    touched = {
        f"{site.name}.{part}" if site.name else part: shape
        for site in sites(model, adapter)
        for part, shape in site.shapes.items()
    }
    landed = rename({unwrap(name): shape for name, shape in shapes.items()}, touched).names
    stored = {unwrap(name): name for name in shapes}
    homes = {name: stored[landed[name]] for name in touched if name in landed}
    head = find_head(base, pieces(shapes, config=base.config))
    embedding = head.embedding.name if head.embedding is not None and head.tied() else None
    heads = [one for one in touched if place(one, touched[one]).role == "lm_head"]
    names, new = dict(homes), {}
    copied, untied = None, False
    if embedding is not None:
        embedded = embedding in homes.values()
        both = bool(heads) and embedded and _stay_tied(model, adapter)
        untied = (bool(heads) or embedded) and not both
        for one in heads:
            homes.setdefault(one, embedding)
            if one not in names and not both:
                names[one] = one
                new[one] = (touched[one], base.specs[embedding].dtype)
        if embedded and not heads and head.head is None:
            copied = _head_of(model)
            homes[copied] = embedding
            new[copied] = (shapes[embedding], base.specs[embedding].dtype)
    _check_homes(model, touched, homes, base)
    return _Plan(base, names, new, homes, untied, copied)


def _stay_tied(model: Any, adapter: str) -> bool:
    return getattr(model.peft_config[adapter], "ensure_weight_tying", False) is True


def _head_of(model: Any) -> str:
    inner = model.get_base_model()
    head = inner.get_output_embeddings()
    return next(f"{name}.weight" for name, one in inner.named_modules() if one is head)


def _check_homes(
    model: Any, touched: Mapping[str, Any], homes: Mapping[str, str], base: Checkpoint
) -> None:
    for name, shape in touched.items():
        if name not in homes:
            raise CheckpointError(
                f"the adapter changes {name} {tuple(shape)}, which {base.source} does not store "
                f"under any name ({type(model.get_base_model()).__name__} may join or split it on "
                f"loading, as experts are stacked); {_OTHER_BASE}, or merge with PEFT"
            )
        found = base.specs[homes[name]].shape
        if found != tuple(shape):
            raise CheckpointError(
                f"the adapter changes {name} {tuple(shape)}, but {homes[name]} in {base.source} is "
                f"{found}; {_OTHER_BASE}"
            )


@dataclass
class _Files:
    """The base's safetensors files, written again with some tensors changed."""

    base: StoredCheckpoint
    out: Path
    code: str | None
    new: Mapping[str, tuple[tuple[int, ...], str]]
    places: dict[str, tuple[Path, str, int, int]] = field(default_factory=dict)
    """Of each tensor: file, dtype code, start and stop."""

    def begin(self, *, without: frozenset[str]) -> None:
        """Headers, and every tensor but those in `without`."""
        last = self.base.headers[-1]
        for header in self.base.headers:
            self._header(header, self.new if header is last else {})
        for name in self.base:
            if name not in without:
                self._copy(name)

    def _header(self, header: Header, new: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        rows = [(one.name, one.shape, self._code(one.dtype)) for one in header.entries]
        rows += [(name, shape, self._code(code)) for name, (shape, code) in new.items()]
        if new or self.code is not None:
            rows.sort(key=lambda row: -WIDTHS[row[2]])  # keeps every tensor aligned
        document: dict[str, Any] = {}
        if header.metadata:
            document["__metadata__"] = dict(header.metadata)
        at = 0
        for name, shape, code in rows:
            size = WIDTHS[code] * _numel(shape) // 8
            offsets = [at, at + size]
            document[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
            at += size
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        path = self.out / header.path.relative_to(self.base.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        for name, _, code in rows:
            start, stop = (8 + len(text) + one for one in document[name]["data_offsets"])
            self.places[name] = (path, code, start, stop)

    def _code(self, stored: str) -> str:
        return stored if self.code is None or stored not in FLOATS else self.code

    def _copy(self, name: str) -> None:
        if self.places[name][1] != self.base.specs[name].dtype:
            self.put(name, self.base[name].double())
            return
        source, start, stop = self.base.extent(name)
        path, _, to, _ = self.places[name]
        with source.open("rb") as read, path.open("r+b") as written:
            read.seek(start)
            written.seek(to)
            _copy_bytes(read, written, stop - start)

    def put(self, name: str | None, value: torch.Tensor) -> None:
        """Write one tensor, float64, in its place; None is a tensor that is tied to another."""
        if name is None:
            return
        path, code, start, _ = self.places[name]
        dtype = torch_dtype(code)
        assert dtype is not None  # only floating-point tensors are put
        raw = rounded(value, dtype).contiguous().flatten().view(torch.uint8)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(raw.numpy().data)


def _numel(shape: tuple[int, ...]) -> int:
    out = 1
    for extent in shape:
        out *= extent
    return out


def _copy_bytes(read: BinaryIO, written: BinaryIO, count: int) -> None:
    while count:
        block = read.read(min(count, 1 << 24))
        if not block:
            raise CheckpointError(f"{read.name}: has shrunk while it was read; open it again")
        written.write(block)
        count -= len(block)


def _copy_beside(base: StoredCheckpoint, out: Path, dtype: str | None, *, untied: bool) -> None:
    """Configuration and tokenizer files; `config.json` says what has changed."""
    for pattern in _BESIDE:
        for path in sorted(base.root.glob(pattern)):
            name = path.name
            if path.is_file() and not name.endswith(".index.json") and not is_state(name):
                shutil.copyfile(path, out / name)
    path = out / "config.json"
    if path.is_file() and (dtype is not None or untied):
        config = read_json(path)
        for holder in _holders(config):
            if untied and (holder is config or "tie_word_embeddings" in holder):
                holder["tie_word_embeddings"] = False
            for key in ("dtype", "torch_dtype"):
                if dtype is not None and (key in holder or (holder is config and key == "dtype")):
                    holder[key] = dtype
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _holders(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration and those of its parts (text, vision)."""
    yield config
    yield from (one for key, one in config.items() if key.endswith("_config") and _is_dict(one))


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _write_indexes(base: StoredCheckpoint, files: _Files, out: Path) -> None:
    """The base's index, with the new tensors and sizes; one that names other files is left out."""
    names = {header.path.relative_to(base.root).as_posix() for header in base.headers}
    for path in sorted(base.root.glob("*.safetensors.index.json")):
        index = read_json(path)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or set(weight_map.values()) != names:
            continue
        index["weight_map"] = {
            **weight_map,
            **{name: files.places[name][0].relative_to(out).as_posix() for name in files.new},
        }
        told = index.get("metadata")
        if isinstance(told, dict) and "total_size" in told:
            sizes = (stop - start for _, _, start, stop in files.places.values())
            told["total_size"] = sum(sizes)
        (out / path.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
