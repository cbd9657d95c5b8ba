"""Sampling with vLLM, where it is installed. Written against its documentation; not run here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from offaxis.errors import InputError
from offaxis.evaluate.prompts import Prompt
from offaxis.evaluate.samplers import Sampling
from offaxis.evaluate.sampling import Completion

__all__ = ["VllmSampler"]

_SEEDS = 1 << 31
_AT_A_TIME = 4096  # sequences; vLLM schedules them itself, and what is done is kept in between


class VllmSampler:
    """Completions from a model that vLLM serves.

    Each request carries a seed of its own, made of the run's and the problem's text. vLLM promises
    the same numbers for the same seed, not the same logits whatever else is in the batch.
    """

    context: int | None = None  # vLLM checks lengths itself

    def __init__(self, source: str, *, dtype: str = "auto", max_length: int | None = None) -> None:
        if find_spec("vllm") is None:
            raise InputError(
                "the vLLM sampler needs vllm, which is not installed: pip install vllm on a "
                "machine with a GPU, or choose --sampler transformers"
            )
        name, _, revision = source.partition("@")
        options: dict[str, Any] = {"revision": revision} if revision else {}
        if max_length is not None:
            options["max_model_len"] = max_length
        # "vllm": its own neutral defaults, not the model's generation config
        self._vllm: Any = import_module("vllm")
        self._llm = self._vllm.LLM(model=name, dtype=dtype, generation_config="vllm", **options)

    def together(self, settings: Sampling) -> int:
        """As many problems as make 4096 sequences, at least one."""
        return max(1, _AT_A_TIME // settings.k)

    def sample(self, prompts: Sequence[Prompt], settings: Sampling) -> list[list[Completion]]:
        """k completions of every prompt, in their order."""
        params = [
            self._vllm.SamplingParams(
                n=settings.k,
                seed=(settings.seed * 1_000_003 + prompt.key) % _SEEDS,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k or -1,
                max_tokens=settings.max_new_tokens,
            )
            for prompt in prompts
        ]
        requests = [{"prompt_token_ids": list(prompt.tokens)} for prompt in prompts]
        return [
            [
                Completion(one.text, tuple(one.token_ids), ended=one.finish_reason == "stop")
                for one in answer.outputs
            ]
            for answer in self._llm.generate(requests, params, use_tqdm=False)
        ]
