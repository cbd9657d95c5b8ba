"""Speed and memory of `compare`, each beside what it is measured against, in one run.

    python benchmarks/compare.py                 everything (about ten minutes on two cores)
    python benchmarks/compare.py scan spectra    some of it
    python benchmarks/compare.py model --layers 4

`scan`: GB/s of the bit scan against measured read bandwidth, the plain torch expression and
chunked numpy. `spectra`: spectral shift of one 1536×8960 pair against LAPACK singular values.
`model`: `offaxis compare` as a process, on a generated pair shaped as Qwen2.5-1.5B: time, and peak
anonymous memory. Run it on an otherwise idle machine; ratios are what carry over.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from offaxis.kernels import scan
from offaxis.kernels.pool import for_each, spans, threads
from offaxis.linalg import singular_values
from offaxis.measures import nss

ROWS, COLS = 8192, 16384


def best(function: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def read_seconds(first: torch.Tensor, second: torch.Tensor) -> float:
    """Seconds to read both tensors once, on all cores: the bound on any scan."""
    words = [tensor.view(torch.int64).numpy().reshape(-1) for tensor in (first, second)]
    pieces = [(w, span) for w in words for span in spans(w.size, smallest=1 << 16)]
    return best(lambda: for_each(lambda piece: piece[0][slice(*piece[1])].sum(), pieces))


def numpy_seconds(first: torch.Tensor, second: torch.Tensor, chunk: int = 1 << 16) -> float:
    """Seconds of a chunked numpy count on all cores."""
    a, b = (t.view(torch.uint16).numpy().reshape(-1) for t in (first, second))

    def count(span: tuple[int, int]) -> int:
        starts = range(span[0], span[1], chunk)
        return sum(np.count_nonzero(a[i : i + chunk] != b[i : i + chunk]) for i in starts)

    return best(lambda: sum(for_each(count, spans(a.size, multiple=chunk, smallest=chunk))))


def bench_scan() -> None:
    print(f"\nscan: {ROWS}x{COLS} bfloat16 pair, {threads()} threads, GB/s of both tensors")
    print("| changed | read bandwidth | counts alone | of read | all features | of read "
          "| torch (a != b).sum() | numpy, chunked |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(ROWS, COLS, generator=generator) * 0.02).to(torch.bfloat16)
    gigabytes = 4 * base.numel() / 1e9
    for density in (0.01, 0.5, 0.99):
        moved = (torch.rand(ROWS, COLS, generator=generator) < density).to(torch.int16)
        tuned = (base.view(torch.int16) + moved).view(torch.bfloat16)
        read = read_seconds(base, tuned)
        counts = best(lambda tuned=tuned: scan(base, tuned, detail=False))
        full = best(lambda tuned=tuned: scan(base, tuned))
        plain = best(lambda tuned=tuned: (base != tuned).sum(), 3)
        chunked = numpy_seconds(base, tuned)
        rates = [gigabytes / s for s in (read, counts, full, plain, chunked)]
        print(
            f"| {density:.0%} | {rates[0]:.1f} | {rates[1]:.1f} | {read / counts:.0%} "
            f"| {rates[2]:.1f} | {read / full:.0%} | {rates[3]:.1f} | {rates[4]:.1f} |"
        )


def bench_spectra(rows: int, cols: int) -> None:
    print(f"\nspectra: nss of a {rows}x{cols} pair in float64, {threads()} BLAS threads")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, cols, generator=generator, dtype=torch.float64) * 0.02
    tuned = base + torch.randn(rows, cols, generator=generator, dtype=torch.float64) * 1e-5
    exact: list[float] = []
    fast: list[float] = []

    def ours() -> None:
        fast.append(nss(singular_values(base), singular_values(tuned)).value or 0.0)

    def lapack() -> None:
        before, after = torch.linalg.svdvals(base), torch.linalg.svdvals(tuned)
        exact.append(float(torch.linalg.norm(after - before) / torch.linalg.norm(before)))

    ours_seconds = best(ours, 3)
    lapack_seconds = best(lapack, 1)
    print("| | seconds | nss |")
    print("|---|---|---|")
    print(f"| torch.linalg.svdvals, float64 | {lapack_seconds:.2f} | {exact[0]:.9e} |")
    print(f"| offaxis | {ours_seconds:.2f} | {fast[0]:.9e} |")
    print(f"\nratio {lapack_seconds / ours_seconds:.1f}, nss relative difference "
          f"{abs(fast[0] / exact[0] - 1):.1e}")  # fmt: skip


def write_pair(folder: Path, layers: int) -> None:
    """A pair shaped as Qwen2.5-1.5B (hidden 1536, MLP 8960, 12 heads, 2 KV heads), bfloat16."""
    hidden, mlp, kv, vocabulary = 1536, 8960, 256, 151936
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{at}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{at}.mlp.gate_proj.weight"] = (mlp, hidden)
        shapes[f"{at}.mlp.up_proj.weight"] = (mlp, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, mlp)
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    generator = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * 0.02
        base[name] = weight.to(torch.bfloat16)
        step = torch.randn(shape, generator=generator) * 3e-5
        tuned[name] = (base[name].float() + step).to(torch.bfloat16)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")


def anonymous_bytes(pid: int) -> int:
    """Resident anonymous memory of a process now (RssAnon), in bytes."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if "RssAnon" in line)
    except (OSError, StopIteration):
        return 0


def bench_model(layers: int, spectra: str) -> None:
    root = os.environ.get("OFFAXIS_SCRATCH")
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        folder = Path(scratch)
        write_pair(folder, layers)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
        print(f"\nmodel: offaxis compare, {layers} layers of Qwen2.5-1.5B, {size:.1f} GB, "
              f"--spectra {spectra}, {threads()} cores")  # fmt: skip
        command = [sys.executable, "-m", "offaxis", "compare", str(folder / "base.safetensors"),
                   str(folder / "tuned.safetensors"), "--out", str(folder / "out"),
                   "--spectra", spectra, "--json"]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak = 0
        finished = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not finished.wait(0.02):
                peak = max(peak, anonymous_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        finished.set()
        watcher.join()
        seconds = time.perf_counter() - start
        report = folder / "out" / "report.html"
        print(f"exit {code}, {seconds:.0f} s ({seconds / 60:.1f} min), peak anonymous memory "
              f"{peak / 1e9:.2f} GB, report {report.stat().st_size / 1e6:.2f} MB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", nargs="*", default=["scan", "spectra", "model"])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--spectra", default="all")
    parser.add_argument("--shape", default="1536x8960")
    arguments = parser.parse_args()
    if "scan" in arguments.what:
        bench_scan()
    if "spectra" in arguments.what:
        rows, cols = (int(extent) for extent in arguments.shape.split("x"))
        bench_spectra(rows, cols)
    if "model" in arguments.what:
        bench_model(arguments.layers, arguments.spectra)


if __name__ == "__main__":
    main()
