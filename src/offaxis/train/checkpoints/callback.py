"""`DeltaCheckpointCallback`: every checkpoint of a Trainer run, kept as a delta."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from offaxis.delta.folder import open_folder
from offaxis.errors import InputError, OffaxisError, OutputError
from offaxis.train.checkpoints.index import BASE, Index
from offaxis.train.checkpoints.store import Stamps, Store, manifest, stamps
from offaxis.train.checkpoints.storing import Plan, store_checkpoint

__all__ = ["DeltaCheckpointCallback"]

_log = logging.getLogger("offaxis.train")
_CODECS = ("fast", "small")


class DeltaCheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Keep each checkpoint of a run as a lossless delta against the last anchor.

    anchor_every: how many saves share an anchor; the first of them is the anchor, kept whole.
    codec: "fast", or "small" for fewer bytes and longer pauses.
    keep_full: how many of the newest stored checkpoints stay whole in their places, at least one,
    so that `resume_from_checkpoint=True` works. The best one of `load_best_model_at_end` stays too.
    base: the model that training started from (a directory or a Hub id) as the first anchor.
    Nothing of it is copied: without it, those checkpoints cannot be restored.

    For any `transformers` Trainer, TRL's included; put it last among the callbacks, so that what
    the others do to a checkpoint is stored too. After each save, process zero packs
    `checkpoint-N` into `OUTPUT_DIR/deltas`, decodes it once as a check, lists it in
    `deltas/index.json`, and only then removes older whole checkpoints that are stored. Training
    waits meanwhile. What cannot be stored stays whole (if Trainer's own `save_total_limit` lets
    it) and is warned of through the logger `offaxis.train`; training goes on. A resumed run
    continues its index. `offaxis.train.restore_checkpoint` gives any stored step back.

    Raises InputError for a setting that cannot be used; when training begins, for a base that
    cannot be read, a damaged index, or a folder that another process is training into.
    """

    def __init__(
        self,
        *,
        anchor_every: int = 10,
        codec: str = "fast",
        keep_full: int = 1,
        base: str | Path | None = None,
    ) -> None:
        if anchor_every < 1 or keep_full < 1:
            raise InputError(f"anchor_every {anchor_every}, keep_full {keep_full}: at least 1 each")
        if codec not in _CODECS:
            raise InputError(f"codec {codec!r}: choose one of {', '.join(_CODECS)}")
        if base is not None and Path(base).expanduser().exists():
            base = Path(base).expanduser().absolute()
        self._plan = Plan(anchor_every, codec, None if base is None else str(base))
        self._keep_full = keep_full
        self._store: Store | None = None
        self._stored: dict[int, Stamps] = {}
        self._failed: dict[int, str] = {}
        self._again: set[int] = set()
        self._changed: set[int] = set()
        self._seconds = 0.0

    def summary(self) -> dict[str, Any]:
        """What is stored, as plain values that JSON can hold.

        Keys: `checkpoints` and `anchors` (numbers); `export` (weights, configuration, tokenizer)
        and `resumable` (with the state of optimizer and trainer; null where Trainer saves none),
        each with `bytes` as Trainer wrote them, `stored` bytes, anchors included, and `saved`, a
        share; `whole`, the steps that lie whole in their places as well and are not counted in
        `stored`; `failed`, the steps that could not be stored, with reasons; `seconds` that
        training waited for all this since it began. Only process zero knows.
        """
        store = self._store
        return {
            **(store.index if store else Index()).summary(),
            "whole": store.whole() if store else [],
            "failed": dict(self._failed),
            "seconds": self._seconds,
        }

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Clear away what a kill left, before Trainer looks for a checkpoint to resume from."""
        run = Path(args.output_dir)
        if state.is_world_process_zero and (run / "deltas" / "index.json").is_file():
            with contextlib.suppress(OffaxisError, OSError):  # told when training begins
                store = Store.open(run)
                if store.hold():
                    _tidy(store)
                    store.release()
        _wait_for_all(args)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open or begin the index; store what an earlier run left whole and unlisted."""
        if state.is_world_process_zero:
            self._begin(Path(args.output_dir), state.global_step)
            if getattr(args, "push_to_hub", False):
                _log.warning("push_to_hub uploads the folder deltas, too")
        _wait_for_all(args)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Store the checkpoint that Trainer just wrote, and remove older whole ones."""
        _wait_for_all(args)  # other processes may still write their part of the checkpoint
        if not state.is_world_process_zero:
            return
        started = time.monotonic()
        if self._store is None:
            self._begin(Path(args.output_dir), state.global_step)
        assert self._store is not None
        if self._try_to_store(self._store, state.global_step):
            for step in sorted(self._again):
                if self._store.place(step).is_dir():
                    self._try_to_store(self._store, step)
            self._remove_older(self._store, state)
        self._seconds += time.monotonic() - started

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what was saved."""
        store = self._store
        if store is None or not state.is_world_process_zero:
            return
        try:
            store.unshare(after=-1)
            _log.info("%s", _in_words(store.home, self.summary()))
        except OSError as error:
            _log.warning("%s: anchors may share files with checkpoints: %s", store.home, error)
        store.release()

    def _begin(self, run: Path, step: int) -> None:
        store = Store.begin(run)
        if not store.hold():
            raise InputError(
                f"{store.run}: another process is training into it; use another output_dir"
            )
        self._check_base(store.index)
        self._store, self._stored, self._failed = store, {}, {}
        self._again, self._changed, self._seconds = set(), set(), 0.0
        _tidy(store)
        try:
            store.unshare(after=step)
        except OSError as error:
            raise OutputError(f"{store.home}: cannot be written ({error}); make room") from error
        for one in store.whole():
            if one <= step and store.index.saved(one) is None:
                self._try_to_store(store, one)

    def _check_base(self, index: Index) -> None:
        """Raise where the base is needed and cannot be read."""
        needed = not index.checkpoints or index.checkpoints[-1].anchor == BASE
        if self._plan.base is not None and needed:
            open_folder(self._plan.base)

    def _try_to_store(self, store: Store, step: int) -> bool:
        """Store a checkpoint, or warn and note why not."""
        try:
            self._stored[step], trouble = store_checkpoint(store, step, self._plan)
        except Exception as error:  # whatever it is: training goes on, and the checkpoint stays
            self._failed[step] = str(error) or type(error).__name__
            if isinstance(error, OSError | OutputError) and step not in self._again:
                self._again.add(step)  # there may be room at the next save
            else:
                self._again.discard(step)
            _log.warning(
                "checkpoint-%s is left as it is, for it could not be stored: %s",
                step,
                self._failed[step],
            )
            return False
        self._failed.pop(step, None)
        self._again.discard(step)
        if trouble is not None:
            _log.warning(
                "%s; checkpoint-%s is the new anchor, and what was stored against the old one "
                "cannot be restored without it",
                trouble,
                step,
            )
        return True

    def _is_stored(self, store: Store, step: int) -> bool:
        """Whether a whole checkpoint is, byte for byte, the one that is listed."""
        saved, place = store.index.saved(step), store.place(step)
        if saved is None:
            return False
        seen = stamps(place)
        if self._stored.get(step) == seen:
            return True
        if manifest(place) != saved.files:
            return False
        self._stored[step] = seen
        return True

    def _remove_older(self, store: Store, state: Any) -> None:
        """Remove whole checkpoints that are stored, but not the newest, nor the best one."""
        try:
            whole = set(store.whole())
            listed = [one.step for one in store.index.checkpoints if one.step in whole]
            kept = {state.global_step, *listed[-self._keep_full :]}
            best = state.best_model_checkpoint
            for step in set(listed) - kept:
                place = store.place(step)
                if best is not None and Path(best).is_dir() and place.samefile(best):
                    continue
                if self._is_stored(store, step):
                    store.remove(step)
                elif step not in self._changed:
                    self._changed.add(step)
                    _log.warning("%s stays: it is not what was stored for its step", place)
        except (OffaxisError, OSError) as error:
            _log.warning("%s: whole checkpoints were not removed: %s", store.run, error)


def _tidy(store: Store) -> None:
    for path in store.tidy():
        _log.warning("%s was never saved to its end and is removed", path)


def _wait_for_all(args: Any) -> None:
    """Wait until every process of a distributed run is here."""
    shared = getattr(args, "distributed_state", None)
    if shared is not None:
        shared.wait_for_everyone()


def _in_words(home: Path, found: dict[str, Any]) -> str:
    """One line, in megabytes."""

    def size(one: dict[str, Any]) -> str:
        whole, stored, share = one["bytes"] / 1e6, one["stored"] / 1e6, one["saved"]
        return f"{stored:.1f} of {whole:.1f} MB ({share or 0:.1%} saved)"

    parts = [f"{home}: {found['checkpoints']} checkpoints, {found['anchors']} as anchors"]
    parts.append(f"weights alone {size(found['export'])}")
    if found["resumable"]:
        parts.append(f"resumable {size(found['resumable'])}")
    parts.append(f"{len(found['whole'])} also kept whole")
    if found["failed"]:
        parts.append(f"not stored: {', '.join(map(str, found['failed']))}")
    return "; ".join([*parts, f"training waited {found['seconds']:.1f} s"])
