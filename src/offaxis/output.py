"""Results that appear whole: written into a hidden sibling directory, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from offaxis.errors import OutputError

__all__ = ["check_output", "staged_directory"]


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Raise OutputError, before any work, where `out` could not become the result's directory."""
    try:
        _check(out.expanduser().absolute(), overwrite)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{out}: cannot be written ({reason}); choose another --out") from error


def _check(out: Path, overwrite: bool) -> None:
    parent = next(one for one in (out, *out.parents) if one.exists())
    if not os.access(parent, os.W_OK) or (parent != out and not parent.is_dir()):
        raise OutputError(f"{out}: {parent} is not a directory that can be written; choose another")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file is there; choose another directory")
    if out.is_dir() and not overwrite and any(out.iterdir()):
        raise OutputError(f"{out}: not empty; choose another directory or pass --overwrite")


def _publish(staged: Path, out: Path) -> None:
    """Rename the staged directory to `out`, or its entries into an `out` that is not empty."""
    if out.is_dir() and any(out.iterdir()):
        retired = Path(tempfile.mkdtemp(dir=staged.parent, prefix=f".{out.name}.old-"))
        for entry in sorted(staged.iterdir()):
            target = out / entry.name
            if target.exists() or target.is_symlink():
                target.rename(retired / entry.name)
            entry.rename(target)
        staged.rmdir()
        shutil.rmtree(retired)
        return
    if out.is_dir():
        out.rmdir()
    staged.rename(out)


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `out` when the block ends and is removed if it raises.

    It lies beside `out`, on the same file system. `out` must be missing or empty unless
    `overwrite`; then entries of the same name are replaced and all others stay.
    Raises OutputError where `out` cannot be written.
    """
    out = out.expanduser().absolute()
    staged: Path | None = None
    try:
        _check(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
        mask = os.umask(0)
        os.umask(mask)
        staged.chmod(0o777 & ~mask)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{out}: cannot be written ({reason}); choose another --out") from error
    try:
        yield staged
        try:
            _publish(staged, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
