"""A step of `SparseAdamW` beside torch's AdamW; training steps beside PEFT's sparse methods.

    python benchmarks/sparse.py                              everything (some minutes on two cores)
    python benchmarks/sparse.py step --densities 0.5,0.05 --threads 1
    python benchmarks/sparse.py train --rank 13
    python benchmarks/sparse.py --quick                      seconds: does it still work

`step`: one optimizer step over float32 matrices (`--shape COUNTxROWSxCOLUMNS`), on each number of
threads in `--threads`: `torch.optim.AdamW(fused=True)`, foreach, and SparseAdamW under random masks
and under masks of whole rows. All step the same weights by the same gradients, by turns; the ratio
is taken within a round, and its median over rounds and its range are printed. Then bfloat16 weights
with float32 masters, beside torch's fused AdamW on a dense float32 copy: gradients widened into it,
and it rounded back. *Bytes an entry* is what a step must move between memory and the processor if
each line of 64 bytes that it touches is read, and written if it changes, once; *of copy* is that
many bytes in the time taken, as a share of what a plain copy moves in the same round.

`train`: see `sparse_training.py`.

Run it on an otherwise idle machine; ratios are what carry over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from offaxis.kernels import LANES
from offaxis.kernels.pool import threads
from offaxis.train.sparse.layout import index_bytes
from offaxis.train.sparse.optimizer import SparseAdamW
from sparse_training import Trained, print_training, train

Shape = tuple[int, int, int]


def processor() -> str:
    """What /proc/cpuinfo calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return "unknown processor"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timed:
    """One density and one kind of mask; times in seconds, one a round."""

    dtype: str
    threads: int
    density: float
    mask: str
    torch_fused: list[float]
    torch_foreach: list[float]
    ours: list[float]
    copy: list[float]
    bytes_an_entry: float
    entries: int
    state: dict[str, int]
    law: int
    torch_state: int

    def ratio(self, other: Sequence[float]) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, other, strict=True)]

    def of_copy(self) -> float:
        """Bytes moved a second, as a share of a copy's (8 bytes an entry)."""
        shares = [
            self.bytes_an_entry / 8 * copy / ours
            for copy, ours in zip(self.copy, self.ours, strict=True)
        ]
        return statistics.median(shares)


def mask_of(kind: str, density: float, rows: int, columns: int, seed: int) -> torch.Tensor:
    """A random mask, or whole rows."""
    generator = torch.Generator().manual_seed(seed)
    if density == 1:
        return torch.ones(rows, columns, dtype=torch.bool)
    if kind == "random":
        return torch.rand(rows, columns, generator=generator) < density
    chosen = torch.randperm(rows, generator=generator)[: max(1, round(density * rows))]
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[chosen] = True
    return mask


def traffic(mask: torch.Tensor, width: int) -> float:
    """Bytes an entry that a step moves: lines of weights (read, written) and gradients, and state.

    width: bytes of a weight. State: moments read and written, and masters where width is 2.
    """
    lines = mask.reshape(-1, 64 // width).any(1).float().mean().item()
    density = mask.float().mean().item()
    state = 16 * density if width == 4 else 24 * density
    moved = 3 if width == 4 else 2  # masters hold the values: the weights are only written, yet a
    moved += width == 2  # line of which a part is written is read first
    index = index_bytes(mask.numel(), int(mask.sum())) / mask.numel()
    return moved * width * lines + state + index


class Step:
    """The contestants over one set of matrices."""

    def __init__(self, shape: Shape, dtype: torch.dtype, *, foreach: bool) -> None:
        count, rows, columns = shape
        generator = torch.Generator().manual_seed(0)
        draw = lambda scale: (torch.randn(rows, columns, generator=generator) * scale).to(dtype)  # noqa: E731
        self.weights = [Parameter(draw(0.02)) for _ in range(count)]
        self.gradients = [draw(1e-3) for _ in range(count)]
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        self.dense = self.weights if dtype == torch.float32 else self._copies()
        self.fused = torch.optim.AdamW(self.dense, fused=True)
        self.foreach = torch.optim.AdamW(self.dense, foreach=True) if foreach else None
        self.block = np.empty(rows * columns, np.float32)

    def _copies(self) -> list[Parameter]:
        made = [Parameter(weight.detach().float()) for weight in self.weights]
        for one in made:
            one.grad = torch.empty_like(one)
        return made

    @torch.no_grad()
    def theirs(self, optimizer: torch.optim.Optimizer) -> None:
        """A dense step, with the way there and back where the weights are bfloat16."""
        if self.dense is self.weights:
            optimizer.step()
            return
        for copy, gradient in zip(self.dense, self.gradients, strict=True):
            copy.grad.copy_(gradient)
        optimizer.step()
        for weight, copy in zip(self.weights, self.dense, strict=True):
            weight.copy_(copy)

    def copied(self) -> None:
        """As many bytes read and written as the weights have, as float32."""
        for one in self.dense:
            torch.from_numpy(self.block).copy_(one.detach().reshape(-1))

    def measure(self, kind: str, density: float, rounds: int) -> Timed:
        """By turns, after a step each to warm up."""
        rows, columns = self.weights[0].shape
        masks = {
            weight: mask_of(kind, density, rows, columns, seed)
            for seed, weight in enumerate(self.weights)
        }
        ours = SparseAdamW(self.weights, masks=masks)
        moved = statistics.fmean(
            traffic(mask, one.element_size()) for one, mask in list(masks.items())[:2]
        )
        chosen = [int(mask.sum()) for mask in masks.values()]
        masks.clear()
        works: dict[str, Callable[[], object]] = {
            "fused": lambda: self.theirs(self.fused),
            "ours": ours.step,
            "copy": self.copied,
        }
        if self.foreach is not None:
            foreach = self.foreach
            works["foreach"] = lambda: self.theirs(foreach)
        times = by_turns(works, rounds)
        size = self.weights[0].numel()
        masters = 0 if self.dense is self.weights else 4
        copies = sum(4 * one.numel() for one in self.dense) if masters else 0
        return Timed(
            str(self.weights[0].dtype).removeprefix("torch."), torch.get_num_threads(), density,
            kind if density < 1 else "all", times["fused"], times.get("foreach", []), times["ours"],
            times["copy"], moved, size * len(chosen), ours.state_bytes(),
            sum((8 + masters) * k + index_bytes(size, k) for k in chosen),
            sum(8 * one.numel() for one in self.dense) + copies,
        )  # fmt: skip


def by_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, once a round, the order turned from round to round."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(works[name]))
    return times


def milliseconds(times: Sequence[float]) -> str:
    return f"{statistics.median(times) * 1e3:.1f}" if times else "—"


def spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return "—"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def print_step(results: Sequence[Timed]) -> None:
    first = results[0]
    torch_name = "torch fused" if first.dtype == "float32" else "torch fused on a float32 copy"
    print(f"\n{first.dtype}, {first.entries / 1e6:.0f} M entries, {first.threads} "
          f"thread{'s' if first.threads > 1 else ''}; ms a step, medians\n")  # fmt: skip
    print(f"| density | mask | {torch_name} | foreach | SparseAdamW | ratio to fused (range) "
          "| to foreach | state, bytes | law | torch's | bytes an entry | of copy |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for one in results:
        foreach = spread(one.ratio(one.torch_foreach)).split(" ")[0] if one.torch_foreach else "—"
        print(
            f"| {one.density:g} | {one.mask} | {milliseconds(one.torch_fused)} | "
            f"{milliseconds(one.torch_foreach)} | {milliseconds(one.ours)} | "
            f"{spread(one.ratio(one.torch_fused))} | {foreach} | {sum(one.state.values()):,} | "
            f"{one.law:,} | {one.torch_state:,} | {one.bytes_an_entry:.1f} | "
            f"{one.of_copy():.0%} |"
        )


def step(options: argparse.Namespace) -> list[Timed]:
    """All densities, dtypes and numbers of threads."""
    made: list[Timed] = []
    for dtype in (torch.float32, torch.bfloat16):
        contest = Step(options.shape, dtype, foreach=dtype == torch.float32)
        for count in options.threads:
            torch.set_num_threads(count)
            table = []
            for density in options.densities:
                kinds = ("random", "rows") if density < 1 else ("random",)
                table += [contest.measure(kind, density, options.rounds) for kind in kinds]
            print_step(table)
            made += table
    return made


def _shape(words: str) -> Shape:
    count, rows, columns = (int(one) for one in words.split("x"))
    if columns % 64:
        raise argparse.ArgumentTypeError("give columns in multiples of 64")
    return count, rows, columns


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="step, train; both unless named")
    listed: Callable[[str], list[Any]] = lambda words: [float(one) for one in words.split(",")]  # noqa: E731
    parser.add_argument("--densities", type=listed, default=[1, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001])
    parser.add_argument("--shape", type=_shape, default=(12, 1536, 4096), help="COUNTxROWSxCOLUMNS")
    parser.add_argument("--threads", type=lambda words: [int(one) for one in words.split(",")],
                        default=sorted({1, threads()}), help="such as 1,2")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int, default=13, help="SHiRA's r, which sets the densities")
    parser.add_argument("--tokens", type=int, default=128, help="of a training step")
    parser.add_argument("--steps", type=int, default=12, help="of a training run")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    parser.add_argument("--quick", action="store_true", help="tiny: does it still work")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {"step", "train"}:
        parser.error(f"no part {', '.join(sorted(unknown))}: step, train")
    if options.quick:
        options.shape, options.densities, options.rounds = (2, 64, 256), [1, 0.5, 0.05], 2
        options.threads, options.steps, options.tokens = [1], 3, 16
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    print(f"{threads()} cores of {processor()}; torch {torch.__version__} "
          f"({torch.backends.cpu.get_cpu_capability()}); vectors compressed by mask: "
          f"{'yes' if LANES else 'no'}")  # fmt: skip
    parts = options.parts or ["step", "train"]
    figures: dict[str, list[dict[str, Any]]] = {}
    if "step" in parts:
        figures["step"] = [asdict(one) for one in step(options)]
    if "train" in parts:
        trained: list[Trained] = train(options)
        print_training(trained, threads=options.threads[-1])
        figures["train"] = [asdict(one) for one in trained]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
