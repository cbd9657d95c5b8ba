"""Command-line tools that make deltas of any files, run as processes: they work on files alone.

`zstd -L --patch-from`: its window is made large enough for both files (`--long`), one thread (more
make no difference at level 3); frames carry XXH64. `xdelta3 -e -s`: as it comes, with a source
window (`-B`) as large as the base where that is above its default of 64 MiB; Adler-32.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from offaxis.delta.folder import open_folder

_SMALL_PAIR = 8 << 20  # bytes up to which the slow level 19 is run unasked


@dataclass(frozen=True)
class Tool:
    """A program with the arguments that pack and apply; BASE, TUNED, DELTA and OUT are put in."""

    name: str
    pack: tuple[str, ...]
    apply: tuple[str, ...]

    def run(self, which: str, files: dict[str, Path]) -> None:
        words = self.pack if which == "pack" else self.apply
        for name, path in files.items():
            words = tuple(word.replace(name, str(path)) for word in words)
        subprocess.run(words, check=True, capture_output=True)


def _zstd(level: int, size: int) -> Tool:
    window = max(27, min(31, size.bit_length() + 1))
    common = ("zstd", "-q", "-f", "--patch-from=BASE", f"--long={window}")
    return Tool(f"zstd -{level} --patch-from", (*common, f"-{level}", "TUNED", "-o", "DELTA"),
                (*common, "-d", "DELTA", "-o", "OUT"))  # fmt: skip


def _xdelta(size: int) -> Tool:
    window = max(1 << 26, min(1 << 31, 1 << (size - 1).bit_length()))
    common = ("xdelta3", "-q", "-f", "-B", str(window))
    return Tool("xdelta3", (*common, "-e", "-s", "BASE", "TUNED", "DELTA"),
                (*common, "-d", "-s", "BASE", "DELTA", "OUT"))  # fmt: skip


def tools(size: int, *, slow: bool) -> list[Tool]:
    """Those that are installed, for files of so many bytes."""
    found = []
    if shutil.which("zstd"):
        found.append(_zstd(3, size))
        if slow or size <= _SMALL_PAIR:
            found.append(_zstd(19, size))
    if shutil.which("xdelta3"):
        found.append(_xdelta(size))
    return found


def versions() -> str:
    """As the tools say it themselves."""
    found = []
    for name, words in (("zstd", ("zstd", "--version")), ("xdelta3", ("xdelta3", "-V"))):
        if shutil.which(name) is None:
            found.append(f"{name} not installed")
            continue
        said = subprocess.run(words, check=False, capture_output=True, text=True)
        number = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
        found.append(f"{name} {number[0] if number else '?'}")
    return ", ".join(found)


def one_file(path: Path, scratch: Path) -> Path:
    """The weights as one file: shards, which the tools do not know of, one behind the other."""
    if path.is_file():
        return path
    with scratch.open("wb") as out:
        for source in open_folder(path).weights:
            with source.header.path.open("rb") as shard:
                shutil.copyfileobj(shard, out, 1 << 22)
    return scratch
