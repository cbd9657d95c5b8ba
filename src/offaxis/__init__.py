"""offaxis: where post-training moves a language model's weights, beside the nulls.

Everything public hangs on this module and loads on first use, so that `import offaxis` costs
next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offaxis import delta, gates, intervene, masks, predict, train
    from offaxis.checkpoint import Checkpoint, describe, open_checkpoint
    from offaxis.comparison import Comparison, ManyComparison, compare, compare_manifest
    from offaxis.errors import OffaxisError

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "Comparison",
    "ManyComparison",
    "OffaxisError",
    "__version__",
    "compare",
    "compare_manifest",
    "delta",
    "describe",
    "gates",
    "intervene",
    "masks",
    "open_checkpoint",
    "predict",
    "train",
]

_HOME = {
    "Checkpoint": "offaxis.checkpoint",
    "Comparison": "offaxis.comparison",
    "ManyComparison": "offaxis.comparison",
    "OffaxisError": "offaxis.errors",
    "compare": "offaxis.comparison",
    "compare_manifest": "offaxis.comparison",
    "describe": "offaxis.checkpoint",
    "open_checkpoint": "offaxis.checkpoint",
}
_MODULES = frozenset({"delta", "gates", "intervene", "masks", "predict", "train"})


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` on first use (PEP 562)."""
    if name in _MODULES:
        return import_module(f"offaxis.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'offaxis' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
