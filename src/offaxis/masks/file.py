"""Masks in files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from offaxis.masks.mask import Mask

__all__ = ["load", "save"]


def save(mask: Mask, path: Path) -> None:
    raise NotImplementedError


def load(path: str | PathLike[str]) -> Mask:
    raise NotImplementedError
