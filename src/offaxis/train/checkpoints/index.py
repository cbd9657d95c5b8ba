"""What `deltas/index.json` says: which steps are stored, and what each one needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from offaxis.errors import InputError
from offaxis.output import staged_file

__all__ = ["BASE", "Anchor", "Files", "Index", "Saved", "Size", "settle"]

Files = dict[str, tuple[int, str]]
"""Path in a folder -> size in bytes, XXH3-128 in hexadecimal digits."""

BASE = "base"
"""The name of the anchor that is the model from which training started."""


@dataclass(frozen=True)
class Size:
    """Bytes of the files as Trainer wrote them, and bytes that keep them."""

    whole: int
    stored: int


@dataclass(frozen=True)
class Anchor:
    """What deltas were made against: a checkpoint kept whole, or the base."""

    name: str
    """`anchor-N`, the name of its folder, or `base`."""
    step: int | None
    digest: str
    """The content digest of its weights, as `offaxis.delta` computes it."""
    files: Files
    """Empty for the base, of which nothing is kept."""
    path: str | None = None
    """Where the base lies, or its Hub id."""


@dataclass(frozen=True)
class Saved:
    """A stored checkpoint."""

    step: int
    anchor: str
    is_anchor: bool
    """Kept whole, as the anchor itself; all others are deltas."""
    resumable: bool
    """Whether optimizer and random state are there, and not weights alone."""
    saved_at: float
    """When Trainer wrote it, in seconds since 1970."""
    everything: Size
    export: Size
    """Weights, configuration and tokenizer: what is left without the state of training."""
    files: Files


@dataclass(frozen=True)
class Index:
    """The stored checkpoints in the order in which they were saved, and their anchors."""

    anchors: tuple[Anchor, ...] = ()
    checkpoints: tuple[Saved, ...] = ()

    @property
    def steps(self) -> list[int]:
        return sorted(one.step for one in self.checkpoints)

    def saved(self, step: int) -> Saved | None:
        return next((one for one in self.checkpoints if one.step == step), None)

    def anchor(self, name: str) -> Anchor:
        """The anchor of that name, which the index holds for every checkpoint."""
        return next(one for one in self.anchors if one.name == name)

    def members(self, name: str) -> list[int]:
        """Steps that need an anchor, its own included, in the order in which they were saved."""
        return [one.step for one in self.checkpoints if one.anchor == name]

    def with_saved(self, saved: Saved, anchor: Anchor) -> Index:
        """One more checkpoint, and its anchor unless that is here."""
        others = [one for one in self.anchors if one.name != anchor.name]
        order = sorted([*self.checkpoints, saved], key=lambda one: one.saved_at)
        return Index((*others, anchor), tuple(order))

    def without(self, step: int) -> Index:
        """One checkpoint less, and without anchors that nothing needs any more."""
        left = tuple(one for one in self.checkpoints if one.step != step)
        needed = {one.anchor for one in left}
        return Index(tuple(one for one in self.anchors if one.name in needed), left)

    def summary(self) -> dict[str, Any]:
        """Numbers of checkpoints, and bytes whole and stored: `export` and `resumable` apart."""
        full = [one.everything for one in self.checkpoints if one.resumable]
        return {
            "checkpoints": len(self.checkpoints),
            "anchors": sum(one.path is None for one in self.anchors),
            "export": _saving(one.export for one in self.checkpoints),
            "resumable": _saving(full) if full else None,
        }

    @staticmethod
    def read(path: Path) -> Index:
        """Read an index. Raises InputError where it is damaged."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["schema"] != 1:
                raise ValueError(f"schema {told['schema']!r}, and this offaxis knows 1")
            found = Index(
                tuple(Anchor(**_with_files(one)) for one in told["anchors"]),
                tuple(_read_saved(one) for one in told["checkpoints"]),
            )
            missing = {one.anchor for one in found.checkpoints} - {a.name for a in found.anchors}
            if missing:
                raise ValueError(f"{', '.join(sorted(missing))}: needed and not listed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read as the index of stored checkpoints "
                f"({type(error).__name__}: {error}); put back a sound copy, or move "
                f"{path.parent} away to begin anew"
            ) from error
        return found

    def write(self, path: Path) -> None:
        """Replace the index on the disk, all at once, a line an entry. Raises OutputError."""
        parts = [
            f'"{key}": [\n' + ",\n".join(json.dumps(asdict(one)) for one in rows) + "\n]"
            for key, rows in (("anchors", self.anchors), ("checkpoints", self.checkpoints))
        ]
        with staged_file(path) as staged:
            staged.write_text('{"schema": 1,\n' + ",\n".join(parts) + "}\n", encoding="utf-8")
            settle(staged)
        settle(path.parent)


def _saving(sizes: Iterable[Size]) -> dict[str, Any]:
    found = list(sizes)
    whole, stored = sum(one.whole for one in found), sum(one.stored for one in found)
    return {"bytes": whole, "stored": stored, "saved": 1 - stored / whole if whole else None}


def _with_files(told: dict[str, Any]) -> dict[str, Any]:
    return told | {"files": {path: (int(n), str(d)) for path, (n, d) in told["files"].items()}}


def _read_saved(told: dict[str, Any]) -> Saved:
    found = Saved(**_with_files(told))
    return replace(found, everything=Size(**told["everything"]), export=Size(**told["export"]))


def settle(path: Path) -> None:
    """Ask the system to bring a file or a directory to the disk: a power cut may follow."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
