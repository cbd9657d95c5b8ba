"""A model like the base with predicted tensors, in the checkpoints' dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from offaxis.checkpoint import Checkpoint
from offaxis.checkpoint.dtypes import FLOATS, code_of, torch_dtype
from offaxis.checkpoint.header import Header
from offaxis.checkpoint.rewriting import Rewriting, check_target, rounded
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.predict.fitting import stretches
from offaxis.predict.series import Series

__all__ = ["DTYPES", "check_place", "codes_of", "opened_files", "stored_as", "stored_base"]

DTYPES = ("float16", "bfloat16", "float32", "float64")


def stored_base(base: Checkpoint) -> StoredCheckpoint:
    """The base as files that can be written again. CheckpointError where they are pickles."""
    if not isinstance(base, StoredCheckpoint):
        raise CheckpointError(
            f"{base.source}: holds pickles, and the prediction is written in the base's files; "
            "save the base as safetensors first"
        )
    return base


def check_place(series: Series, out: Path) -> None:
    """OutputError where `out` is the base or a checkpoint, or holds another model's weights."""
    target = out.expanduser().resolve()
    for name in (series.base.source, *series.names):
        path = Path(name).expanduser()
        root = path if path.is_dir() else path.parent
        if path.exists() and root.resolve() == target:
            raise OutputError(f"{out}: is the directory of {name}; choose another")
    check_target(stored_base(series.base), out.expanduser())


def codes_of(series: Series, dtype: str | None) -> dict[str, str]:
    """Stored name → dtype code of what is written, for every floating-point tensor of the base.

    dtype: one for all; None: the last checkpoint's for each parameter (the base's for adapters),
    and the base's for constants. InputError for a dtype that is not in `DTYPES`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}, or leave it out")
    wanted = None if dtype is None else code_of(getattr(torch, dtype))
    specs = series.base.specs
    return {name: wanted or series.code_of(name) for name in specs if specs[name].dtype in FLOATS}


def opened_files(
    base: StoredCheckpoint,
    out: Path,
    *,
    codes: Mapping[str, str],
    changed: Collection[str],
    told: Callable[[str], None] = lambda _: None,
) -> Rewriting:
    """The files of `base` to be written into `out`, each tensor in the dtype that `codes` says."""
    same = all(base.specs[name].dtype == code for name, code in codes.items())
    if same:
        return Rewriting(base, out, changed=changed, told=told)
    return _Recoded(base, out, codes=codes, changed=changed, told=told)


class _Recoded(Rewriting):
    """`Rewriting` with a dtype for each tensor; the configuration names the most frequent one."""

    def __init__(
        self, base: StoredCheckpoint, out: Path, *, codes: Mapping[str, str], **options: Any
    ) -> None:
        entries: Counter[str] = Counter()
        for name, code in codes.items():
            entries[code] += base.specs[name].numel
        main = str(torch_dtype(entries.most_common(1)[0][0])).removeprefix("torch.")
        super().__init__(base, out, dtype=main, **options)
        self._codes = codes

    def _laid_out(self, path: Path, header: Header, new: Mapping[str, Any]) -> Any:
        entries = tuple(
            replace(one, dtype=self._codes.get(one.name, one.dtype)) for one in header.entries
        )
        return super()._laid_out(path, replace(header, entries=entries), new)

    def _stored_as(self, code: str) -> str:
        return code


def stored_as(name: str, value: torch.Tensor, code: str) -> torch.Tensor:
    """A predicted tensor, rounded once to its dtype. CheckpointError where it does not fit."""
    dtype = torch_dtype(code)
    assert dtype is not None  # the code of a tensor that could be read
    out = torch.empty(value.shape, dtype=dtype)
    bad = over = 0
    flat, found = value.reshape(-1), out.view(-1)
    for part in stretches(value.numel(), 1):
        bad += int((~torch.isfinite(flat[part])).sum())
        found[part] = rounded(flat[part], dtype)
        over += int((~torch.isfinite(found[part].double())).sum())
    if bad:
        raise CheckpointError(
            f"{name}: {bad} of {value.numel()} predicted entries are not finite; predict a nearer "
            "step, or leave the checkpoint out that grows without bound"
        )
    if over:
        raise CheckpointError(
            f"{name}: {over} of {value.numel()} predicted entries, up to "
            f"{float(value.double().abs().max()):.3g}, do not fit into {code}; pass --dtype float32"
        )
    return out
