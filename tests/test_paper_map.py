"""docs/paper-map.md and docs/nulls-at-scale.md: commands parse, and figures are what is printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from offaxis.cli.app import build
from offaxis.comparison.contribution.numbers import AVERAGED
from offaxis.comparison.contribution.reading import read_contribution
from offaxis.comparison.contribution.shared import SHARED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAP, SCALE = DOCS / "paper-map.md", DOCS / "nulls-at-scale.md"
PAGES = (MAP, SCALE)
FENCE = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ONE_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> Iterator[str]:
    """Every `offaxis ...` of a page, fenced or inline."""
    text = text_of(page)
    for block in FENCE.findall(text):
        if block.startswith("offaxis "):
            yield from re.split(r"\n(?=offaxis )", block.strip())
    yield from re.findall(r"`(offaxis [^`]+)`", FENCE.sub("", text))


def arguments(command: str) -> list[str]:
    return shlex.split(" ".join(command.replace("\\\n", " ").split("\n")))[1:]


class WrongCommand(Exception):
    """What the command line would refuse."""


def parse(words: list[str]) -> None:
    """Raise WrongCommand unless the command line takes these words. Nothing runs."""
    command: Any = typer.main.get_command(build())
    context = command.context_class(command, info_name="offaxis")
    while hasattr(command, "get_command"):
        name, *words = words
        found = command.get_command(context, name)
        if found is None:
            raise WrongCommand(name)
        command, context = found, found.context_class(found, parent=context, info_name=name)
    try:
        command.make_context(context.info_name, words, parent=context.parent)
    except Exception as error:  # typer's own copy of click has no public name
        if "UsageError" not in [kind.__name__ for kind in type(error).__mro__]:
            raise
        raise WrongCommand(str(error)) from error


@ONE_PAGE
def test_every_command_parses(page: Path) -> None:
    found = list(commands(page))
    assert len(found) > 10
    for command in found:
        parse(arguments(command))


@pytest.mark.parametrize(
    "wrong", ["compares A B --out C", "compare A B --outs C", "lab tables X", "pool", "gates --x"]
)
def test_a_wrong_command_does_not(wrong: str) -> None:
    with pytest.raises(WrongCommand):
        parse(shlex.split(wrong))


def unrun() -> set[str]:
    """Studies whose page has no result yet: their queue has not been run."""
    empty = ("*No runs yet.*", "<!-- block: state -->\n<!-- end -->")
    pages = (DOCS / f"{name}.md" for name in ("causal", "verdict"))
    waiting = [one for one in pages if any(mark in text_of(one) for mark in empty)]
    return {f"docs/studies/{one.stem}" for one in waiting}


@ONE_PAGE
def test_every_file_that_is_named_exists(page: Path) -> None:
    for command in commands(page):
        for word in arguments(command):
            if word.startswith("docs/"):
                assert (ROOT / word).exists() or word in unrun(), word
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(text_of(file)), target


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    outside = re.split(r"^```.*$", text, flags=re.MULTILINE)[::2]
    headings = re.findall(r"^#+ (.*)$", "\n".join(outside), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", one.lower()) for one in headings)
    return {one.replace(" ", "-") for one in plain}


def test_every_interval_stands_in_a_page_that_shows_it() -> None:
    shown = {text_of(one) for one in DOCS.glob("*.md") if one not in PAGES}
    found = [
        one
        for page in PAGES
        for line in text_of(page).splitlines()
        for one in re.findall(r"\[[−+]?\d[\d.]*, [−+]?\d[\d.]*\]", line)
    ]
    assert len(found) > 40
    assert [one for one in found if not any(one in text for text in shown)] == []


def printed() -> Iterator[tuple[str, str]]:
    """Commands of the map with the block of output that follows each."""
    text = text_of(MAP)
    for match in re.finditer(r"^```\n(offaxis (?:lab table|pool) .*?)^```\n```\n(.*?)^```$", text,
                             re.DOTALL | re.MULTILINE):  # fmt: skip
        yield match[1], match[2]


def test_commands_print_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pairs = list(printed())
    assert len(pairs) == 8
    for command, output in pairs:
        done = CliRunner().invoke(build(), arguments(command))
        assert done.exception is None, command
        lines = {" ".join(line.split()) for line in done.output.splitlines()}
        wanted = [" ".join(line.split()) for line in output.splitlines()]
        assert wanted
        assert [line for line in wanted if line not in lines] == [], command


def numbers(cell: str, word: str) -> set[int]:
    """`Fig. 2, 9, 14` and `Fig. 15 to 18` as numbers."""
    found: set[int] = set()
    for part in re.findall(rf"{word} ((?:\d+(?:, | to )?)+)", cell):
        for one in part.strip(", ").split(", "):
            first, _, last = one.partition(" to ")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def test_nothing_of_the_paper_is_left_out() -> None:
    own = text_of(MAP).split("## Other papers")[0]
    rows = [line for line in own.splitlines() if line.startswith("| ")]
    cells = [row.split("|")[1].strip() for row in rows]
    assert set.union(*(numbers(cell, r"Fig\.") for cell in cells)) == set(range(1, 21))
    assert set.union(*(numbers(cell, "Table") for cell in cells)) == {1, 2, 3, 4, 5}
    told = " ".join(cells)
    numbered = {"2.1", "2.2", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "C.1"}
    numbered |= {f"D.{n}" for n in range(1, 5)} | {f"E.{n}" for n in range(1, 14)}
    missing = [one for one in numbered if not re.search(rf"(?<![\d.]){re.escape(one)}(?!\d)", told)]
    assert missing == []
    for row in rows:
        assert row.count(" | ") == 4, row


def test_measures_that_are_named_exist() -> None:
    known = {*AVERAGED, *SHARED}
    sent = read_contribution(DOCS / "studies" / "contribution.json")
    known |= {*sent, *sent["pairs"][0], *sent["pairs"][0]["numbers"], *sent["pairs"][0]["counts"]}
    known |= {"implausible_base", "learning_rate", "relative_update_norm"}
    assert set(sent["pairs"][0]["means"]) <= set(AVERAGED)
    for word in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", text_of(SCALE)):
        assert word in known, word
