"""Linear layers for LoRA whose start, or whose reach, follows the base's singular vectors."""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from offaxis.errors import InputError
from offaxis.kernels import magnitude_codes, select, unpack
from offaxis.linalg import principal_rank, spectrum_and_basis
from offaxis.train.adapters.effective import rounded

if TYPE_CHECKING:
    from offaxis.train.adapters.configs import GeometricLoraConfig

__all__ = [
    "AVOIDED",
    "STARTS",
    "GeometricLinear",
    "ProjectedLinear",
    "avoided_basis",
    "freeze",
]

Factors = tuple[torch.Tensor, torch.Tensor]
AVOIDED = ("principal", "minor", "random")
"""Which subspaces an update can be kept out of; `random` is the control of the other two."""


def _minor(weight: torch.Tensor, config: GeometricLoraConfig, rank: int) -> Factors:
    """The last `rank` singular triples (MiLoRA, arXiv 2406.09044, section 3)."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return _shared(left[:, -rank:], values[-rank:], right[-rank:])


def _geometric(weight: torch.Tensor, config: GeometricLoraConfig, rank: int) -> Factors:
    """The first `rank` singular triples of W ⊙ M, M as `GeometricLoraConfig` says."""
    basis = spectrum_and_basis(weight, rank=min(rank, *weight.shape))[1]
    reconstruction = basis.left @ (basis.left.T @ weight)
    kept = _low(reconstruction, config.low_share) | _low(weight, config.low_share)
    left, values, right = torch.linalg.svd(weight * kept, full_matrices=False)
    return _shared(left[:, :rank], values[:rank], right[:rank])


def _low(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """The round(share · m · n) entries of smallest size; ties go to the lower index."""
    chosen = select(magnitude_codes(matrix), round(share * matrix.numel()), side="smallest")
    return torch.from_numpy(unpack(chosen.mask, tuple(matrix.shape)))


def _shared(left: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> Factors:
    """(B, A) with B A = U Σ Vᵀ and the singular values shared out evenly."""
    root = values.clamp_min(0).sqrt()
    return left * root, root[:, None] * right


STARTS: Mapping[str, Callable[[torch.Tensor, Any, int], Factors]] = MappingProxyType(
    {"milora": _minor, "geora": _geometric}
)
"""By the value of `init_lora_weights`: what the adapter takes over from the base."""


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze parts of a model's adapters for good.

    PEFT makes every part trainable whenever it switches an adapter on again, and TRL's reference
    switches it off and on.
    """
    for layer in model.modules() if parts else ():
        if isinstance(layer, BaseTunerLayer):
            kind: type = type(layer)
            layer.__class__ = _frozen(kind, parts)
            _freeze(layer, parts)


@functools.cache
def _frozen(kind: type, parts: tuple[str, ...]) -> type:
    class Frozen(kind):  # type: ignore[misc]
        def set_adapter(self, *names: Any, **more: Any) -> None:
            super().set_adapter(*names, **more)
            _freeze(self, parts)

    Frozen.__name__ = Frozen.__qualname__ = kind.__name__
    return Frozen


def _freeze(layer: Any, parts: tuple[str, ...]) -> None:
    for part in parts:
        getattr(layer, part).requires_grad_(False)


class ProjectedLinear(nn.Linear):
    """A linear layer that computes with the projection of its weight, and saves the projection.

    side "in": W (I − Q Qᵀ); side "out": (I − Q Qᵀ) W, with the columns of Q (features, k)
    orthonormal, in float32 whatever the model is cast to. `weight` itself is free, so that any
    optimizer may move it.
    """

    basis: torch.Tensor

    def __init__(self, plain: nn.Linear, basis: torch.Tensor, side: str) -> None:
        super().__init__(
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            device="meta",
            dtype=plain.weight.dtype,
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.side = side
        self.register_buffer("basis", basis.to(plain.weight.device), persistent=False)

    def projected(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        """The projection of `weight`, by default the layer's own, in its dtype."""
        given = self.weight if weight is None else weight
        free = given.to(torch.promote_types(given.dtype, torch.float32))
        with torch.autocast(free.device.type, enabled=False):  # whose products are bfloat16's
            once = self._away(free)
            # Where nearly all is taken away, what is left is rounding, which has to go once more.
            little = once.detach().norm() < 0.1 * free.detach().norm()
            return torch.where(little, self._away(once), once).to(given.dtype)

    def _away(self, free: torch.Tensor) -> torch.Tensor:
        basis = self.basis.to(free.dtype)
        if self.side == "in":
            return free - (free @ basis) @ basis.T
        return free - basis @ (basis.T @ free)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x W̃ᵀ + b."""
        return nn.functional.linear(input, self.projected(), self.bias)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ProjectedLinear:
        basis = self.basis
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.basis = basis.to(self.basis.device)  # in half precision it would not be orthonormal
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with torch.no_grad():
            destination[f"{prefix}weight"] = self.projected().detach()


class GeometricLinear(Linear):  # type: ignore[misc]
    """PEFT's LoRA layer with the starts and the projection of `GeometricLoraConfig`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **more: Any) -> None:
        plain = base_layer.get_base_layer() if isinstance(base_layer, Linear) else base_layer
        turned = isinstance(plain, Conv1D)
        config.fan_in_fan_out = turned  # PEFT sees to it for its own layers alone
        super().__init__(base_layer, adapter_name, config, is_target_conv_1d_layer=turned, **more)

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: Any, **more: Any
    ) -> None:
        """Make the adapter; ours differs from LoRA only where its config asks for it."""
        start = STARTS.get(config.init_lora_weights)
        if start is not None:
            plain = copy.copy(config)
            plain.init_lora_weights = True
            super().update_layer(adapter_name, r, lora_alpha, config=plain, **more)
            self._take_over(adapter_name, start, config)
            return
        super().update_layer(adapter_name, r, lora_alpha, config=config, **more)
        if getattr(config, "avoid_rank", 0) != 0:
            self._project(adapter_name, config)

    def _oriented(self) -> torch.Tensor:
        """The base weight as (out, in), float64."""
        weight = self.get_base_layer().weight.detach()
        if weight.is_meta:
            raise InputError(
                "the base's weights are on the meta device, and the adapter starts from them; "
                "load the model first"
            )
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise InputError(
                f"a base in {weight.dtype} has codes, not weights, to take singular vectors of; "
                "load it in bfloat16 or wider"
            )
        return cast("torch.Tensor", (weight.T if self.fan_in_fan_out else weight).double())

    @torch.no_grad()
    def _take_over(self, name: str, start: Callable[..., Factors], config: Any) -> None:
        """Move what `start` finds from the base into the adapter: W₀ = (W₀ − s B₀A₀) + s B₀A₀."""
        weight, rank, scaling = self._oriented(), self.r[name], self.scaling[name]
        if rank > min(weight.shape):
            raise InputError(
                f"rank {rank}: a weight {tuple(weight.shape)} has {min(weight.shape)} singular "
                "values; choose a lower rank, or other target modules"
            )
        up, down = start(weight, config, rank)
        alive = int((up.square().sum(dim=0) > 1e-14 * weight.norm()).sum())
        if alive < rank:
            raise InputError(
                f"{config.init_lora_weights}: only {alive} of the {rank} directions that it takes "
                f"of a weight {tuple(weight.shape)} are not 0, and the others would never train; "
                "choose a lower rank, other target modules or, for geora, a larger low_share"
            )
        for layer, factor in ((self.lora_B[name], up), (self.lora_A[name], down)):
            layer.weight.copy_(factor / scaling**0.5)
        stored = scaling * self.lora_B[name].weight.double() @ self.lora_A[name].weight.double()
        left = weight - stored
        base = self.get_base_layer().weight
        base.copy_(rounded(left.T if self.fan_in_fan_out else left, base.dtype))

    def _project(self, name: str, config: Any) -> None:
        basis = avoided_basis(self._oriented(), config)
        if basis is None:
            return
        left, right = basis
        self.lora_A[name] = ProjectedLinear(self.lora_A[name], right.float(), "in")
        self.lora_B[name] = ProjectedLinear(self.lora_B[name], left.float(), "out")

    fan_in_fan_out: bool

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """s B A, with B and A as the layer computes with them; (out, in), or as the base stores."""
        down, up = self.lora_A[adapter], self.lora_B[adapter]
        if not isinstance(down, ProjectedLinear):
            return cast("torch.Tensor", super().get_delta_weight(adapter))
        scaling: float = self.scaling[adapter]
        found: torch.Tensor = scaling * (up.projected() @ down.projected())
        return found.T if self.fan_in_fan_out else found


def avoided_basis(weight: torch.Tensor, config: Any) -> Factors | None:
    """Orthonormal (out, k) and (in, k) of the subspaces to keep out of; None for k = 0.

    weight: (out, in), float64. Raises InputError where k leaves nothing to train.
    """
    rows, cols = weight.shape
    rank = principal_rank(rows, cols) if config.avoid_rank is None else config.avoid_rank
    if rank == 0:
        return None
    if rank >= min(rows, cols):
        raise InputError(
            f"avoid_rank {rank}: a weight {rows}x{cols} has {min(rows, cols)} singular directions, "
            "so nothing would be left to train; choose fewer"
        )
    if config.avoid == "principal":
        basis = spectrum_and_basis(weight, rank=rank)[1]
        return basis.left, basis.right
    if config.avoid == "minor":
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        return left[:, -rank:], right[-rank:].T
    mark = zlib.crc32(weight.float().cpu().numpy().tobytes())  # no two weights draw alike
    generator = torch.Generator().manual_seed(config.avoid_seed + mark)
    draws = [torch.randn(size, rank, generator=generator).double() for size in (rows, cols)]
    left, right = (torch.linalg.qr(draw).Q.to(weight.device) for draw in draws)
    return left, right
