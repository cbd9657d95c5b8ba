"""LoRA, rsLoRA and DoRA: settings, and the effective weight in float64.

- LoRA (arXiv 2106.09685): W = W0 + s B A, s = alpha / r.
- rsLoRA (arXiv 2312.03732): s = alpha / sqrt(r).
- DoRA (arXiv 2402.09353): W = m (W0 + s B A) / ||W0 + s B A||, the norm over each output's row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from offaxis.errors import CheckpointError

__all__ = ["LoraSettings", "effective_weight"]

_OVERWRITE = ("pissa", "olora", "corda", "loftq", "lora_ga")
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
    def parse(cls, source: str, config: Mapping[str, object]) -> LoraSettings:
        """Read and check `adapter_config.json`.

        Raises CheckpointError for another PEFT method, for an initialisation that overwrites the
        base, and for variants that are no fixed change of a weight.
        """
        method = str(config.get("peft_type", "")).upper()
        if method != "LORA":
            _refuse(source, f"the PEFT method {method or '(none named)'} is not supported", _MERGE)
        _check_initialisation(source, config.get("init_lora_weights", True))
        for key, what in _UNSUPPORTED.items():
            if config.get(key):
                _refuse(source, f"{key}: the adapter {what}, which is not supported", _MERGE)
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


def _check_initialisation(source: str, value: object) -> None:
    """Refuse what overwrites the base: there W0 is not the base's weight."""
    if value is None or isinstance(value, bool):
        return
    name = str(value).lower()
    if name.startswith(_OVERWRITE):
        _refuse(
            source,
            f"init_lora_weights = {value!r} overwrites the base when training starts, so the "
            "update is BA - B0A0 and needs the initial adapter, which is not in the directory",
            "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain "
            "LoRA of it, or compare the merged model",
        )
    if name not in _KEEP:
        _refuse(source, f"init_lora_weights = {value!r} is not known", _MERGE)


def effective_weight(
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    *,
    scaling: float,
    transposed: bool,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight that the adapted module computes with, float64, in the base's orientation.

    weight: (out, in), or (in, out) if transposed (Conv1D, embeddings). down, up: A (r, in) and
    B (out, r). magnitude: DoRA's m, (out,).
    """
    delta = scaling * (up.double() @ down.double())
    result = weight.double() + (delta.T if transposed else delta)
    if magnitude is not None:
        axis = 0 if transposed else 1
        norm = torch.linalg.vector_norm(result, dim=axis, keepdim=True)
        result = result * (magnitude.double().reshape(norm.shape) / norm)
    return result
