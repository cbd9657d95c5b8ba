"""Sampling completions with transformers' generate, and scoring them with a verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from offaxis.errors import InputError
from offaxis.live import LiveModel

__all__ = ["Completion", "correctness", "sample", "sample_completions"]

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample: its text without special tokens; its tokens, the end of text among them."""

    text: str
    tokens: tuple[int, ...]
    ended: bool
    """Whether the model ended it; else it was cut off at the limit of tokens."""


def sample_completions(
    live: LiveModel,
    prompts: Sequence[str],
    *,
    k: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 512,
) -> list[list[str]]:
    """The texts of `sample`: a list of k strings for each prompt."""
    drawn = sample(
        live,
        prompts,
        k=k,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    return [[one.text for one in row] for row in drawn]


def sample(
    live: LiveModel,
    prompts: Sequence[str],
    *,
    k: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 512,
) -> list[list[Completion]]:
    """k completions of every prompt: a list of k for each, in the order of `prompts`.

    Prompts are padded on the left and sampled from the full softmax at `temperature` (no top-k,
    no top-p), `batch_size` sequences at a time. The global random state is left as it was.
    The result depends on `batch_size` as well as `seed`.
    """
    if k < 1 or max_new_tokens < 1 or batch_size < 1 or not temperature > 0:
        raise InputError(
            f"k {k}, max_new_tokens {max_new_tokens}, batch_size {batch_size} and temperature "
            f"{temperature}: all must be positive"
        )
    rows = [prompt for prompt in prompts for _ in range(k)]
    device = live.model.device
    out: list[Completion] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            out.extend(_sample_batch(live, batch, max_new_tokens, temperature))
    return [out[start : start + k] for start in range(0, len(out), k)]


@torch.inference_mode()
def _sample_batch(
    live: LiveModel, prompts: list[str], max_new_tokens: int, temperature: float
) -> list[Completion]:
    """One completion of every prompt."""
    from transformers import GenerationConfig

    tokenizer = live.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    ).to(live.model.device)
    generated = live.model.generate(
        **encoded,
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )
    rows = generated[:, encoded["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    end = tokenizer.eos_token_id
    return [
        Completion(text, _until_end(row, end), ended=end in row)
        for text, row in zip(texts, rows.tolist(), strict=True)
    ]


def _until_end(row: list[int], eos: int | None) -> tuple[int, ...]:
    """The tokens up to the first end of text, which belongs to them; all where there is none."""
    return tuple(row[: row.index(eos) + 1] if eos in row else row)


def correctness(
    completions: Sequence[Sequence[str]],
    answers: Sequence[Answer],
    *,
    reward: Callable[[str, Answer], float],
) -> NDArray[np.bool_]:
    """Which samples are right, (problems, k): True where `reward(completion, answer)` > 0.5."""
    if len(completions) != len(answers):
        raise InputError(f"{len(completions)} problems sampled, {len(answers)} answers given")
    return np.array(
        [
            [reward(text, answer) > 0.5 for text in texts]
            for texts, answer in zip(completions, answers, strict=True)
        ],
        dtype=np.bool_,
    )
