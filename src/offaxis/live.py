"""The one loader of runnable models: weights and tokenizer of a transformers causal LM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offaxis.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LiveModel", "load_live", "pick_device"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LiveModel:
    """A model that runs, in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    """The argument that named it, verbatim."""


def pick_device(device: str | None = None) -> torch.device:
    """`device` if it is given; otherwise the first GPU, or the CPU where there is none."""
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise InputError(f"device {device!r}: not a torch device; try cpu or cuda:0") from error
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def _locate(source: str) -> tuple[str, dict[str, Any]]:
    """The path or Hub id that transformers should open, and its keyword arguments."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{source}: no config.json, so it is no model that can be run")
        return str(path), {"local_files_only": True}
    if path.exists():
        raise InputError(f"{source}: a file; give the directory of the model that it belongs to")
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"{source}: no such directory, and not a Hub id (org/name[@revision])")
    name, _, revision = source.partition("@")
    return name, {"revision": revision} if revision else {}


def load_live(
    source: str | Path, *, dtype: str = "float32", device: str | None = None
) -> LiveModel:
    """Load a model directory or a Hub id (`org/name[@revision]`) so that it can be run.

    Weights are cast to `dtype` (float32, bfloat16 or float16) and put on `device`, by default a
    GPU if there is one. A directory is read without the network. Remote code is never run and
    weights are read from safetensors alone.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(_DTYPES)}")
    target = pick_device(device)
    where, options = _locate(str(source))
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # transformers, safetensors and the Hub raise many kinds
        raise CheckpointError(
            f"{source}: cannot be loaded as a causal language model with its tokenizer "
            f"({type(error).__name__}: {error})"
        ) from error
    if absent := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{source}: {len(absent)} tensors are not in its weights and would be random, "
            f"the first {absent[0]}; save the whole model"
        )
    return LiveModel(model.to(target).eval(), tokenizer, str(source))
