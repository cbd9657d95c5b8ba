"""The libraries behind a lab result: that they are there, and in which versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from offaxis.errors import InputError

__all__ = ["library_versions", "require_training_libraries"]

_LIBRARIES = ("offaxis", "torch", "transformers", "trl", "datasets", "accelerate", "safetensors")


def library_versions() -> dict[str, str | None]:
    """Version of Python and of each library that touches a result; None where it is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def require_training_libraries() -> None:
    """Raise InputError where the extra `train`, which the lab needs, is not installed."""
    absent = [name for name in ("transformers", "trl", "datasets") if find_spec(name) is None]
    if absent:
        raise InputError(
            f"the lab needs {', '.join(absent)}: install them with pip install 'offaxis[train]'"
        )
