"""Checkpoints of the Hugging Face Hub, through huggingface_hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from offaxis.errors import CheckpointError

__all__ = ["HUB_ID", "fetch"]

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>\S+))?")
"""`org/name` or `org/name@revision`."""

_BESIDE = ["*.json", "*.txt", "*.model", "*.jinja"]
_LANDMARKS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "pytorch_model.bin",
)


def fetch(source: str, *, revision: str | None, allow_pickle: bool) -> Path:
    """The snapshot directory of a Hub id, downloaded where the cache lacks it.

    Only the files at the top level of the repository are taken: weights, configuration and
    tokenizer. With HF_HUB_OFFLINE=1, or without a network, the cache alone answers. Pickles are
    fetched only where they are allowed and the repository has no safetensors.

    Raises CheckpointError where neither the Hub nor the cache has it.
    """
    match = HUB_ID.fullmatch(source)
    assert match is not None, source
    repo, wanted = match["repo"], match["revision"] or revision
    root = _snapshot(source, repo, wanted, ["*.safetensors", *_BESIDE])
    if allow_pickle and not any(root.glob("*.safetensors")):
        root = _snapshot(source, repo, wanted, ["*.bin", *_BESIDE])
    return root


def _snapshot(source: str, repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        cached = _cached(repo, revision)
        if cached is not None:
            return cached
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{source}: no such file or directory, and the Hub could not give the model {repo}{at} "
            f"({_first_line(error)}); check the path or the id, log in with `hf auth login` if it "
            "is private or gated, or download it while online"
        ) from error


def _cached(repo: str, revision: str | None) -> Path | None:
    """The cached snapshot, complete or not: what is missing is named when it is read."""
    from huggingface_hub import errors, try_to_load_from_cache

    for name in _LANDMARKS:
        try:
            found = try_to_load_from_cache(repo, name, revision=revision)
        except errors.HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
