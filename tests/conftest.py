"""Shared set-up: shape checks switched on, one thread for torch, the real pairs where present."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

from browser import NAMES, Browser

_SOURCE = Path(__file__).parents[1] / "src" / "offaxis"


def _compiled_by() -> str:
    """A hash of all sources that numba compiles.

    numba's cache notices a change of the file that holds a function, not of the files whose
    functions it calls: after an edit of `kernels/bits.py` alone, the old scan would be tested.
    """
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob("*.py")):
        source = path.read_bytes()
        if b"numba" in source:
            digest.update(source)
    return digest.hexdigest()[:16]


_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "numba" / _compiled_by()
os.environ.setdefault("NUMBA_CACHE_DIR", str(_CACHE))  # before anything imports numba


def _checkable() -> list[str]:
    """Modules of `linalg` and `measures` whose functions carry shapes.

    The hook wraps every function of a module, and numba cannot compile a wrapped one.
    """
    found = ["offaxis.linalg"]
    for path in sorted((_SOURCE / "measures").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "from jaxtyping import" in text and "numba" not in text:
            found.append(f"offaxis.measures.{path.stem}")
    return found


SHAPE_CHECKED = _checkable()
install_import_hook(SHAPE_CHECKED, "beartype.beartype")  # before anything imports them

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs() -> Path:
    """The real pairs that lie beside the repository, which do not ship with it."""
    found = Path(__file__).parents[2] / "shared" / "data" / "pairs"
    if not (found / "base" / "model.safetensors").is_file():
        pytest.skip(f"no real pairs at {found} (local test material, see DESIGN.md section 6)")
    return found


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny lab model that often fails, made once for all workers of pytest-xdist."""
    from lab_base import small_model

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made = root / "lab-base"
    with FileLock(root / "lab-base.lock"):
        if not made.exists():
            small_model(root / "lab-base.part").rename(made)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless chromium; its absence skips, or fails where a browser is required."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        words = f"no browser: none of {', '.join(NAMES)} is on the path; install chromium"
        if os.environ.get("OFFAXIS_REQUIRE_BROWSER") == "1":
            pytest.fail(words)
        pytest.skip(words)
    client = Browser(program, tmp_path_factory.mktemp("profile"))
    yield client
    client.close()
