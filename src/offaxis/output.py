"""Results that appear whole: written into a hidden sibling directory, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from offaxis.errors import OutputError

__all__ = ["check_output", "explained", "staged_directory", "staged_file"]

_LONGEST_ENDING = 40


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Raise OutputError, before any work, where `out` could not become the result's directory."""
    with explained(out):
        _staging_place(out.expanduser().resolve(), overwrite)


@contextlib.contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn an OSError of writing to `out` into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{out}: cannot be written ({reason}); choose another --out") from error


def _staging_place(out: Path, overwrite: bool) -> Path:
    """Where the hidden directory goes: beside `out`, or inside it where that cannot be.

    Inside: `out` is a mount point, or its parent cannot be written. OutputError where neither can.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file is there; choose another directory")
    if out.is_dir() and not overwrite and any(out.iterdir()):
        raise OutputError(f"{out}: not empty; choose another directory or pass --overwrite")
    nearest = next(one for one in out.parents if one.exists())
    beside = nearest.is_dir() and _writable(nearest)
    if out.is_dir() and not _writable(out):
        raise OutputError(f"{out}: this directory cannot be written; choose another")
    if beside and not (out.is_dir() and out.stat().st_dev != out.parent.stat().st_dev):
        return out.parent
    if out.is_dir():
        return out
    raise OutputError(f"{out}: {nearest} is not a directory that can be written; choose another")


def _writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def _publish(staged: Path, out: Path) -> None:
    """Rename the staged directory to `out`, or its entries into an `out` that must stay.

    A non-empty `out` stays, and so does the working directory, which a shell may stand in.
    """
    if out.is_dir() and staged.parent != out and not any(out.iterdir()) and Path.cwd() != out:
        out.rmdir()
    if not out.exists():
        staged.rename(out)
        return
    retired = Path(tempfile.mkdtemp(dir=staged.parent, prefix=f".{out.name}.old-"))
    for entry in sorted(staged.iterdir()):
        target = out / entry.name
        if target.exists() or target.is_symlink():
            target.rename(retired / entry.name)
        entry.rename(target)
    staged.rmdir()
    shutil.rmtree(retired)


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `out` when the block ends and is removed if it raises.

    It is hidden, and on the same file system. `out` must be missing or empty unless `overwrite`;
    then entries of the same name are replaced, one after another, and all others stay (a kill
    between two of these renames leaves some old and some new). A symbolic link is followed.
    Raises OutputError where `out` cannot be written.
    """
    with explained(out):
        out = out.expanduser().resolve()
        place = _staging_place(out, overwrite)
        made = [one for one in (place, *place.parents) if not one.exists()]
    # Named before it is made, so that an interrupt at any moment finds it.
    staged = place / f".{out.name}.partial-{secrets.token_hex(8)}"
    try:
        with explained(out):
            place.mkdir(parents=True, exist_ok=True)
            staged.mkdir()
        yield staged
        with explained(out):
            _publish(staged, out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        with contextlib.suppress(OSError):  # someone else has put something there
            for directory in made:
                directory.rmdir()
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """A path to write, which becomes `out` when the block ends and is removed if it raises.

    It is hidden, beside `out`, and has its ending. Parents are created; a file that is there is
    replaced. Raises OutputError where `out` is a directory or cannot be written.
    """
    out = out.expanduser().absolute()
    ending = out.suffix if len(out.suffix) < _LONGEST_ENDING else ""
    # without the name itself, which may be as long as a name can be
    staged = out.with_name(f".{os.getpid()}.partial-{secrets.token_hex(8)}{ending}")
    with explained(out):
        if out.is_dir():
            raise OutputError(f"{out}: a directory is there; choose another name")
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield staged
        with explained(out):
            staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)
