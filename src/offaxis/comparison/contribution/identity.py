"""Which model a contribution is about: an id that its author gives, and a digest of the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offaxis.checkpoint import Checkpoint, open_checkpoint
from offaxis.checkpoint.digest import checksum, content_digest
from offaxis.errors import InputError

__all__ = ["ID", "Named", "named"]

_WORD = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ID = re.compile(f"{_WORD}(/{_WORD})?(@{_WORD})?")
"""`name`, `org/name` or `org/name@revision`: what a contribution calls a model."""


@dataclass(frozen=True)
class Named:
    """One model: its id, and what was read from its weights (None where they were not read).

    digest: as `offaxis delta info` gives it, the same whatever the sharding; of an adapter, its own
    tensors. dtypes: entries by stored dtype.
    """

    id: str
    digest: str | None = None
    dtypes: tuple[tuple[str, int], ...] | None = None

    def told(self) -> dict[str, Any]:
        """As it stands in the file."""
        dtypes = None if self.dtypes is None else dict(self.dtypes)
        return {"id": self.id, "digest": self.digest, "dtypes": dtypes}


def named(
    sources: Sequence[str], ids: Sequence[str] | None, *, option: str, beside: Path, read: bool
) -> list[Named]:
    """The identity of each source, in order.

    sources: what `compare` was given. ids: what the author calls them, needed where a source is a
    path; option: the name of that argument in messages. beside: where relative paths start. read:
    open the weights, for digest and dtypes.

    Without ids a source must be a Hub id: of no path here, and known to the Hub or, where nothing
    is read, to its cache; a relative path of another directory looks like one.

    Raises InputError where the ids are missing, too few, or look like paths, and CheckpointError
    where the weights are no longer where they were.
    """
    if ids is not None and len(ids) != len(sources):
        raise InputError(
            f"{len(ids)} times {option} for {len(sources)} checkpoints; give one for each, in the "
            "order of the comparison"
        )
    if ids is None:
        ids = [_hub_id(source, beside, option, read) for source in sources]
    for one in ids:
        if ID.fullmatch(one) is None:
            raise InputError(
                f"{option} {one!r} is no id; give a name or org/name[@revision], never a path"
            )
    known: dict[str, Named] = {}
    found = []
    for source, one in zip(sources, ids, strict=True):
        if not read:
            found.append(Named(one))
            continue
        if source not in known:
            known[source] = _identify(_opened(source, beside), one)
        found.append(Named(one, known[source].digest, known[source].dtypes))
    return found


def _local(source: str, beside: Path) -> Path | None:
    """The path that a source names, if it is one on this machine."""
    for start in (Path(), beside):
        path = start / Path(source).expanduser()
        if path.exists():
            return path
    return None


def _hub_id(source: str, beside: Path, option: str, read: bool) -> str:
    ours = _local(source, beside) is not None or ID.fullmatch(source) is None or "/" not in source
    if not ours and (read or _in_cache(source)):  # who reads it will learn whether the Hub has it
        return source
    what = "a path" if ours else "a path from elsewhere, or no longer in the Hub's cache"
    raise InputError(
        f"{source}: {what}; a contribution must hold no path: say what the model is called with "
        f"{option} ID, one for each checkpoint in the order of the comparison"
    )


def _in_cache(source: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    repo = source.partition("@")[0]
    return (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")).is_dir()


def _opened(source: str, beside: Path) -> Checkpoint:
    path = _local(source, beside)
    return open_checkpoint(source if path is None else path, allow_pickle=True)


def _identify(checkpoint: Checkpoint, one: str) -> Named:
    """Reads every byte of the weights once."""
    dtypes: dict[str, int] = {}
    for spec in checkpoint.specs.values():
        dtypes[spec.dtype] = dtypes.get(spec.dtype, 0) + spec.numel
    digest = content_digest(
        (spec.name, spec.dtype, spec.shape, _checksum(checkpoint[spec.name]))
        for spec in checkpoint.specs.values()
    )
    return Named(one, digest, tuple(sorted(dtypes.items())))


def _checksum(tensor: torch.Tensor) -> str:
    return checksum(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
