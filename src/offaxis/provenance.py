"""The libraries behind a result: that they are there, and in which versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from offaxis.errors import InputError

__all__ = ["library_versions", "require_training_libraries"]


def library_versions(*libraries: str) -> dict[str, str | None]:
    """Version of Python, offaxis, torch and each named library; None where it is not there."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("offaxis", "torch", *libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def require_training_libraries(what: str) -> None:
    """Raise InputError where the extra `train`, which `what` needs, is not installed."""
    absent = [name for name in ("transformers", "trl", "datasets") if find_spec(name) is None]
    if absent:
        raise InputError(
            f"{what} needs {', '.join(absent)}: install them with pip install 'offaxis[train]'"
        )
