"""A delta file, opened: its plan, and the tuned tensors that it makes from a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from offaxis.checkpoint.digest import Digest, content_digest
from offaxis.checkpoint.header import Entry
from offaxis.delta.coding import Decoder
from offaxis.delta.compress import PIECE, unsqueeze_file
from offaxis.delta.container import Container
from offaxis.delta.folder import Folder
from offaxis.delta.plan import CODECS, OtherPlan, Plan, TensorPlan
from offaxis.delta.side import read_models
from offaxis.delta.small import Model
from offaxis.delta.words import Fitted, word_shape, words_of
from offaxis.errors import DeltaError
from offaxis.kernels.pool import for_each, threads

__all__ = ["Delta"]

_PARALLEL_FROM = 8  # chunks; tensors with fewer are decoded by one thread, several at once

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Delta:
    """An opened delta: sound as far as it can be told without the base."""

    container: Container
    plan: Plan
    models: Mapping[str, Mapping[str, Model]]
    """Path -> tensor -> model, for tensors coded `small`."""

    @classmethod
    def open(cls, path: str | Path) -> Delta:
        """Open and check a delta file: digest, plan, tables.

        Raises DeltaError where it is damaged, truncated, no delta, or contradicts itself.
        """
        path = Path(path).expanduser()
        container = Container.open(path)
        try:
            plan = Plan.read(container.plan, len(container.payload))
            models = _assign(plan, read_models(container.tables))
            _check_digests(plan, container.metadata)
        except ValueError as error:
            raise DeltaError(f"{path}: cannot be followed: {error}; make it again") from error
        return cls(container, plan, models)

    @property
    def path(self) -> Path:
        return self.container.path

    def blocks(self, file: str, entry: Entry, plan: TensorPlan, base: Folder) -> Iterator[Bytes]:
        """The bytes of one tuned tensor in order, piece by piece, from a base checked on the way.

        Raises DeltaError, naming tensor and file, where the base is another, the stream is damaged
        or the bytes do not have the checksum that the plan gives; the last only at the end.
        """
        held = self._base(entry, plan, base)
        found = Digest()
        try:
            for block in self._decoded(file, entry, plan, held):
                found.update(block.data)
                yield block
        except ValueError as error:
            self._bad(entry, f"cannot be decoded: {error}", "make the delta again")
        if found.hexdigest() != plan.tuned:
            self._bad(entry, f"decodes to bytes with the checksum {found.hexdigest()}, not "
                      f"{plan.tuned}", "make the delta again")  # fmt: skip

    def _bad(self, entry: Entry, what: str, remedy: str) -> NoReturn:
        raise DeltaError(f"{self.path}: tensor {entry.name!r} {what}; {remedy}")

    def _base(self, entry: Entry, plan: TensorPlan, base: Folder) -> tuple[Bytes, str] | None:
        """The base tensor's bytes, checked, and its dtype."""
        if plan.base is None or plan.origin is None:
            return None
        places = base.tensors.get(plan.origin, [])
        if not places:
            self._bad(entry, f"needs {plan.origin!r}, which {base.source} does not hold",
                      f"give the base with digest {self.plan.base}")  # fmt: skip
        for source, held in places:
            found = base.checksum(source, held)
            if found == plan.base:
                return source.raw(held), held.dtype
        self._bad(entry, f"was made from another {plan.origin!r} (checksum {plan.base}) than "
                  f"{base.source} holds ({found})",
                  f"give the base with digest {self.plan.base}")  # fmt: skip

    def _decoded(
        self, file: str, entry: Entry, plan: TensorPlan, held: tuple[Bytes, str] | None
    ) -> Iterator[Bytes]:
        size = entry.stop - entry.start
        if plan.codec == "same":
            if held is None or held[0].size != size:
                raise ValueError("the base's tensor has another size")
            yield held[0]
            return
        words = words_of(entry.dtype)
        number = size * 8 // words.bits
        fitted = None
        if plan.codec in {"small", "fast"}:
            if held is None or not Fitted.possible(held[1], entry.dtype):
                raise ValueError(f"no base of {entry.dtype}")
            fitted = Fitted(held[0], stored=held[1], wanted=entry.dtype, size=number)
        decoder = Decoder(
            plan.codec,
            self.container.payload[plan.at : plan.at + plan.length],
            size=number,
            words=words,
            shape=word_shape(entry.dtype, entry.shape, number),
            model=self.models[file].get(entry.name),
        )
        at_once = threads() if len(decoder.spans) >= _PARALLEL_FROM else 1

        def chunk(index: int) -> Bytes:
            start, stop = decoder.spans[index]
            out = np.empty(stop - start, dtype=words.dtype)
            decoder.decode(index, fitted, out)
            return out.view(np.uint8)

        for first in range(0, len(decoder.spans), at_once):
            yield from for_each(chunk, range(first, min(first + at_once, len(decoder.spans))))

    def other(self, plan: OtherPlan, base: Folder) -> Iterator[Any]:
        """The bytes of a file that is no safetensors, checked; raises DeltaError as `blocks`."""
        found, seen = Digest(), 0
        try:
            for block in self._other(plan, base):
                found.update(block)
                seen += len(block)
                yield block
        except ValueError as error:
            raise DeltaError(f"{self.path}: {plan.path}: {error}; make the delta again") from error
        if seen != plan.size or found.hexdigest() != plan.digest:
            where = base.source if plan.codec == "same" else str(self.path)
            raise DeltaError(
                f"{where}: {plan.path} has {seen} bytes with the checksum {found.hexdigest()}, not "
                f"{plan.size} with {plan.digest}; give the base that the delta was made from"
            )

    def _other(self, plan: OtherPlan, base: Folder) -> Iterator[Any]:
        stream = self.container.payload[plan.at : plan.at + plan.length]
        if plan.codec == "raw":
            yield stream
        elif plan.codec == "zstd":
            yield from unsqueeze_file(stream, plan.size)
        else:
            file = base.others.get(plan.path)
            if file is None:
                raise DeltaError(
                    f"{self.path}: takes {plan.path} from the base, and {base.source} does not "
                    "have it; give the whole base directory"
                )
            with file.open("rb") as opened:
                while block := opened.read(PIECE):
                    yield block

    @cached_property
    def entries(self) -> list[tuple[str, Entry, TensorPlan]]:
        """(file, entry, plan) of every tensor, file by file in byte order."""
        return [
            (file.path, entry, plan)
            for file in self.plan.files
            for entry, plan in zip(file.entries, file.tensors, strict=True)
        ]


def _check_digests(plan: Plan, metadata: Mapping[str, str]) -> None:
    """The tuned model's digest is that of the planned tensors, and the header names both models."""
    tuned = content_digest(
        (entry.name, entry.dtype, entry.shape, tensor.tuned)
        for file in plan.files
        for entry, tensor in zip(file.entries, file.tensors, strict=True)
    )
    if tuned != plan.tuned:
        raise ValueError(f"its tensors have the digest {tuned}, and it says {plan.tuned}")
    if metadata.get("codec") not in CODECS or not metadata.get("writer", "?").isprintable():
        raise ValueError(f"its header says {str(dict(metadata))[:200]!r}")
    for name, digest in (("base", plan.base), ("tuned", plan.tuned)):
        if metadata.get(name) != digest:
            raise ValueError(f"its header names the {name} {metadata.get(name)}, its plan {digest}")


def _assign(plan: Plan, models: Iterator[Model]) -> dict[str, dict[str, Model]]:
    """Give the models to the tensors coded `small`, in order. Raises ValueError on a mismatch."""
    out: dict[str, dict[str, Model]] = {}
    for file in plan.files:
        own = out.setdefault(file.path, {})
        for entry, tensor in zip(file.entries, file.tensors, strict=True):
            if tensor.codec == "small":
                model = next(models, None)
                if model is None:
                    raise ValueError(f"tensor {entry.name!r} has no probability tables")
                own[entry.name] = model
    if next(models, None) is not None:
        raise ValueError("there are more probability tables than tensors that need them")
    return out
