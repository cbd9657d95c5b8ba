"""The page of pairs in a real browser: sorted, grouped and drawn by real clicks and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import offaxis
from browser import Browser
from manifests import PAIRS, write_models, write_table
from offaxis.comparison import ManyComparison
from offaxis.report.pairs import render_pairs
from test_report_browser import BOXES, PLOT_TEXT, STACKED, choose, drawn
from test_report_pairs import HOSTILE

OVERFLOW = BOXES.replace('"svg, ', '"svg, .scroller, ')
"""Wide tables scroll in a box of their own."""

ORDER = "[...document.querySelectorAll('#pairs tbody th')].map(one => one.textContent)"
SORTED = (
    "[...document.querySelectorAll('#pairs thead [aria-sort]')].filter(one => one.ariaSort "
    "!== 'none').map(one => [one.textContent, one.ariaSort])"
)
MANIFEST = [tuned.removeprefix("runs/") for _, tuned, *_ in PAIRS]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ManyComparison:
    home = write_models(tmp_path_factory.mktemp("home"))
    return offaxis.compare_manifest(write_table(home / "pairs.csv", PAIRS))


@pytest.fixture(scope="module")
def pages(found: ManyComparison, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    own = found.pairs.select(found.columns)
    hostile = own.rename({"algorithm": HOSTILE}).with_columns(
        base=pl.Series([f"{HOSTILE}{base}" for base in own["base"]]),
        data=pl.Series([HOSTILE, *own["data"][1:]]),
    )
    summary = {**found.summary(), "base": HOSTILE}
    alone = {**summary, "base": "x", "pairs": summary["pairs"][-1:]}
    texts = {
        "full": found.report(),
        "hostile": render_pairs(hostile, found.measurements, summary),
        "alone": render_pairs(own[-1:], found.measurements, alone),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def click(browser: Browser, selector: str) -> None:
    """Press the mouse on an element, after scrolling to it."""
    node = f"document.querySelector({selector!r})"
    browser.evaluate(f"{node}.scrollIntoView({{block: 'center', inline: 'center'}})")
    x, y = browser.evaluate(
        f"(() => {{ const b = {node}.getClientRects()[0]; "
        "return [b.left + b.width / 2, b.top + b.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def press(browser: Browser, key: str, code: int, text: str = "") -> None:
    shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    more = {"text": text} if text else {}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **shared, **more)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **shared)


@pytest.mark.parametrize("page", ["full", "hostile", "alone"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1030, True), (1440, False)])
def test_pages_fit_and_fetch_nothing(
    browser: Browser, pages: dict[str, Path], page: str, width: int, dark: bool
) -> None:
    browser.open(pages[page], width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(wide) <= 0
    assert browser.evaluate(OVERFLOW) == []
    assert browser.evaluate(PLOT_TEXT) == []
    assert browser.evaluate(STACKED) == []
    assert browser.evaluate("typeof window.hacked") == "undefined"


def column(found: ManyComparison, key: str) -> int:
    """The place of a measure in the table."""
    from offaxis.report.pairs_columns import MEASURES

    own = len(found.columns) - 1
    return own + [measure.key for measure in MEASURES].index(key)


@pytest.mark.parametrize("key", ["unchanged_bf16", "nss", "principal_overlap_excess"])
def test_a_click_sorts_by_number_and_the_undefined_stay_last(
    browser: Browser, pages: dict[str, Path], found: ManyComparison, key: str
) -> None:
    browser.open(pages["full"], 1440)
    frame = found.pairs.with_columns(pl.col("name").str.strip_prefix("runs/"))
    selector = f"#pairs button[data-column='{column(found, key)}']"
    for turn, descending in (("ascending", False), ("descending", True)):
        click(browser, selector)
        want = frame.sort(key, descending=descending, nulls_last=True)["name"].to_list()
        assert browser.evaluate(ORDER) == want
        ((_, state),) = browser.evaluate(SORTED)
        assert state == turn
        assert turn in browser.evaluate("document.getElementById('sorted').textContent")
    click(browser, selector)
    assert browser.evaluate(ORDER) == MANIFEST
    assert browser.evaluate(SORTED) == []
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("place", "want"),
    [(2, ["d", "a", "c", "b", "e"]), (4, ["a", "c", "b", "e", "d"]), (0, MANIFEST)],
    ids=["words", "numbers that are text", "names"],
)  # fmt: skip
def test_the_users_columns_sort_too(
    browser: Browser, pages: dict[str, Path], place: int, want: list[str]
) -> None:
    browser.open(pages["full"], 1440)
    click(browser, f"#pairs button[data-column='{place}']")
    assert browser.evaluate(ORDER) == want


def test_the_keyboard_sorts_too(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1440)
    browser.evaluate("document.querySelector('#pairs button[data-column=\"1\"]').focus()")
    press(browser, "Tab", 9)
    focused = "document.activeElement.dataset.column"
    assert browser.evaluate(focused) == "2", "each header is a stop"
    press(browser, "Enter", 13, "\r")
    assert browser.evaluate(ORDER) == ["d", "a", "c", "b", "e"]
    press(browser, " ", 32, " ")
    assert browser.evaluate(SORTED) == [["algorithm", "descending"]]
    assert browser.evaluate(ORDER) == ["b", "e", "a", "c", "d"]
    assert browser.evaluate(focused) == "2", "the focus stays"


def test_one_group_is_shown_at_a_time(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1440)
    shown = (
        "[...document.querySelectorAll('.grouped')].filter(one => one.offsetHeight)"
        ".map(one => one.querySelector('caption').textContent)"
    )
    assert browser.evaluate(shown) == ["By algorithm"]
    assert browser.evaluate(choose("group", 3)) == "base"
    assert browser.evaluate(shown) == ["By base"]


def test_the_scatter_follows_its_controls(
    browser: Browser, pages: dict[str, Path], found: ManyComparison
) -> None:
    browser.open(pages["full"], 1440)
    place = "document.getElementById('plot-pairs')"
    marks = f"{place}.querySelectorAll('.scatterlayer path.point').length"
    legend = "document.getElementById('legend-pairs').textContent"
    assert browser.evaluate(f"{place}.layout.xaxis.type") == "log"
    assert browser.evaluate(marks) == 4, "the unmoved pair has no place on a log scale"
    left_out = "document.getElementById('left-out').textContent"
    assert browser.evaluate(left_out).endswith(": e.")
    assert browser.evaluate(legend) == "GRPOSFTDAPO"
    seen = [browser.evaluate(drawn("pairs"))]
    for control, index in (("x", 9), ("y", 3), ("colour", 3)):
        browser.evaluate(choose(control, index))
        seen.append(browser.evaluate(drawn("pairs")))
    assert len(set(seen)) == 4
    assert browser.evaluate(legend) == "onetwo"
    browser.evaluate(choose("colour", 4))
    assert browser.evaluate(legend) == ""
    browser.evaluate(choose("y", 1))
    unchanged = found.pairs["unchanged_bf16"].to_list()[:4]
    assert browser.evaluate(f"{place}.data[0].y") == unchanged, "the unmoved pair has no overlap"
    assert browser.complaints() == []


def test_the_theme_changes_page_and_plot(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1440)
    look = (
        "[getComputedStyle(document.body).backgroundColor, document.getElementById('plot-pairs')"
        ".layout.font.color, document.getElementById('theme').ariaPressed]"
    )
    light = browser.evaluate(look)
    browser.evaluate("document.getElementById('theme').click()")
    dark = browser.evaluate(look)
    assert all(one != two for one, two in zip(light, dark, strict=True))


def test_controls_have_labels(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 390)
    bare = "[...document.querySelectorAll('select')].filter(s => s.labels.length !== 1).length"
    assert browser.evaluate(bare) == 0


def test_paper_holds_the_whole_table(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 1047, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    right: Any = browser.evaluate("document.getElementById('pairs').getBoundingClientRect().right")
    assert right <= 1047
    assert browser.evaluate("document.documentElement.dataset.theme") == "light"
    browser.call("Emulation.setEmulatedMedia", media="")
