"""Elastic weight consolidation: a spring on every weight, as stiff as the base needs it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from offaxis.errors import CheckpointError, InputError
from offaxis.output import staged_file
from offaxis.train.divergence import Ends, draw, prompt_tokens, undisturbed
from offaxis.train.leash.fisher import diagonal_fisher, local, per_sample_loss
from offaxis.train.leash.leash import Leash, positive

__all__ = ["EwcLeash", "spring"]

_log = logging.getLogger("offaxis.train")
_FILE = "leash.safetensors"


class EwcLeash(Leash):
    """Add (λ/2) Σ_i F_i (θ_i − θ⁰_i)² to the loss of every optimizer step.

    F is the diagonal Fisher information of the base, over all trained parameters: the mean over
    prompts x and samples y ~ π_base(· | x) of (∂ ln π_base(y | x) / ∂θ_i)², y a whole completion
    (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3, where the data were labelled images). To
    second order KL(base ‖ π) ≈ ½ Σ_ij F_ij Δ_i Δ_j nats a completion, so with strength 1 the
    penalty is that KL as far as F is diagonal.

    strength: λ. prompts: what to sample from, as for `DivergenceCallback`; by default the
    trainer's training prompts. limit: how many of them. samples: completions of each.
    max_new_tokens: their length; by default the trainer's `max_completion_length`, or 256.
    scale: "none", or "mean" to divide F by its mean over parameters, which makes λ comparable
    between models and no longer a KL.

    F and θ⁰ are float32: twice the trained parameters in memory (and in every checkpoint); F
    takes limit × samples backward passes of one completion each before the first step. For an
    adapter they are those of its own parameters. Any trainer will do.
    """

    name = "ewc"

    def __init__(
        self,
        *,
        strength: float,
        prompts: Iterable[Any] | None = None,
        limit: int = 64,
        samples: int = 1,
        max_new_tokens: int | None = None,
        scale: str = "none",
        seed: int = 0,
    ) -> None:
        self.strength = positive("strength", strength)
        if scale not in ("none", "mean"):
            raise InputError(f"scale {scale!r}: choose none or mean")
        if min(limit, samples, 1 if max_new_tokens is None else max_new_tokens) < 1:
            raise InputError(
                f"limit {limit}, samples {samples}, max_new_tokens {max_new_tokens}: "
                "at least 1 each"
            )
        self._scale, self._seed = scale, seed
        self._limit, self._samples, self._length = limit, samples, max_new_tokens
        self._prompts = None if prompts is None else list(prompts)
        self._fisher: dict[str, torch.Tensor] = {}
        self._start: dict[str, torch.Tensor] = {}
        self._factor = 1.0
        self.samples: list[tuple[list[int], list[int]]] = []
        """Prompts and completions that F was taken on; empty in a resumed run."""

    def prepare(self, trainer: Any) -> None:
        """Raise InputError where nothing is trained, or parameters are sharded by DeepSpeed."""
        trained = [one for one in trainer.model.parameters() if one.requires_grad]
        if not trained:
            raise InputError("leash ewc: no parameter of the model is trained; unfreeze some")
        if any(hasattr(one, "ds_id") for one in trained):
            raise InputError(
                "leash ewc: DeepSpeed ZeRO-3 hides the parameters; use FSDP2, ZeRO-2 or DDP"
            )

    def begin(self, trainer: Any) -> None:
        """Sample the base, and take its Fisher information and its weights."""
        self.samples = self._drawn(trainer)
        _reshard(trainer.model)
        model, sharded = trainer.model, _is_sharded(trainer.model)
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        with undisturbed(model):
            found = diagonal_fisher(
                model,
                self.samples,
                loss=per_sample_loss,
                share=(lambda _: True) if sharded else (lambda at: at % processes == rank),
            )
        if not sharded and processes > 1:
            found = {n: trainer.accelerator.reduce(f, reduction="sum") for n, f in found.items()}
        self.take(model, found)

    def take(self, model: torch.nn.Module, fisher: Mapping[str, torch.Tensor]) -> None:
        """Hold `model` where it is now, by a given Fisher information (local parts, by name)."""
        _reshard(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._fisher = dict(fisher)
        self._start = {n: local(p.detach()).float().clone() for n, p in trained.items()}
        self._factor = 1.0
        if self._scale == "mean":
            total = sum(float(_global(_sum(f), trained[n])) for n, f in fisher.items())
            self._factor = sum(p.numel() for p in trained.values()) / total

    def penalty(self, model: torch.nn.Module) -> torch.Tensor | None:
        """(λ/2) Σ F (θ − θ⁰)², the same number in every process."""
        _reshard(model)
        total: torch.Tensor | None = None
        for name, parameter in model.named_parameters():
            if name not in self._fisher:
                continue
            part = spring(local(parameter), self._start[name], self._fisher[name])
            part = _global(part, parameter)
            total = part if total is None else total + part
        return None if total is None else self.strength * self._factor * total

    def update(self, trainer: Any, reading: Mapping[str, float], control: Any) -> None:
        """Log the penalty as it stands after the step."""
        if "kl_tuned_base" in reading:
            return
        with torch.no_grad():
            value = self.penalty(trainer.model)
        if value is not None:
            trainer.note("leash/penalty", float(value))

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength, "factor": self._factor, "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the factor; the strength is this run's own."""
        self._factor = float(state["factor"])
        if state["strength"] != self.strength:
            _log.warning("leash ewc: strength was %s, is %s", state["strength"], self.strength)

    def save_tensors(self, folder: Path, trainer: Any) -> None:
        """F and θ⁰, whole, as `leash.safetensors`."""
        from safetensors.torch import save_file

        trained = dict(trainer.model.named_parameters())
        whole = {}
        for kind, tensors in (("fisher", self._fisher), ("start", self._start)):
            for name, tensor in tensors.items():
                whole[f"{kind}.{name}"] = _whole(tensor, trained[name])
        if trainer.state.is_world_process_zero:
            with staged_file(folder / _FILE) as staged:
                save_file({n: t.cpu().contiguous() for n, t in whole.items()}, staged)

    def load_tensors(self, folder: Path, trainer: Any) -> None:
        """Read them back, each process its part."""
        from safetensors.torch import load_file

        path = folder / _FILE
        try:
            whole = load_file(path)
        except Exception as error:  # safetensors raises its own kind
            raise CheckpointError(
                f"{path}: cannot be read ({error}); resume from another checkpoint"
            ) from error
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        if missing := [n for n in trained if f"fisher.{n}" not in whole]:
            raise CheckpointError(
                f"{path}: holds nothing for {missing[0]} and {len(missing) - 1} more trained "
                "parameters; resume with the parameters that were trained before"
            )
        self._fisher = {n: _part(whole[f"fisher.{n}"], p) for n, p in trained.items()}
        self._start = {n: _part(whole[f"start.{n}"], p) for n, p in trained.items()}

    def _drawn(self, trainer: Any) -> list[tuple[list[int], list[int]]]:
        """Prompts and completions of the model as it is."""
        rows = self._prompts if self._prompts is not None else trainer.train_dataset
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        chosen = [row for row, _ in zip(rows, range(self._limit), strict=False)]
        ids = prompt_tokens(tokenizer, chosen, trainer=trainer)
        prompts = [row for row in ids for _ in range(self._samples)]
        length = self._length or getattr(trainer.args, "max_completion_length", None) or 256
        with undisturbed(trainer.model):
            drawn = draw(
                trainer.model,
                prompts,
                ends=Ends.of(tokenizer, trainer),
                max_new_tokens=length,
                seed=self._seed,
            )
        return list(zip(prompts, drawn, strict=True))


def spring(theta: torch.Tensor, start: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """½ Σ F (θ − θ⁰)², float32; its gradient F (θ − θ⁰) is made when it is asked for."""
    found: torch.Tensor = _Spring.apply(theta, start, fisher)  # type: ignore[no-untyped-call]
    return found


class _Spring(torch.autograd.Function):
    """Keeps no tensor of the model's size between the passes but those that exist anyway."""

    @staticmethod
    def forward(
        ctx: Any, theta: torch.Tensor, start: torch.Tensor, fisher: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(theta, start, fisher)
        away = theta.float() - start
        return 0.5 * torch.dot((away * fisher).flatten(), away.flatten())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        theta, start, fisher = ctx.saved_tensors
        away = (theta.float() - start).mul_(fisher).mul_(gradients[0])
        return away.to(theta.dtype), None, None


def _reshard(model: torch.nn.Module) -> None:
    """Parameters as each process holds them: FSDP2 leaves the last layers whole after sampling."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(one, DTensor) for one in model.parameters())


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double().sum()


def _global(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The sum over the processes between which `parameter` is sharded."""
    if not isinstance(parameter, DTensor):
        return part
    kinds = [Partial() if isinstance(p, Shard) else Replicate() for p in parameter.placements]
    found: torch.Tensor = DTensor.from_local(
        part, parameter.device_mesh, kinds, run_check=False
    ).full_tensor()
    return found


def _whole(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return part
    found: torch.Tensor = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    ).full_tensor()
    return found


def _part(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    mesh = parameter.device_mesh
    sharded = distribute_tensor(whole.to(local(parameter).device), mesh, parameter.placements)
    return local(sharded)
