"""Recognise quantised checkpoints from config and headers, and say why they are refused.

Codes are not weights: two equal codes with different scales are different weights, and one
changed scale changes a whole block. Comparing codes would give numbers that mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from offaxis.checkpoint.dtypes import FLOATS, WIDTHS
from offaxis.checkpoint.types import TensorSpec

__all__ = ["quantised"]

_SIGNS = re.compile(
    r"(?:^|\.)(?:qweight|qzeros|g_idx|SCB|absmax|nested_absmax|quant_map|nested_quant_map|"
    r"weight_scale|weight_scale_inv|weight_scale_2|weight_scales|input_scale|weight_packed|"
    r"weight_zero_point|weight_format|bitsandbytes__\w+)$"
    r"|\.quant_state\."
)
_CODES = frozenset({"F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_HARMLESS = frozenset({"BOOL", "C64"})
_REMEDY = "dequantise it first (save the dequantised model in bfloat16) and compare that"


def quantised(config: Mapping[str, object], specs: Mapping[str, TensorSpec]) -> str | None:
    """The reason why this checkpoint holds codes rather than weights, with the remedy, or None.

    Signs, in this order: tensors that only quantised formats have (`qweight`, `absmax`, `SCB`,
    `weight_scale_inv`, ...), sub-byte or scale dtypes, integers where a weight should be, and
    `quantization_config` beside weights that are not all 16-bit or wider floats.
    """
    method = _method(config)
    suffix = f" ({method})" if method else ""
    for name, spec in specs.items():
        if _SIGNS.search(name):
            return f"quantised{suffix}: tensor {name!r} is part of a quantised weight; {_REMEDY}"
        if WIDTHS[spec.dtype] < 8 or spec.dtype in _CODES:
            return f"quantised{suffix}: tensor {name!r} has the dtype {spec.dtype}; {_REMEDY}"
        if _packed(spec):
            return (
                f"quantised{suffix}: weight {name!r} {spec.shape} holds {spec.dtype} codes; "
                f"{_REMEDY}"
            )
    narrow = [spec for spec in specs.values() if spec.dtype.startswith("F8")]
    if method and narrow:
        return f"quantised{suffix}: weight {narrow[0].name!r} is {narrow[0].dtype}; {_REMEDY}"
    return None


def _packed(spec: TensorSpec) -> bool:
    """An integer tensor under the name of a weight."""
    if spec.dtype in FLOATS or spec.dtype in _HARMLESS:
        return False
    return spec.name.endswith(("weight", "_proj", "_blocks", "_scales")) and len(spec.shape) >= 1


def _method(config: Mapping[str, object]) -> str:
    """The method that `quantization_config` names, or an empty string."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping):
            found = holder.get("quantization_config") or holder.get("compression_config")
            if isinstance(found, Mapping):
                return str(found.get("quant_method") or "quantization_config in config.json")
    return ""
