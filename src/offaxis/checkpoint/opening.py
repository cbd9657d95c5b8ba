"""`open_checkpoint`: anything readable as one lazy mapping."""

from __future__ import annotations

from pathlib import Path

from offaxis.checkpoint.adapter import AdapterCheckpoint
from offaxis.checkpoint.locate import Located, locate
from offaxis.checkpoint.pickled import PickledCheckpoint
from offaxis.checkpoint.quantised import quantised
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.checkpoint.types import Checkpoint
from offaxis.errors import CheckpointError

__all__ = ["open_any", "open_checkpoint"]


def open_checkpoint(
    source: str | Path, *, allow_pickle: bool = False, revision: str | None = None
) -> Checkpoint:
    """Open a checkpoint: names, shapes and dtypes now, tensors when they are asked for.

    source: a `.safetensors` file, a directory (one file, or shards with an index), a PEFT adapter
    directory (to be bound to its base with `bind`), or a Hub id `org/name[@revision]`. A path
    that exists wins over a Hub id.
    allow_pickle: also take `.bin` and `.pt`, loaded with `weights_only=True`.
    revision: branch, tag or commit of a Hub id that does not name one itself.

    Raises CheckpointError where the source is missing, truncated, contradicts itself, holds only
    pickles that were not allowed, or holds quantised codes.
    """
    checkpoint = open_any(locate(source, allow_pickle=allow_pickle, revision=revision))
    reason = quantised(checkpoint.config, checkpoint.specs)
    if reason is not None:
        raise CheckpointError(f"{source}: {reason}")
    return checkpoint


def open_any(located: Located) -> Checkpoint:
    """The checkpoint at `located`, quantised or not."""
    stored = PickledCheckpoint(located) if located.pickled else StoredCheckpoint(located)
    if located.adapter is not None:
        return AdapterCheckpoint(stored, located.adapter)
    return stored
