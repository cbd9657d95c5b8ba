"""What a run leaves beside its weights, so that it can be read and repeated."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offaxis.output import staged_file
from offaxis.provenance import library_versions
from offaxis.train.arguments import Arguments

__all__ = ["CONFIG", "LOG", "RECORD", "finite", "write_log", "write_record"]

CONFIG, RECORD, LOG = "train.yaml", "offaxis.json", "log.json"
_LIBRARIES = ("transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "vllm",
              "deepspeed")  # fmt: skip


def _digest(data: Any) -> str:
    """SHA-256 of the rows, in order."""
    found = hashlib.sha256()
    for row in data:
        found.update(json.dumps(row, sort_keys=True, default=str).encode())
    return found.hexdigest()


def write_record(
    output: Path,
    arguments: Arguments,
    *,
    data: Any,
    base: str | None,
    mask: Mapping[str, Any] | None = None,
) -> None:
    """`train.yaml`, which repeats the run when given to `offaxis train`, and `offaxis.json`.

    base: a digest of the base's weights, where it is at hand. mask: what is to be told of the mask.
    """
    import yaml

    said = {key: value for key, value in arguments.given.items() if key != "overwrite"}
    resolved = arguments.resolved()
    text = yaml.safe_dump(
        {key: resolved.get(key, value) for key, value in said.items()}, sort_keys=False,
        allow_unicode=True,
    )  # fmt: skip
    with staged_file(output / CONFIG) as staged:
        staged.write_text(f"# offaxis train {arguments.method.name} --config {CONFIG}\n{text}")
    rows = len(data) if hasattr(data, "__len__") else None
    record = {
        "schema": 1,
        "method": arguments.method.name,
        "says": arguments.method.says,
        "given": said,
        "arguments": resolved,
        "updates_per_generation": arguments.updates_per_generation,
        "data": {"rows": rows, "sha256": _digest(data) if rows is not None else None},
        "base": base,
        "mask": mask,
        "processes": arguments.config.world_size,
        "command": sys.argv[1:],
        "versions": library_versions(*_LIBRARIES),
    }
    with staged_file(output / RECORD) as staged:
        staged.write_text(json.dumps(finite(record), indent=1, default=str) + "\n")


def finite(value: Any) -> Any:
    """`value` with NaN and infinity as None, which JSON can say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def write_log(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every log row of the run, `log.json`."""
    with staged_file(output / LOG) as staged:
        staged.write_text(json.dumps([finite(row) for row in rows], indent=1) + "\n")
