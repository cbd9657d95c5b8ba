"""Speed, memory and size of masks.

    python benchmarks/masks.py               all of it (about three minutes on two cores)
    python benchmarks/masks.py build         some of it
    python benchmarks/masks.py files --layers 1

`build`: each rule on a generated bfloat16 model of Qwen2.5-1.5B's layers (46.8 M entries each), in
a process of its own: entries a second, and peak anonymous memory beyond what the imports take.
`files`: save and load, MB of packed bits a second, and bytes beside the entropy of the density.
Run it on an otherwise idle machine; ratios are what carry over.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from math import log2
from pathlib import Path

import torch
from safetensors.torch import save_file

from offaxis.kernels.pool import threads

SHAPES = {
    "self_attn.q_proj": (1536, 1536),
    "self_attn.k_proj": (256, 1536),
    "self_attn.v_proj": (256, 1536),
    "self_attn.o_proj": (1536, 1536),
    "mlp.gate_proj": (8960, 1536),
    "mlp.up_proj": (8960, 1536),
    "mlp.down_proj": (1536, 8960),
}
RULES = ("low_magnitude", "low_magnitude(threshold='mean')", "principal", "safe",
         "random(density=0.5)", "random(density=0.01)", "magnitude_random(like=low_magnitude)",
         "magnitude_random(like=random(density=0.01))")  # fmt: skip
DENSITIES = (0.5, 0.25, 0.1, 0.01, 0.001)


def generated(directory: Path, layers: int) -> Path:
    """A model whose singular values fall off as a power law, as trained ones do."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        for name, (rows, cols) in SHAPES.items():
            noise = torch.randn(rows, cols, generator=generator)
            left = torch.randn(rows, 32, generator=generator)
            right = torch.randn(32, cols, generator=generator)
            scale = torch.arange(1, 33) ** -0.7
            matrix = 0.015 * noise + 0.004 * (left * scale) @ right
            state[f"model.layers.{layer}.{name}.weight"] = matrix.to(torch.bfloat16)
    save_file(state, directory / "model.safetensors")
    return directory / "model.safetensors"


def anonymous() -> float:
    """MB of anonymous memory of this process now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line) / 1024


class Peak:
    """The most anonymous memory while the block lasts, beyond what there was before it."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.megabytes = self.most - self.before


def build_one(file: Path, rule: str) -> None:
    """Print one row of the table: in a process of its own, after the loops have been compiled."""
    from offaxis.checkpoint import MemoryCheckpoint
    from offaxis.masks import build

    build(MemoryCheckpoint({"layers.0.up_proj.weight": torch.randn(64, 48).bfloat16()}), rule)
    with Peak() as peak:
        start = time.perf_counter()
        mask = build(file, rule)
        seconds = time.perf_counter() - start
    entries = sum(map(mask.entries, mask))
    print(f"| `{rule}` | {entries / seconds / 1e6:.0f} | {peak.megabytes:.0f} |", flush=True)


def build_all(file: Path) -> None:
    print(f"\n{threads()} cores, {file.stat().st_size / 2e6:.1f} M entries\n")
    print("| rule | M entries/s | MB |\n|---|---|---|", flush=True)
    for rule in RULES:
        subprocess.run([sys.executable, __file__, "one", str(file), rule], check=True)


def files(file: Path, directory: Path) -> None:
    """Save and load at several densities."""
    from offaxis.masks import build, load

    print("\n| mask | packed MB | file MB | over entropy | save MB/s | load MB/s |")
    print("|---|---|---|---|---|---|")
    out = directory / "m.mask"
    rules = [f"random(density={d:g})" for d in DENSITIES]
    for rule in (*rules, "principal", "principal(alpha=0.1)", "low_magnitude(alpha=0.1)"):
        mask = build(file, rule)
        mask.save(out)
        entries = sum(map(mask.entries, mask))
        p = mask.density
        entropy = -(p * log2(p) + (1 - p) * log2(1 - p)) * entries / 8
        times = []
        for work in (partial(mask.save, out), partial(load, out)):
            start = time.perf_counter()
            work()
            times.append(entries / 8e6 / (time.perf_counter() - start))
        size = out.stat().st_size
        print(f"| `{rule}` | {entries / 8e6:.2f} | {size / 1e6:.3f} | {size / entropy - 1:+.2%} | "
              f"{times[0]:.0f} | {times[1]:.0f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=["build", "files"])
    parser.add_argument("--layers", type=int, default=2)
    if sys.argv[1:2] == ["one"]:
        build_one(Path(sys.argv[2]), sys.argv[3])
        return
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        file = generated(Path(place), options.layers)
        if "build" in options.parts:
            build_all(file)
        if "files" in options.parts:
            files(file, Path(place))


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    main()
