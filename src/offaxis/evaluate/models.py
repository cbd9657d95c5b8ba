"""What is evaluated: a model or a PEFT adapter, its tokenizer, and which weights they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.checkpoint.digest import checksum, file_digest
from offaxis.errors import CheckpointError, InputError
from offaxis.live import LiveModel, load_live
from offaxis.provenance import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ModelId", "adapter_base", "identify", "load_model", "load_tokenizer", "versions"]

_ADAPTER = "adapter_config.json"
_TELLING = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ModelId:
    """Which weights were run."""

    source: str
    """The argument that named the model, verbatim."""
    digest: str | None
    """XXH3-128 of the directory's weights, configuration and tokenizer files, the base's digest
    mixed in for an adapter; the commit for a Hub id; None where neither can be had."""
    base: str | None = None
    """An adapter's base."""


def adapter_base(directory: Path) -> str | None:
    """The base of an adapter directory, or None where it is no adapter.

    A relative path is taken from the working directory, else from the adapter's own.
    """
    path = directory / _ADAPTER
    if not path.is_file() or (directory / "config.json").is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: names no base_model_name_or_path ({error}); save the adapter again"
        ) from error
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{path}: base_model_name_or_path is {base!r}; write the base there")
    beside = directory / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else base


def load_model(source: str, *, dtype: str = "float32", device: str | None = None) -> LiveModel:
    """A model directory, a Hub id, or a PEFT adapter directory over its base, ready to run.

    An adapter is applied, not merged, and its tokenizer is used where it has one.
    """
    directory = Path(source).expanduser()
    base = adapter_base(directory)
    if base is None:
        return load_live(source, dtype=dtype, device=device)
    live = load_live(base, dtype=dtype, device=device)
    try:
        report: Any = live.model.load_adapter(str(directory))
    except Exception as error:  # peft and transformers raise many kinds
        raise CheckpointError(
            f"{source}: this adapter cannot be put on {base} ({type(error).__name__}: {error}); "
            "merge it with PEFT and evaluate the merged model"
        ) from error
    if absent := sorted(getattr(report, "missing_keys", None) or []):
        raise CheckpointError(
            f"{source}: {len(absent)} adapter tensors are not in its weights, the first "
            f"{absent[0]}; save the whole adapter"
        )
    own = (directory / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(source) if own else live.tokenizer
    return LiveModel(live.model.eval(), tokenizer, source)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, an adapter's own or its base's."""
    from transformers import AutoTokenizer

    directory = Path(source).expanduser()
    base = adapter_base(directory)
    if base is not None and not (directory / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    name, _, revision = source.partition("@")
    options: dict[str, Any] = {"local_files_only": True} if directory.is_dir() else {}
    if revision and not directory.is_dir():
        options["revision"] = revision
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(directory) if directory.is_dir() else name, **options
        )
    except Exception as error:  # transformers and the Hub raise many kinds
        raise CheckpointError(
            f"{source}: its tokenizer cannot be loaded ({type(error).__name__}: {error})"
        ) from error
    return found


def identify(source: str) -> ModelId:
    """Which weights `source` names now. A directory is read once, at the speed of the disk."""
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return ModelId(source, _commit(source))
    base = adapter_base(directory)
    lines = [
        f"{path.name}\t{file_digest(path).hex()}\n"
        for pattern in _TELLING
        for path in sorted(directory.glob(pattern))
    ]
    if base is not None:
        lines.append(f"base\t{identify(base).digest}\n")
    if not lines:
        raise InputError(f"{source}: no config.json and no weights; give a model's directory")
    return ModelId(source, checksum("".join(lines).encode()), base)


def _commit(source: str) -> str | None:
    """The commit that the local cache, or the Hub, has for an id; None where that is unknown."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, revision = source.partition("@")
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
        if isinstance(cached, str):
            return Path(cached).parent.name
        found: str | None = HfApi().model_info(name, revision=revision or None).sha
    except Exception:  # no network, no such id: loading it says so in better words
        return None
    return found


def versions() -> dict[str, str | None]:
    """Versions of Python and of each library that touches a score; None where it is not there."""
    return library_versions("transformers", "peft", "vllm", "math-verify", "numpy")
