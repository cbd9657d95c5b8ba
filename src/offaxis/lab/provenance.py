"""The libraries behind a lab result: that they are there, and in which versions."""

from offaxis import provenance

__all__ = ["library_versions", "require_training_libraries"]


def library_versions() -> dict[str, str | None]:
    """Version of Python and of each library that touches a result; None where it is not there."""
    return provenance.library_versions(
        "transformers", "trl", "datasets", "accelerate", "safetensors"
    )


def require_training_libraries() -> None:
    """Raise InputError where the extra `train`, which the lab needs, is not installed."""
    provenance.require_training_libraries("the lab")
