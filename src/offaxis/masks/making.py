"""A mask built and saved: what `offaxis mask` does."""

from __future__ import annotations

from os import fspath
from pathlib import Path
from typing import Any

from offaxis.checkpoint import Checkpoint
from offaxis.errors import OutputError
from offaxis.masks.building import AnyPath, build
from offaxis.masks.describing import info
from offaxis.masks.file import save

__all__ = ["make"]


def make(base: AnyPath | Checkpoint, rule: str, *, out: AnyPath, **options: Any) -> dict[str, Any]:
    """Build a mask, save it to `out`, and say what it holds.

    options: those of `build`. Returns `file`, `bytes` (of the file), and what `info` gives. Raises
    as `build` and `save` do; a file that is at `out` stays until the new one is whole.
    """
    path = Path(fspath(out)).expanduser()
    if path.is_dir():  # said before the work
        raise OutputError(f"{path}: a directory is there; choose another name")
    mask = build(base, rule, **options)
    save(mask, path)
    return {"file": fspath(out), "bytes": path.stat().st_size} | info(mask)
