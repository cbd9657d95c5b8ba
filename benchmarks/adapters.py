"""What each adapter costs a training step: memory, time, its start, merging and materializing.

    python benchmarks/adapters.py [--rank 32] [--methods lora,pissa] [--rounds 2] [--json FILE]
    python benchmarks/adapters.py --quick                        under a minute: does it still work

A Qwen3 model made from a config and random weights (float32, its head tied to the embedding) lies
on disk. Each method is a process of its own, forked from a server that has imported the libraries
and nothing else: it loads the model, adapts every linear layer (norm tuning: every norm), trains on
the same random tokens, merges the adapter into the weights and takes it out again, and writes the
model that it makes with `materialize`. Methods take turns, `--rounds` times; the first step of each
warms up.

- *Peak* is the most anonymous memory (RssAnon, looked at every millisecond) during the steps, less
  what the process had with the model loaded: adapter, gradients, moments, activations, logits. *The
  start* is the same while the adapter is made (PiSSA and kin factor every matrix there), with its
  seconds.
- *A step* is forward, backward and optimizer of one batch; the round's median. `to full` and
  `to LoRA` are ratios within a round, LoRA being `peft.LoraConfig` with torch's AdamW and nothing
  of offaxis; the median over rounds, and the range where there are more.
- *Merge* is PEFT's `merge_adapter` and `unmerge_adapter`, one after the other, which TRL does at
  every step that sends weights to vLLM; *exact* is the same after `exact_merges`. *Materialize*
  includes writing the files.

No sampling: what a policy samples costs the same under every adapter, once merged.
Run it on an otherwise idle machine; ratios are what carry over.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sparse_training import Peak, anonymous

PLAIN = "peft.LoraConfig"
SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8,
              "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
              "vocab_size": 8192},
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
             "vocab_size": 256},
}  # fmt: skip
LENGTH = 64  # tokens of one row of a batch
_IMPORTED = [
    "torch", "transformers", "transformers.models.qwen3.modeling_qwen3", "peft",
    "offaxis.train.adapters", "offaxis.train.adapters.materialize",
    "offaxis.train.adapters.merging", "offaxis.train.adapters.configs",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a process is told."""

    method: str
    base: str
    rank: int
    steps: int
    tokens: int
    threads: int


@dataclass(frozen=True)
class Once:
    """What one process found. Bytes are beyond those of the process with the model loaded."""

    seconds: float
    peak: int
    start_seconds: float
    start_peak: int
    merge_seconds: float | None
    exact_seconds: float | None
    materialize_seconds: float | None
    trainable: int
    loss: float


@dataclass(frozen=True)
class Method:
    """A method's rounds; `to_*` are ratios of a step's time within a round."""

    method: str
    trainable: int
    beyond: int
    seconds: list[float]
    to_full: list[float]
    to_lora: list[float]
    start_seconds: float
    start_beyond: int
    merge_seconds: float | None
    exact_seconds: float | None
    materialize_seconds: float | None
    loss: float


def quiet() -> None:
    """No progress bars and no notes on deprecation from here on."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)


def write_base(directory: Path, size: str) -> None:
    """A model of random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    quiet()
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **SIZES[size])).save_pretrained(
        directory
    )


def adapted(task: Task, model: Any) -> tuple[Any, torch.optim.Optimizer, Callable[[int], None]]:
    """The model, its optimizer, and what is called after each of the optimizer's steps."""
    import peft

    from offaxis.train.adapters import ADAPTERS, AdapterSpec, adapt
    from offaxis.train.adapters.adalora import AdaLoraCallback
    from offaxis.train.adapters.optimizers import LoraFaFactory, LoraPlusFactory

    options: dict[str, Any] = {"lr": 1e-4, "fused": True}
    after: Callable[[int], None] = lambda step: None  # noqa: E731
    if task.method == PLAIN:
        config = peft.LoraConfig(r=task.rank, lora_alpha=2 * task.rank, task_type="CAUSAL_LM",
                                 target_modules="all-linear")  # fmt: skip
        model = peft.get_peft_model(model, config)
    else:
        lacks = ADAPTERS[task.method].lacks
        size = {} if "rank" in lacks else {"rank": task.rank}
        model = adapt(model, AdapterSpec(task.method, **size), seed=0)
    trained = [one for one in model.parameters() if one.requires_grad]
    if task.method == "lora_plus":
        made = LoraPlusFactory()(
            model, made=torch.optim.AdamW, ratio=16.0, weight_decay=0.0, **options
        )
        return model, made, after
    if task.method == "lora_fa":
        return model, LoraFaFactory()(model, weight_decay=0.0, **options), after
    if task.method == "adalora":
        callback = AdaLoraCallback(model, (0.0, 0.0))
        callback.on_train_begin(None, SimpleNamespace(max_steps=100), None)
        after = lambda step: callback.on_optimizer_step(  # noqa: E731
            None, SimpleNamespace(global_step=step), None
        )
    return model, torch.optim.AdamW(trained, weight_decay=0.0, **options), after


def loss_of(method: str, model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Next-token loss; AdaLoRA's penalty is added as `wire` adds it (PEFT's own is left out)."""
    if method != "adalora":
        found: torch.Tensor = model(input_ids=batch, labels=batch).loss
        return found
    from offaxis.train.adapters.adalora import orthogonality

    tuner = model.base_model
    plain: torch.Tensor = tuner.model(input_ids=batch, labels=batch).loss
    weight = tuner.peft_config["default"].orth_reg_weight
    return plain + weight * orthogonality(tuner.model, "default")


def train(task: Task, made: tuple[Any, Any, Callable[[int], None]]) -> tuple[list[float], float]:
    """Seconds of each step after the first, and the last loss."""
    model, optimizer, after = made
    generator = torch.Generator().manual_seed(1)
    words = model.config.vocab_size
    taken, loss = [], torch.zeros(())
    for step in range(task.steps + 1):
        rows = max(1, task.tokens // LENGTH)
        batch = torch.randint(words, (rows, LENGTH), generator=generator)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(task.method, model, batch)
        loss.backward()
        optimizer.step()
        after(step)
        taken.append(time.perf_counter() - start)
    return taken[1:], float(loss.detach())


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def merges(model: Any, *, exact: bool) -> float:
    """Seconds of merging the adapter and taking it out again."""
    if exact:
        from offaxis.train.adapters.merging import exact_merges

        exact_merges(model)

    def both() -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    return timed(both)


def once(task: Task) -> Once:
    """One method from the loaded model to the files that it makes."""
    from transformers import AutoModelForCausalLM

    from offaxis.train.adapters.materialize import materialize

    quiet()
    torch.set_num_threads(task.threads)
    model = AutoModelForCausalLM.from_pretrained(task.base, dtype=torch.float32)
    model.train()
    loaded = anonymous()
    with Peak() as starting:
        start = time.perf_counter()
        made = adapted(task, model)
        start_seconds = time.perf_counter() - start
    with Peak() as training:
        taken, loss = train(task, made)
    model = made[0]
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    merge_seconds = exact_seconds = materialize_seconds = None
    if task.method != "full":
        merge_seconds = merges(model, exact=False)
        with tempfile.TemporaryDirectory() as out:
            materialize_seconds = timed(
                lambda: materialize(model, Path(out) / "model", base=task.base)
            )
        exact_seconds = merges(model, exact=True)
    return Once(
        statistics.median(taken), training.bytes - loaded, start_seconds, starting.bytes - loaded,
        merge_seconds, exact_seconds, materialize_seconds, trainable, loss,
    )  # fmt: skip


def _send(task: Task, pipe: Any) -> None:
    pipe.send(once(task))


def in_a_process(task: Task) -> Once:
    """`once` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(task, theirs))
    process.start()
    theirs.close()
    try:
        found: Once = ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{task.method}: ended with exit code {process.exitcode}") from None
    process.join()
    return found


def measured(options: argparse.Namespace) -> list[Method]:
    """Every method, `rounds` times by turns."""
    from offaxis.train.adapters import ADAPTERS

    asked = options.methods.split(",") if options.methods else list(ADAPTERS)
    methods = list(dict.fromkeys(["full", PLAIN, *asked]))
    found: dict[str, list[Once]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as base:
        write_base(Path(base), "tiny" if options.quick else "small")
        for _ in range(1 if options.quick else options.rounds):
            for method in methods:
                task = Task(method, base, options.rank, options.steps, options.tokens,
                            options.threads)  # fmt: skip
                found[method].append(in_a_process(task))
                took = found[method][-1].seconds
                print(f"{method}: {1e3 * took:.0f} ms a step", file=sys.stderr, flush=True)
    return [_summed(method, runs, found) for method, runs in found.items()]


def _summed(method: str, runs: Sequence[Once], found: Mapping[str, Sequence[Once]]) -> Method:
    def ratios(other: str) -> list[float]:
        return [a.seconds / b.seconds for a, b in zip(runs, found[other], strict=True)]

    def least(name: str) -> float | None:
        known = [getattr(one, name) for one in runs]
        return None if None in known else min(known)

    return Method(
        method=method,
        trainable=runs[0].trainable,
        beyond=max(one.peak for one in runs),
        seconds=[one.seconds for one in runs],
        to_full=ratios("full"),
        to_lora=ratios(PLAIN),
        start_seconds=min(one.start_seconds for one in runs),
        start_beyond=max(one.start_peak for one in runs),
        merge_seconds=least("merge_seconds"),
        exact_seconds=least("exact_seconds"),
        materialize_seconds=least("materialize_seconds"),
        loss=runs[0].loss,
    )


def table(methods: Sequence[Method]) -> str:
    head = [
        "method", "trained", "peak beyond the model, MiB", "of full", "ms a step", "to full",
        "to LoRA", "start, s", "start, MiB", "merge, s", "exact, s", "materialize, s",
    ]  # fmt: skip
    full = next(one for one in methods if one.method == "full")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in methods:
        cells = [
            one.method, f"{one.trainable:,}", f"{one.beyond / 2**20:.0f}",
            f"{one.beyond / full.beyond:.2f}" if full.beyond > 0 else "—",
            f"{1e3 * statistics.median(one.seconds):.0f}", _ratio(one.to_full), _ratio(one.to_lora),
            f"{one.start_seconds:.2f}", f"{one.start_beyond / 2**20:.0f}",
            *(_plain(s) for s in (one.merge_seconds, one.exact_seconds, one.materialize_seconds)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: Sequence[float]) -> str:
    middle = f"{statistics.median(found):.2f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.2f} to {max(found):.2f})"


def _plain(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--methods", default="", help="of offaxis.train.adapters; all by default")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--tokens", type=int, default=256, help="of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if options.quick:
        options.rank, options.tokens, options.threads = min(options.rank, 8), LENGTH, 1
    methods = measured(options)
    size = SIZES["tiny" if options.quick else "small"]
    print(
        f"Qwen3, {size['num_hidden_layers']} layers, hidden {size['hidden_size']}, vocabulary "
        f"{size['vocab_size']}, {methods[0].trainable:,} parameters, float32; rank {options.rank}, "
        f"{options.tokens} tokens a step, {options.threads} threads\n"
    )
    print(table(methods))
    if options.json is not None:
        told = {"schema": 1, "rank": options.rank, "tokens": options.tokens, "model": dict(size)}
        told |= {"threads": options.threads, "methods": [asdict(one) for one in methods]}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
