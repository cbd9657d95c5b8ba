"""Pairs for `delta.py`: given on the command line, trained in the lab, or generated.

Given pairs are safetensors files or folders whose tensors are all BF16 and have the same names and
shapes on both sides.

Lab pairs are real: GRPO at 3e-6 and 3e-5 and SFT at 3e-5 from the lab's base (about 2 MB), float32
checkpoints rounded to bfloat16; from the base to the last step, and over the last step alone.

Generated pairs have the shapes of Qwen2.5-1.5B: `--layers` of its 28 layers, and the same share of
its embedding's 151936 rows. With n a standard normal, drawn anew at each occurrence:

    base   b[i, j] = bf16(0.02 exp(0.2 n_i) exp(0.2 n_j) n)   matrices
           b[i]    = bf16(1 + 0.1 n) for norms, bf16(0.1 n) for biases
    step   u[i, j] = exp(0.2 n_i) exp(0.1 n_j) exp(0.15 n) n   row, column, heavy tail, size
    tuned  t = bf16(float32(b) + s u), to nearest even

A float32 master starts *at* the bf16 base and moves by a length that does not depend on the weight:
so small weights change and large ones stay, as in Gate III of the papers. s is found by bisection
so that the wanted share of entries changes (on a sample of about 4 million entries). Everything
follows from one seed; the base is the same at every density.

How real that is: on a 31-million-parameter lab model after 20 steps (GRPO at 3e-6 and 3e-5, SFT at
3e-5), rows of the steps spread by 0.1 to 0.26 (in the logarithm), columns by 0.03 to 0.12, and the
rest had a kurtosis of 2.1 to 2.7, so lighter tails than a normal's 3 and than the 3.3 made here; no
correlation with the weights. At equal changed shares (21 and 80 %) the entropy given the exponent
was 7 to 8 % lower than here, and 1-ULP steps 1 to 3 points more frequent. Steps here do not depend
on layer, role or gradient, nor have the embedding's rare tokens or stripes; in a real pair of
neighbouring steps the master starts between bf16 values (86 % of the changed moved one ULP, at 3 %
changed). The real pairs say more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from offaxis.checkpoint.header import Entry
from offaxis.delta.folder import Source, open_folder
from offaxis.delta.words import words_of

WORDS = words_of("BF16")
Array = npt.NDArray[Any]
_SAMPLE = 1 << 22  # entries on which the scale of a generated step is found
_LAB_RUNS = (("grpo", 3e-6), ("grpo", 3e-5), ("sft", 3e-5))


@dataclass(frozen=True)
class Pair:
    """Two models on disk. kind: `given`, `lab` or `generated`."""

    name: str
    kind: str
    base: Path
    tuned: Path


@dataclass(frozen=True)
class Tensor:
    """One tensor of a pair: the words of both sides, (n,)."""

    name: str
    shape: tuple[int, ...]
    base: Array
    tuned: Array


@dataclass(frozen=True)
class Shape:
    """Extents of a model. layers: how many are made, of `of` in the whole model."""

    layers: int
    of: int = 28
    hidden: int = 1536
    mlp: int = 8960
    kv: int = 256
    vocabulary: int = 151936
    name: str = "1.5B-shaped"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        rows = ceil(self.vocabulary * self.layers / self.of)
        out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, self.hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            for name, height in (("q", self.hidden), ("k", self.kv), ("v", self.kv)):
                out[f"{at}.self_attn.{name}_proj.weight"] = (height, self.hidden)
                out[f"{at}.self_attn.{name}_proj.bias"] = (height,)
            out[f"{at}.self_attn.o_proj.weight"] = (self.hidden, self.hidden)
            out[f"{at}.mlp.gate_proj.weight"] = (self.mlp, self.hidden)
            out[f"{at}.mlp.up_proj.weight"] = (self.mlp, self.hidden)
            out[f"{at}.mlp.down_proj.weight"] = (self.hidden, self.mlp)
            out[f"{at}.input_layernorm.weight"] = (self.hidden,)
            out[f"{at}.post_attention_layernorm.weight"] = (self.hidden,)
        return out | {"model.norm.weight": (self.hidden,)}


TINY = Shape(layers=1, of=2, hidden=192, mlp=512, kv=64, vocabulary=512, name="tiny")


def _places(path: Path) -> dict[str, tuple[Source, Entry]]:
    return {name: places[0] for name, places in open_folder(path).tensors.items()}


def load(base: Path, tuned: Path, *, resident: bool = True) -> list[Tensor]:
    """The tensors of a pair, in byte order of the tuned side; mapped where not `resident`."""
    left, right = _places(base), _places(tuned)
    shapes = [{n: (e.dtype, e.shape) for n, (_, e) in side.items()} for side in (left, right)]
    if shapes[0] != shapes[1] or any(dtype != "BF16" for dtype, _ in shapes[0].values()):
        raise SystemExit(
            f"{base} and {tuned}: this benchmark compares models whose tensors are all BF16, with "
            "the same names and shapes"
        )

    def words(place: tuple[Source, Entry]) -> Array:
        raw = place[0].raw(place[1])
        return WORDS.view(np.array(raw) if resident else raw)

    return [
        Tensor(name, place[1].shape, words(left[name]), words(place))
        for name, place in right.items()
        if place[1].stop > place[1].start
    ]


def resolve(path: Path) -> Path:
    """The file itself, where a folder holds one safetensors file alone."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return files[0] if len(files) == 1 else path


def given(rows: list[list[str]]) -> Iterator[Pair]:
    """Exits where a pair cannot be compared."""
    for name, base, tuned in rows:
        pair = Pair(name, "given", resolve(Path(base)), resolve(Path(tuned)))
        load(pair.base, pair.tuned, resident=False)
        yield pair


def lab(folder: Path, *, steps: int) -> Iterator[Pair]:
    """Train, export to bfloat16, and pair. Needs the extra `train`."""
    from offaxis.lab import BASE
    from offaxis.lab.training import TrainingSettings, train_run

    for method, rate in _LAB_RUNS:
        name = f"{method.upper()} {rate:.0e}".replace("e-0", "e-")
        settings = TrainingSettings(
            steps=steps, save_at=(steps - 1, steps), learning_rate=rate, prompts_per_step=8
        )
        out = folder / name.replace(" ", "-")
        run = train_run(method, base=BASE, out=out, settings=settings, progress=False)
        files = [_export(checkpoint) for _, checkpoint in run.checkpoints]
        yield Pair(f"{name}, base to step {steps}", "lab", BASE / "model.safetensors", files[-1])
        yield Pair(f"{name}, step {steps - 1} to {steps}", "lab", files[-2], files[-1])


def _export(checkpoint: Path) -> Path:
    out = checkpoint.with_name(f"{checkpoint.name}.safetensors")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, out)
    return out


class Generator:
    """The generated pairs of one shape and seed."""

    def __init__(self, shape: Shape, folder: Path, *, seed: int) -> None:
        self._folder, self._seed, self._name = folder, seed, shape.name
        self._shapes = shape.tensors()
        self.bases: dict[str, torch.Tensor] = {}
        samples = []
        total = sum(torch.Size(extents).numel() for extents in self._shapes.values())
        share = min(1.0, _SAMPLE / total)
        for index, (name, extents) in enumerate(self._shapes.items()):
            base = self._base(index, name, extents)
            rows = ceil(share * extents[0])
            samples.append((base[:rows].flatten(), self._step(index, extents)[:rows].flatten()))
            self.bases[name] = base
        self._sample = tuple(torch.cat(side) for side in zip(*samples, strict=True))
        save_file(self.bases, folder / "base.safetensors")

    def _random(self, stream: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed * 1_000_003 + 2 * index + stream)

    def _base(self, index: int, name: str, extents: tuple[int, ...]) -> torch.Tensor:
        random = self._random(0, index)
        out = torch.randn(extents, generator=random)
        if len(extents) == 1:
            return (0.1 * out + float("norm" in name)).bfloat16()
        out *= 0.02 * torch.exp(0.2 * torch.randn(extents[0], 1, generator=random))
        out *= torch.exp(0.2 * torch.randn(extents[1], generator=random))
        return out.bfloat16()

    def _step(self, index: int, extents: tuple[int, ...]) -> torch.Tensor:
        random = self._random(1, index)
        out = torch.randn(extents, generator=random).mul_(0.15).exp_()
        out *= torch.randn(extents, generator=random)
        if len(extents) > 1:
            out *= torch.exp(0.2 * torch.randn(extents[0], 1, generator=random))
            out *= torch.exp(0.1 * torch.randn(extents[1], generator=random))
        return out

    def _share(self, scale: float) -> float:
        base, step = self._sample
        tuned = (base.float() + scale * step).bfloat16()
        return float((tuned.view(torch.int16) != base.view(torch.int16)).float().mean())

    def _scale(self, density: float) -> float:
        low, high = log(1e-9), log(1.0)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._share(exp(middle)) < density else (low, middle)
        return exp((low + high) / 2)

    def pair(self, density: float) -> Pair:
        """The pair of which the share `density` changes; it replaces the one before."""
        scale = self._scale(density)
        tuned = {
            name: (self.bases[name].float() + scale * self._step(index, extents)).bfloat16()
            for index, (name, extents) in enumerate(self._shapes.items())
        }
        save_file(tuned, self._folder / "tuned.safetensors")
        name = f"{self._name}, {100 * density:g} %"
        files = (self._folder / f"{side}.safetensors" for side in ("base", "tuned"))
        return Pair(name, "generated", *files)
