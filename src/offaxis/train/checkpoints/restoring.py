"""A stored checkpoint given back, every file byte for byte."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offaxis import delta
from offaxis.errors import CheckpointError, DeltaError, InputError
from offaxis.output import staged_directory
from offaxis.train.checkpoints.index import Anchor, Files, Index, Saved
from offaxis.train.checkpoints.store import Store, is_finished, manifest, missing_part, take

__all__ = ["restore_checkpoint"]

_log = logging.getLogger("offaxis.train")


def restore_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    out: str | Path | None = None,
    base: str | Path | None = None,
) -> Path:
    """Make `checkpoint-STEP` of a run again, every file byte for byte, and return its path.

    run_dir: the output directory of a run that trained with `DeltaCheckpointCallback`.
    out: the folder to make, by default the checkpoint's old place, where a whole one is returned
    as it is (and the callback removes it again once newer ones are stored).
    base: where the model lies that was the callback's `base`, if it was moved since.

    The result can be handed to `trainer.train(resume_from_checkpoint=...)`. Every file is compared
    with the digest taken when it was saved; the folder appears whole or not at all. Raises
    InputError where the step is not stored (naming those that are) or its old place holds
    something else, DeltaError where the anchor is missing or changed or the delta damaged,
    OutputError where the folder cannot be written.
    """
    run = Path(run_dir).expanduser().absolute()
    old = run / f"checkpoint-{step}"
    if not (run / "deltas" / "index.json").is_file() and is_finished(old):
        store = Store(run, Index())
    else:
        store = Store.open(run)
    saved = store.index.saved(step)
    if out is None and old.exists():
        _check_there(old, saved)
        return old
    target = old if out is None else Path(out).expanduser().absolute()
    if saved is None and not is_finished(old):
        raise InputError(_not_stored(store, step))
    with _noticed(store, target), staged_directory(target) as staged:
        if saved is None:
            shutil.copytree(old, staged, dirs_exist_ok=True)
        else:
            _fill(store, saved, staged, base)
            os.utime(staged, (saved.saved_at, saved.saved_at))  # Trainer rotates by age
    _tell_best(target)
    return target


def _not_stored(store: Store, step: int) -> str:
    steps = sorted({*store.index.steps, *store.whole()})
    has = f"those that are: {', '.join(map(str, steps))}" if steps else "none is yet"
    return f"{store.run}: checkpoint {step} is not stored; {has}"


def _check_there(old: Path, saved: Saved | None) -> None:
    """Raise InputError where the folder in the old place is not the whole checkpoint."""
    if saved is None:
        if not is_finished(old):
            raise InputError(
                f"{old}: was never saved to its end and is not stored; restore an earlier step"
            )
        return
    wrong = _difference(manifest(old), saved.files)
    if wrong:
        raise InputError(
            f"{old}: is there, but {wrong}, unlike the stored checkpoint; move it away, or "
            "restore to another folder (out=)"
        )


def _difference(found: Files, wanted: Files) -> str | None:
    """The first difference between two folders, in words."""
    for path in sorted({*found, *wanted}):
        if path not in found:
            return f"{path} is missing"
        if path not in wanted:
            return f"{path} is new"
        if found[path] != wanted[path]:
            return f"{path} was changed"
    return None


@contextmanager
def _noticed(store: Store, target: Path) -> Iterator[None]:
    """Keep a training that starts now from taking the half made folder for a leftover."""
    lock = None
    if target.parent == store.run and store.home.is_dir():
        lock = take(store.home / "restoring.lock", shared=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _fill(store: Store, saved: Saved, staged: Path, base: str | Path | None) -> None:
    anchor = store.index.anchor(saved.anchor)
    if anchor.path is None:
        against: str | Path = _kept(store, anchor)
    else:
        against = base if base is not None else anchor.path
        _check_base(store, saved, anchor, against)
    if saved.is_anchor:
        shutil.copytree(against, staged, dirs_exist_ok=True)
    else:
        path = store.delta(saved.step)
        if not path.is_file():
            raise DeltaError(f"{path}: is gone, and checkpoint {saved.step} with it; put it back")
        try:
            delta.apply(against, path, out=staged)
        except CheckpointError as error:
            raise DeltaError(
                f"checkpoint {saved.step} needs {against}, which was changed: {error}"
            ) from error
    wrong = _difference(manifest(staged), saved.files)
    if wrong:
        what = store.home / anchor.name if saved.is_anchor else store.delta(saved.step)
        raise DeltaError(
            f"{what}: gives another checkpoint {saved.step} than was saved: {wrong}; put back a "
            "sound copy"
        )


def _kept(store: Store, anchor: Anchor) -> Path:
    """The folder of an anchor. Raises DeltaError where a file of it is missing or of another size.

    Contents are compared later, on the way: what the delta takes from the anchor, or all of it.
    """
    folder = store.home / anchor.name
    wrong = missing_part(folder, anchor.files)
    if wrong:
        needing = ", ".join(map(str, sorted(store.index.members(anchor.name))))
        raise DeltaError(
            f"{folder}: {wrong}, and the stored checkpoints {needing} need it; put back a sound "
            f"copy (weights with digest {anchor.digest})"
        )
    return folder


def _check_base(store: Store, saved: Saved, anchor: Anchor, base: str | Path) -> None:
    if Path(base).is_absolute() and not Path(base).exists():
        raise DeltaError(
            f"{store.run}: checkpoint {saved.step} was stored against the base {base}, which is "
            f"gone; say where it lies now (base=, weights with digest {anchor.digest})"
        )


def _tell_best(checkpoint: Path) -> None:
    """Trainer forgets the best checkpoint if it is not on the disk when it resumes."""
    state = checkpoint / "trainer_state.json"
    told = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    best = told.get("best_model_checkpoint")
    if best and not Path(best).is_dir():
        _log.warning(
            "%s names %s as the best checkpoint, which is not there: restore it too if you resume "
            "with load_best_model_at_end",
            checkpoint,
            best,
        )
