"""Size and speed of deltas, beside the bounds on them and beside other ways to make them.

    python benchmarks/delta.py --out DIR                           lab pairs and generated pairs
    python benchmarks/delta.py --pair NAME BASE TUNED --out DIR    given pairs, not the lab's
    python benchmarks/delta.py --densities 1,10,30,50,80,90 --layers 4 --slow --out DIR
    python benchmarks/delta.py --quick --out DIR                   seconds: does it still work

Prints Markdown tables; writes `delta.parquet` and `delta.svg` to DIR. `delta_pairs` says where the
pairs come from and how generated ones are made (and how far to trust them), `delta_bounds` what the
bounds are, `delta_methods` and `delta_tools` what the rivals do, `delta_coder` what the comparison
with constriction is. Three settings:

- *memory, digests*: arrays in memory to bytes in memory and back into arrays that exist already,
  with XXH3-128 of both sides of each tensor. In-process methods only.
- *memory*: the same without digests.
- *files*: from files to files; reads hit the page cache if memory allows. offaxis by
  `offaxis.delta.pack` and `apply`, what the command line calls; the tools as processes; the other
  methods map the files, and write tensors without a header.

Bytes are those of the delta file. Best of --repeats runs, the methods by turns; the tools, which
are slow (minutes for 100 MB: xdelta3, and with --slow zstd -19), run --tool-repeats times. Every
result is compared with the tuned model, byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from delta_bounds import statistics
from delta_coder import coder_rows
from delta_methods import Method, Offaxis, methods
from delta_pairs import TINY, Generator, Pair, Shape, Tensor, given, lab, load
from delta_picture import draw
from delta_report import (
    BARE,
    DIGESTS,
    FILES,
    Result,
    Row,
    parquet,
    print_coder,
    print_goals,
    print_pair,
    print_pairs,
    wide,
)
from delta_tools import Tool, one_file, tools
from delta_tools import versions as tool_versions
from offaxis import delta
from offaxis.kernels.pool import threads


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Bench:
    """The measurements on one pair."""

    def __init__(self, result: Result, tensors: Sequence[Tensor], scratch: Path) -> None:
        self.result, self._tensors, self._scratch = result, tensors, scratch
        self._outs = [np.zeros_like(tensor.tuned) for tensor in tensors]
        pair = result.pair
        self._base = one_file(pair.base, scratch / "base.bin")
        self._tuned = one_file(pair.tuned, scratch / "tuned.bin")

    def _keep(self, made: Row) -> None:
        held = self.result.row(made.method, made.setting)
        if held is None:
            self.result.rows.append(made)
        else:
            held.pack, held.apply = min(held.pack, made.pack), min(held.apply, made.apply)

    def _check(self, same: bool, name: str) -> None:
        if not same:
            raise SystemExit(f"{name} gave other bytes back on {self.result.pair.name}")

    def memory(self, method: Method, *, digests: bool) -> None:
        for out in self._outs:
            out.fill(0)
        start = time.perf_counter()
        packed = method.pack(self._tensors, digests=digests)
        pack = time.perf_counter() - start
        apply = timed(lambda: method.apply(packed, self._tensors, self._outs))
        same = all(np.array_equal(out, tensor.tuned)
                   for out, tensor in zip(self._outs, self._tensors, strict=True))  # fmt: skip
        self._check(same, method.name)
        self._keep(Row(method.name, DIGESTS if digests else BARE, packed.size, pack, apply))

    def files(self, method: Method) -> None:
        made, out = self._scratch / "made.delta", self._scratch / "out"
        pair = self.result.pair
        if isinstance(method, Offaxis):
            pack = timed(lambda: delta.pack(pair.base, pair.tuned, out=made, codec=method.codec))
            apply = timed(lambda: delta.apply(pair.base, made, out=out))
            same = _same_model(pair.tuned, out)
            shutil.rmtree(out)
        else:
            pack = timed(lambda: method.pack_files(pair.base, pair.tuned, made))
            apply = timed(lambda: method.apply_files(pair.base, made, out))
            found = np.fromfile(out, dtype=np.uint16)
            same = np.array_equal(found, np.concatenate([t.tuned for t in self._tensors]))
            out.unlink()
        self._check(same, method.name)
        self._keep(Row(method.name, FILES, made.stat().st_size, pack, apply))
        made.unlink()

    def tool(self, tool: Tool) -> None:
        made, out = self._scratch / "made.delta", self._scratch / "out"
        places = {"BASE": self._base, "TUNED": self._tuned, "DELTA": made, "OUT": out}
        pack = timed(lambda: tool.run("pack", places))
        apply = timed(lambda: tool.run("apply", places))
        self._check(filecmp.cmp(self._tuned, out, shallow=False), tool.name)
        self._keep(Row(tool.name, FILES, made.stat().st_size, pack, apply))
        made.unlink()
        out.unlink()


def _same_model(tuned: Path, out: Path) -> bool:
    files = [tuned] if tuned.is_file() else sorted(tuned.glob("*.safetensors"))
    return all(filecmp.cmp(file, out / file.name, shallow=False) for file in files)


def measure(pair: Pair, options: argparse.Namespace, scratch: Path) -> Result:
    """Everything about one pair; methods by turns, so that a busy moment hits all of them."""
    tensors = load(pair.base, pair.tuned)
    result = Result(pair, statistics(tensors))
    bench = Bench(result, tensors, scratch)
    others = tools(result.stats.model_bytes, slow=options.slow)
    for turn in range(max(options.repeats, options.tool_repeats)):
        for method in methods() if turn < options.repeats else []:
            bench.memory(method, digests=True)
            bench.memory(method, digests=False)
            bench.files(method)
        for tool in others if turn < options.tool_repeats else []:
            bench.tool(tool)
        tell(f"  {pair.name}: run {turn + 1} done")
    result.coder = coder_rows(tensors, options.repeats)
    for side in ("base.bin", "tuned.bin"):
        (scratch / side).unlink(missing_ok=True)
    return result


def pairs(options: argparse.Namespace, scratch: Path) -> Iterator[Pair]:
    """Given or lab pairs, then generated ones, each made when its turn comes."""
    if options.pair:
        yield from list(given(options.pair))
    elif options.lab:
        tell(f"training: three runs of {options.lab_steps} steps in the lab")
        yield from lab(scratch / "lab", steps=options.lab_steps)
    if options.densities:
        shape = TINY if options.quick else Shape(options.layers)
        tell(f"generating: {shape.layers} of {shape.of} layers, {len(options.densities)} pairs")
        folder = scratch / "generated"
        folder.mkdir()
        generator = Generator(shape, folder, seed=options.seed)
        yield from (generator.pair(density) for density in options.densities)


def warm_up(scratch: Path) -> None:
    """Compile every kernel for arrays that may be written and for mapped ones, on a tiny pair."""
    folder = scratch / "warm"
    folder.mkdir()
    pair = Generator(TINY, folder, seed=1).pair(0.02)
    settings = argparse.Namespace(repeats=1, tool_repeats=0, slow=False)
    measure(pair, settings, folder)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return "unknown processor"


def print_head(console: Console, options: argparse.Namespace) -> None:
    packages = ("offaxis", "numpy", "numba", "zstandard", "xxhash")
    found = [f"{name} {version(name)}" for name in packages]
    console.print(
        f"{threads()} cores of {_processor()}; {', '.join(found)}, {tool_versions()}",
        soft_wrap=True,
    )
    shape = "a tiny shape" if options.quick else f"{options.layers} of 28 layers of Qwen2.5-1.5B"
    console.print(f"Generated pairs: {shape}, seed {options.seed}. Best of {options.repeats} "
                  f"(tools: of {options.tool_repeats}). zstd -19 --patch-from: "
                  f"{'every pair' if options.slow else 'pairs up to 8 MiB, else level 3 alone'}.",
                  soft_wrap=True)  # fmt: skip
    console.print()


def run(options: argparse.Namespace, scratch: Path) -> list[Result]:
    console = wide()
    print_head(console, options)
    warm_up(scratch)
    results = []
    for pair in pairs(options, scratch):
        tell(f"measuring: {pair.name}")
        results.append(measure(pair, options, scratch))
        print_pair(console, results[-1])
    print_pairs(console, results)
    print_coder(console, results)
    if not any("constriction" in row.name for one in results for row in one.coder):
        console.print("constriction: not installed\n")
    print_goals(console, results)
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for table and picture")
    parser.add_argument("--pair", nargs=3, action="append", metavar=("NAME", "BASE", "TUNED"))
    parser.add_argument("--no-lab", dest="lab", action="store_false", help="train nothing")
    parser.add_argument("--lab-steps", type=int, default=10)
    parser.add_argument("--densities", help="per cent, empty for none [1,10,50,90]")
    parser.add_argument("--layers", type=int, default=1, help="of 28, in generated pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tool-repeats", type=int, default=1)
    parser.add_argument("--slow", action="store_true", help="zstd -19 on large pairs too")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny pairs, one run, no training")
    options = parser.parse_args()
    if options.densities is None:
        options.densities = "10,50" if options.quick else "1,10,50,90"
    options.densities = [float(share) / 100 for share in options.densities.split(",") if share]
    if options.quick:
        options.lab, options.repeats, options.tool_repeats = False, 1, 1
    return options


def main() -> None:
    options = parse()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    torch.set_num_threads(threads())
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("OFFAXIS_SCRATCH")) as scratch:
        results = run(options, Path(scratch))
    parquet(results).write_parquet(options.out / "delta.parquet")
    draw(results, options.out / "delta.svg")
    tell("wrote delta.parquet and delta.svg")


if __name__ == "__main__":
    main()
