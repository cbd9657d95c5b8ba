"""LoRA, rsLoRA and DoRA: settings, and the effective weight in float64.

- LoRA (arXiv 2106.09685): W = W0 + s B A, s = alpha / r.
- rsLoRA (arXiv 2312.03732): s = alpha / sqrt(r).
- DoRA (arXiv 2402.09353): W = m (W0 + s B A) / ||W0 + s B A||, the norm over each output's row.
- Where the start was taken out of the base (PiSSA, arXiv 2404.02948, and kin), W0 - s B0 A0 stands
  in the place of W0, with the initial factors B0 and A0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from offaxis.errors import CheckpointError

__all__ = ["LoraSettings", "effective_weight", "overwrites", "unsupported"]

_OVERWRITE = ("pissa", "olora", "corda", "lora_ga", "milora", "geora")
_KEEP = ("gaussian", "eva", "orthogonal", "mica")
_UNSUPPORTED = {
    "trainable_token_indices": "trains single rows of the embedding",
    "layer_replication": "repeats layers of the base",
    "target_parameters": "adapts bare parameters (stacked experts)",
    "alora_invocation_tokens": "acts only after its invocation tokens (aLoRA)",
    "use_qalora": "pools the inputs (QALoRA)",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "kasa_config": "truncates the base's singular values (KaSA)",
    "monteclora_config": "samples its weights (MonteCLoRA)",
    "arrow_config": "routes between adapters (Arrow)",
}
_MERGE = "merge it into its base with PEFT (merge_and_unload) and compare the merged model"
_WRITE = (
    "write the weights that it makes with offaxis.train.adapters.materialize, and compare those"
)


@dataclass(frozen=True)
class LoraSettings:
    """What `adapter_config.json` says about the arithmetic of a LoRA adapter."""

    source: str
    rank: int
    alpha: float
    rank_stabilised: bool
    dora: bool
    fan_in_fan_out: bool
    rank_pattern: Mapping[str, object]
    alpha_pattern: Mapping[str, object]

    @classmethod
    def parse(
        cls, source: str, config: Mapping[str, object], *, initial: bool = False
    ) -> LoraSettings:
        """Read and check `adapter_config.json`. initial: is the initial adapter at hand?

        Raises CheckpointError for another PEFT method, for an initialisation that overwrites the
        base without the initial adapter, and for variants that are no fixed change of a weight.
        """
        method = str(config.get("peft_type", "")).upper()
        if method != "LORA":
            _refuse(source, f"the PEFT method {method or '(none named)'} is not LoRA", _WRITE)
        _check_initialisation(source, config.get("init_lora_weights", True), initial=initial)
        if reason := unsupported(config):
            _refuse(source, reason, _MERGE)
        rank, alpha = config.get("r"), config.get("lora_alpha")
        if type(rank) is not int or rank < 1 or not _positive(alpha):
            _refuse(source, f"r = {rank!r}, lora_alpha = {alpha!r}", "repair adapter_config.json")
        assert isinstance(alpha, int | float)  # _positive says so
        return cls(
            source=source,
            rank=rank,
            alpha=float(alpha),
            rank_stabilised=config.get("use_rslora") is True,
            dora=config.get("use_dora") is True,
            fan_in_fan_out=config.get("fan_in_fan_out") is True,
            rank_pattern=_pattern(source, config, "rank_pattern"),
            alpha_pattern=_pattern(source, config, "alpha_pattern"),
        )

    def scaling(self, module: str, rank: int) -> float:
        """s of one module: alpha / r, or alpha / sqrt(r) for rsLoRA.

        rank: rows of the module's A. Raises CheckpointError where the config says another.
        """
        expected = self._lookup(self.rank_pattern, module, self.rank)
        if expected != rank:
            _refuse(
                self.source,
                f"{module} has rank {rank}, adapter_config.json says {expected}",
                "the config and the weights are not of one adapter: save it again",
            )
        alpha = self._lookup(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def _lookup(self, pattern: Mapping[str, object], module: str, default: float) -> float:
        """The first pattern that matches the end of the module's path, as PEFT looks it up."""
        for key, value in pattern.items():
            try:
                found = re.match(rf"(.*\.)?({key})$", module)
            except re.error as error:
                raise CheckpointError(
                    f"{self.source}: pattern {key!r} is no regular expression ({error}); "
                    "repair adapter_config.json"
                ) from error
            if found:
                if not _positive(value):
                    _refuse(self.source, f"{key!r}: {value!r}", "repair adapter_config.json")
                assert isinstance(value, int | float)  # _positive says so
                return value
        return default


def _refuse(source: str, what: str, remedy: str) -> NoReturn:
    raise CheckpointError(f"{source}: {what}; {remedy}")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _pattern(source: str, config: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        _refuse(source, f"{key} is no mapping", "repair adapter_config.json")
    return value


def overwrites(initialisation: object) -> bool:
    """Whether this `init_lora_weights` takes a low-rank part out of the base."""
    return isinstance(initialisation, str) and initialisation.lower().startswith(_OVERWRITE)


def unsupported(config: Mapping[str, object]) -> str | None:
    """Why a LoRA configuration is no fixed change of single weights, in words; None where it is."""
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            return f"{key}: the adapter {what}, which is not supported"
    return None


def _check_initialisation(source: str, value: object, *, initial: bool) -> None:
    """Refuse what overwrites the base, unless what it took is known: W0 is not there any more."""
    if value is None or isinstance(value, bool):
        return
    name = str(value).lower()
    if overwrites(value):
        if not initial:
            _refuse(
                source,
                f"init_lora_weights = {value!r} overwrites the base when training starts, so the "
                "update is BA - B0A0 and needs the initial adapter, which is not in the directory",
                "put it into the subfolder ref (offaxis.train.prepare_peft_model keeps it there), "
                "or write the weights of the model in memory with "
                "offaxis.train.adapters.materialize, and compare those",
            )
    elif name.startswith("loftq"):
        _refuse(
            source, f"init_lora_weights = {value!r} replaces the base by a quantised one", _MERGE
        )
    elif name not in _KEEP:
        _refuse(source, f"init_lora_weights = {value!r} is not known", _MERGE)


def effective_weight(
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    *,
    scaling: float,
    transposed: bool,
    magnitude: torch.Tensor | None = None,
    initial: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The weight that the adapted module computes with, float64, in the base's orientation.

    weight: (out, in), or (in, out) if transposed (Conv1D, embeddings). down, up: A (r, in) and
    B (out, r). magnitude: DoRA's m, (out,). initial: (A0, B0) where s B0 A0 was taken from weight.
    """
    change = up.double() @ down.double()
    if initial is not None:
        change = change - initial[1].double() @ initial[0].double()
    delta = scaling * change
    result = weight.double() + (delta.T if transposed else delta)
    if magnitude is not None:
        axis = 0 if transposed else 1
        norm = torch.linalg.vector_norm(result, dim=axis, keepdim=True)
        result = result * (magnitude.double().reshape(norm.shape) / norm)
    return result
