"""From what the user typed to the files that hold the tensors.

A path that exists wins; anything else that looks like `org/name[@revision]` is a Hub id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offaxis.checkpoint.hub import HUB_ID, fetch
from offaxis.errors import CheckpointError

__all__ = ["Located", "locate", "read_json"]

_PICKLES = (".bin", ".pt", ".pth")
_NOT_WEIGHTS = re.compile(r"^(?:training_args|optimizer|scheduler|rng_state|scaler|random_states)")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})\.(?:safetensors|bin)$")
_ALLOW = "pass --allow-pickle (allow_pickle=True) to load it, or save it as safetensors"


@dataclass(frozen=True)
class Located:
    """The files of one checkpoint.

    `index` maps tensor names to shard names where an index file says so; `adapter` is the
    `adapter_config.json` of a PEFT adapter.
    """

    source: str
    root: Path
    files: tuple[Path, ...]
    config: Mapping[str, object] = field(default_factory=dict)
    index: Mapping[str, str] | None = None
    index_file: Path | None = None
    adapter: Mapping[str, object] | None = None
    pickled: bool = False


def locate(source: str | Path, *, allow_pickle: bool, revision: str | None) -> Located:
    """Find the files that `source` names.

    Raises CheckpointError where there is none, where an index names a shard that is missing or
    outside its directory, or where only pickles are there and they were not allowed.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.is_dir():
        return _directory(text, path, allow_pickle=allow_pickle)
    if path.exists():
        return _single(text, path, allow_pickle=allow_pickle)
    if HUB_ID.fullmatch(text) is None:
        raise CheckpointError(
            f"{text}: no such file or directory; give a directory, a .safetensors file, a PEFT "
            "adapter directory, or a Hub id (org/name[@revision])"
        )
    return _directory(
        text, fetch(text, revision=revision, allow_pickle=allow_pickle), allow_pickle=allow_pickle
    )


def read_json(path: Path) -> dict[str, object]:
    """One JSON object. Raises CheckpointError where the file is unreadable or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}); download or save it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download or save it again")
    return value


def _config(root: Path) -> dict[str, object]:
    path = root / "config.json"
    return read_json(path) if path.is_file() else {}


def _single(text: str, path: Path, *, allow_pickle: bool) -> Located:
    """One file, with the `config.json` beside it if there is one."""
    if path.suffix == ".safetensors":
        if path.name.startswith("adapter_model") and (path.parent / "adapter_config.json").exists():
            return _adapter(text, path.parent, allow_pickle=allow_pickle)
        return Located(text, path.parent, (path,), _config(path.parent))
    if path.suffix not in _PICKLES:
        raise CheckpointError(
            f"{text}: not a .safetensors file; give one, or the directory that holds the model"
        )
    if not allow_pickle:
        raise CheckpointError(f"{text}: a pickle, which can run code when it is loaded; {_ALLOW}")
    return Located(text, path.parent, (path,), _config(path.parent), pickled=True)


def _directory(text: str, root: Path, *, allow_pickle: bool) -> Located:
    names = _listing(root)
    whole = [name for name in names if name.endswith(".safetensors")]
    models = [name for name in whole if not name.startswith("adapter_")]
    if "adapter_config.json" in names:
        if not models:
            return _adapter(text, root, allow_pickle=allow_pickle)
        if any(name.startswith("adapter_model") for name in names):
            raise CheckpointError(
                f"{text}: holds both a model ({models[0]}) and an adapter (adapter_config.json); "
                f"give the file itself ({root / models[0]}), or move one of them away"
            )
    if models or "model.safetensors.index.json" in names:
        return _safetensors(text, root, names, models)
    pickles = [n for n in names if n.endswith(_PICKLES) and not _NOT_WEIGHTS.match(n)]
    if not pickles:
        raise CheckpointError(
            f"{text}: holds no .safetensors file ({_inventory(names)}); give the directory that "
            "holds the weights"
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{text}: holds only pickles ({pickles[0]}), which can run code when they are loaded; "
            f"{_ALLOW}"
        )
    return _pickles(text, root, names, pickles)


def _listing(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in root.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{root}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def _inventory(names: list[str]) -> str:
    return (
        "it is empty" if not names else f"it has {', '.join(names[:4])}" + "..." * (len(names) > 4)
    )


def _safetensors(text: str, root: Path, names: list[str], models: list[str]) -> Located:
    """`model.safetensors` before an index before loose shards, as transformers looks for them."""
    config = _config(root)
    if "model.safetensors" in models:
        return Located(text, root, (root / "model.safetensors",), config)
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    if "model.safetensors.index.json" in indexes:
        indexes = ["model.safetensors.index.json"]
    if len(indexes) > 1:
        raise CheckpointError(
            f"{text}: {len(indexes)} index files ({', '.join(indexes)}); leave one in the directory"
        )
    if indexes:
        return _indexed(text, root, root / indexes[0], config)
    _check_complete(text, models)
    return Located(text, root, tuple(root / name for name in models), config)


def _indexed(text: str, root: Path, index_file: Path, config: Mapping[str, object]) -> Located:
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file}: has no weight_map; download or save it again")
    index: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        index[tensor] = _inside(index_file, tensor, shard)
    shards = sorted(set(index.values()))
    for shard in shards:
        if not (root / shard).is_file():
            tensor = next(name for name, where in index.items() if where == shard)
            raise CheckpointError(
                f"{index_file}: names the shard {shard} (for {tensor!r}), which is not in {root}; "
                "finish the download or copy the missing shard"
            )
    files = tuple(root / shard for shard in shards)
    return Located(text, root, files, config, index, index_file)


def _inside(index_file: Path, tensor: str, shard: object) -> str:
    """The shard's name, if it lies below the index's directory by its words alone.

    Symbolic links are followed: the Hub's cache is made of them.
    """
    if not isinstance(shard, str) or not shard:
        raise CheckpointError(
            f"{index_file}: tensor {tensor!r} is in {shard!r}, which is no file name; "
            "download or save the index again"
        )
    path = Path(shard)
    if path.is_absolute() or ".." in path.parts or "\\" in shard or "\0" in shard:
        raise CheckpointError(
            f"{index_file}: tensor {tensor!r} is in {shard!r}, outside the index's directory; "
            "do not trust this checkpoint, or correct its index"
        )
    return shard


def _check_complete(text: str, names: list[str]) -> None:
    """Without an index, `x-00001-of-00003` must come with its two siblings."""
    seen: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _SHARD.match(name)
        if match is not None:
            series = (match["stem"], int(match["total"]))
            seen.setdefault(series, set()).add(int(match["number"]))
    for (stem, total), numbers in seen.items():
        if len(numbers) < total:
            raise CheckpointError(
                f"{text}: has {len(numbers)} of the {total} shards {stem}-*; finish the download"
            )


def _pickles(text: str, root: Path, names: list[str], pickles: list[str]) -> Located:
    config = _config(root)
    if "pytorch_model.bin" in pickles:
        return Located(text, root, (root / "pytorch_model.bin",), config, pickled=True)
    if "pytorch_model.bin.index.json" in names:
        found = _indexed(text, root, root / "pytorch_model.bin.index.json", config)
        return Located(text, root, found.files, config, found.index, found.index_file, pickled=True)
    _check_complete(text, pickles)
    return Located(text, root, tuple(root / name for name in pickles), config, pickled=True)


def _adapter(text: str, root: Path, *, allow_pickle: bool) -> Located:
    config = read_json(root / "adapter_config.json")
    weights = root / "adapter_model.safetensors"
    if weights.is_file():
        return Located(text, root, (weights,), adapter=config)
    pickle = root / "adapter_model.bin"
    if not pickle.is_file():
        raise CheckpointError(
            f"{text}: has adapter_config.json but no adapter_model.safetensors; finish the download"
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{text}: its adapter is a pickle (adapter_model.bin), which can run code when it is "
            f"loaded; {_ALLOW}"
        )
    return Located(text, root, (pickle,), adapter=config, pickled=True)
