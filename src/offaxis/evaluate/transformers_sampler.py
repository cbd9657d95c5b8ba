"""Sampling with transformers' generate, each sequence with random numbers of its own.

A token is drawn by inverting the cumulative distribution at a uniform number, which comes from a
counter-based generator (Philox) keyed by the seed, the problem's text and the sample's number. So a
problem's draws are the same whatever else is in the run, wherever it starts and on any device; what
batching can still change is the rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offaxis.checkpoint.digest import checksum
from offaxis.errors import InputError
from offaxis.evaluate.prompts import Prompt
from offaxis.evaluate.samplers import Sampling
from offaxis.evaluate.sampling import Completion
from offaxis.live import LiveModel

__all__ = ["TransformersSampler", "uniforms"]


def uniforms(prompt: Prompt, number: int, settings: Sampling) -> NDArray[np.float64]:
    """One number in [0, 1) for every token of a prompt's sample `number`: (max_new_tokens,)."""
    words = f"{settings.seed}/{prompt.key}/{number}"
    generator = np.random.Generator(np.random.Philox(key=int(checksum(words.encode()), 16)))
    return generator.random(settings.max_new_tokens)


class _Draw:
    """A logits processor after which the largest logit is the token that was drawn."""

    def __init__(self, numbers: NDArray[np.float64], prompt_length: int) -> None:
        self._numbers = torch.from_numpy(numbers)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._prompt_length
        totals = scores.double().softmax(-1).cumsum(-1)
        last = totals[:, -1:].contiguous()
        at = self._numbers[:, step, None].to(totals.device) * last
        token = torch.searchsorted(totals, at, right=True)
        # rounding may put `at` at the very end: then the last token of positive probability
        token = torch.minimum(token, torch.searchsorted(totals, last))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class TransformersSampler:
    """Completions from a model that transformers runs."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        tokenizer, config = live.tokenizer, live.model.generation_config
        ends = config.eos_token_id if config is not None else None
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = {int(one) for one in [*ends, tokenizer.eos_token_id] if one is not None}
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = int(next(one for one in pads if one is not None))
        text_config = live.model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        """Positions that the model has, where its configuration says so."""

    def together(self, settings: Sampling) -> int:
        """As many problems as fill a batch, at least one."""
        return max(1, settings.batch_size // settings.k)

    def sample(self, prompts: Sequence[Prompt], settings: Sampling) -> list[list[Completion]]:
        """k completions of every prompt, `batch_size` sequences at a time, in their order."""
        rows = [(prompt, number) for prompt in prompts for number in range(settings.k)]
        found: list[Completion] = []
        for start in range(0, len(rows), settings.batch_size):
            found += self._batch(rows[start : start + settings.batch_size], settings)
        return [found[start : start + settings.k] for start in range(0, len(found), settings.k)]

    @torch.inference_mode()
    def _batch(self, rows: list[tuple[Prompt, int]], settings: Sampling) -> list[Completion]:
        device = self._live.model.device
        length = max(len(prompt.tokens) for prompt, _ in rows)
        gaps = [length - len(prompt.tokens) for prompt, _ in rows]
        ids = [
            [self._pad] * gap + list(prompt.tokens)
            for gap, (prompt, _) in zip(gaps, rows, strict=True)
        ]
        mask = [[0] * gap + [1] * (length - gap) for gap in gaps]
        try:
            generated = self._live.model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._config(settings),
                logits_processor=self._processors(rows, length, settings),
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{len(rows)} sequences of up to {length + settings.max_new_tokens} tokens do not "
                "fit into the GPU's memory; lower --batch-size, or --max-new-tokens"
            ) from error
        return [self._completion(row) for row in generated[:, length:].tolist()]

    def _config(self, settings: Sampling) -> Any:
        """Every knob that a model's own generation config could turn, turned back."""
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._ends) or None,
        )

    def _processors(
        self, rows: list[tuple[Prompt, int]], length: int, settings: Sampling
    ) -> list[Any]:
        from transformers.generation.logits_process import (
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        if settings.temperature == 0:
            return []
        found: list[Any] = []
        if settings.temperature != 1:
            found.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            found.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            found.append(TopPLogitsWarper(settings.top_p))
        numbers = np.stack([uniforms(prompt, number, settings) for prompt, number in rows])
        return [*found, _Draw(numbers, length)]

    def _completion(self, row: list[int]) -> Completion:
        end = next((at for at, token in enumerate(row) if token in self._ends), None)
        tokens = row if end is None else row[: end + 1]
        text: str = self._live.tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(text, tuple(tokens), ended=end is not None)
