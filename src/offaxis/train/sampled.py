"""Completions that are sampled before training: right ones, a teacher's, or pairs of both kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import InputError
from offaxis.evaluate import Completion, sample
from offaxis.live import LiveModel, load_live
from offaxis.train.arguments import Arguments

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SAMPLES", "sampled_data"]

SAMPLES = "samples.jsonl"
"""In the output directory: one line a prompt, written as sampling goes, read when it goes on."""

_PASSES = 0.5
_BLOCK = 64  # prompts sampled and written at a time
_HOPELESS = 2000  # prompts without one solution, after which sampling gives up

Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class _Drawn:
    """What was sampled for a prompt."""

    index: int
    texts: list[str]
    ended: list[bool]
    """Did the completion end by itself, within the length?"""
    rewards: list[float | None]


def sampled_data(
    arguments: Arguments,
    data: Dataset,
    *,
    rewards: Sequence[Reward],
    weights: Sequence[float],
    tell: Callable[[str], None],
) -> Dataset:
    """`data` with completions (or chosen and rejected ones) drawn at temperature 1.

    rejection_sft and dpo sample the model and need rewards: a sample is right where their weighted
    sum exceeds 0.5. distill samples the teacher and keeps what comes. Samples that were cut off
    are never taught. At most `keep_per_prompt` different solutions (or pairs) a prompt. Only as
    many prompts are sampled as `max_steps` can use. Samples are kept in `SAMPLES` and go on from
    there after an interruption; each block's seed is the run's and its place.
    """
    from datasets import Dataset

    method, extra = arguments.method, arguments.extra
    source = extra.teacher if method.sampler == "teacher" else arguments.model.model_name_or_path
    if source is None:
        raise InputError(f"{method.name} needs a teacher: name a model with teacher")
    judged = method.sampler == "model"
    if judged and not rewards:
        raise InputError(f"{method.name} needs rewards, which tell right samples from wrong ones")
    path = Path(arguments.config.output_dir) / SAMPLES
    wanted = _wanted(arguments)
    kept: list[dict[str, Any]] = []
    seen = right = 0
    for drawn in _draws(arguments, data, source, path, rewards if judged else (), weights):
        row = data[drawn.index]
        found = _taught(drawn, row, pairs=method.data == "pairs", judged=judged,
                        keep=extra.keep_per_prompt)  # fmt: skip
        kept += found
        seen, right = seen + 1, right + bool(found)
        if wanted is not None and len(kept) >= wanted:
            break
        if seen == _HOPELESS and not kept:
            break
    if not kept:
        raise InputError(
            f"{source}: {seen} prompts sampled {extra.samples_per_prompt} times, and none gave "
            f"{'a pair' if method.data == 'pairs' else 'a solution'}: see {path}"
        )
    tell(f"{len(kept)} {method.data} from {right} of {seen} prompts, sampled from {source}")
    return Dataset.from_list(kept)


def _wanted(arguments: Arguments) -> int | None:
    """Rows that training can use; None: all that there are."""
    config = arguments.config
    if config.max_steps <= 0:
        return None
    each = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return int(config.max_steps * each * config.world_size)


def _taught(
    drawn: _Drawn, row: dict[str, Any], *, pairs: bool, judged: bool, keep: int
) -> list[dict[str, Any]]:
    """Rows to learn from."""

    def text(index: int) -> Any:
        said = drawn.texts[index]
        chat = not isinstance(row["prompt"], str)
        return [{"role": "assistant", "content": said}] if chat else said

    places = [i for i, ended in enumerate(drawn.ended) if ended]
    if judged:
        scores = {i: drawn.rewards[i] for i in places}
        good = [i for i in places if (score := scores[i]) is not None and score > _PASSES]
        bad = [i for i in places if (score := scores[i]) is not None and score <= _PASSES]
    else:
        good, bad = places, []
    good = list({drawn.texts[i]: i for i in reversed(good)}.values())[::-1]
    bad = list({drawn.texts[i]: i for i in reversed(bad)}.values())[::-1]
    if pairs:
        return [
            {"prompt": row["prompt"], "chosen": text(a), "rejected": text(b)}
            for a, b in list(zip(good, bad, strict=False))[:keep]
        ]
    return [{"prompt": row["prompt"], "completion": text(i)} for i in good[:keep]]


def _draws(
    arguments: Arguments,
    data: Dataset,
    source: str,
    path: Path,
    rewards: Sequence[Reward],
    weights: Sequence[float],
) -> Iterator[_Drawn]:
    """Prompts in order: from the file as far as it goes, then sampled and added to it."""
    extra, seed = arguments.extra, arguments.config.seed
    names = [str(getattr(reward, "__name__", reward)) for reward in rewards]
    head = {
        "source": source,
        "seed": seed,
        "samples": extra.samples_per_prompt,
        "max_new_tokens": extra.sample_max_new_tokens,
        "batch_size": extra.sample_batch_size,
        "rows": len(data),
        "rewards": dict(zip(names, weights, strict=False)),
    }
    known = _read(path, head)
    yield from known
    live: LiveModel | None = None
    for start in range(len(known), len(data), _BLOCK):
        live = live or load_live(source)
        block = [data[index] for index in range(start, min(start + _BLOCK, len(data)))]
        rows = sample(
            live,
            [_text(live, row["prompt"]) for row in block],
            k=extra.samples_per_prompt,
            max_new_tokens=extra.sample_max_new_tokens,
            seed=seed * 1_000_003 + start,
            batch_size=extra.sample_batch_size,
        )
        drawn = [
            _judged(live, start + place, row, found, rewards, weights)
            for place, (row, found) in enumerate(zip(block, rows, strict=True))
        ]
        _append(path, head, drawn)
        yield from drawn


def _text(live: LiveModel, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    rendered = live.tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
    )
    return str(rendered)


def _judged(
    live: LiveModel,
    index: int,
    row: dict[str, Any],
    found: Sequence[Completion],
    rewards: Sequence[Reward],
    weights: Sequence[float],
) -> _Drawn:
    texts = [one.text for one in found]
    chat = not isinstance(row["prompt"], str)
    said = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
    columns = {name: [value] * len(texts) for name, value in row.items() if name != "prompt"}
    totals: list[float | None] = [None] * len(texts)
    for reward, weight in zip(rewards, weights, strict=True):
        values = reward(
            prompts=[row["prompt"]] * len(texts),
            completions=said,
            completion_ids=[list(one.tokens) for one in found],
            **columns,
        )
        totals = [
            total if value is None else (total or 0.0) + weight * value
            for total, value in zip(totals, values, strict=True)
        ]
    return _Drawn(index, texts, [one.ended for one in found], totals)


def _read(path: Path, head: dict[str, Any]) -> list[_Drawn]:
    """What an earlier start sampled with the same settings; a torn last line does not count."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                break
            raise InputError(f"{path}, line {number + 1}: not JSON; move the file away") from None
        if number == 0:
            if row != head:
                differ = [key for key in head if row.get(key) != head[key]]
                raise InputError(
                    f"{path}: was sampled with another {', '.join(differ)}; choose another "
                    "output_dir, or remove the file"
                )
            continue
        found.append(_Drawn(**row))
    whole = len(found) - len(found) % _BLOCK  # a block is drawn from one seed
    _rewrite(path, head, found[:whole])
    return found[:whole]


def _rewrite(path: Path, head: dict[str, Any], drawn: Sequence[_Drawn]) -> None:
    from offaxis.output import staged_file

    with staged_file(path) as staged:
        _append(staged, head, drawn)


def _append(path: Path, head: dict[str, Any], drawn: Sequence[_Drawn]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file() or path.stat().st_size == 0
    with path.open("a", encoding="utf-8") as file:
        if new:
            file.write(json.dumps(head) + "\n")
        file.writelines(json.dumps(vars(one)) + "\n" for one in drawn)
