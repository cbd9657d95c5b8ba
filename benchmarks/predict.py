"""The leading singular triplet of every update, beside the procedure of AlphaRL's authors.

    python benchmarks/predict.py                              minutes, most of them the reference
    python benchmarks/predict.py --matrices k_proj,down_proj --checkpoints 3
    python benchmarks/predict.py --quick                      seconds, small matrices: does it work

On a base and ten checkpoints with the seven matrices of one layer of Qwen2.5-1.5B (hidden 1536,
MLP 8960, 256 for keys and values), bfloat16, 1.0 GB in all. An update is a first direction that
grows with the step, 15 more behind it (0.7, 0.7/√2, ... of its norm), and Gaussian noise that adds
up from checkpoint to checkpoint; the first direction has 20 % of the last update's squared norm
before it is rounded.

`reference`: what the authors' code does: float32 ΔW of every matrix at every checkpoint, its whole
SVD (torch.linalg.svd, thin, which is kind to it), U, S and V kept. `ours`: `AlphaRL.fit` of every
matrix on the step number, that is the triplets in float64 with their error bounds, and the
regression; all fits kept, where `predict` drops each once it is written. Both read the same files,
on as many threads and cores, each in a process of its own, after imports and compilation; ours runs
before and after the reference. `exact`: LAPACK's SVD in float64 of one matrix of each shape at the
last checkpoint, against which both sides' agreement is measured.

Memory is the peak of anonymous memory (RssAnon, every 5 ms) beyond that before the first read. For
the whole model (28 layers) each side's factors are counted for all matrices and the rest of its
peak is taken as it is: reference 4·T·Σ(mk + k + kn) bytes with k = min(m, n), ours
8·Σ((T + 4)m + n + 2T). Result as JSON on standard output. Ratios hold on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LAYERS = 28
GOALS = {"seconds": 30.0, "memory": 20.0}


def shapes_of(hidden: int, mlp: int, kv: int) -> dict[str, tuple[int, int]]:
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }


class Growing:
    """One matrix of the series: a base, directions that grow, and noise that adds up."""

    def __init__(self, shape: tuple[int, int], count: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.count, size = count, 6e-5 * math.sqrt(shape[0] * shape[1])
        self.base = (0.02 * self._normal(*shape)).bfloat16()
        weights = torch.cat([torch.ones(1), 0.7 * torch.arange(1, 16) ** -0.5])
        sides = [torch.linalg.qr(self._normal(extent, 16)).Q for extent in shape]
        self.grown = (math.sqrt(0.2) * size * weights * sides[0]) @ sides[1].T
        left = max(0.0, 1 - 0.2 * float(weights.square().sum()))
        self.spread = math.sqrt(left) * 6e-5 / math.sqrt(count)
        self.noise = torch.zeros(shape)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def at(self, t: int) -> torch.Tensor:
        """The matrix at checkpoint t, from 1; to be asked in order."""
        self.noise += self.spread * self._normal(*self.noise.shape)
        return (self.base.float() + (t / self.count) * self.grown + self.noise).bfloat16()


def write_series(folder: Path, shapes: dict[str, tuple[int, int]], count: int) -> None:
    """base/ and checkpoint-10/, checkpoint-20/, ..., as single files."""
    matrices = {
        f"model.layers.0.{name}.weight": Growing(shape, count, seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    for t in range(count + 1):
        place = folder / ("base" if t == 0 else f"checkpoint-{10 * t}")
        place.mkdir()
        state = {name: one.at(t) if t else one.base for name, one in matrices.items()}
        save_file(state, place / "model.safetensors")


def checkpoints(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def anonymous() -> int:
    """Bytes of anonymous memory of this process now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(one.split()[1]) * 1024 for one in status.splitlines() if "RssAnon" in one)


class Measured:
    """Seconds, and the most anonymous memory beyond what there was before the block."""

    def __enter__(self) -> Measured:
        self.before = self.most = anonymous()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        self.start, self.used = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self.processor = time.process_time() - self.used
        self.most = max(self.most, anonymous())
        self.stop.set()
        self.thread.join()

    def told(self) -> dict[str, float]:
        peak = self.most - self.before
        return {"seconds": self.seconds, "processor_seconds": self.processor, "peak_bytes": peak}


Firsts = dict[str, tuple[float, Any, Any]]


def reference(folder: Path) -> tuple[dict[str, Any], Firsts]:
    """The whole SVD of every update, all factors kept."""
    torch.linalg.svd(torch.randn(64, 48))
    kept: dict[str, dict[str, tuple[torch.Tensor, ...]]] = {}
    with Measured() as measured:
        base = load_file(folder / "base" / "model.safetensors")
        for place in checkpoints(folder):
            tuned = load_file(place / "model.safetensors")
            kept[place.name] = {}
            for name, weight in tuned.items():
                update = weight.float() - base[name].float()
                kept[place.name][name] = tuple(torch.linalg.svd(update, full_matrices=False))
                print(f"reference {place.name} {name}", file=sys.stderr)
    firsts = {
        name: (float(s[0]), u[:, 0].double().numpy(), v[0].double().numpy())
        for name, (u, s, v) in kept[checkpoints(folder)[-1].name].items()
    }
    return measured.told(), firsts


def ours(folder: Path) -> tuple[dict[str, Any], Firsts]:
    """`AlphaRL.fit` of every matrix; its triplets are taken from it on the way."""
    from offaxis.kernels.differences import Difference
    from offaxis.predict import alpharl, open_series
    from offaxis.predict.goal import Goal
    from offaxis.predict.solver import Triplet, top_triplet

    small = torch.randn(300, 140).bfloat16()
    top_triplet(Difference.of(small, (0.9 * small).bfloat16()))  # compiles
    firsts: Firsts = {}
    about: list[dict[str, Any]] = []
    followed, last = alpharl.triplets, checkpoints(folder)[-1]

    def noted(trail: Any, **options: Any) -> Iterator[Triplet]:
        for place, one in zip(checkpoints(folder), followed(trail, **options), strict=True):
            if place == last:
                firsts[trail.name] = (one.sigma, one.u, one.v)
            about.append(
                {
                    "passes": one.passes,
                    "method": one.method,
                    "angle": one.angle_error,
                    "residual": one.residual,
                    "share": (one.sigma / one.norm) ** 2,
                }
            )
            yield one

    alpharl.triplets = noted
    with Measured() as measured:
        series = open_series(folder / "base", checkpoints(folder))
        timeline = series.timeline(at=1000.0)
        method = alpharl.AlphaRL(target=Goal("step"))
        fits = [method.fit(trail, timeline) for trail in series.matrices()]
    numbers = {key: [one[key] for one in about] for key in ("passes", "angle", "residual", "share")}
    told = {
        "passes": [min(numbers["passes"]), max(numbers["passes"])],
        "largest_angle_bound": max(numbers["angle"]),
        "largest_residual": max(numbers["residual"]),
        "share_of_squared_norm": [min(numbers["share"]), max(numbers["share"])],
        "exact_fallbacks": sum(one["method"] == "gram" for one in about),
        "matrices": len(fits),
    }
    return measured.told() | told, firsts


def exact(folder: Path) -> tuple[dict[str, Any], Firsts]:
    """LAPACK in float64 of one matrix of each shape at the last checkpoint."""
    place = checkpoints(folder)[-1]
    base, tuned = (load_file(one / "model.safetensors") for one in (folder / "base", place))
    firsts: Firsts = {}
    seen: set[tuple[int, ...]] = set()
    for name, weight in tuned.items():
        if tuple(weight.shape) in seen:
            continue
        seen.add(tuple(weight.shape))
        u, s, v = torch.linalg.svd(weight.double() - base[name].double(), full_matrices=False)
        firsts[name] = (float(s[0]), u[:, 0].numpy(), v[0].numpy())
        print(f"exact {name} σ₂/σ₁ {float(s[1] / s[0]):.3f}", file=sys.stderr)
    return {}, firsts


SIDES = {"reference": reference, "ours": ours, "exact": exact}


def side(name: str, folder: Path, threads: int) -> tuple[dict[str, Any], Firsts]:
    """One side in a process of its own."""
    file = folder / f"{name}.npz"
    command = [sys.executable, __file__, "--side", name, str(folder), str(file)]
    command += ["--threads", str(threads)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits}
    )
    told: dict[str, Any] = json.loads(done.stdout)
    with np.load(file) as stored:
        firsts = {
            key[:-2]: (float(stored[key]), stored[f"{key[:-2]}#u"], stored[f"{key[:-2]}#v"])
            for key in stored.files
            if key.endswith("#s")
        }
    return told, firsts


def run_side(name: str, folder: Path, file: Path, threads: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    told, firsts = SIDES[name](folder)
    parts = ("s", "u", "v")
    np.savez(
        file, **{f"{key}#{p}": one[i] for key, one in firsts.items() for i, p in enumerate(parts)}
    )
    print(json.dumps(told))


def agreement(found: Firsts, truth: Firsts) -> dict[str, float]:
    """The largest relative difference of σ, and the largest angles of u and of v (radians)."""
    worst = {"sigma_relative": 0.0, "u_radians": 0.0, "v_radians": 0.0}
    for key, (sigma, *vectors) in truth.items():
        other, *others = found[key]
        worst["sigma_relative"] = max(worst["sigma_relative"], abs(other / sigma - 1))
        for which, one, two in zip(("u_radians", "v_radians"), vectors, others, strict=True):
            off = two - (one @ two) * one / (one @ one)
            sine = float(np.linalg.norm(off) / np.linalg.norm(two))
            worst[which] = max(worst[which], math.asin(min(1.0, sine)))
    return worst


def factors(shapes: Sequence[tuple[int, int]], count: int) -> dict[str, int]:
    """Bytes of what each side keeps."""
    thin = [(m, n, min(m, n)) for m, n in shapes]
    return {
        "reference": 4 * count * sum(m * k + k + k * n for m, n, k in thin),
        "ours": 8 * sum((count + 4) * m + n + 2 * count for m, n in shapes),
    }


def memory(told: dict[str, dict[str, Any]], sample: Sequence[tuple[int, int]],
           whole: Sequence[tuple[int, int]], count: int) -> dict[str, float]:  # fmt: skip
    """Peaks for the sample as measured, and for the whole model by the formula above."""
    kept, all_kept = factors(sample, count), factors(whole, count)
    out = {}
    for name in ("reference", "ours"):
        peak = told[name]["peak_bytes"]
        out[f"{name}_sample"] = peak
        out[f"{name}_factors_sample"] = kept[name]
        out[f"{name}_whole"] = all_kept[name] + max(0, peak - kept[name])
    return out


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model = shapes_of(*((256, 640, 144) if arguments.quick else (1536, 8960, 256)))
    chosen = arguments.matrices.split(",") if arguments.matrices else list(model)
    sample = {
        name: one for name, one in model.items() if name.split(".")[1] in chosen or name in chosen
    }
    count = 3 if arguments.quick else arguments.checkpoints
    threads = arguments.threads
    print("writing the series", file=sys.stderr)
    write_series(folder, sample, count)
    before, firsts = side("ours", folder, threads)
    full, full_firsts = side("reference", folder, threads)
    after, _ = side("ours", folder, threads)
    _, truth = side("exact", folder, threads)
    used = memory({"reference": full, "ours": after}, list(sample.values()),
                  [*model.values()] * LAYERS, count)  # fmt: skip
    seconds = [before["seconds"], after["seconds"]]
    ratios = {
        "seconds": full["seconds"] / max(seconds),
        "processor_seconds": full["processor_seconds"]
        / max(before["processor_seconds"], after["processor_seconds"]),
        "memory_sample": used["reference_sample"] / used["ours_sample"],
        "memory_whole_model": used["reference_whole"] / used["ours_whole"],
    }
    met = ratios["seconds"] >= GOALS["seconds"] and ratios["memory_whole_model"] >= GOALS["memory"]
    return {
        "sample": {name: list(shape) for name, shape in sample.items()},
        "checkpoints": count,
        "dtype": "bfloat16",
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "reference": full,
        "ours": {"before": before, "after": after},
        "memory_bytes": used,
        "ratios": ratios,
        "goals": GOALS,
        "goals_met": bool(met),
        "agreement_ours_float64": agreement(firsts, truth),
        "agreement_reference_float64": agreement(full_firsts, truth),
        "agreement_ours_reference": agreement(firsts, full_firsts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--matrices", help="such as k_proj,down_proj; by default all seven")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "DIR", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        name, folder, file = arguments.side
        run_side(name, Path(folder), Path(file), arguments.threads)
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("OFFAXIS_SCRATCH")) as scratch:
        print(json.dumps(compare(Path(scratch), arguments), indent=1))


if __name__ == "__main__":
    main()
