"""Scores of weights by data, for the rules `gradient` and `fisher` (`offaxis.masks.build`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from offaxis.checkpoint import MemoryCheckpoint
from offaxis.errors import InputError
from offaxis.evaluate.reading import Row, read_rows
from offaxis.train.leash.fisher import diagonal_fisher, per_sample_loss

__all__ = ["KINDS", "Kind", "fisher_scores", "gradient_scores", "score_checkpoint"]

Sample = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt, and of its completion."""
Kind = Literal["gradient", "fisher"]
KINDS: tuple[Kind, ...] = ("gradient", "fisher")


def gradient_scores(model: Any, samples: Sequence[Sample]) -> MemoryCheckpoint:
    """|Σ ∂(−ln π(y | x)) / ∂θ| over the samples (x, y), for every weight θ: float32, on the CPU.

    −ln π is summed over the completion's tokens, so each token counts alike. The names are the
    model's own; `masks.build(base, "gradient", scores={"gradient": ...})` finds the stored ones.
    Gradients that the parameters have are left as they were, whether trainable or not.
    """
    _check(model, samples)
    named = dict(model.named_parameters())
    found = {name: torch.zeros(one.shape, dtype=torch.float32) for name, one in named.items()}
    with _Wanted(model):
        for sample in samples:
            loss = per_sample_loss(model, sample)
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.to("cpu", torch.float32)
    return _scores({name: one.abs() for name, one in found.items()}, model, "gradients")


def fisher_scores(model: Any, samples: Sequence[Sample]) -> MemoryCheckpoint:
    """The mean over the samples of (∂ ln π(y | x) / ∂θ)², for every weight θ: float32, on the CPU.

    The diagonal of the Fisher information where each y was sampled from the model itself; with y
    from data, the "empirical Fisher".
    """
    _check(model, samples)
    with _Wanted(model):
        found = diagonal_fisher(model, samples, loss=per_sample_loss)
    return _scores({name: one.cpu() for name, one in found.items()}, model, "Fisher information")


def score_checkpoint(
    base: str | Path,
    kind: Kind,
    data_file: str | Path,
    *,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> MemoryCheckpoint:
    """`gradient_scores` or `fisher_scores` of a stored model on a file of prompts and completions.

    data_file: what `train`'s key `data` reads: .jsonl, .json, .csv, .tsv or .parquet. A prompt may
    be a list of messages, for the model's chat template. Completions end with the tokenizer's end
    token, as in supervised fine-tuning. limit: rows, drawn by `seed`; None takes all.

    Raises InputError for a column that is missing, with the row, CheckpointError for a model that
    does not load.
    """
    from offaxis.live import load_live

    if kind not in KINDS:
        raise InputError(f"scores {kind!r}: choose gradient or fisher")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least 1 row is needed")
    rows = read_rows(Path(data_file).expanduser())
    if limit is not None and limit < len(rows):
        chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows = [rows[i] for i in chosen]
    texts = [(_cell(row, prompt_column), _text(row, completion_column)) for row in rows]
    live = load_live(base, device=device)
    samples = [_tokens(live.tokenizer, prompt, completion) for prompt, completion in texts]
    return (gradient_scores if kind == "gradient" else fisher_scores)(live.model, samples)


def _cell(row: Row, column: str) -> Any:
    if row.values.get(column) is None:
        raise InputError(
            f"{row.place}: has no {column!r}, only {', '.join(row.values)}; say which columns they "
            "are with prompt_column and completion_column"
        )
    return row.values[column]


def _text(row: Row, column: str) -> str:
    """A completion: text, or the one message of an assistant."""
    value = _cell(row, column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str) or not value:
        raise InputError(f"{row.place}: {column} {value!r:.60} is no text; give one completion")
    return value


def _tokens(tokenizer: Any, prompt: Any, completion: str) -> Sample:
    """Token ids, split where the prompt's own end, or, if a token straddles that, the texts."""
    if isinstance(prompt, list):
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(before, add_special_tokens=False)["input_ids"]
        return ids, tokenizer(completion + (tokenizer.eos_token or ""), add_special_tokens=False)[
            "input_ids"
        ]
    ids = tokenizer(prompt)["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]:
        ids = ids[:-1]
    ended = completion + (tokenizer.eos_token or "")
    together = tokenizer(prompt + ended)["input_ids"]
    if together[: len(ids)] == ids and len(together) > len(ids):
        return ids, together[len(ids) :]
    return ids, tokenizer(ended, add_special_tokens=False)["input_ids"]


def _check(model: Any, samples: Sequence[Sample]) -> None:
    if not samples:
        raise InputError("no samples: give prompts and completions to take gradients on")
    if any(not prompt or not completion for prompt, completion in samples):
        raise InputError("a sample has an empty prompt or completion; leave it out")
    if any(hasattr(one, "full_tensor") for one in model.parameters()):
        raise InputError("the model is sharded; score it in one process, before it is sharded")


def _scores(found: dict[str, torch.Tensor], model: Any, what: str) -> MemoryCheckpoint:
    config = model.config.to_dict() if hasattr(model, "config") else {}
    return MemoryCheckpoint(found, source=f"{what} of the model in memory", config=config)


class _Wanted:
    """Gradients of every parameter, dropout off; both as they were when the block ends."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._had = [(one, one.requires_grad) for one in self._model.parameters()]
        self._training = self._model.training
        self._model.requires_grad_(True).eval()

    def __exit__(self, *_: Any) -> None:
        for parameter, wanted in self._had:
            parameter.requires_grad_(wanted)
        self._model.train(self._training)
