"""Each module imports only what stands above it (DESIGN.md, section 5), read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "offaxis"

ORDER = (
    "errors",
    "names",
    "linalg",
    "kernels",
    "measures",
    "checkpoint",
    "output",
    "provenance",
    "masks",
    "delta",
    "table",
    "report",
    "comparison",
    "predict",
    "intervene",
    "live",
    "verifiers",
    "evaluate",
    "gates",
    "train",
    "lab",
    "cli",
)
ONLY_IN = {
    "transformers": {"live", "evaluate", "train", "lab"},
    "trl": {"train", "lab"},
    "peft": {"train"},
}
REPORT_READS = {"errors", "names", "output", "table", "report"}
MATHS = {"linalg", "kernels", "measures"}
FILE_MODULES = {"io", "pathlib", "shutil", "tempfile", "mmap", "safetensors", "polars"}
FILE_CALLS = {"open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "load",
              "loadtxt", "save", "savez", "fromfile", "tofile", "memmap", "from_file"}  # fmt: skip


def layer_of(path: Path, source: Path) -> str:
    return path.relative_to(source).parts[0].removesuffix(".py")


def package_of(path: Path, source: Path) -> list[str]:
    """The dotted package in which `path` lies, for relative imports."""
    return ["offaxis", *path.relative_to(source).parent.parts]


def imports(path: Path, source: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top, in a function or for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path, source)
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            if origin == "offaxis":
                yield from (f"offaxis.{alias.name}" for alias in node.names)
            else:
                yield origin


def offences(source: Path) -> list[str]:
    """Every breach of the layering, in words."""
    found = []
    for path in sorted(source.rglob("*.py")):
        layer, where = layer_of(path, source), path.relative_to(source)
        if layer in ("__init__", "__main__"):
            continue
        if layer not in ORDER:
            found.append(f"{where}: has no place in the order")
            continue
        for name in imports(path, source):
            top, *rest = name.split(".")
            allowed = ONLY_IN.get(top)
            if allowed is not None and layer not in allowed:
                found.append(f"{where}: imports {top}, which only {sorted(allowed)} may")
            if layer in MATHS and top in FILE_MODULES:
                found.append(f"{where}: maths imports {top}")
            if top != "offaxis" or not rest or rest[0] == "__version__":
                continue
            if rest[0] not in ORDER:
                found.append(f"{where}: imports {name} through the package, not from its module")
            elif ORDER.index(rest[0]) > ORDER.index(layer):
                found.append(f"{where}: imports {name}, which stands below it")
            elif layer == "report" and rest[0] not in REPORT_READS:
                found.append(f"{where}: imports {name}; the report reads tables only")
        if layer in MATHS:
            found += [f"{where}: maths calls {call}" for call in file_calls(path)]
            found += [f"{where}: {name} under TYPE_CHECKING" for name in hidden(path)]
    return found


def file_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            owner = getattr(getattr(called, "value", None), "id", "")
            if name in FILE_CALLS and owner != "builder":  # LLVM's, which loads from memory
                yield name


def hidden(path: Path) -> Iterator[str]:
    """Imports of torch or jaxtyping that shape checks would not see."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in ast.walk(node):
                names = [a.name for a in inner.names] if isinstance(inner, ast.Import) else []
                if isinstance(inner, ast.ImportFrom):
                    names = [inner.module or ""]
                yield from (n for n in names if n.split(".")[0] in ("torch", "jaxtyping"))


def test_every_module_imports_only_what_stands_above_it() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > 40, "the source is where this test looks"
    assert offences(SOURCE) == []


@pytest.mark.parametrize(
    ("where", "line", "complaint"),
    [
        ("linalg.py", "from offaxis.kernels import scan", "stands below it"),
        ("linalg.py", "from offaxis import kernels", "stands below it"),
        ("measures/x.py", "from ..checkpoint import align", "stands below it"),
        ("measures/x.py", "def f():\n    import offaxis.comparison", "stands below it"),
        ("names/x.py", "if TYPE_CHECKING:\n    from offaxis.table import Curve", "stands below it"),
        ("table.py", "from offaxis import compare", "through the package"),
        ("report/x.py", "from offaxis.measures import MEASURES", "reads tables only"),
        ("comparison/x.py", "import transformers", "imports transformers"),
        ("evaluate/x.py", "from trl.trainer import GRPOTrainer", "imports trl"),
        ("lab/x.py", "import peft", "imports peft"),
        ("kernels/x.py", "from pathlib import Path", "maths imports pathlib"),
        ("kernels/x.py", "with open('x') as f: pass", "maths calls open"),
        ("measures/x.py", "x = torch.load('x')", "maths calls load"),
        ("linalg.py", "if TYPE_CHECKING:\n    import torch", "under TYPE_CHECKING"),
        ("helpers.py", "x = 1", "no place in the order"),
    ],
)
def test_the_check_can_fail(tmp_path: Path, where: str, line: str, complaint: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    found = offences(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("comparison/x.py", "from offaxis.comparison.summary import verdict\nimport offaxis"),
        ("cli/compare.py", "from offaxis.comparison import compare"),
        ("measures/x.py", "from .number import Number\nimport torch"),
        ("train/x.py", "import trl, peft, transformers"),
    ],
)
def test_the_check_can_pass(tmp_path: Path, where: str, line: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert offences(tmp_path) == []
