"""Storing one checkpoint: as a delta that was decoded once, or whole as the next anchor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from offaxis import delta
from offaxis.delta.folder import is_state, open_folder, resumes
from offaxis.errors import DeltaError
from offaxis.train.checkpoints.index import BASE, Anchor, Files, Saved, Size, settle
from offaxis.train.checkpoints.store import Stamps, Store, manifest, missing_part, stamps

__all__ = ["Plan", "store_checkpoint"]


@dataclass(frozen=True)
class Plan:
    """How a run's checkpoints are stored."""

    anchor_every: int
    codec: str
    base: str | None


def store_checkpoint(store: Store, step: int, plan: Plan) -> tuple[Stamps, str | None]:
    """Store `checkpoint-STEP`, which lies whole in the run's directory, and list it.

    Returns the stamps of the files that were stored, and what was found wrong with the anchor, if
    that made a new one necessary. The checkpoint is listed after all that it needs is on the disk;
    if anything fails before, nothing of it stays.
    """
    folder = store.place(step)
    if not folder.is_dir():
        raise DeltaError(f"{folder}: is not there; DeltaCheckpointCallback stores no other place")
    seen, files = stamps(folder), manifest(folder)
    if store.index.saved(step) is not None:
        store.forget(step)
    anchor, trouble = _anchor(store, plan)
    made = _as_delta(store, step, files, anchor, plan) if anchor else None
    if anchor and made is None:
        trouble = f"{anchor.path or store.home / anchor.name}: its weights were changed"
    saved, anchor = made or _as_anchor(store, step, files)
    if stamps(folder) != seen:
        raise DeltaError(f"{folder}: changed while it was stored; save again when nobody writes")
    store.write(store.index.with_saved(saved, anchor))
    return seen, trouble


def _anchor(store: Store, plan: Plan) -> tuple[Anchor | None, str | None]:
    """The anchor for the next delta; None where a new one is due, with the reason if it is bad."""
    index = store.index
    if not index.checkpoints:
        return (None if plan.base is None else Anchor(BASE, None, "", {}, plan.base)), None
    anchor = index.anchor(index.checkpoints[-1].anchor)
    if len(index.members(anchor.name)) >= plan.anchor_every:
        return None, None
    if anchor.path is not None:
        path = plan.base or anchor.path
        gone = Path(path).is_absolute() and not Path(path).exists()
        return (None, f"{path} is gone") if gone else (replace(anchor, path=path), None)
    wrong = missing_part(store.home / anchor.name, anchor.files)
    return (None, f"{store.home / anchor.name}: {wrong}") if wrong else (anchor, None)


def _as_delta(
    store: Store, step: int, files: Files, anchor: Anchor, plan: Plan
) -> tuple[Saved, Anchor] | None:
    """Pack and decode once. None where the anchor's weights are others than they were."""
    path = store.delta(step)
    against = store.home / anchor.name if anchor.path is None else anchor.path
    try:
        made = delta.pack(against, store.place(step), out=path, codec=plan.codec)
        if anchor.digest and made["base"] != anchor.digest:
            path.unlink()
            return None
        found = delta.verify(against, path)
        whole = sum(size for size, _ in files.values())
        if (found["files"], found["bytes"]) != (len(files), whole):
            raise DeltaError(
                f"{path}: keeps {found['files']} files of {found['bytes']} bytes, and "
                f"{store.place(step)} has {len(files)} of {whole}; save it again"
            )
        settle(path)
        settle(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    export = made["export"]
    sizes = Size(whole, made["bytes"]), Size(export["bytes"], export["delta"])
    saved = _saved(store, step, files, sizes, anchor=anchor.name, is_anchor=False)
    return saved, replace(anchor, digest=made["base"])


def _as_anchor(store: Store, step: int, files: Files) -> tuple[Saved, Anchor]:
    name = store.keep_anchor(step, files)
    whole = sum(size for size, _ in files.values())
    export = sum(size for path, (size, _) in files.items() if not is_state(path))
    anchor = Anchor(name, step, open_folder(store.home / name).digest(), files)
    sizes = Size(whole, whole), Size(export, export)
    return _saved(store, step, files, sizes, anchor=name, is_anchor=True), anchor


def _saved(
    store: Store, step: int, files: Files, sizes: tuple[Size, Size], *, anchor: str, is_anchor: bool
) -> Saved:
    return Saved(
        step=step,
        anchor=anchor,
        is_anchor=is_anchor,
        resumable=any(map(resumes, files)),
        saved_at=store.place(step).stat().st_mtime,
        everything=sizes[0],
        export=sizes[1],
        files=files,
    )
