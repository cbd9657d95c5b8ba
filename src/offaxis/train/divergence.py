"""KL between a model in training and its base, both ways, measured while it trains."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, TrainerCallback

from offaxis.errors import InputError
from offaxis.evaluate.divergence import Divergence, sequence_kl
from offaxis.live import LiveModel
from offaxis.train.reference import Reference, reference_of

__all__ = ["DivergenceCallback", "Ends", "draw", "prompt_tokens", "undisturbed"]

_log = logging.getLogger("offaxis.train")
_LOGITS = 2**28  # numbers in one batch's logits, at most: 1 GiB in float32
_START = 1e-2  # nats a completion that rounding may put between a model and its own base

Tokens = list[int]


def prompt_tokens(tokenizer: Any, prompts: Iterable[Any], *, trainer: Any = None) -> list[Tokens]:
    """Token ids of prompts as TRL's trainers make them.

    prompts: texts, conversations (lists of messages, through the chat template with the
    generation prompt), or rows of a data set that hold either under `prompt`.
    Raises InputError where there is none, or one is neither.
    """
    found: list[Tokens] = []
    for at, row in enumerate(prompts):
        prompt = row.get("prompt") if isinstance(row, Mapping) else row
        if isinstance(prompt, str):
            ids = tokenizer(text=prompt)["input_ids"]
        elif isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            ids = tokenizer.apply_chat_template(
                prompt,
                chat_template=getattr(trainer, "chat_template", None),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **(getattr(trainer, "chat_template_kwargs", None) or {}),
            )["input_ids"]
        else:
            raise InputError(
                f"prompt {at}: {type(prompt).__name__}; give a text, a list of messages, or a row "
                "with either under 'prompt'"
            )
        found.append(list(ids))
    if not found:
        raise InputError("no prompts to measure KL on; give at least one")
    return found


@dataclass(frozen=True)
class Ends:
    """Token ids that end a completion, and the one that pads a batch."""

    eos: tuple[int, ...]
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, trainer: Any = None) -> Ends:
        """TRL's, where the trainer has its own; else the tokenizer's and the model's."""
        eos = getattr(trainer, "eos_token_ids", None)
        if eos is None:
            config = getattr(getattr(trainer, "model", None), "generation_config", None)
            eos = [tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
        flat = [one for each in _listed(eos) for one in _listed(each)]
        known = tuple(dict.fromkeys(int(one) for one in flat if one is not None))
        pad = tokenizer.pad_token_id
        return cls(known, int(pad if pad is not None else (known or (0,))[0]))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set) else [value]


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every mode and random state is restored."""
    modes = [(one, one.training) for one in model.modules()]
    device = next(model.parameters()).device
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _plainly(model: Any, config: GenerationConfig) -> Iterator[None]:
    """The model without its own generation settings, which would change what is sampled."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    had = [(one, one.__dict__.get("generation_config")) for one in (model, inner)]
    try:
        for one, _ in had:
            one.generation_config = config
        yield
    finally:
        for one, value in had:
            if value is None:
                one.__dict__.pop("generation_config", None)
            else:
                one.generation_config = value


def draw(
    model: Any,
    prompts: Sequence[Tokens],
    *,
    ends: Ends,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> list[Tokens]:
    """One completion of each prompt, from the full softmax at temperature 1, end of text included.

    Prompts are padded on the left, `batch_size` at a time. The global random state is changed:
    call it inside `undisturbed`. Processes of a sharded model call it together.
    """
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
        pad_token_id=ends.pad, eos_token_id=list(ends.eos) or None, use_cache=True,
        disable_compile=True,
    )  # fmt: skip
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    found: list[Tokens] = []
    for at in range(0, len(prompts), batch_size):
        batch = prompts[at : at + batch_size]
        length = max(map(len, batch))
        ids = torch.tensor([[ends.pad] * (length - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in batch])
        with _plainly(model, config):
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config,
                synced_gpus=_sharded(model),
            )  # fmt: skip
        found += [_until(row, ends.eos) for row in out[:, length:].tolist()]
    return list(_agreed(found))


def _until(row: Tokens, eos: Sequence[int]) -> Tokens:
    """The tokens up to the first that ends the completion, which belongs to it."""
    return next((row[: at + 1] for at, one in enumerate(row) if one in eos), row)


def _processes() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _sharded(model: Any) -> bool:
    """Whether processes have to take each step of generation together."""
    from torch.distributed.fsdp import FSDPModule

    sharded = any(isinstance(one, FSDPModule) for one in model.modules())
    return _processes() > 1 and (sharded or hasattr(next(model.parameters()), "ds_id"))


def _agreed(value: Any) -> Any:
    """What process zero found, in all of them."""
    if _processes() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


class _Running:
    """What `sequence_kl` takes for a model: a forward pass through the reference's view."""

    def __init__(self, model: Any, reference: Reference | None = None) -> None:
        self.device = next(model.parameters()).device
        self._model, self._reference = model, reference

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self._reference is None:
            found = self._model(**given)
        else:
            with self._reference.model() as model:
                found = model(**given)
        # prompt tuning puts positions of its own before the first token
        return SimpleNamespace(logits=found.logits[:, -input_ids.shape[1] :])


@dataclass
class _Probe:
    """Both KLs of one trained model and its base, on the same prompts each time."""

    model: Any
    reference: Reference
    prompts: list[Tokens]
    ends: Ends
    max_new_tokens: int
    seed: int
    _base_samples: list[Tokens] | None = None

    def measure(self, step: int) -> dict[str, float]:
        """Sample the tuned model afresh (the base once a run), and compute both KLs."""
        with undisturbed(self.model):
            if self._base_samples is None:
                with self.reference.model() as base:
                    self._base_samples = self._draw(base, self.seed)
            fresh = self._draw(self.model, _mixed(self.seed, step))
            tuned = LiveModel(_Running(self.model), None, "the trained model")
            base = LiveModel(_Running(self.model, self.reference), None, "its base")
            forward = self._kl(tuned, base, fresh)
            backward = self._kl(base, tuned, self._base_samples)
        found = _told("kl_tuned_base", forward) | _told("kl_base_tuned", backward)
        return dict(_agreed(found))

    def _draw(self, model: Any, seed: int) -> list[Tokens]:
        return draw(
            model, self.prompts, ends=self.ends, max_new_tokens=self.max_new_tokens, seed=seed
        )

    def _kl(self, p: LiveModel, q: LiveModel, samples: list[Tokens]) -> Divergence:
        longest = max(len(x) + len(y) for x, y in zip(self.prompts, samples, strict=True))
        config = self.model.config
        words = getattr(config.get_text_config(), "vocab_size", 2**15)
        rows = max(1, _LOGITS // (2 * longest * words))
        return sequence_kl(p, q, self.prompts, samples, batch_size=rows)


def _mixed(seed: int, step: int) -> int:
    """A seed for each step, apart from the base's."""
    return int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0])


def _told(name: str, found: Divergence) -> dict[str, float]:
    """Nats a completion with its standard error, and nats a token."""
    each = found.sequence
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
    numbers = {name: float(each.mean()), f"{name}_token": found.per_token}
    return numbers | ({f"{name}_se": error} if math.isfinite(error) else {})


class DivergenceCallback(TrainerCallback):  # type: ignore[misc]
    """Log KL(tuned ‖ base) and KL(base ‖ tuned) while any TRL trainer trains.

    prompts: texts, conversations, or rows with `prompt`; the first `limit` are used. every: steps
    between two probes; there is one more before the first step and one after the last. samples:
    completions a prompt. max_new_tokens: their length at most; by default the trainer's own
    `max_completion_length`, or 256. base: where the model does not know which one it started from.

    Log rows get `kl_tuned_base` and `kl_base_tuned` (nats a completion), the same with `_token`
    (nats a token) and `_se` (standard error over completions). Each is exact over the vocabulary
    in float64 (`offaxis.evaluate.sequence_kl`), on prefixes sampled at temperature 1 from the
    model that is named first: fresh ones of the tuned model in each probe, the base's drawn once.
    What is left of noise comes from the choice of prefixes. Training goes on bit for bit as it
    would without the callback.

    For trainers made by `observed(...)`. All processes measure together.

    Raises InputError for settings that cannot be used; when training begins, for a trainer that is
    not observed, and where there is no base to measure to (see `reference_of`).
    """

    measures_kl = True

    def __init__(
        self,
        prompts: Iterable[Any],
        *,
        every: int = 20,
        samples: int = 1,
        max_new_tokens: int | None = None,
        limit: int = 16,
        seed: int = 0,
        base: str | Path | None = None,
    ) -> None:
        if min(every, samples, limit, 1 if max_new_tokens is None else max_new_tokens) < 1:
            raise InputError(
                f"every {every}, samples {samples}, limit {limit}, max_new_tokens "
                f"{max_new_tokens}: at least 1 each"
            )
        self._prompts = [row for row, _ in zip(prompts, range(limit), strict=False)]
        self._every, self._samples, self._length = every, samples, max_new_tokens
        self._seed, self._base = seed, base
        self._trainer: Any = None
        self._probe: _Probe | None = None
        self._last: tuple[int, Mapping[str, float]] = (-1, {})

    @property
    def last(self) -> Mapping[str, float]:
        """The newest readings."""
        return dict(self._last[1])

    def attach(self, trainer: Any) -> None:
        """Take the trainer; `observed(...).train` calls this."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the base, and measure before the first step, where KL is 0 but for rounding."""
        trainer = self._trainer
        if trainer is None:
            raise InputError(
                "DivergenceCallback on a trainer that is not observed; make the trainer with "
                "offaxis.train.observed.observed(TRAINER)(...)"
            )
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        own = getattr(args, "max_completion_length", None) or 256
        ids = prompt_tokens(tokenizer, self._prompts, trainer=trainer)
        self._probe = _Probe(
            trainer.model,
            reference_of(trainer, source=self._base),
            [row for row in ids for _ in range(self._samples)],
            Ends.of(tokenizer, trainer),
            self._length or own,
            self._seed,
        )
        if state.global_step == 0:
            trainer.tell(self._read(state, control))
            if self.last["kl_tuned_base"] > _START:
                _log.warning(
                    "kl_tuned_base is %.3g nats a completion before the first step: the model "
                    "does not start at the base that KL is measured to",
                    self.last["kl_tuned_base"],
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure after every `every` steps and after the last."""
        ends = state.global_step >= state.max_steps or control.should_training_stop
        if ends or state.global_step % self._every == 0:
            for name, value in self._read(state, control).items():
                self._trainer.note(name, value)
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the last step where a callback after this one has ended the run."""
        if self._probe is not None and self._last[0] != state.global_step:
            self._trainer.tell(self._read(state, control))

    def _read(self, state: Any, control: Any) -> Mapping[str, float]:
        assert self._probe is not None
        found = self._probe.measure(state.global_step)
        self._last = (state.global_step, found)
        if self._trainer.leash is not None:
            self._trainer.leash.update(self._trainer, found, control)
        return found
