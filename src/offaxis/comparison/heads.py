"""How attention heads lie in the rows or columns of projections, as a config tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["heads"]

_NAMES = {
    "query": ("num_attention_heads", "n_head", "num_heads"),
    "key_value": ("num_key_value_heads",),
    "dim": ("head_dim",),
    "width": ("hidden_size", "n_embd", "d_model"),
}


def heads(config: Mapping[str, Any]) -> dict[str, int] | None:
    """{"query": heads of q and o, "key_value": of k and v, "dim": of one head}, or None.

    A multimodal config's `text_config` counts. Without `head_dim` the width must divide evenly.
    """
    inner = config.get("text_config")
    found = _read(inner) if isinstance(inner, Mapping) else None
    return found or _read(config)


def _read(config: Mapping[str, Any]) -> dict[str, int] | None:
    values = {key: _number(config, names) for key, names in _NAMES.items()}
    query, width = values["query"], values["width"]
    if query is None:
        return None
    dim = values["dim"]
    if dim is None and width is not None and width % query == 0:
        dim = width // query
    if dim is None:
        return None
    return {"query": query, "key_value": values["key_value"] or query, "dim": dim}


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
