"""The lab: a small, real, verifiable world in which claims about post-training are re-run.

It needs the extra `train` (transformers, trl, datasets). The bundled base lies in `BASE`.
"""

from pathlib import Path

__all__ = ["BASE"]

BASE = Path(__file__).parent / "base"
"""The bundled base model: bfloat16, 1 006 096 parameters; its README.md says how it was made."""
