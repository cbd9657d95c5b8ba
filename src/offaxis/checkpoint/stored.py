"""The checkpoint on disk: specs from headers at once, tensors mapped when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from offaxis.checkpoint.header import Entry, Header, read_header
from offaxis.checkpoint.locate import Located
from offaxis.checkpoint.mapped import MappedFile
from offaxis.checkpoint.types import Checkpoint, TensorSpec
from offaxis.errors import CheckpointError
from offaxis.names import natural_key

if TYPE_CHECKING:
    import torch

__all__ = ["StoredCheckpoint", "missing_tensor"]


class StoredCheckpoint(Checkpoint):
    """One or several safetensors files as one lazy, read-only mapping.

    Tensors come in the natural order of their names (`layers.2` before `layers.10`), however
    they are spread over shards, so that results do not depend on the sharding.
    """

    def __init__(self, located: Located) -> None:
        self.source = located.source
        self.root = located.root
        self.config: Mapping[str, object] = MappingProxyType(dict(located.config))
        self.headers = tuple(read_header(path) for path in located.files)
        self._maps = {h.path: MappedFile(h.path, size=h.size) for h in self.headers}
        self._entries = _merge(self.headers, located)
        if not self._entries:
            raise CheckpointError(f"{self.source}: holds no tensors; give a directory with weights")
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {
                name: TensorSpec(
                    name, entry.shape, entry.dtype, path.relative_to(self.root).as_posix()
                )
                for name, (path, entry) in self._entries.items()
            }
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as it is stored, mapped from its file. Raises KeyError with near names."""
        try:
            path, entry = self._entries[name]
        except KeyError:
            raise missing_tensor(name, self) from None
        return self._maps[path].tensor(entry)

    def extent(self, name: str) -> tuple[Path, int, int]:
        """(file, start, stop) of the bytes of a tensor."""
        path, entry = self._entries[name]
        return path, entry.start, entry.stop


def missing_tensor(name: str, checkpoint: Mapping[str, object]) -> KeyError:
    """The error for a name that a checkpoint lacks: it says what is there."""
    import difflib

    near = difflib.get_close_matches(name, list(checkpoint)[:20_000], n=3)
    return KeyError(f"no tensor {name!r}; near it are {near or list(checkpoint)[:3]}")


def _merge(headers: tuple[Header, ...], located: Located) -> dict[str, tuple[Path, Entry]]:
    """Name -> (file, entry), in natural order, checked against the index."""
    found: dict[str, tuple[Path, Entry]] = {}
    for header in headers:
        for entry in header.entries:
            if entry.name in found:
                raise CheckpointError(
                    f"{located.source}: tensor {entry.name!r} is in both "
                    f"{found[entry.name][0].name} and {header.path.name}; remove the stale file"
                )
            found[entry.name] = (header.path, entry)
    if located.index is not None:
        check_index(located, {name: path for name, (path, _) in found.items()})
    return {name: found[name] for name in sorted(found, key=lambda n: (natural_key(n), n))}


def check_index(located: Located, found: Mapping[str, Path]) -> None:
    """The index and the shards must name the same tensors in the same files."""
    assert located.index is not None
    for name, shard in located.index.items():
        where = found.get(name)
        if where != located.root / shard:
            actual = "in no shard" if where is None else f"in {where.name}"
            raise CheckpointError(
                f"{located.index_file}: says that {name!r} is in {shard}, but it is {actual}; "
                "download or save the checkpoint again"
            )
    for name, path in found.items():
        if name not in located.index:
            raise CheckpointError(
                f"{path}: holds {name!r}, which {located.index_file} does not name; "
                "download or save the checkpoint again"
            )
