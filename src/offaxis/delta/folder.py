"""What lies in a model's folder: safetensors files, coded by tensor, and everything else.

Unlike `open_checkpoint`, which finds *the* model in a folder, this takes every file, because a
delta gives every file back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offaxis.checkpoint.digest import checksum, content_digest
from offaxis.checkpoint.header import Entry, Header, read_header
from offaxis.checkpoint.locate import locate, read_json
from offaxis.errors import CheckpointError

__all__ = ["Folder", "Source", "is_state", "open_folder", "resumes"]

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_STATE = re.compile(
    r"(?:^|/)(?:training_args|optimizer|scheduler|rng_state|scaler|random_states|trainer_state"
    r"|global_step|zero_pp_rank)|(?:^|/)latest$|\.(?:pt|pth|bin|pkl|distcp)$"
)
_TOLD = re.compile(r"(?:^|/)(?:training_args|trainer_state)")  # saved with weights alone, too


def is_state(path: str) -> bool:
    """Whether a file is there to resume training, and not part of the model that it exports."""
    return _STATE.search(path) is not None


def resumes(path: str) -> bool:
    """Whether a file holds what training needs to go on: optimizer, scheduler or random state."""
    return is_state(path) and not _TOLD.search(path)


@dataclass(frozen=True)
class Source:
    """One safetensors file: its path in the folder, its header as read and as bytes, its bytes."""

    path: str
    header: Header

    @cached_property
    def mapped(self) -> npt.NDArray[np.uint8]:
        """All bytes of the file, mapped."""
        return np.memmap(self.header.path, dtype=np.uint8, mode="r")

    def raw(self, entry: Entry) -> npt.NDArray[np.uint8]:
        return self.mapped[entry.start : entry.stop]

    @property
    def header_text(self) -> str:
        """The header's JSON, byte for byte (UTF-8), without its length prefix."""
        return bytes(self.mapped[8 : self.header.data_start]).decode()


@dataclass(frozen=True)
class Folder:
    """A model's files, by their paths below `root`."""

    source: str
    root: Path
    weights: tuple[Source, ...]
    others: Mapping[str, Path]
    _checksums: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)

    def checksum(self, source: Source, entry: Entry) -> str:
        """The checksum of one tensor's bytes, read once."""
        key = (source.path, entry.name)
        if key not in self._checksums:
            self._checksums[key] = checksum(source.raw(entry))
        return self._checksums[key]

    def digest(self) -> str:
        """The content digest of all its tensors. Reads every byte of them."""
        return content_digest(
            (entry.name, entry.dtype, entry.shape, self.checksum(source, entry))
            for source in self.weights
            for entry in source.header.entries
        )

    @cached_property
    def tensors(self) -> dict[str, list[tuple[Source, Entry]]]:
        """Where each tensor name occurs; twice, where files repeat one another."""
        out: dict[str, list[tuple[Source, Entry]]] = {}
        for source in self.weights:
            for entry in source.header.entries:
                out.setdefault(entry.name, []).append((source, entry))
        return out


def _walk(root: Path, below: str = "") -> Iterator[tuple[str, Path]]:
    """Regular files in order of their paths; hidden ones and nested checkpoints are left out."""
    for entry in sorted((root / below).iterdir()):
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            continue
        if not entry.exists():
            raise CheckpointError(f"{entry}: a link to nothing; restore what it points to")
        if entry.is_dir():
            if not entry.is_symlink() and not _CHECKPOINT.fullmatch(entry.name):
                yield from _walk(root, path)
        elif entry.is_file():
            yield path, entry


def _check_index(found: Mapping[str, Path], name: str) -> None:
    """Every shard that an index names must be there."""
    weight_map = read_json(found[name]).get("weight_map")
    folder = name.rpartition("/")[0]
    for shard in set(weight_map.values()) if isinstance(weight_map, dict) else ():
        if f"{folder}/{shard}".lstrip("/") not in found:
            raise CheckpointError(
                f"{found[name]}: names the shard {shard}, which is not there; finish the download "
                "or copy the missing shard"
            )


def open_folder(
    source: str | Path, *, revision: str | None = None, without: Path | None = None
) -> Folder:
    """The files of a model: a `.safetensors` file alone, a directory, or a Hub id.

    without: a file that is left out (the one that is about to be written).
    Raises CheckpointError where there is no safetensors file, one cannot be read, an index names
    one that is missing, or a link leads nowhere.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = locate(source, allow_pickle=False, revision=revision).root
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{source}: not a .safetensors file; give one, or a directory")
        return Folder(str(source), path.parent, (Source(path.name, read_header(path)),), {})
    try:
        found = dict(sorted(_walk(path)))
        if without is not None and without.is_file():
            found = {name: file for name, file in found.items() if not file.samefile(without)}
    except OSError as error:
        raise CheckpointError(
            f"{source}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    weights = [name for name in found if name.endswith(".safetensors")]
    for name in found:
        if name.endswith(".safetensors.index.json"):
            _check_index(found, name)
    if not weights:
        raise CheckpointError(
            f"{source}: holds no .safetensors file ({len(found)} others); give a directory that "
            "holds the weights"
        )
    return Folder(
        str(source),
        path,
        tuple(Source(name, read_header(found.pop(name))) for name in weights),
        found,
    )
